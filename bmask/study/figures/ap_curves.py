"""Fig. 1: AP at each IoU threshold, and what BMask R-CNN gains."""

from typing import List

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import compare
from ..config import EXPERIMENTS
from ..runs import Run
from .style import COLOURS, MARKERS, PAGE, PAPER, Drawn, draw_legend, draw_lines, new_figure, styled

NAMES = BASE, OURS = "Mask R-CNN", "BMask R-CNN"


def draw(shown: List[Run], _) -> Drawn:
    base, ours = records = list(compare.records(shown).values())
    lines = [
        {"panel": panel, "variant": name, "seed": seed, "iou": float(iou), "AP": ap}
        for panel, kind in (("masks", "segm"), ("boundaries (Boundary AP)", "boundary"))
        for name, by_seed in zip(NAMES, records)
        for seed, record in by_seed.items()
        for iou, ap in record["metrics"][kind]["per_iou"].items()
    ]
    paper = pd.read_csv(EXPERIMENTS / "paper" / "figure1_ap_curves.csv")
    gain = {
        metric: np.mean([compare.value(ours[s], metric) - compare.value(base[s], metric) for s in ours])
        for metric in ("AP50", "AP75")
    }
    low, high = compare.interval(ours, base, "AP75 - AP50")
    interval = "" if np.isnan(low) else f" (95% interval {low:+.1f} to {high:+.1f})"
    growth = gain["AP75"] - gain["AP50"]
    verdict = "grows with the threshold" if low > 0 else "falls with the threshold" if high < 0 else None
    verdict = verdict or "is not shown to grow with the threshold: the interval contains zero"
    caption = (
        "AP of masks and Boundary AP at IoU thresholds from 0.50 to 0.95, and what BMask R-CNN gains over Mask "
        f"R-CNN. The gain of the masks is {gain['AP50']:+.1f} AP points at 0.50 and {gain['AP75']:+.1f} at 0.75, "
        f"a difference of {growth:+.1f}{interval}, so here it {verdict}; in the paper it grows from "
        "+1.0 to +2.3. Bands go from the lowest to the highest seed. Hollow: the paper's curves (ResNet-101, 800 "
        "pixels, COCO; up to 0.85)."
    )
    return {"figure1": (_plot(pd.DataFrame(lines), paper), caption)}


@styled
def _plot(curves: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """AP above, the gain below; ``panel`` of the curves says what is measured, the paper's are beside the first."""
    wide = curves.pivot(index=["panel", "seed", "iou"], columns="variant", values="AP")
    gain = (wide[OURS] - wide[BASE]).rename("gain").reset_index()
    titles, colours = list(curves["panel"].unique()), {BASE: COLOURS["mask_rcnn"], OURS: COLOURS["bmask_rcnn"]}
    figure = new_figure(PAGE, 4.2)
    panels = figure.subplots(2, len(titles), sharex=True, sharey="row", squeeze=False)
    for k, title in enumerate(titles):
        above, below = panels[:, k]
        draw_lines(above, curves[curves["panel"] == title], "iou", "AP", colours)
        draw_lines(below, gain[gain["panel"] == title].assign(variant=OURS), "iou", "gain", {OURS: colours[OURS]})
        below.axhline(0, color="0.4", linewidth=1)
        above.set(title=title, ylabel="AP (%)")
        below.set(xlabel="IoU threshold", ylabel="gain (AP points)")
    hollow = dict(linestyle="", fillstyle="none")
    for k, variant in enumerate(("mask_rcnn", "bmask_rcnn")):
        panels[0, 0].plot(paper["iou"], paper[variant], MARKERS[k], color=COLOURS[variant], **hollow)
    panels[1, 0].plot(paper["iou"], paper["delta"], "D", color=PAPER, **hollow)
    draw_legend(figure, colours, "hollow: the paper's")
    return figure
