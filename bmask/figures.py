"""Every plot of the study: functions from tables or predictions to matplotlib figures, and :func:`save`."""

import io
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .files import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers and, by marker, in greyscale.
OURS, PAPER = "#0072B2", "#D55E00"


def gains(frame: pd.DataFrame, rows: Sequence, title: str, metrics: Sequence[str]) -> Figure:
    """What each row of a table gains over its baseline, here and in the paper.

    Args:
        frame: from :func:`bmask.tables.table`.
        rows: the table's rows, from :func:`bmask.tables.rows`.
        title: what the table is about.
        metrics: columns of the table whose differences are drawn.

    Returns:
        One panel a metric: rows that are run from top to bottom, the difference to the row's baseline in AP points
        from left to right. Lines through our points are 95% intervals, where there are several resamples.
    """
    frame = frame[[row.variant != "published" for row in rows]].reset_index(drop=True)
    rows = [row for row in rows if row.variant != "published"]
    places = np.arange(len(frame))
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(2.1 * len(metrics) + 3, 0.42 * len(frame) + 1.5), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics):
        panel.axvline(0, color="0.4", linewidth=1)
        low, high = frame[f"d{metric} low"], frame[f"d{metric} high"]
        panel.hlines(places - 0.12, low, high, color=OURS, linewidth=1.5)
        panel.plot(frame[f"d{metric}"], places - 0.12, "o", color=OURS, label="here")
        panel.plot(
            frame[f"paper d{metric}"], places + 0.12, "D", color=PAPER, fillstyle="none", label="paper"
        )
        panel.set_title(metric)
        panel.set_xlabel("difference (AP points)", fontsize=8)
        panel.margins(x=0.15)
    panels[0].set_yticks(places, _labels(rows))
    panels[0].set_ylim(len(frame) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=9)
    seeds = int(frame["seeds"].min())
    figure.suptitle(f"{title} ({seeds} {'seed' if seeds == 1 else 'seeds'})", x=0.01, ha="left")
    return figure


def _labels(rows: Sequence) -> List[str]:
    """What tells the rows apart, in a few words each."""
    columns = {name: [str(row.words[name]) for row in rows] for name in rows[0].words}
    if "method" in columns:
        columns = {n: columns[n] for n in ("method", "backbone", "input_size") if n in columns}
    columns = {name: words for name, words in columns.items() if len(set(words)) > 1}
    labels = [[] for _ in rows]
    for name, words in columns.items():
        for label, word in zip(labels, words):
            if word == "✓":
                label.append(name.replace("_", " "))
            elif word != "–":
                label.append(f"{name} {word}" if "✓" in words else word)
    return [", ".join(label) or "none" for label in labels]


def examples(rows: List[Dict[str, Tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Images side by side with what was found in them.

    Args:
        rows: for each image and each column, by title, the background, (H, W, 3) uint8 or (H, W) in [0, 1], and
            the masks to outline on it, (N, H, W) bool.
    """
    figure = Figure(figsize=(1.9 * len(rows[0]), 1.9 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for k, row in enumerate(rows):
        for panel, (title, (background, masks)) in zip(panels[k], row.items()):
            height, width = background.shape[:2]
            panel.imshow(background, cmap="gray_r", vmin=0, vmax=1)
            for mask, colour in zip(masks, sns.color_palette("bright", max(len(masks), 1))):
                # Padded, so that the outline is closed where the image cuts the object.
                x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
                panel.contour(x, y, np.pad(mask, 1).astype(float), [0.5], colors=[colour], linewidths=1.2)
            panel.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            panel.set_title(title if k == 0 else "", fontsize=10)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
