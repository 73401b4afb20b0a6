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
    return (laplacian(masks) > threshold).float()


def laplacian(masks: torch.Tensor) -> torch.Tensor:
    """The response of masks (R, H, W) to the Laplacian operator, (R, H, W), float32; beyond them is background."""
    operator = masks.new_full((1, 1, 3, 3), -1, dtype=torch.float32)
    operator[0, 0, 1, 1] = 8
    return F.conv2d(masks[:, None].float(), operator, padding=1)[:, 0]


def sobel(maps: torch.Tensor) -> torch.Tensor:
    """The Sobel operator in x and y (Section 4.4, Fig. 7b): large where a map rises from left to right, or downwards.

    What lies beyond the map counts as 0, as for :func:`boundary_targets`.

    Args:
        maps: (R, H, W), float.

    Returns:
        (R, 2, H, W), x before y.
    """
    x = maps.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    return F.conv2d(maps[:, None], torch.stack([x, x.t()])[:, None], padding=1)


def enclosed(boundaries: torch.Tensor) -> torch.Tensor:
    """How surely each pixel lies on or within a boundary: the way from a boundary back to its mask.

    Every path from a pixel to the outside crosses some strongest boundary pixel; the weakest of these, over all
    paths, is what holds the pixel in. A closed boundary of strength s gives s everywhere inside, whatever its
    shape; a gap lets the outside in. Of :func:`boundary_targets` of a mask without holes this is the mask.

    Args:
        boundaries: (R, H, W), in [0, 1].

    Returns:
        (R, H, W), in [0, 1].
    """
    inside = torch.ones_like(boundaries)
    for _ in range(boundaries[0].numel() if len(boundaries) else 0):  # at most: with NaN nothing is ever equal
        # The outside, 0, comes in from beyond the border, one pixel further each time.
        weakest_neighbour = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1)), kernel_size=3, stride=1)
        held = torch.maximum(boundaries, weakest_neighbour)
        if torch.equal(held, inside):
            break
        inside = held
    return inside
