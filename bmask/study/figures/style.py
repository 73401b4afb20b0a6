"""What figures share: the palette, lines and pictures, which objects are shown, and how a figure is saved."""

import io
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from contourpy import contour_generator
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from PIL import Image

from ..files import write_bytes
from ..predictions import Images
from ..true_boxes import SIDE

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
SYSTEMS = {"mask_rcnn": "Mask R-CNN", "bmask_rcnn": "BMask R-CNN"}
CONTOUR = "#D55E00"  # of the truth, over a map of probabilities
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
Drawn = Dict[str, Tuple[Figure, str]]  # figure and caption, by the name of their files


class Panel(NamedTuple):
    """One picture of :func:`pictures`.

    background: (H, W, 3) uint8, or (H, W), in [0, 1], or with ``signed`` on a scale from -signed to signed. outlines:
    masks (H, W) and their colours. contour: a mask (H, W) whose outline is drawn thin, so that the map below it is
    seen. box: x0 y0 x1 y1, drawn dotted.
    """

    background: np.ndarray
    outlines: Sequence[Tuple[np.ndarray, str]] = ()
    signed: float = 0
    contour: Optional[np.ndarray] = None
    box: Optional[np.ndarray] = None


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def draw_lines(panel, frame: pd.DataFrame, x: str, y: str, colours: Dict[str, str]) -> None:
    """The mean over the seeds of each variant, and a band from the lowest to the highest."""
    few, names = frame[x].nunique() < 20, list(colours)
    look = dict(palette=colours, dashes=dict(zip(colours, DASHES * len(colours))), linewidth=1.2, legend=False)
    markers = dict(zip(colours, MARKERS * len(colours))) if few else False
    look |= dict(markers=markers, hue_order=names, style_order=names)
    sns.lineplot(frame, x=x, y=y, hue="variant", style="variant", errorbar=("pi", 100), ax=panel, **look)


def draw_legend(figure: Figure, colours: Dict[str, str]) -> None:
    """A legend below the figure of what :func:`draw_lines` has drawn."""
    handles = []
    for k, (name, colour) in enumerate(colours.items()):
        marker, dashes = MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)] or (1, 0)
        handles.append(Line2D([], [], color=colour, marker=marker, dashes=dashes, label=name))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


@framed
def pictures(
    rows: Dict[str, Dict[str, Panel]],
    side: float = 0.9,
    legend: Dict[str, str] = {},
    scales: Dict[Sequence[str], str] = {},
) -> Figure:
    """Pictures in a grid.

    Args:
        rows: for each row and each column, by title, what to show.
        side: of one picture, in inches.
        legend: colours and what they stand for.
        scales: columns that are beside each other, by title, that get a colour bar below them, and its label.
    """
    titles = list(next(iter(rows.values())))
    figure = new_figure(side * len(titles) + 0.2, side * len(rows) + 0.35 + 0.2 * bool(legend) + 0.4 * bool(scales))
    heights = [1] * len(rows) + [0.07] * bool(scales)
    panels = figure.subplots(len(heights), len(titles), squeeze=False, height_ratios=heights)
    for panel, title in zip(panels[0], titles):
        panel.set_title(title, fontsize=7)
    for line, (label, row) in zip(panels, rows.items()):
        for panel, content in zip(line, row.values()):
            _show(panel, content)
        line[0].set_ylabel(label, fontsize=7)
    for panel in panels[len(rows) :].flat:
        panel.remove()  # for the scales, which are as wide as their columns
    for columns, label in scales.items():
        first, last = (titles.index(column) for column in (columns[0], columns[-1]))
        place = figure.add_subplot(panels[0, 0].get_gridspec()[-1, first : last + 1])
        image, signed = panels[0, first].images[0], next(iter(rows.values()))[columns[0]].signed
        look = dict(extend="both" if signed else "neither", ticks=np.linspace(*image.get_clim(), 3))
        bar = figure.colorbar(image, place, orientation="horizontal", **look)
        bar.set_label(label, fontsize=7)
        place.tick_params(labelsize=6, length=2)
    if legend:
        rim = [Stroke(linewidth=2.5, foreground="black"), Normal()]  # as the outlines have it
        look = [dict(color=c, linestyle=_dashes(c), label=text) for c, text in legend.items()]
        lines = [Line2D([], [], path_effects=rim, **line) for line in look]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=7)
    return figure


def _dashes(colour: str) -> str:
    """Ours are told apart in grey as well."""
    return "--" if colour == OURS else "-"


def _show(panel, content: Panel) -> None:
    height, width = content.background.shape[:2]
    colours, low, high = ("cividis", -content.signed, content.signed) if content.signed else ("gray_r", 0, 1)
    panel.imshow(content.background, cmap=colours, vmin=low, vmax=high)
    for mask, shade in content.outlines:
        _outline(panel, mask, (("black", 1.8), (shade, 1)))  # seen on any background
    if content.contour is not None:
        _outline(panel, content.contour, (("white", 1.4), (CONTOUR, 0.8)))
    if content.box is not None:
        x0, y0, x1, y1 = content.box - 0.5
        panel.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], ":", color="white", linewidth=1.5)
    panel.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _outline(panel, mask: np.ndarray, strokes: Sequence[Tuple[str, float]]) -> None:
    """The outline of a mask (H, W), in each of these colours and widths, one over the other."""
    # Padded, so that the outline is closed where the image cuts the object.
    x, y = (np.arange(-1, side + 1) for side in mask.shape[::-1])
    lines = contour_generator(x, y, np.pad(mask, 1).astype(float)).lines(0.5)
    for colour, width in strokes:
        # As lines they are simplified: a contour of matplotlib keeps each step of each pixel.
        for line in lines:
            panel.plot(*line.T, _dashes(colour), color=colour, linewidth=width)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / max((one | other).sum(), 1)


def spread(values: np.ndarray, shares: Sequence[float] = (0.1, 0.5, 0.9)) -> List[int]:
    """The objects at these quantiles of a value."""
    order = np.argsort(values, kind="stable")
    return [int(order[int(share * (len(order) - 1))]) for share in shares]


def sizes(boxes: np.ndarray) -> np.ndarray:
    """(N,): the square root of the area of each box (N, 4), as detectron2 measures the size of a RoI."""
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def crop(images: Images, n: int) -> np.ndarray:
    """The picture within the box of object n, resampled to the sides of the RoI maps, four times as fine."""
    x0, y0, x1, y1 = images.boxes[n]
    side = 4 * SIDE
    middles = (np.arange(side) + 0.5) / side
    picture = images.pictures[images.image_of[n]]
    rows = np.clip((y0 + middles * (y1 - y0)).astype(int), 0, picture.shape[0] - 1)
    columns = np.clip((x0 + middles * (x1 - x0)).astype(int), 0, picture.shape[1] - 1)
    return picture[rows][:, columns]


def rendered(figure: Figure, form: str = "png") -> bytes:
    """A figure as ``png`` or ``svg``: the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=form, dpi=200, metadata={"Software" if form == "png" else "Date": None})
    if form == "png":  # 256 colours look the same, and take a third of the bytes
        drawn, buffer = Image.open(buffer).convert("RGB"), io.BytesIO()
        drawn.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as what its name ends in, ``.png`` or ``.svg``."""
    write_bytes(path, rendered(figure, path.suffix[1:]))


def save_beside(figure: Figure, caption: Path) -> None:
    """Write a figure beside its ``.md`` as ``.png`` and, unless it shows pictures, as ``.svg``."""
    for suffix in (".png",) if any(panel.images for panel in figure.axes) else (".png", ".svg"):
        save(figure, caption.with_suffix(suffix))
