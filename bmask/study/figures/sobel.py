"""Fig. 7b: the Sobel mask head."""

from typing import Dict, List, Sequence

import numpy as np
import torch

from ...boundary import sobel
from .. import predictions, stats
from ..evaluate import boundary_quality
from ..runs import Run
from .style import Drawn, Panel, crop, iou, pictures, spread

VARIANTS = ("sobel_mask_head", "sobel_mask_head_light")
LIMIT = 2  # of the colours: half the response to an edge from 0 to 1. Few responses are larger


def draw(_, kept: Dict[Run, Sequence[str]]) -> Drawn:
    images, found = predictions.load_all(kept)
    full, light = (next(found[run] for run in found if run.variant == name) for name in VARIANTS)
    ious, light_ious = (
        np.array([iou(mask > 0.5, truth) for mask, truth in zip(head.masks, images.roi_masks)])
        for head in (full, light)
    )
    rows = {}
    for words, n in zip(("a poor mask", "a typical one", "a good one"), spread(ious)):
        mask, boundary, light_mask, light_boundary = (
            Panel(maps[n].astype(np.float32), contour=images.roi_masks[n])
            for maps in (full.masks, full.boundaries, light.masks, light.boundaries)
        )
        x, y = sobel(torch.from_numpy(mask.background)[None])[0].numpy()
        rows[f"{words},\nIoU {ious[n]:.2f}"] = {
            "image": Panel(crop(images, n)),
            "mask": mask,
            "Sobel, x": Panel(x, signed=LIMIT),
            "Sobel, y": Panel(y, signed=LIMIT),
            "boundary": boundary,
            "mask, $L_b$ / 10": light_mask,
            "boundary, $L_b$ / 10": light_boundary,
        }
    scales = {
        ("mask",): "probability",
        ("Sobel, x", "Sobel, y"): "response (an edge from 0 to 1 has 4)",
        ("boundary", "boundary, $L_b$ / 10"): "probability",
    }
    (recall, precision), (light_recall, light_precision) = (_shares(images, head) for head in (full, light))
    caption = (
        f"The masks of the Sobel head have a mean IoU of {100 * ious.mean():.0f}%, and trained with a tenth of the "
        f"boundary loss (right) of {100 * light_ious.mean():.0f}%. It finds {recall} of the true boundary, and "
        f"{precision} of what it draws is right, to within one pixel; with the tenth {light_recall} and "
        f"{light_precision}. Two convolutions make its boundary of the Sobel operator, in x and y, of its own mask "
        "(blue: falling, yellow: rising). What has a probability above 0.5 counts. In brackets: 95% intervals over "
        f"images. Rows: the masks whose IoU is at the 10th, 50th and 90th percentile of the {len(ious)} objects of the "
        f"first {len(images.pictures)} test images. The line is the true contour."
    )
    return {"figure7b": (pictures(rows, scales=scales), caption)}


def _shares(images: predictions.Images, found: predictions.Predictions) -> List[str]:
    """Recall and precision of the boundaries, in percent."""
    quality = boundary_quality(torch.from_numpy(found.boundaries).float(), torch.from_numpy(images.roi_boundaries))
    shares = []
    for name in ("recall", "precision"):
        mean = stats.mean_of_objects([(images.image_of, 100 * quality[name].numpy())])
        low, high = mean.interval
        shares.append(f"{mean.mean:.0f}% [{low:.0f}, {high:.0f}]".replace("nan", "–"))
    return shares
