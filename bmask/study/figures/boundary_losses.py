"""Fig. 6: what each boundary loss does to the boundary, and controls to look into it."""

from base64 import b64encode
from contextlib import nullcontext
from itertools import product
from typing import Dict, Sequence, Tuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ...errors import InputError
from .. import predictions, runs, stats
from ..evaluate import boundary_quality
from ..items import Item, made
from ..predictions import Images, Predictions
from ..runs import Run
from .style import (
    COLOURS,
    COLUMN,
    MARKERS,
    PAGE,
    TRUTH,
    Drawn,
    Panel,
    crop,
    new_figure,
    pictures,
    rendered,
    sizes,
    spread,
    styled,
)

NAMES = {
    "bmask_rcnn_bce": "BCE",
    "bmask_rcnn_weighted_bce": "weighted BCE",
    "bmask_rcnn_dice": "Dice",
    "bmask_rcnn": "Dice-BCE",
}
WEIGHTED = "bmask_rcnn_weighted_bce"
UNDONE = "weighted BCE,\nweights undone"


def draw(_, kept: Dict[Run, Sequence[str]]) -> Drawn:
    images, found = _load(kept)
    frame = _measured(found)
    return {
        "figure6": _maps(images, found, frame),
        "figure6_numbers": _numbers(found, frame),
        "figure6_thickness": _weights(images, found),
    }


def _measured(found: Dict[str, Dict[int, Predictions]]) -> pd.DataFrame:
    """A line a ``measure`` of the boundaries and a ``variant``: ``mean`` and interval, from ``low`` to ``high``."""
    lines = []
    for measure, v in product(("thickness", "precision", "recall"), found):
        mean = stats.mean_of_objects([(p.quality["image"], p.quality[measure]) for p in found[v].values()])
        low, high = mean.interval
        lines.append({"variant": v, "measure": measure, "mean": mean.mean, "low": low, "high": high})
    return pd.DataFrame(lines)


def _maps(images: Images, found: Dict[str, Dict[int, Predictions]], frame: pd.DataFrame) -> Tuple[Figure, str]:
    """The same objects under each loss."""
    first, seed = _first_seed(found)
    size, share = sizes(images.boxes), _share(first)
    rows = {
        f"{words},\n{size[n]:.0f} px": _panels(images, first, n, share)
        for words, n in zip(("a small object", "a typical one", "a large one"), spread(size))
    }
    thickness, recall = (
        frame[frame["measure"] == name].set_index("variant")["mean"].rename(NAMES) for name in ("thickness", "recall")
    )
    thickest, least = thickness.fillna(0).idxmax(), recall.idxmin()
    found_least, found_ours = (f"{100 * recall[name]:.0f}%" for name in (least, "Dice-BCE"))
    caption = (
        f"{thickest[0].upper()}{thickest[1:]} draws the thickest boundary ({_pixels(thickness[thickest])}), and "
        f"{least} finds least of the true one ({found_least}); Dice-BCE draws {_pixels(thickness['Dice-BCE'])} and "
        f"finds {found_ours}. Probabilities at 28x28 in the true boxes, seed {seed}. The line is the true contour; the "
        "true boundary is the pixels just inside it. Rows: the objects whose size, the square root of the box's area, "
        f"is at the 10th, 50th and 90th percentile of the first {len(images.pictures)} test images. The last figure "
        "explains the last column."
    )
    return pictures(rows, side=1.0, scales={(*NAMES.values(), UNDONE): "probability"}), caption


def _numbers(found: Dict[str, Dict[int, Predictions]], frame: pd.DataFrame) -> Tuple[Figure, str]:
    """How thick and how right the boundaries are."""
    means = frame.pivot(index="variant", columns="measure", values="mean").loc[list(found)]
    each = "; ".join(
        f"{NAMES[v]} {_pixels(row['thickness'])}, {row['precision']:.2f}, {row['recall']:.2f}".replace("nan", "–")
        for v, row in means.iterrows()
    )
    first, _ = _first_seed(found)
    caption = (
        f"Thickness, precision and recall of the boundaries: {each}. What has a probability above 0.5 is boundary, of "
        f"all {len(first['bmask_rcnn'].quality['image'])} objects of the test images, in their true boxes. Thickness "
        "is in pixels of the 28x28 map (dotted: 1, as the truth). Precision is the share of these pixels within one "
        "pixel of the truth, recall the share of the truth's within one pixel of them. Lines are 95% intervals over "
        f"images{_and_seeds(found)}."
    )
    return _plot(frame, list(found)), caption


def _weights(images: Images, found: Dict[str, Dict[int, Predictions]]) -> Tuple[Figure, str]:
    """What its weights do to weighted BCE: the calibration of all, and what is left of its thickness without them."""
    first, seed = _first_seed(found)
    share = _share(first)
    calibrations = {v: sum(p.calibration for p in by_seed.values()) for v, by_seed in found.items()}
    predicted, measured = _calibrated(calibrations[WEIGHTED])
    at_half = 100 * np.interp(0.5, predicted, measured, left=np.nan, right=np.nan)
    some = [k for k in (2, 5, 7) if k in predicted.index]
    by_formula = without_weights(predicted[some], share)
    weighted = first[WEIGHTED].boundaries
    thick, thin, unweighted = (
        _pixels(_thickness(maps, images))
        for maps in (weighted, without_weights(weighted, share), first["bmask_rcnn_bce"].boundaries)
    )
    caption = (
        f"The weights of weighted BCE make it say 0.5 where {100 * share:.0f}% of the pixels are boundary (measured: "
        f"{at_half:.0f}%), and with its weights undone its boundaries are {thin} thick instead of {thick} (BCE: "
        f"{unweighted}). Boundary pixels are weighted by 1 - s and the others by s, the share of boundary in all "
        "pixels. So p is the best answer where the true probability is ps / (ps + (1 - p)(1 - s)), and this formula "
        f"undoes the weights. Where p is {_list(predicted[some])} a share of {_list(measured[some])} is boundary; the "
        f"formula gives {_list(by_formula)}. Points are tenths of the probabilities, of all test objects"
        f"{_and_seeds(found)}; thickness is of the first {len(images.pictures)} test images, seed {seed}."
    )
    return _calibration_plot(calibrations, share), caption


def without_weights(probabilities, share: float):
    """The probability that a pixel is boundary, where weighted BCE is lowest at the probabilities that it is given.

    With the weights 1 - s of boundary pixels and s of the others (see :func:`bmask.losses.weighted_bce_loss`), a pixel
    that is boundary with probability q costs least at p = q(1 - s) / (q(1 - s) + (1 - q)s): 0.5 where q is s. This is
    the inverse.

    Args:
        probabilities: p, in [0, 1], of any shape.
        share: s, in (0, 1). The loss is balanced within each instance of the training; the figure takes the mean over
            all test objects, in their true boxes.
    """
    boundary = probabilities * share
    return boundary / (boundary + (1 - probabilities) * (1 - share))


def _share(found: Dict[str, Predictions]) -> float:
    """s of :func:`without_weights`: the share of boundary in the pixels of all test objects."""
    pixels, _, boundary = found[WEIGHTED].calibration.sum(0)
    return float(boundary / pixels)


def _calibrated(calibration: np.ndarray) -> Tuple[pd.Series, pd.Series]:
    """The mean probability and the share of boundary in each tenth that has pixels; see
    :func:`bmask.study.evaluate.calibration`."""
    frame = pd.DataFrame(calibration, columns=["pixels", "probability", "boundary"]).query("pixels > 0")
    return frame["probability"] / frame["pixels"], frame["boundary"] / frame["pixels"]


def _thickness(probabilities: np.ndarray, images: Images) -> float:
    """The mean thickness of boundaries (N, 28, 28) of the objects of the images."""
    quality = boundary_quality(torch.from_numpy(probabilities), torch.from_numpy(images.roi_boundaries))
    return float(quality["thickness"].nanmean())


def _pixels(thickness: float) -> str:
    return f"{thickness:.2f} px".replace("nan", "–")


def _and_seeds(found: Dict[str, Dict[int, Predictions]]) -> str:
    return " and seeds" if len(found["bmask_rcnn"]) > 1 else ""


def _first_seed(found: Dict[str, Dict[int, Predictions]]) -> Tuple[Dict[str, Predictions], int]:
    """By variant what the first seed predicts, whose maps are kept, and which that is."""
    seed = next(iter(found["bmask_rcnn"]))
    return {v: by_seed[seed] for v, by_seed in found.items()}, seed


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _load(kept: Dict[Run, Sequence[str]]) -> Tuple[Images, Dict[str, Dict[int, Predictions]]]:
    """The images, and what the models predict, by variant and seed."""
    images, predicted = predictions.load_all(kept)
    found = {}
    for run, one in predicted.items():
        found.setdefault(run.variant, {})[run.seed] = one
    return images, found


def _panels(images: Images, found: Dict[str, Predictions], n: int, share: float) -> Dict[str, Panel]:
    """Object n, and what each of the models predicts of its boundary; last weighted BCE :func:`without_weights`."""
    maps = {NAMES[v]: p.boundaries[n].astype(float) for v, p in found.items()}
    maps[UNDONE] = without_weights(maps[NAMES[WEIGHTED]], share)
    return {
        "image": Panel(crop(images, n)),
        **{name: Panel(shown, contour=images.roi_masks[n]) for name, shown in maps.items()},
    }


@styled
def _plot(frame: pd.DataFrame, variants: Sequence[str]) -> Figure:
    """A panel a ``measure`` of the frame."""
    measures = list(dict.fromkeys(frame["measure"]))
    figure = new_figure(PAGE, 1.7)
    panels = figure.subplots(1, len(measures))
    for panel, measure in zip(panels, measures):
        lines = frame[frame["measure"] == measure].set_index("variant").loc[list(variants)]
        for k, (variant, line) in enumerate(lines.iterrows()):
            panel.hlines(k, line["low"], line["high"], color=COLOURS[variant], linewidth=1.5)
            panel.plot(line["mean"], k, MARKERS[k], color=COLOURS[variant])
        panel.set_title(measure)
        panel.set_yticks(range(len(lines)), [NAMES[v] for v in lines.index] if panel is panels[0] else [])
        panel.set_ylim(len(lines) - 0.5, -0.5)
        panel.set_xlabel("pixels" if measure == "thickness" else "share of pixels")
        panel.set_xlim(0, None if measure == "thickness" else 1.02)
    panels[0].axvline(1, color="0.4", linewidth=1, linestyle=":")
    return figure


@styled
def _calibration_plot(calibrations: Dict[str, np.ndarray], share: float) -> Figure:
    """What share of the pixels with a predicted probability is boundary, and what the weights of weighted BCE say."""
    figure = new_figure(COLUMN, 2.9)
    panel = figure.subplots()
    every = np.linspace(0, 1, 101)
    panel.plot(every, every, color="0.4", linewidth=1, label="optimum of BCE")
    label = f"optimum of weighted BCE\n(s = {share:.2f})"
    panel.plot(every, without_weights(every, share), "--", color="black", linewidth=1.2, label=label)
    for k, (variant, calibration) in enumerate(calibrations.items()):
        look = dict(color=COLOURS[variant], marker=MARKERS[k], linewidth=1 if variant == WEIGHTED else 0.6)
        panel.plot(*_calibrated(calibration), **look, label=NAMES[variant])
    panel.plot([0.5, 0.5, 0], [0, share, share], ":", color="black", linewidth=1)
    panel.set(xlabel="predicted probability", ylabel="share that is boundary", xlim=(0, 1), ylim=(0, 1))
    figure.legend(loc="outside right center", fontsize=7)
    return figure


def explore(figure: Item, profile: str):
    """Controls for image, object and threshold, and below what each loss has taught of the object's boundary.

    The threshold is the probability above which a pixel counts as boundary; above each column stands how thick the
    boundary then is.

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
    threshold = widgets.FloatSlider(0.5, min=0.05, max=0.95, step=0.05, description="threshold")
    context, maps = (widgets.Image(format="png", width=width) for width in (260, 780))
    first, _ = _first_seed(found)

    def redraw(_=None):
        inside = np.flatnonzero(images.image_of == image.value)
        place.max = max(len(inside) - 1, 0)
        if not len(inside):
            return
        n = int(inside[place.value])
        shown = Panel(images.pictures[image.value], [(images.masks[n], TRUTH)])
        context.value = rendered(pictures({"": {"": shown}}, side=2.0))
        above, columns = threshold.value, {}
        for name, panel in _panels(images, first, n, _share(first)).items():
            if name == "image":
                columns["image, truth"] = panel, Panel(images.roi_boundaries[n].astype(float))
            else:
                counted = (panel.background > above)[None]
                thick = boundary_quality(torch.from_numpy(counted), torch.zeros(counted.shape))["thickness"].item()
                shown = panel._replace(background=counted[0].astype(float))
                columns[f"{name}, {thick:.1f} px".replace("nan", "–")] = panel, shown
        labels = "probability", f"above {above:.2f}"
        rows = {label: {name: both[k] for name, both in columns.items()} for k, label in enumerate(labels)}
        maps.value = rendered(pictures(rows, side=1.2))

    for control in (image, place, threshold):
        control.observe(redraw, "value")
    redraw()

    class Explorer(widgets.VBox):
        def _repr_mimebundle_(self, **options):
            """Its picture as well, for where there is no kernel."""
            return {**super()._repr_mimebundle_(**options), "image/png": b64encode(maps.value).decode()}

    return Explorer([widgets.HBox([widgets.VBox([image, place, threshold]), context]), maps])
