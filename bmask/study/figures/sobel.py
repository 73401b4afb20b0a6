"""Fig. 7b: the Sobel mask head."""

from typing import Dict, Sequence

import numpy as np
import torch

from ...boundary import sobel
from .. import predictions
from ..runs import Run
from .style import Drawn, Panel, crop, iou, pictures, quantiles


def draw(_, kept: Dict[Run, Sequence[str]]) -> Drawn:
    images, found = predictions.load_all(kept)
    (found,) = found.values()
    ious = np.array([iou(mask > 0.5, truth) for mask, truth in zip(found.masks, images.roi_masks)])
    rows = {}
    for words, n in quantiles(ious, (0.1, 0.5, 0.9)):
        mask = torch.from_numpy(found.masks[n]).float()
        x, y = sobel(mask[None])[0].numpy()
        rows[f"{words}: IoU {ious[n]:.2f}"] = {
            "image": Panel(crop(images, n)),
            "mask": Panel(mask.numpy()),
            "Sobel, x": Panel(x, signed=True),
            "Sobel, y": Panel(y, signed=True),
            "boundary": Panel(found.boundaries[n].astype(float)),
            "true boundary": Panel(images.roi_boundaries[n].astype(float)),
        }
    caption = (
        "The Sobel mask head: the predicted mask, the Sobel operator in x and y of it (orange: falling, violet: "
        "rising), and the boundary that two convolutions make of these, beside the true one. Of the objects of "
        f"the first {len(images.pictures)} test images those whose mask has an IoU at the 10th, 50th and 90th "
        "percentile."
    )
    return {"figure7b": (pictures(rows, side=1.0), caption)}
