"""From an instance mask to its boundary (Section 3.3, "Boundary Groundtruths")."""

import torch
from torch.nn import functional as F


def boundary_targets(masks: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """The inner boundary of each mask: its pixels with at least one of eight neighbours outside.

    The mask is convolved with the Laplacian operator, ``8`` in the middle and ``-1`` around it, and
    the response is binarised at ``threshold``. What lies beyond the RoI counts as background, so a mask
    that is cut by the border of its RoI has a boundary along that border.

    Args:
        masks: (R, H, W), bool or any dtype with values 0 and 1.
        threshold: responses above it are boundary. The paper's is 0, the released code's 0.1; on binary
            masks, whose responses are whole numbers, both give the same targets.

    Returns:
        (R, H, W) float32 tensor of 0 and 1 on the device of ``masks``.
    """
    laplacian = masks.new_full((1, 1, 3, 3), -1, dtype=torch.float32)
    laplacian[0, 0, 1, 1] = 8
    response = F.conv2d(masks[:, None].float(), laplacian, padding=1)
    return (response[:, 0] > threshold).float()
