"""The chart of a table: what each row gains, here and in the paper."""

from typing import Dict, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import OURS, PAPER, new_figure, styled


@styled
def chart(frames: Dict[str, pd.DataFrame], rows: Sequence, title: str, metrics: Sequence[str]) -> Figure:
    """What each row of a table gains over its baseline, here and in the paper.

    Args:
        frames: from :meth:`bmask.study.tables.Table.frames`.
        rows: the table's.
        title: what the table is about.
        metrics: columns of the table whose differences are drawn.

    Returns:
        One panel a metric: rows that are run from top to bottom, the difference to the row's baseline in points
        from left to right. Lines through our points are 95% intervals, where there are several resamples.
    """
    run = [not row.quoted for row in rows]
    frames = {source: frame[run].reset_index(drop=True) for source, frame in frames.items()}
    places = np.arange(sum(run))
    # Three panels of 1.4 inches would be narrower than their labels beside long names of rows.
    figure = new_figure(1.4 * max(len(metrics), 4) + 2, 0.3 * len(places) + 1.2)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics):
        panel.axvline(0, color="0.4", linewidth=1)
        for k, (source, frame) in enumerate(frames.items()):
            height, colour = places - 0.3 + 0.17 * k, (OURS, "0.5", "0.2")[k]
            panel.hlines(height, frame[f"d{metric} low"], frame[f"d{metric} high"], color=colour, linewidth=1.5)
            panel.plot(
                frame[f"d{metric}"], height, "os"[source.startswith("same")], color=colour, label=source, markersize=5
            )
        panel.plot(frame[f"paper d{metric}"], places + 0.25, "D", color=PAPER, fillstyle="none", label="paper")
        panel.set_title("IoU in true boxes" if metric == "IoU" else metric)
        panel.set_xlabel("difference (points)")
        panel.margins(x=0.15)
    panels[0].set_yticks(places, [row.name for row, shown in zip(rows, run) if shown])
    panels[0].set_ylim(len(places) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=4)
    counts = {source: sorted({*frame["seeds"]} - {0}) for source, frame in frames.items()}
    seeds = ", ".join(f"{source} {' or '.join(map(str, numbers))}" for source, numbers in counts.items())
    figure.suptitle(f"{title} (seeds: {seeds})", x=0.01, ha="left", fontsize=9)
    return figure
