"""Fig. 7b: the Sobel mask head."""

from typing import Dict, Sequence

import numpy as np
import torch

from ...boundary import sobel
from .. import predictions, stats
from ..evaluate import boundary_quality
from ..runs import Run
from .style import Drawn, Panel, crop, iou, pictures, spread

LIMIT = 2  # of the colours: half the response to an edge from 0 to 1. Few responses are larger


def draw(_, kept: Dict[Run, Sequence[str]]) -> Drawn:
    images, found = predictions.load_all(kept)
    (found,) = found.values()
    ious = np.array([iou(mask > 0.5, truth) for mask, truth in zip(found.masks, images.roi_masks)])
    rows = {}
    for words, n in zip(("a poor mask", "a typical one", "a good one"), spread(ious)):
        mask, contour = found.masks[n].astype(np.float32), images.roi_masks[n]
        x, y = sobel(torch.from_numpy(mask)[None])[0].numpy()
        rows[f"{words},\nIoU {ious[n]:.2f}"] = {
            "image": Panel(crop(images, n)),
            "predicted mask": Panel(mask, contour=contour),
            "Sobel, x": Panel(x, signed=LIMIT),
            "Sobel, y": Panel(y, signed=LIMIT),
            "predicted boundary": Panel(found.boundaries[n].astype(float), contour=contour),
        }
    scales = {
        ("predicted mask",): "probability",
        ("Sobel, x", "Sobel, y"): "response (an edge from 0 to 1 has 4)",
        ("predicted boundary",): "probability",
    }
    quality = boundary_quality(torch.from_numpy(found.boundaries).float(), torch.from_numpy(images.roi_boundaries))
    recall, precision = (
        stats.mean_of_objects([(images.image_of, 100 * quality[name].numpy())]) for name in ("recall", "precision")
    )
    caption = (
        f"The Sobel mask head finds {_share(recall)} of the true boundary, and {_share(precision)} of what it draws is "
        "right, to within one pixel. Two convolutions make its boundary of the Sobel operator, in x and y, of its own "
        "mask (blue: falling, yellow: rising). What has a probability above 0.5 counts. In brackets: 95% intervals "
        f"over images. Rows: the masks whose IoU is at the 10th, 50th and 90th percentile of the {len(ious)} objects "
        f"of the first {len(images.pictures)} test images. The line is the true contour."
    )
    return {"figure7b": (pictures(rows, side=1.2, scales=scales), caption)}


def _share(found: stats.Estimate) -> str:
    low, high = found.interval
    return f"{found.mean:.0f}% [{low:.0f}, {high:.0f}]".replace("nan", "–")
