"""What the mask heads of this package have in common: losses in training, and the instances' fields after it."""

from typing import List, Optional

import torch
from detectron2.layers import Conv2d
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F

from .losses import joint_losses
from .mask_scoring import instance_areas, mask_iou_loss, mask_iou_targets


class JointHead:
    """A head sets ``loss_options``, of :func:`bmask.losses.joint_losses`, and ``mask_iou_head``, which may be None.

    In the shapes R is the number of RoIs of all images of a batch, C the number of channels of the feature maps, M the
    side of the mask's RoI features.
    """

    def outputs(
        self,
        roi_features: torch.Tensor,
        mask_logits: torch.Tensor,
        boundary_logits: Optional[torch.Tensor],
        classes: torch.Tensor,
        instances: List[Instances],
    ):
        """
        Args:
            roi_features: (R, C, M, M).
            mask_logits, boundary_logits: (R, 2M, 2M); None for boundaries that are not learned, or not asked for.
            classes: (R,), the class of each RoI.
            instances: in training the foreground proposals, with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``;
                at inference the detections, with ``pred_boxes``, ``pred_classes`` and, for mask scoring, ``scores``.

        Returns:
            In training ``loss_mask`` and ``loss_boundary`` (L_mask and L_b of Eq. 4), and ``loss_mask_iou`` with mask
            scoring. At inference ``instances`` with ``pred_masks`` and ``pred_boundaries``, (R_n, 1, 2M, 2M) in [0, 1],
            and ``mask_scores`` (R_n,) with mask scoring.
        """
        ious = None if self.mask_iou_head is None else self.mask_iou_head(roi_features, mask_logits, classes)
        if self.training:
            side = mask_logits.shape[-1]
            masks = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side) for x in instances if len(x)]
            masks = torch.cat(masks).float() if masks else torch.zeros_like(mask_logits, dtype=torch.float32)
            losses = joint_losses(mask_logits, boundary_logits, masks, **self.loss_options)
            if ious is not None:
                targets = mask_iou_targets(mask_logits, masks, instance_areas(instances, side))
                losses["loss_mask_iou"] = mask_iou_loss(ious.float(), targets)
            return losses
        fields = {"pred_masks": mask_logits[:, None].sigmoid()}
        if boundary_logits is not None:
            fields["pred_boundaries"] = boundary_logits[:, None].sigmoid()
        if ious is not None:
            fields["mask_scores"] = torch.cat([x.scores for x in instances]) * ious
        for name, values in fields.items():
            for x, value in zip(instances, values.split([len(x) for x in instances])):
                x.set(name, value)
        return instances


def laid_out(rois: torch.Tensor, multiple: int) -> torch.Tensor:
    """RoI features as convolutions take them fastest: channels last, and on a GPU a multiple of RoIs.

    Their number changes from image to image, and cuDNN plans anew for each shape that it has not met. The zeros that
    fill up a multiple change no output and no gradient: :func:`predict_class` leaves them out.
    """
    if rois.is_cuda:
        rois = F.pad(rois, (0,) * 7 + (-len(rois) % multiple,))
    return rois.contiguous(memory_format=torch.channels_last)


def undecided(layer: Conv2d) -> Conv2d:
    """The layer, started as detectron2 starts one of logits."""
    nn.init.normal_(layer.weight, std=0.001)
    nn.init.zeros_(layer.bias)
    return layer


def predict_class(x: torch.Tensor, predictor: Conv2d, classes: torch.Tensor) -> torch.Tensor:
    """Logits (R, S, S) of the class of each RoI, from (R or more, D, S, S); the other classes' are never computed."""
    x = x[: len(classes)]
    if predictor.out_channels == 1:
        return predictor(x)[:, 0]
    weight, bias = predictor.weight[classes, :, 0, 0], predictor.bias[classes]
    return torch.einsum("rchw,rc->rhw", x, weight) + bias[:, None, None]
