"""Fig. 5: RoI features for the boundary."""

from typing import Dict, List, Sequence

import numpy as np
import pandas as pd
import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes

from .. import predictions
from ..predictions import Images
from ..runs import Run
from .style import Drawn, Panel, pictures

LEVELS = {"p2": "#0072B2", "p3": "#E69F00", "p4": "#009E73", "p5": "#CC79A7"}
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # of detectron2's ROIPooler: a box of 224 pixels is pooled from P4


def draw(shown: List[Run], kept: Dict[Run, Sequence[str]]) -> Drawn:
    images = predictions.load_all(kept)[0]
    strategies = {run.variant: run.cfg for run in shown}
    levels = {v: [_levels(cfg, images, k) for k in range(len(images.pictures))] for v, cfg in strategies.items()}
    spread = [len(set(levels["bmask_rcnn_p2p5_14"][k])) for k in range(len(images.pictures))]
    k = int(np.argmax(spread))
    inside = np.flatnonzero(images.image_of == k)
    boxes = images.boxes[inside]
    largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    rows = {"RoIs": {}, "one RoI": {}}
    for variant, cfg in strategies.items():
        side, names = cfg.MODEL.BOUNDARY_MASK_HEAD.POOLER_RESOLUTION, cfg.MODEL.BOUNDARY_MASK_HEAD.IN_FEATURES
        heading = f"{'P2' if len(names) == 1 else 'P2 ~ P5'}, {side}x{side}"
        outlines = [
            (_filled(box, images.pictures[k].shape), LEVELS[level]) for box, level in zip(boxes, levels[variant][k])
        ]
        rows["RoIs"][heading] = Panel(images.pictures[k], outlines)
        stride = 2 ** int(levels[variant][k][largest][1:]) / _scale(cfg, images.pictures[k])
        rows["one RoI"][heading] = _sampled(images.pictures[k], boxes[largest], stride, side)
    share = pd.Series(np.concatenate(levels["bmask_rcnn_p2p5_14"])).value_counts(normalize=True).sort_index()
    words = ", ".join(f"{100 * value:.0f}% from {level.upper()}" for level, value in share.items())
    caption = (
        "The RoI features of the boundary in Table 5, drawn from the configuration of the runs. Above: the "
        f"objects of the test image with the most levels among the first {len(images.pictures)}, outlined in the "
        "colour of the level that the boundary features are pooled from. Below: the largest of these RoIs, at "
        "the resolution of its level, and the points where RoIAlign puts the middles of its bins. Pooled by "
        f"scale, the objects of these images come {words} (detectron2 pools a box of {CANONICAL_SIZE} pixels of "
        "the network's input from P4, of half the size from P3, and so on)."
    )
    if len(share) == 1:
        caption += " So P2 and P2 ~ P5 are the same here, and Table 5 cannot tell them apart."
    legend = {LEVELS[level]: level.upper() for level in share.index}
    return {"figure5": (pictures(rows, side=1.5, legend=legend), caption)}


def _scale(cfg, picture: np.ndarray) -> float:
    """How much the network's input is larger than the picture, by the configuration."""
    height, width = picture.shape[:2]
    return min(cfg.INPUT.MIN_SIZE_TEST / min(height, width), cfg.INPUT.MAX_SIZE_TEST / max(height, width))


def _levels(cfg, images: Images, k: int) -> List[str]:
    """The feature map that the boundary features of each object of picture k are pooled from."""
    names = cfg.MODEL.BOUNDARY_MASK_HEAD.IN_FEATURES
    if len(names) == 1:
        return [names[0]] * int((images.image_of == k).sum())
    boxes = torch.from_numpy(images.boxes[images.image_of == k]) * _scale(cfg, images.pictures[k])
    numbers = [int(name[1:]) for name in names]
    chosen = assign_boxes_to_levels([Boxes(boxes)], min(numbers), max(numbers), CANONICAL_SIZE, CANONICAL_LEVEL)
    return [names[i] for i in chosen.tolist()]


def _filled(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    mask = np.zeros(shape[:2], bool)
    x0, y0, x1, y1 = np.round(box).astype(int)
    mask[y0:y1, x0:x1] = True
    return mask


def _sampled(picture: np.ndarray, box: np.ndarray, stride: float, side: int) -> Panel:
    """A RoI as its feature map resolves it: cells of ``stride`` pixels, and the middles of the bins."""
    x0, y0, x1, y1 = box
    scale = 112 / max(x1 - x0, y1 - y0)
    width, height = (max(int(round((b - a) * scale)), 1) for a, b in ((x0, x1), (y0, y1)))
    x, y = (a + (np.arange(n) + 0.5) / scale for a, n in ((x0, width), (y0, height)))
    x, y = (((values // stride) + 0.5) * stride for values in (x, y))
    rows, columns = (np.clip(v.astype(int), 0, n - 1) for v, n in ((y, picture.shape[0]), (x, picture.shape[1])))
    middles = (np.arange(side) + 0.5) / side
    points = np.stack(np.meshgrid(middles * width - 0.5, middles * height - 0.5), axis=-1).reshape(-1, 2)
    return Panel(picture[rows][:, columns], points=points)
