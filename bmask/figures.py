"""Every plot of the study: functions from tables or predictions to matplotlib figures, and :func:`save`."""

import io
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .files import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers and, by marker, in greyscale.
OURS, PAPER = "#0072B2", "#D55E00"


def component_gains(frame: pd.DataFrame, info: Dict) -> Figure:
    """What each row of a table gains over its first, here and in the paper.

    Args:
        frame: from :func:`bmask.tables.table`.
        info: the table's entry in ``experiments/tables.yaml``.

    Returns:
        One panel a metric: rows from top to bottom, the difference to the first row in AP points from left to
        right. Bars are the standard deviation over seeds of the paired differences, where there are several.
    """
    metrics = info["metrics"]
    words = frame.iloc[:, : frame.columns.get_loc("variant")]
    labels = [
        " + ".join(w.replace("_", " ") for w, value in row.items() if value == "✓") or "Mask R-CNN"
        for _, row in words.iterrows()
    ]
    rows = range(len(frame))
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(2.3 * len(metrics) + 2.2, 0.5 * len(frame) + 1.4), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics):
        panel.axvline(0, color="0.4", linewidth=1)
        panel.errorbar(
            frame[f"d{metric}"],
            [r - 0.12 for r in rows],
            xerr=None if frame[f"d{metric} std"].isna().all() else frame[f"d{metric} std"],
            fmt="o",
            color=OURS,
            capsize=3,
            label="here",
        )
        panel.plot(
            frame[f"paper d{metric}"],
            [r + 0.12 for r in rows],
            "D",
            color=PAPER,
            fillstyle="none",
            label="paper",
        )
        panel.set_title(metric)
        panel.set_xlabel("difference to row 1 (AP points)", fontsize=8)
        panel.margins(x=0.15)
    panels[0].set_yticks(list(rows), labels)
    panels[0].set_ylim(len(frame) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    seeds = int(frame["seeds"].min())
    figure.suptitle(f"{info['title']} ({seeds} {'seed' if seeds == 1 else 'seeds'})", x=0.01, ha="left")
    return figure


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
