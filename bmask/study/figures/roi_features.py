"""Fig. 5: RoI features for the boundary."""

from typing import Dict, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from matplotlib.patches import Rectangle

from .. import predictions
from ..predictions import Images
from ..runs import Run
from .style import PAGE, Drawn, new_figure, sizes, styled

COLOURS = {2: "#0072B2", 3: "#E69F00", 4: "#009E73", 5: "#CC79A7"}  # by level
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # of detectron2's ROIPooler: a box of 224 pixels is pooled from P4


@styled
def draw(shown: List[Run], kept: Dict[Run, Sequence[str]]) -> Drawn:
    images = predictions.load_all(kept)[0]
    cfgs = {run.variant: run.cfg for run in shown}
    strategies = {}
    for cfg in cfgs.values():
        strategies.setdefault(_numbers(cfg.MODEL.BOUNDARY_MASK_HEAD.IN_FEATURES), []).append(cfg)
    everything = max(strategies, key=len)
    by_scale = strategies[everything][0]

    figure = new_figure(PAGE, 2.5)
    *schematics, chart = figure.subplots(1, len(strategies) + 1, width_ratios=[1.25] * len(strategies) + [1])
    for panel, (numbers, same) in zip(schematics, strategies.items()):
        _schematic(panel, everything, numbers)
        bins = " or ".join(f"{side}x{side}" for side in sorted({_bins(cfg) for cfg in same}))
        source = f"P{numbers[0]} alone" if len(numbers) == 1 else f"P{numbers[0]} to P{numbers[-1]} by scale"
        panel.set_title(f"{source}\nRoIAlign {bins}")
    size, level = sizes(images.boxes) * _scales(by_scale, images), levels(by_scale, images)
    _chart(chart, everything, size, level)

    other = (level != everything[0]).mean()
    first, stride = f"P{everything[0]}", 2 ** everything[0]
    finding = (
        f"With {first} alone {100 * other:.0f}% of the {len(level)} objects come from another level than by scale."
        if other
        else f"All {len(level)} objects are small enough for {first}, so {first} alone and pooling by scale are the "
        "same for them."
    )
    every = " or ".join(str(side) for side in sorted({_bins(cfg) for cfg in cfgs.values()}))
    caption = (
        f"{finding} The level that the boundary features of Table 5 come from, by the size of the RoI (the square root "
        "of its area, in pixels of the network's input). Mask features are pooled by scale in all rows. Right: the "
        f"objects of the first {len(images.pictures)} test images. The median one, {np.median(size):.0f} px, covers "
        f"{np.median(size) / stride:.0f} cells of {first} a side, and RoIAlign makes {every} of them."
    )
    return {"figure5": (figure, caption)}


def levels(cfg: CfgNode, images: Images) -> np.ndarray:
    """(N,): the number of the level that the boundary features of each object are pooled from."""
    numbers = _numbers(cfg.MODEL.BOUNDARY_MASK_HEAD.IN_FEATURES)
    boxes = Boxes(torch.from_numpy(images.boxes * _scales(cfg, images)[:, None]))
    chosen = assign_boxes_to_levels([boxes], numbers[0], numbers[-1], CANONICAL_SIZE, CANONICAL_LEVEL)
    return chosen.numpy() + numbers[0]


def _numbers(names: Sequence[str]) -> Sequence[int]:
    return tuple(int(name[1:]) for name in names)


def _bins(cfg: CfgNode) -> int:
    return cfg.MODEL.BOUNDARY_MASK_HEAD.POOLER_RESOLUTION


def _scales(cfg: CfgNode, images: Images) -> np.ndarray:
    """(N,): how much the network's input is larger than the picture that each object is in."""
    sides = np.array([picture.shape[:2] for picture in images.pictures])[images.image_of]
    return np.minimum(cfg.INPUT.MIN_SIZE_TEST / sides.min(1), cfg.INPUT.MAX_SIZE_TEST / sides.max(1))


def _smallest(level: int) -> int:
    """The size in pixels from which on a box is pooled from this level, by scale."""
    return CANONICAL_SIZE * 2**level // 2**CANONICAL_LEVEL


def _schematic(panel, everything: Sequence[int], used: Sequence[int]) -> None:
    """RoIs of all sizes, and arrows to those of the levels that are used for them."""
    panel.axis("off")
    panel.set(xlim=(-2.6, 8.5), ylim=(-0.5, len(everything) - 0.2))
    for k, level in enumerate(everything):
        width, side = 4 - 0.9 * k, 0.18 + 0.17 * k
        colour = COLOURS[level] if level in used else "0.85"
        panel.add_patch(Rectangle((-width / 2, k - 0.28), width, 0.34, color=colour))
        panel.text(0, k + 0.1, f"P{level}, stride {2**level}", ha="center", va="bottom", fontsize=7)
        panel.add_patch(Rectangle((4.4 - side, k - 0.1 - side / 2), 2 * side, side, fill=False))
        low, high = _smallest(level), _smallest(level + 1)
        words = f"{low} to {high} px"
        words = f"below {high} px" if level == everything[0] else f"from {low} px" if level == everything[-1] else words
        panel.text(5.4, k - 0.1, words, va="center", fontsize=7)
        goal = everything.index(min(max(level, used[0]), used[-1]))
        end, start = ((4 - 0.9 * goal) / 2 + 0.1, goal - 0.1), (4.3 - side, k - 0.1)
        panel.annotate("", end, start, arrowprops=dict(arrowstyle="->", color="0.2", linewidth=0.9))


def _chart(panel, everything: Sequence[int], size: np.ndarray, level: np.ndarray) -> None:
    """The share of the objects by size, half an octave a bar, and by level."""
    limits = [_smallest(number) for number in everything[1:]]
    top = max(size.max(), limits[-1])
    edges = limits[0] * 2.0 ** (np.arange(-20, 21) / 2)
    edges = edges[(edges > size.min() / 2) & (edges <= 2 * top)]
    for number in everything:
        weights = np.full((level == number).sum(), 100 / len(level))
        panel.hist(size[level == number], edges, weights=weights, color=COLOURS[number], rwidth=0.9)
    for limit in limits:
        panel.axvline(limit, color="0.4", linewidth=1, linestyle=":")
    panel.set_xscale("log", base=2)
    panel.set_xlim(edges[0], edges[-1])
    ticks = [limits[0] * 2**k for k in range(-4, 5) if edges[0] <= limits[0] * 2.0**k <= edges[-1]]
    panel.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    panel.minorticks_off()
    panel.set(xlabel="size of the object (px)", ylabel="share of the objects (%)", title="objects by level")
    height = panel.get_ylim()[1]
    panel.set_ylim(0, 1.25 * height)
    for number, start, end in zip(everything, [edges[0], *limits], [*limits, edges[-1]]):
        words = f"P{number}\n{100 * (level == number).mean():.0f}%"
        panel.text(np.sqrt(start * end), 1.22 * height, words, ha="center", va="top", fontsize=7)
