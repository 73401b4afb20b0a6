"""Figs. 2, 3 and 8: masks of Mask R-CNN and BMask R-CNN."""

from typing import Dict, List, Sequence

import numpy as np
import pandas as pd
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes
from matplotlib.figure import Figure

from .. import predictions
from ..paste import strongest_boundaries
from ..predictions import Images, Predictions
from ..runs import Run
from .style import COLOURS, OURS, TRUTH, Drawn, Panel, iou, pictures


def draw(_, kept: Dict[Run, Sequence[str]]) -> Drawn:
    images, found = predictions.load_all(kept)
    found = {run.variant: predicted for run, predicted in found.items()}
    pasted = {v: [_pasted(p, images, k) for k in range(len(images.pictures))] for v, p in found.items()}
    ious = {v: _best_ious(images, found[v], pasted[v]) for v in found}
    change = pd.Series(ious["bmask_rcnn"] - ious["mask_rcnn"])
    gain = change.groupby(images.image_of).mean().sort_values(kind="stable")  # of images with objects
    number, rows = len(gain), {}
    for words, k in (
        ("largest gain", gain.index[-1]),
        ("median", gain.index[number // 2]),
        ("largest loss" if gain.iloc[0] < 0 else "smallest gain", gain.index[0]),
    ):
        inside = np.flatnonzero(images.image_of == k)
        n = inside[change.abs()[inside].argmax()]
        picture = images.pictures[k]
        ours = found["bmask_rcnn"]
        outlines = [(images.masks[m], TRUTH) for m in inside]
        row = {"ground truth": Panel(picture, outlines, box=images.boxes[n])}
        for variant, name in (("mask_rcnn", "Mask R-CNN"), ("bmask_rcnn", "BMask R-CNN")):
            outlines = [(mask, COLOURS[variant]) for mask in pasted[variant][k]]
            row[name] = Panel(picture, outlines)
        row["boundaries"] = Panel(_boundaries(ours, images, k))
        row["RoI: truth"] = Panel(images.roi_masks[n].astype(float))
        row["Mask R-CNN "] = Panel(found["mask_rcnn"].masks[n].astype(float))
        row["BMask R-CNN "] = Panel(ours.masks[n].astype(float))
        row["its boundary"] = Panel(ours.boundaries[n].astype(float))
        rows[f"{words} ({100 * gain[k]:+.0f})"] = row
    caption = (
        f"Ground truth, detections with a score of {predictions.MIN_SCORE} or more, and the boundaries that BMask "
        f"R-CNN predicts for them. Of the first {number} test images those are shown in which the mean IoU of the "
        "objects, each with the best mask of its class, changes most for the better, as the median, and most for "
        "the worse (in brackets: by how many points). Right: for the object in the dotted box, the one that "
        "changes most, the truth and the raw 28x28 predictions in its true box. The mean change over the "
        f"{number} images is {100 * gain.mean():+.1f} points; in {(gain > 0).sum()} it is a gain, in "
        f"{(gain < 0).sum()} a loss."
    )
    return {"figure2": (pictures(rows, side=1.0), caption)}


def shown_images(run: Run, count: int) -> Figure:
    """The first test images with their truth, and what a run finds in them and where it sees boundaries."""
    images, found = predictions.load_all({run: ["found"]})
    (found,) = found.values()
    rows = {}
    for k in range(min(count, len(images.pictures))):
        picture, inside = images.pictures[k], np.flatnonzero(images.image_of == k)
        rows[f"image {k + 1}"] = {
            "ground truth": Panel(picture, [(images.masks[n], TRUTH) for n in inside]),
            run.variant: Panel(picture, [(mask, OURS) for mask in _pasted(found, images, k)]),
        }
        if found.found_boundaries is not None:
            rows[f"image {k + 1}"]["boundaries"] = Panel(_boundaries(found, images, k))
    return pictures(rows, side=1.8)


def _pasted(found: Predictions, images: Images, k: int) -> np.ndarray:
    """The masks detected in picture k: (D, H, W), bool."""
    masks, boxes, size = _detected(found, images, k, found.found_masks)
    return paste_masks_in_image(masks, boxes, size).bool().numpy()


def _boundaries(found: Predictions, images: Images, k: int) -> np.ndarray:
    """The strongest boundary of what is detected in picture k: (H, W), in [0, 1]."""
    return strongest_boundaries(*_detected(found, images, k, found.found_boundaries)).numpy()


def _detected(found: Predictions, images: Images, k: int, maps: np.ndarray):
    """Of picture k: those of the maps (D, 28, 28), their boxes, and the picture's height and width."""
    here = found.found_in == k
    boxes = Boxes(torch.from_numpy(found.found_boxes[here]))
    return torch.from_numpy(maps[here]).float(), boxes, images.pictures[k].shape[:2]


def _best_ious(images: Images, found: Predictions, pasted: List[np.ndarray]) -> np.ndarray:
    """(N,): for each object the IoU of the best mask of its class."""
    best = np.zeros(len(images.masks))
    for n, (k, mask) in enumerate(zip(images.image_of, images.masks)):
        candidates = pasted[k][found.found_classes[found.found_in == k] == images.classes[n]]
        best[n] = max((iou(candidate, mask) for candidate in candidates), default=0)
    return best
