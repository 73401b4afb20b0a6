"""Every plot of the study. Functions take tables and return matplotlib figures; :func:`save` writes them."""

import io
from pathlib import Path
from typing import Dict

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .train import write_atomically

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
            frame[f"paper d{metric}"], [r + 0.12 for r in rows], "D", color=PAPER, fillstyle="none", label="paper"
        )
        panel.set_title(metric)
        panel.set_xlabel("difference to row 1 (AP points)", fontsize=8)
        panel.margins(x=0.15)
    panels[0].set_yticks(list(rows), labels)
    panels[0].set_ylim(len(frame) - 0.5, -0.5)
    panels[0].legend(loc="lower left", fontsize=8, framealpha=1)
    figure.suptitle(f"{info['title']} (seeds: {int(frame['seeds'].min())})")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure; a file that holds them is left alone."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    if not path.exists() or path.read_bytes() != buffer.getvalue():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda p: p.write_bytes(buffer.getvalue()))
