"""The losses of Section 3.3 and of Table 7.

All functions take logits or probabilities and targets of shape (R, H, W), R instances of one map each, and
return a scalar: the mean over instances. Without instances they return a zero that keeps the graph, so that
every rank of a distributed job has the same gradients to exchange.
"""

from typing import Dict, Optional

import torch
from torch.nn import functional as F

from .boundary import boundary_targets

BOUNDARY_LOSSES = ("bce", "weighted_bce", "dice", "dice_bce")
SUPERVISIONS = ("boundary", "mask", "none")
# Of a head that learns boundaries, by the names of its parameters; capitalised, keys of MODEL.BOUNDARY_MASK_HEAD.
OPTIONS = ("supervision", "loss", "loss_weight", "bce_weight", "dice_squared", "threshold", "output_boundaries")


def dice_loss(
    probabilities: torch.Tensor, targets: torch.Tensor, squared: bool = True, eps: float = 1.0
) -> torch.Tensor:
    """Dice loss of each instance, averaged (Eq. 3).

    Args:
        probabilities: (R, H, W), in [0, 1].
        targets: (R, H, W), in {0, 1}.
        squared: sums of squares in the denominator, as in Eq. 3; plain sums, as in the released code, if False.
        eps: the smoothing term of Eq. 3.
    """
    if len(probabilities) == 0:
        return probabilities.sum() * 0
    p, y = probabilities.flatten(1), targets.flatten(1)
    overlap = (p * y).sum(1)
    size = (p.square() + y.square()).sum(1) if squared else (p + y).sum(1)
    return (1 - (2 * overlap + eps) / (size + eps)).mean()


def bce_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, averaged over pixels and instances: Mask R-CNN's mask loss and Eq. 2's L_BCE."""
    if len(logits) == 0:
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits, targets)


def weighted_bce_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Class-balanced binary cross-entropy, as in HED (Table 7, "Weighted BCE").

    In each instance the boundary pixels are weighted by the share of the others, and the others by the share
    of the boundary pixels. The weights are not normalised: an instance without boundary has no loss.
    """
    if len(logits) == 0:
        return logits.sum() * 0
    positive_share = targets.mean(dim=(1, 2), keepdim=True)
    weights = torch.where(targets > 0.5, 1 - positive_share, positive_share)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=weights)


def boundary_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    kind: str = "dice_bce",
    bce_weight: float = 1.0,
    dice_squared: bool = True,
) -> torch.Tensor:
    """The boundary loss L_b (Eq. 2, and the alternatives of Table 7).

    Args:
        logits: (R, H, W).
        targets: (R, H, W), in {0, 1}.
        kind: one of ``BOUNDARY_LOSSES``.
        bce_weight: lambda of Eq. 2; of use to ``dice_bce`` alone.
        dice_squared: see :func:`dice_loss`.
    """
    if kind == "bce":
        return bce_loss(logits, targets)
    if kind == "weighted_bce":
        return weighted_bce_loss(logits, targets)
    if kind == "dice":
        return dice_loss(logits.sigmoid(), targets, dice_squared)
    if kind == "dice_bce":
        return dice_loss(logits.sigmoid(), targets, dice_squared) + bce_weight * bce_loss(logits, targets)
    raise ValueError(f"unknown boundary loss {kind!r}: choose one of {', '.join(BOUNDARY_LOSSES)}")


def joint_losses(
    mask_logits: torch.Tensor,
    boundary_logits: Optional[torch.Tensor],
    masks: torch.Tensor,
    supervision: str = "boundary",
    threshold: float = 0.0,
    weight: float = 1.0,
    **options,
) -> Dict[str, torch.Tensor]:
    """L_mask and L_b of Eq. 4, ``loss_mask`` and ``loss_boundary``; the latter where there are logits for it.

    Args:
        mask_logits, boundary_logits: (R, H, W).
        masks: (R, H, W), in {0, 1}.
        supervision: what the boundary branch learns, ``boundary`` or ``mask`` (Table 4).
        threshold: see :func:`bmask.boundary.boundary_targets`.
        weight: of the boundary loss; 1 in Eq. 4.
        options: of :func:`boundary_loss`.
    """
    losses = {"loss_mask": bce_loss(mask_logits.float(), masks)}
    if boundary_logits is not None:
        targets = masks if supervision == "mask" else boundary_targets(masks, threshold)
        losses["loss_boundary"] = weight * boundary_loss(boundary_logits.float(), targets, **options)
    return losses


def check_options(supervision: str, kind: str) -> None:
    """Raise ValueError for what is not known of them."""
    for name, value, known in (("supervision", supervision, SUPERVISIONS), ("loss", kind, BOUNDARY_LOSSES)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
