"""From an instance mask to its boundary (Section 3.3, "Boundary Groundtruths")."""

from typing import Tuple

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes
from torch.nn import functional as F

PIXELS_AT_ONCE = 2**22  # of an image that masks are pasted in


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
    while len(boundaries):
        # The outside, 0, comes in from beyond the border, one pixel further each time.
        weakest_neighbour = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1)), kernel_size=3, stride=1)
        held = torch.maximum(boundaries, weakest_neighbour)
        if torch.equal(held, inside):
            break
        inside = held
    return inside


def strongest_boundaries(boundaries: torch.Tensor, boxes: Boxes, size: Tuple[int, int]) -> torch.Tensor:
    """An image's boundaries: at each pixel the strongest of its instances'.

    Args:
        boundaries: (R, S, S), in [0, 1], in the R boxes.
        size: H and W, pixels.

    Returns:
        (H, W), in [0, 1], in steps of 1/255; 0 everywhere without instances.
    """
    strongest = boundaries.new_zeros(size, dtype=torch.uint8)
    for one, box in zip(boundaries, boxes):
        torch.maximum(strongest, pasted(one, box, size, threshold=-1), out=strongest)
    return strongest / 255


def pasted(
    values: torch.Tensor, box: torch.Tensor, size: Tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """What a head gives for one box, put where the box is in its image, as detectron2 does, with little memory.

    detectron2 computes some 12 bytes for each pixel of a box at once: more than a large image itself takes.

    Args:
        values: (S, S), in [0, 1].
        box: (4,), x0 y0 x1 y1 in pixels.
        size: H and W, pixels.
        threshold: from which values on a pixel is in the mask; negative for the values themselves.

    Returns:
        (H, W), bool, or uint8 from 0 to 255.
    """
    whole = values.new_zeros(size, dtype=torch.bool if threshold >= 0 else torch.uint8)
    rows = max(1, PIXELS_AT_ONCE // size[1])
    first, last = max(0, int(box[1]) - 1), min(size[0], int(box[3]) + 2)
    for top in range(first // rows * rows, last, rows):
        band = whole[top : top + rows]
        moved = (box - box.new_tensor([0, top, 0, top]))[None]
        band[:] = paste_masks_in_image(values[None], moved, tuple(band.shape), threshold)[0]
    return whole
