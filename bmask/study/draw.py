"""Every plot of the study: functions from numbers or predictions to matplotlib figures, and :func:`save`."""

import io
import itertools
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from contourpy import contour_generator
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch.nn import functional as F

from ..losses import boundary_loss
from .files import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers; in greyscale markers and dashes tell systems apart.
TRUTH, PAPER = "#FFFFFF", "0.45"
COLOURS = {
    "mask_rcnn": "#D55E00",
    "bmask_rcnn": "#0072B2",
    "bmask_rcnn_bce": "#E69F00",
    "bmask_rcnn_weighted_bce": "#CC79A7",
    "bmask_rcnn_dice": "#009E73",
    "sobel_mask_head": "#56B4E9",
}
OURS = COLOURS["bmask_rcnn"]
LEVELS = {"p2": "#0072B2", "p3": "#E69F00", "p4": "#009E73", "p5": "#CC79A7"}
MARKERS = "os^Dv<>p"
DASHES = ("", (4, 1.5), (3, 1, 1, 1), (1, 1))  # lengths of lines and gaps; seaborn's way to say them
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 4,
    "legend.frameon": False,
    "svg.hashsalt": "bmask",  # the same file for the same figure
}
styled = matplotlib.rc_context(STYLE)
framed = matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True})
COLUMN, PAGE = 4.8, 7.5  # inches: the width of a column, and of a page across


class Panel(NamedTuple):
    """One picture of :func:`pictures`.

    background: (H, W, 3) uint8, or (H, W), in [0, 1] unless ``signed``. outlines: masks (H, W) and their colours. box:
    x0 y0 x1 y1, drawn dotted. points: (P, 2), x and y.
    """

    background: np.ndarray
    outlines: Sequence[Tuple[np.ndarray, str]] = ()
    signed: bool = False
    box: Optional[np.ndarray] = None
    points: Optional[np.ndarray] = None


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def colours(variants: Sequence[str]) -> Dict[str, str]:
    """The colour of each system, the same in every figure; those without share what is left of the palette."""
    spare = itertools.cycle(c for c in [*COLOURS.values(), "#F0E442"] if c not in map(COLOURS.get, variants))
    return {variant: COLOURS.get(variant) or next(spare) for variant in variants}


@styled
def gains(frames: Dict[str, pd.DataFrame], rows: Sequence, title: str, metrics: Sequence[str]) -> Figure:
    """What each row of a table gains over its baseline, here and in the paper.

    Args:
        frames: from :func:`bmask.tables.frames`.
        rows: the table's rows, from :func:`bmask.tables.rows`.
        title: what the table is about.
        metrics: columns of the table whose differences are drawn.

    Returns:
        One panel a metric: rows that are run from top to bottom, the difference to the row's baseline in AP points
        from left to right. Lines through our points are 95% intervals, where there are several resamples.
    """
    run = [row.variant != "published" for row in rows]
    frames = {source: frame[run].reset_index(drop=True) for source, frame in frames.items()}
    places = np.arange(sum(run))
    # Three panels of 1.4 inches would be narrower than their labels beside long names of rows.
    figure = _figure(1.4 * max(len(metrics), 4) + 2, 0.3 * len(places) + 1.2)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics):
        panel.axvline(0, color="0.4", linewidth=1)
        for k, (source, frame) in enumerate(frames.items()):
            height, colour = places - 0.24 + 0.18 * k, OURS if k == 0 else "0.5"
            panel.hlines(height, frame[f"d{metric} low"], frame[f"d{metric} high"], color=colour, linewidth=1.5)
            panel.plot(frame[f"d{metric}"], height, "o", color=colour, label=source, markersize=5)
        panel.plot(frame[f"paper d{metric}"], places + 0.18, "D", color=PAPER, fillstyle="none", label="paper")
        panel.set_title(metric)
        panel.set_xlabel("difference (AP points)")
        panel.margins(x=0.15)
    panels[0].set_yticks(places, [row.name for row, shown in zip(rows, run) if shown])
    panels[0].set_ylim(len(places) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    counts = {source: sorted({*frame["seeds"]} - {0}) for source, frame in frames.items()}
    seeds = ", ".join(f"{source} {' or '.join(map(str, numbers))}" for source, numbers in counts.items())
    figure.suptitle(f"{title} (seeds: {seeds})", x=0.01, ha="left", fontsize=9)
    return figure


@styled
def ap_curves(curves: pd.DataFrame, names: Dict[str, str], paper: pd.DataFrame) -> Figure:
    """AP at each IoU threshold, and what the second of two systems gains (Fig. 1).

    Args:
        curves: ``panel`` (what is measured), ``variant``, ``seed``, ``iou`` and ``AP``, in percent.
        names: of the two variants.
        paper: ``iou``, ``delta`` and a column for each variant; drawn beside the first panel's.

    Returns:
        AP above, the gain below; lines are means, bands go from the lowest to the highest seed.
    """
    base, ours = names
    wide = curves.pivot(index=["panel", "seed", "iou"], columns="variant", values="AP")
    gain = (wide[ours] - wide[base]).rename("gain").reset_index()
    titles = list(curves["panel"].unique())
    figure = _figure(PAGE, 4.2)
    panels = figure.subplots(2, len(titles), sharex=True, sharey="row", squeeze=False)
    for k, title in enumerate(titles):
        above, below = panels[:, k]
        _lines(above, curves[curves["panel"] == title], "iou", "AP", {v: COLOURS[v] for v in names})
        _lines(below, gain[gain["panel"] == title].assign(variant=ours), "iou", "gain", {ours: COLOURS[ours]})
        below.axhline(0, color="0.4", linewidth=1)
        above.set(title=title, ylabel="AP (%)")
        below.set(xlabel="IoU threshold", ylabel="gain (AP points)")
    hollow = dict(linestyle="", fillstyle="none")
    for k, variant in enumerate(names):
        panels[0, 0].plot(paper["iou"], paper[variant], MARKERS[k], color=COLOURS[variant], **hollow)
    panels[1, 0].plot(paper["iou"], paper["delta"], "D", color=PAPER, **hollow)
    _legend(figure, {v: COLOURS[v] for v in names}, names, "hollow: the paper's")
    return figure


@styled
def training_curves(curves: pd.DataFrame, colours: Dict[str, str]) -> Figure:
    """Losses, and AP, during the training.

    Args:
        curves: ``panel`` (what is measured), ``variant``, ``seed``, ``iteration`` and ``value``.
        colours: of each variant.

    Returns:
        Lines are means, bands go from the lowest to the highest seed.
    """
    titles, columns = list(curves["panel"].unique()), 4
    lines = -(-len(titles) // columns)
    figure = _figure(PAGE, 1.6 * lines + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, title in zip(panels, titles):
        _lines(panel, curves[curves["panel"] == title], "iteration", "value", colours)
        panel.set(title=title, xlabel="iteration", ylabel="AP (%)" if "AP" in title else "loss")
        panel.set_ylim(bottom=0)
    for panel in list(panels):
        panel.remove()
    _legend(figure, colours, {v: v for v in colours})
    return figure


def _lines(panel, frame: pd.DataFrame, x: str, y: str, colours: Dict[str, str]) -> None:
    """The mean over the seeds of each variant, and a band from the lowest to the highest."""
    few = frame[x].nunique() < 20
    sns.lineplot(
        frame,
        x=x,
        y=y,
        hue="variant",
        style="variant",
        palette=colours,
        hue_order=list(colours),
        style_order=list(colours),
        markers=dict(zip(colours, MARKERS)) if few else False,
        dashes=dict(zip(colours, DASHES * len(colours))),
        errorbar=("pi", 100),
        linewidth=1.2,
        legend=False,
        ax=panel,
    )


def _legend(figure: Figure, colours: Dict[str, str], names: Dict[str, str], note: str = "") -> None:
    """A legend below the figure of what :func:`_lines` has drawn."""
    handles = [
        Line2D(
            [],
            [],
            color=c,
            marker=MARKERS[k % len(MARKERS)],
            dashes=DASHES[k % len(DASHES)] or (1, 0),
            label=names[v],
        )
        for k, (v, c) in enumerate(colours.items())
    ]
    handles += [Line2D([], [], linestyle="", label=note)] if note else []
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


@styled
def coarseness(frame: pd.DataFrame) -> Figure:
    """What BMask R-CNN gains with coarse annotations (Section 4.4).

    Args:
        frame: one line a level and ``metric``, with ``annotation_iou``, the gain measured with exact and with coarse
            truth, ``exact`` and ``coarse``, and their intervals ``... low`` and ``... high``.
    """
    metrics = list(dict.fromkeys(frame["metric"]))
    figure = _figure(COLUMN, 2.6)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics):
        lines = frame[frame["metric"] == metric]
        panel.axhline(0, color="0.4", linewidth=1)
        for truth, shade, marker, dashes, shift in (
            ("exact", OURS, "o", "-", 0.002),
            ("coarse", PAPER, "s", "--", -0.002),
        ):
            x = lines["annotation_iou"] + shift
            panel.vlines(x, lines[f"{truth} low"], lines[f"{truth} high"], color=shade, linewidth=1)
            panel.plot(x, lines[truth], marker + dashes, color=shade, label=f"measured with {truth} masks")
        panel.invert_xaxis()
        panel.set_title(metric)
        panel.set_xlabel("IoU of annotation and exact mask")
    panels[0].set_ylabel("gain (AP points)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def boundary_numbers(frame: pd.DataFrame, calibrations: Dict[str, np.ndarray], names: Dict[str, str]) -> Figure:
    """How thick, right and well calibrated the boundaries are that each loss teaches (Fig. 6).

    Args:
        frame: one line a variant and ``measure``, with ``mean``, ``low`` and ``high``.
        calibrations: for each variant (bins, 3), see :func:`bmask.evaluate.calibration`.
        names: of each variant.
    """
    measures = list(dict.fromkeys(frame["measure"]))
    figure = _figure(PAGE, 2.6)
    panels = figure.subplots(1, len(measures) + 1, width_ratios=[1] * len(measures) + [1.4])
    for panel, measure in zip(panels, measures):
        lines = frame[frame["measure"] == measure].set_index("variant").loc[list(names)]
        for k, (variant, line) in enumerate(lines.iterrows()):
            panel.hlines(k, line["low"], line["high"], color=COLOURS[variant], linewidth=1.5)
            panel.plot(line["mean"], k, MARKERS[k], color=COLOURS[variant])
        panel.set_title(measure)
        panel.set_yticks(range(len(names)), names.values() if panel is panels[0] else [])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel("pixels" if measure == "thickness" else "share of pixels")
    panels[0].axvline(1, color="0.4", linewidth=1, linestyle=":")
    last = panels[-1]
    last.plot([0, 1], [0, 1], color="0.4", linewidth=1)
    for k, variant in enumerate(names):
        pixels, probability, boundary = calibrations[variant].T
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
    figure = _figure(PAGE, 2.5)
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


@framed
def pictures(rows: Dict[str, Dict[str, Panel]], side: float = 0.9, legend: Dict[str, str] = {}) -> Figure:
    """Pictures in a grid.

    Args:
        rows: for each row and each column, by title, what to show.
        side: of one picture, in inches.
        legend: colours and what they stand for.
    """
    titles = list(next(iter(rows.values())))
    figure = _figure(side * len(titles) + 0.2, side * len(rows) + 0.35 + 0.2 * bool(legend))
    panels = figure.subplots(len(rows), len(titles), squeeze=False)
    for panel, title in zip(panels[0], titles):
        panel.set_title(title, fontsize=7)
    for line, (label, row) in zip(panels, rows.items()):
        for panel, content in zip(line, row.values()):
            _show(panel, content)
        line[0].set_ylabel(label, fontsize=7)
    if legend:
        lines = [Line2D([], [], color=c, label=text) for c, text in legend.items()]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=7)
    return figure


def _show(panel, content: Panel) -> None:
    height, width = content.background.shape[:2]
    limit = np.abs(content.background).max() if content.signed else 1
    panel.imshow(
        content.background,
        cmap="PuOr" if content.signed else "gray_r",
        vmin=-limit if content.signed else 0,
        vmax=limit,
    )
    for mask, shade in content.outlines:
        # Padded, so that the outline is closed where the image cuts the object.
        x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
        lines = contour_generator(x, y, np.pad(mask, 1).astype(float)).lines(0.5)
        for colour, width_of_line in (("black", 1.8), (shade, 1)):  # seen on any background
            # As lines they are simplified: a contour of matplotlib keeps each step of each pixel.
            for line in lines:
                panel.plot(*line.T, color=colour, linewidth=width_of_line)
    if content.box is not None:
        x0, y0, x1, y1 = content.box - 0.5
        panel.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], ":", color="white", linewidth=1)
    if content.points is not None:
        panel.plot(*content.points.T, ".", color="white", markersize=1.2)
    panel.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def rendered(figure: Figure, form: str = "png") -> bytes:
    """A figure as ``png`` or ``svg``: the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=form, dpi=200, metadata={"Software" if form == "png" else "Date": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as what its name ends in, ``.png`` or ``.svg``."""
    write_bytes(path, rendered(figure, path.suffix[1:]))
