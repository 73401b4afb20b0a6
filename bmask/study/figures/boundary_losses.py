"""Fig. 6: what each boundary loss does to the boundary, and controls to look into it."""

from contextlib import nullcontext
from itertools import product
from typing import Dict, Sequence, Tuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from ...errors import InputError
from ...losses import boundary_loss
from .. import predictions, runs, stats
from ..items import Item, made
from ..predictions import Images, Predictions
from ..runs import Run
from .style import COLOURS, MARKERS, PAGE, TRUTH, Drawn, Panel, crop, new_figure, pictures, quantiles, rendered, styled

NAMES = {
    "bmask_rcnn_bce": "BCE",
    "bmask_rcnn_weighted_bce": "weighted BCE",
    "bmask_rcnn_dice": "Dice",
    "bmask_rcnn": "Dice-BCE",
}


def draw(_, kept: Dict[Run, Sequence[str]]) -> Drawn:
    images, found = _load(kept)
    seeds = list(found["bmask_rcnn"])
    first = {v: by_seed[seeds[0]] for v, by_seed in found.items()}
    areas = np.prod(images.boxes[:, 2:] - images.boxes[:, :2], axis=1)
    rows = {words: _panels(images, first, n) for words, n in quantiles(areas, (0.2, 0.4, 0.6, 0.8))}
    caption = (
        "The boundaries that the losses of Table 7 teach: raw 28x28 probabilities in the true boxes of the same "
        f"objects, seed {seeds[0]}. Of the objects of the first {len(images.pictures)} test images those are "
        "shown whose box has a size at the 20th, 40th, 60th and 80th percentile."
    )
    drawn = {"figure6": (pictures(rows, side=1.0), caption)}

    lines = []
    for measure, v in product(("thickness", "precision", "recall"), found):
        mean = stats.mean_of_objects([(p.quality["image"], p.quality[measure]) for p in found[v].values()])
        low, high = mean.interval
        lines.append({"variant": v, "measure": measure, "mean": mean.mean, "low": low, "high": high})
    frame = pd.DataFrame(lines)
    calibrations = {v: sum(p.calibration for p in by_seed.values()) for v, by_seed in found.items()}
    thickness = frame[frame["measure"] == "thickness"].set_index("variant")["mean"]
    means = ", ".join(f"{NAMES[v]} {thickness[v]:.2f}".replace("nan", "–") for v in found)
    error = ", ".join(f"{NAMES[v]} {_calibration_error(calibrations[v]):.3f}" for v in found)
    count = len(first["bmask_rcnn"].quality["image"])
    caption = (
        f"How good these boundaries are, over all {count} objects of the test images, in their true boxes: the "
        "thickness of what has a probability above 0.5, in pixels of the 28x28 map (dotted: 1, as the truth; "
        f"{means}), and the shares of its pixels within one pixel of the truth (precision) and of the truth's "
        "within one pixel of it (recall). Lines are 95% intervals over images"
        f"{' and seeds' if len(seeds) > 1 else ''}. Right: what share of the pixels with a predicted probability is "
        f"boundary; the mean distance to the diagonal, by pixels, is: {error}."
    )
    drawn["figure6_numbers"] = (_plot(frame, calibrations), caption)
    ((_, n),) = quantiles(areas, (0.5,))
    caption = (
        "Dice and BCE of a made-up prediction: the true boundary of the object with the median box, shifted, and "
        "dilated. Its pixels have a probability of 0.9, the others of 0.1. The losses have different units: "
        "compare the shapes."
    )
    drawn["figure6_surface"] = (loss_surface(images.roi_boundaries[n]), caption)
    return drawn


def _load(kept: Dict[Run, Sequence[str]]) -> Tuple[Images, Dict[str, Dict[int, Predictions]]]:
    """The images, and what the models predict, by variant and seed."""
    images, predicted = predictions.load_all(kept)
    found = {}
    for run, one in predicted.items():
        found.setdefault(run.variant, {})[run.seed] = one
    return images, found


def _panels(images: Images, found: Dict[str, Predictions], n: int) -> Dict[str, Panel]:
    """Object n, its boundary, and what each of the models predicts."""
    return {
        "image": Panel(crop(images, n)),
        "truth": Panel(images.roi_boundaries[n].astype(float)),
        **{NAMES[v]: Panel(p.boundaries[n].astype(float)) for v, p in found.items()},
    }


def _calibration_error(calibration: np.ndarray) -> float:
    """The expected calibration error: the distance of share and probability, averaged over the pixels."""
    pixels, probability, boundary = calibration.T
    return float(np.abs(probability - boundary).sum() / pixels.sum())


@styled
def _plot(frame: pd.DataFrame, calibrations: Dict[str, np.ndarray]) -> Figure:
    """A panel a ``measure`` of the frame, and one of the calibrations; see :func:`bmask.study.evaluate.calibration`."""
    measures = list(dict.fromkeys(frame["measure"]))
    figure = new_figure(PAGE, 2.6)
    panels = figure.subplots(1, len(measures) + 1, width_ratios=[1] * len(measures) + [1.4])
    for panel, measure in zip(panels, measures):
        lines = frame[frame["measure"] == measure].set_index("variant").loc[list(calibrations)]
        for k, (variant, line) in enumerate(lines.iterrows()):
            panel.hlines(k, line["low"], line["high"], color=COLOURS[variant], linewidth=1.5)
            panel.plot(line["mean"], k, MARKERS[k], color=COLOURS[variant])
        panel.set_title(measure)
        panel.set_yticks(range(len(lines)), [NAMES[v] for v in lines.index] if panel is panels[0] else [])
        panel.set_ylim(len(lines) - 0.5, -0.5)
        panel.set_xlabel("pixels" if measure == "thickness" else "share of pixels")
    panels[0].axvline(1, color="0.4", linewidth=1, linestyle=":")
    last = panels[-1]
    last.plot([0, 1], [0, 1], color="0.4", linewidth=1)
    for k, (variant, calibration) in enumerate(calibrations.items()):
        pixels, probability, boundary = calibration.T
        full = pixels > 0
        x, y = probability[full] / pixels[full], boundary[full] / pixels[full]
        last.plot(x, y, color=COLOURS[variant], marker=MARKERS[k], linewidth=1)
    last.set(title="calibration", xlabel="predicted probability", ylabel="share that is boundary")
    last.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure


@styled
def loss_surface(boundary: np.ndarray, confidence: float = 0.9, reach: int = 5) -> Figure:
    """What Dice and BCE say of a boundary that is a little off, or too thick.

    Args:
        boundary: (H, W), bool, the true boundary.
        confidence: probability that the made-up prediction gives its boundary pixels; the others have the rest to 1.
        reach: largest shift in pixels.

    Returns:
        Both losses over shifts in x and y, and three losses over the thickness. A prediction as it should be has
        the value at no shift.
    """
    target = torch.from_numpy(boundary).float()
    height, width = target.shape

    def losses(predicted: torch.Tensor, kind: str) -> np.ndarray:
        logits = torch.logit(confidence * predicted + (1 - confidence) * (1 - predicted))
        return np.array([float(boundary_loss(p[None], target[None], kind)) for p in logits])

    padded = F.pad(target, (reach,) * 4)
    steps = range(-reach, reach + 1)
    shifted = torch.stack([padded[reach - y :, reach - x :][:height, :width] for y in steps for x in steps])
    thick = [target]
    for _ in range(3):
        thick.append(F.max_pool2d(thick[-1][None], 3, stride=1, padding=1)[0])
    figure = new_figure(PAGE, 2.5)
    shape, dice, bce, last = figure.subplots(1, 4)
    shape.imshow(boundary, cmap="gray_r", vmin=0, vmax=1)
    shape.set(title="true boundary", xticks=[], yticks=[])
    shape.spines[:].set_visible(True)
    for panel, kind, title in ((dice, "dice", "Dice"), (bce, "bce", "BCE")):
        surface = losses(shifted, kind).reshape(len(steps), len(steps))
        extent = (-reach - 0.5, reach + 0.5, reach + 0.5, -reach - 0.5)
        image = panel.imshow(surface, extent=extent, cmap="cividis")
        figure.colorbar(image, ax=panel, shrink=0.7)
        panel.set(title=f"{title}, shifted", xlabel="x shift (pixels)", ylabel="y shift (pixels)")
        panel.set(xticks=[-reach, 0, reach], yticks=[-reach, 0, reach])
        panel.grid(False)
    for k, (kind, name) in enumerate((("dice", "Dice"), ("bce", "BCE"), ("weighted_bce", "weighted BCE"))):
        style = dict(color=COLOURS[f"bmask_rcnn_{kind}"], marker=MARKERS[k], label=name)
        last.plot([1, 3, 5, 7], losses(torch.stack(thick), kind), **style)
    last.set(title="thickened", xlabel="thickness (pixels)", ylabel="loss", xticks=[1, 3, 5, 7])
    last.set_ylim(0, 1.6 * last.get_ylim()[1])  # room for the names
    last.legend(fontsize=7, loc="upper left")
    return figure


def explore(figure: Item, profile: str):
    """Controls for image, object and confidence, above the object under each loss and the surfaces of its losses.

    Returns:
        A widget of ipywidgets, for Jupyter.

    Raises:
        InputError: the figure, which is Fig. 6, has not been made; says which command makes it.
    """
    import ipywidgets as widgets

    folder = figure.made_in(profile)
    if not folder:
        raise InputError(
            f"{figure.label} has not been made; `make reproduce-{figure.target} PROFILE={profile}` makes it"
        )
    seed = made(profile, folder)[figure.name][0]
    # Of runs that were made here for a table alone no predictions have been kept: those of the figure count.
    with runs.as_shipped() if folder == runs.shipped(profile) else nullcontext():
        images, found = _load(figure.predicted(profile, [seed]))
    image = widgets.IntSlider(0, 0, len(images.pictures) - 1, description="image")
    place = widgets.IntSlider(0, 0, 0, description="object")
    confidence = widgets.FloatSlider(0.9, min=0.55, max=0.95, step=0.05, description="confidence")
    context, row, surface = (widgets.Image(format="png", width=width) for width in (260, 780, 780))

    def redraw(_=None):
        inside = np.flatnonzero(images.image_of == image.value)
        place.max = max(len(inside) - 1, 0)
        if not len(inside):
            return
        n = int(inside[place.value])
        shown = Panel(images.pictures[image.value], [(images.masks[n], TRUTH)])
        context.value = rendered(pictures({"": {"": shown}}, side=2.0))
        maps = _panels(images, {v: by_seed[seed] for v, by_seed in found.items()}, n)
        row.value = rendered(pictures({"": maps}, side=1.2))
        surface.value = rendered(loss_surface(images.roi_boundaries[n], confidence.value))

    for control in (image, place, confidence):
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([widgets.HBox([widgets.VBox([image, place, confidence]), context]), row, surface])
