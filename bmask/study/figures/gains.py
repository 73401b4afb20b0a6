"""The chart of a table: what each row gains, here and in the paper."""

from textwrap import fill
from typing import Dict, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import COLUMN, OURS, PAPER, new_figure, styled

WORDS = {"APb": "box AP", "APb50": "box AP50", "APb75": "box AP75", "IoU": "mask IoU in true boxes"}
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind words, so that no line crosses them


@styled
def chart(frames: Dict[str, pd.DataFrame], rows: Sequence, title: str, metrics: Sequence[str]) -> Figure:
    """What each row of a table gains over its baseline, here and in the paper.

    Args:
        frames: from :meth:`bmask.study.tables.Table.frames`.
        rows: the table's.
        title: what the table is about.
        metrics: columns of the table whose differences are drawn.

    Returns:
        One panel a metric, all of AP with one scale: rows that are run and compared with another, from top to bottom,
        the difference in points from left to right. Lines through our points are 95% intervals.
    """
    compared = [not row.quoted and row.variant != row.baseline for row in rows]
    frames = {source: frame[compared].reset_index(drop=True) for source, frame in frames.items()}
    paper, drawn = next(iter(frames.values())), [f"d{metric}" for metric in metrics]
    frames = {source: frame for source, frame in frames.items() if frame[drawn].notna().any(axis=None)}
    places = np.arange(sum(compared))
    # Three panels of 1.4 inches would be narrower than their labels beside long names of rows.
    figure = new_figure(1.4 * max(len(metrics), 4) + 2, 0.3 * len(places) + 1.2)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics):
        if metric.startswith("AP"):
            panel.sharex(panels[0])
        panel.axvline(0, color="0.4", linewidth=1)
        for k, (source, frame) in enumerate(frames.items()):
            height, colour = places - 0.3 + 0.17 * k, (OURS, "0.5", "0.2")[k]
            counts = " or ".join(map(str, sorted({*frame["seeds"]} - {0})))
            label = f"{source}, {counts} seed{'s' * (counts != '1')}"
            panel.hlines(height, frame[f"d{metric} low"], frame[f"d{metric} high"], color=colour, linewidth=1.5)
            marker = "os"[source.startswith("same")]
            panel.plot(frame[f"d{metric}"], height, marker, color=colour, label=label, markersize=5)
        panel.plot(paper[f"paper d{metric}"], places + 0.25, "D", color=PAPER, fillstyle="none", label="the paper")
        panel.set_title(WORDS.get(metric, metric.removesuffix("_val")))
        panel.set_xlabel("gain (points)")
        panel.margins(x=0.15)
    panels[0].set_yticks(places, [row.name for row, shown in zip(rows, compared) if shown])
    panels[0].set_ylim(len(places) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return _titled(figure, title)


@styled
def against_time(frames: Dict[str, pd.DataFrame], costs: Dict[str, Dict], rows: Sequence, title: str) -> Figure:
    """What each row of Table 8 gains in AP, over the time that an image takes it.

    Args:
        frames, rows, title: as :func:`chart` takes them.
        costs: from :func:`bmask.study.cost.measured`.

    Returns:
        Time from left to right, by the first row's, and the gain from bottom to top, with its 95% interval.
    """
    figure = new_figure(COLUMN, 2.8)
    panel = figure.subplots()
    panel.axhline(0, color="0.4", linewidth=1)
    paper = np.array([float(row.words["ms_per_image_2080Ti"]) for row in rows])
    lines = {"the paper": (paper / paper[0], frames[next(iter(frames))]["paper dAP"], PAPER, "D")}
    for k, (source, record) in enumerate(costs.items()):
        ratios = [record["systems"][row.variant]["ratio"] for row in rows]
        lines[source] = ratios, frames[source]["dAP"], (OURS, "0.5")[k], "os"[k]
        panel.vlines(ratios, frames[source]["dAP low"], frames[source]["dAP high"], color=lines[source][2])
    for label, (ratios, gained, colour, marker) in lines.items():
        filled = "none" if label == "the paper" else "full"
        panel.plot(ratios, gained, marker, color=colour, fillstyle=filled, label=label)
        for row, x, y in zip(rows, ratios, gained):
            if np.isfinite(y) and row.variant != row.baseline:
                panel.annotate(row.name, (x, y), (5, 4), textcoords="offset points", fontsize=7, color=colour)
    panel.annotate(rows[0].name, (1, 0), (-8, -12), textcoords="offset points", fontsize=7)
    panel.set(xlabel="time an image, relative to Mask R-CNN's", ylabel="gain (AP points)")
    panel.margins(x=0.25, y=0.15)
    figure.legend(loc="outside lower center", ncols=3)
    return _titled(figure, title)


@styled
def claims(found: pd.DataFrame) -> Figure:
    """What the comparisons of claims gain, and the verdicts on them, here and in the paper.

    Args:
        found: from :func:`bmask.study.findings.frame`.

    Returns:
        One panel for each data: claims and their comparisons from top to bottom, points of AP from left to right.
    """
    claimed = found.groupby("claim", sort=False)["comparison"]
    rows = [(claim, row) for claim, compared in claimed for row in ("", *compared.unique())]
    found = found.assign(place=[rows.index(row) for row in zip(found["claim"], found["comparison"])])
    figure = new_figure(2.7 + 1.6 * found["data"].nunique(), 0.18 * len(rows) + 1)
    panels = figure.subplots(1, found["data"].nunique(), sharey=True, squeeze=False)[0]
    for panel, (data, own) in zip(panels, found.groupby("data", sort=False)):
        panel.axvline(0, color="0.4", linewidth=1)
        for protocol, lines in own.groupby("protocol", sort=False):
            k = int(protocol != "joint")
            colour, height = (OURS, "0.2")[k], lines["place"] + (-0.22, 0.22)[k]
            panel.hlines(height, lines["low"], lines["high"], color=colour, linewidth=1.2)
            panel.plot(lines["gain"], height, "os"[k], color=colour, markersize=3.5, label=protocol)
            for claim, verdict in lines[["claim", "verdict"]].drop_duplicates().values:
                place, scales = (0.25 + 0.5 * k, rows.index((claim, ""))), ("axes fraction", "data")
                panel.annotate(verdict, place, xycoords=scales, color=colour, ha="center", va="center", bbox=BLANK)
        panel.plot(own["paper"], own["place"], "D", color=PAPER, fillstyle="none", markersize=3.5, label="the paper")
        panel.set(title=data, xlabel="gain (points of AP)")
    panels[0].set_yticks(range(len(rows)), [row or claim for claim, row in rows])
    for label, (_, row) in zip(panels[0].get_yticklabels(), rows):
        label.set_fontweight("normal" if row else "bold")
    panels[0].set_ylim(len(rows) - 0.5, -0.7)
    handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return figure


def _titled(figure: Figure, title: str) -> Figure:
    """With a title above, in lines as wide as the figure."""
    figure.suptitle(fill(title, round(15 * figure.get_figwidth())), x=0.01, ha="left", fontsize=8)
    return figure
