"""Figs. 2, 3 and 8: masks of Mask R-CNN and BMask R-CNN."""

from typing import Dict, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from .. import predictions
from ..paste import strongest_boundaries
from ..predictions import Images, Predictions
from ..runs import Run
from .style import COLOURS, OURS, SYSTEMS, TRUTH, Drawn, Panel, iou, pictures

FILLS = [to_rgb(colour) for colour in ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00")]
VIEW, FINE = 1.6, 320  # of an object: the side by that of its box, and the pixels that it is drawn with
ENLARGED = 0.4  # of a view


def draw(_, kept: Dict[Run, Sequence[str]]) -> Drawn:
    images, found = predictions.load_all(kept)
    found = {run.variant: predicted.masks for run, predicted in found.items()}
    ious = {v: np.array([iou(m > 0.5, t) for m, t in zip(masks, images.roi_masks)]) for v, masks in found.items()}
    change = 100 * (ious["bmask_rcnn"] - ious["mask_rcnn"])
    order, rows = np.argsort(change, kind="stable"), {}
    chosen = {"largest gain": order[-1], "median": order[len(order) // 2], "largest loss": order[0]}
    for words, n in chosen.items():
        rows[f"{words}:\n{change[n]:+.0f} points of IoU"] = _row(images, found, n)
    (first, base), (second, ours) = ((SYSTEMS[v], 100 * ious[v].mean()) for v in found)
    gains = (change > 0).mean()
    caption = (
        f"In their true boxes {100 * gains:.0f}% of {len(change)} objects have a better mask by {second} than by "
        f"{first}; the mean IoU is {ours:.1f}% for {second} and {base:.1f}% for {first}, of one training each. "
        "Shown are, in dotted boxes, the object whose IoU gains most, the median one, and the one that loses most, of "
        f"all in {len(images.pictures)} test images. Enlarged is where the two masks differ most."
    )
    credits = [images.credits[images.image_of[n]] for n in chosen.values()]
    caption += f" Photographs: {'; '.join(credits)}." if all(credits) else ""
    legend = {TRUTH: "truth", **{COLOURS[v]: name for v, name in SYSTEMS.items()}}
    return {"figure2": (pictures(rows, side=1.8, legend=legend), caption)}


def _row(images: Images, found: Dict[str, np.ndarray], n: int) -> Dict[str, Panel]:
    """The picture around object n with the true masks and those of two models, and a part of it with contours."""
    picture, inside = images.pictures[images.image_of[n]], np.flatnonzero(images.image_of == images.image_of[n])
    inside = np.append(inside[inside != n], n)  # above the others
    x0, y0, x1, y1 = images.boxes[n]
    side = VIEW * max(x1 - x0, y1 - y0)
    view = _window((x0 + x1) / 2, (y0 + y1) / 2, side, picture.shape)
    scale, (rows, columns) = FINE / side, view
    start, end = [columns.start, rows.start], [columns.stop, rows.stop]
    meets = (images.boxes[inside, :2] < end).all(axis=1) & (images.boxes[inside, 2:] > start).all(axis=1)
    inside = inside[meets]
    height, width = size = [round(scale * (part.stop - part.start)) for part in view]
    fine = cv2.resize(picture[view], (width, height), interpolation=cv2.INTER_CUBIC)
    boxes = scale * (images.boxes[inside] - np.tile(start, 2))
    true = [cv2.resize(images.masks[m][view].astype(np.float32), (width, height)) > 0.5 for m in inside]
    masks = {"truth": true}
    for variant, name in SYSTEMS.items():
        given = torch.from_numpy(found[variant][inside]), Boxes(torch.from_numpy(boxes).float())
        masks[name] = paste_masks_in_image(*given, size).numpy()
    row = {name: Panel(_filled(fine, shown)) for name, shown in masks.items()}
    row["truth"] = row["truth"]._replace(box=boxes[-1])
    own = {name: shown[-1] for name, shown in masks.items()}
    apart = (own["Mask R-CNN"] ^ own["BMask R-CNN"]).astype(np.float32)
    enlarged = round(ENLARGED * FINE)
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.boxFilter(apart, -1, (enlarged, enlarged), borderType=cv2.BORDER_CONSTANT))
    part = _window(x, y, enlarged, size)
    colours = (TRUTH, *(COLOURS[v] for v in SYSTEMS))
    row["enlarged"] = Panel(fine[part], [(mask[part], c) for mask, c in zip(own.values(), colours)])
    return row


def _window(x: float, y: float, side: float, shape: Sequence[int]) -> Tuple[slice, slice]:
    """Rows and columns of the square around a point, moved and cut so that it lies within a picture."""
    starts = (
        int(np.clip(middle - side / 2, 0, max(0, size - side))) for middle, size in ((y, shape[0]), (x, shape[1]))
    )
    return tuple(slice(start, min(start + round(side), size)) for start, size in zip(starts, shape))


def _filled(picture: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """The picture with each mask in a colour of its own, its contour darker."""
    shown = picture.astype(np.float32)
    for k, mask in enumerate(masks):
        colour = 255 * np.array(FILLS[k % len(FILLS)], np.float32)
        shown[mask] = 0.45 * shown[mask] + 0.55 * colour
        edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        shown[edge] = 0.35 * colour
    return shown.astype(np.uint8)


def shown_images(run: Run, count: int) -> Figure:
    """The first test images with their truth, and what a run finds in them and where it sees boundaries."""
    images, found = predictions.load_images([run]), predictions.load(run, ["found"])
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
