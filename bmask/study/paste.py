"""What a head gives for boxes, put where the boxes are in their image."""

from typing import Tuple

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes

PIXELS_AT_ONCE = 2**22  # of an image that masks are pasted in


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


def pasted(values: torch.Tensor, box: torch.Tensor, size: Tuple[int, int], threshold: float = 0.5) -> torch.Tensor:
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
