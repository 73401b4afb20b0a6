"""Fig. 1: AP at each IoU threshold, and what BMask R-CNN gains."""

from typing import List

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import compare, stats
from ..config import EXPERIMENTS
from ..runs import Run
from .style import COLOURS, PAGE, PAPER, SYSTEMS, Drawn, new_figure, styled

BASE, OURS = SYSTEMS.values()


def draw(shown: List[Run], _) -> Drawn:
    base, ours = records = list(compare.records(shown).values())
    lines = [
        {"panel": panel, "variant": name, "seed": seed, "iou": float(iou), "AP": ap}
        for panel, kind in (("masks", "segm"), ("boundaries (Boundary AP)", "boundary"))
        for name, by_seed in zip(SYSTEMS.values(), records)
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
        f"The gain of BMask R-CNN over Mask R-CNN {verdict}: {gain['AP50']:+.1f} AP points at an IoU of 0.50, "
        f"{gain['AP75']:+.1f} at 0.75, a difference of {growth:+.1f}{interval}. In the paper it grows from +1.0 to "
        "+2.3. Left AP of masks, right Boundary AP, below what is gained."
        + (" Bands are 95% intervals over the seeds." if len(ours) > 1 else "")
        + " The paper's curves have ResNet-101, 800 pixels and COCO, up to 0.85."
    )
    return {"figure1": (_plot(pd.DataFrame(lines), paper), caption)}


@styled
def _plot(curves: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """AP above, the gain below; ``panel`` of the curves says what is measured, the paper's are beside the first."""
    wide = curves.pivot(index=["panel", "seed", "iou"], columns="variant", values="AP")
    gain = (wide[OURS] - wide[BASE]).rename("gain").reset_index()
    titles = list(curves["panel"].unique())
    look = {BASE: (COLOURS["mask_rcnn"], "o", "-"), OURS: (COLOURS["bmask_rcnn"], "s", "--")}
    figure = new_figure(PAGE, 4.2)
    panels = figure.subplots(2, len(titles), sharex=True, sharey="row", squeeze=False)
    for k, title in enumerate(titles):
        above, below = panels[:, k]
        here = curves[curves["panel"] == title]
        for name in look:
            _line(above, here[here["variant"] == name], "AP", *look[name], name)
        below.axhline(0, color="0.4", linewidth=1)
        _line(below, gain[gain["panel"] == title], "gain", "0.1", "o", "-", "gain")
        above.set(title=title, ylabel="AP (%)")
        below.set(xlabel="IoU threshold", ylabel="gain (AP points)")
    for column, name in SYSTEMS.items():
        colour, marker, _ = look[name]
        hollow = dict(linestyle="", fillstyle="none", label=f"{name}, the paper")
        panels[0, 0].plot(paper["iou"], paper[column], marker, color=colour, **hollow)
    panels[1, 0].plot(paper["iou"], paper["delta"], "D", color=PAPER, fillstyle="none", label="gain, the paper")
    handles = [handle for panel in panels[:, 0] for handle in panel.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _line(panel, lines: pd.DataFrame, y: str, colour: str, marker: str, dashes: str, label: str) -> None:
    """The mean over the seeds at each threshold, with its interval over them."""
    by_iou = {iou: values.to_numpy() for iou, values in lines.groupby("iou")[y]}
    found = [stats.estimate(values, values[:, None]) for values in by_iou.values()]
    panel.plot([*by_iou], [f.mean for f in found], marker + dashes, color=colour, linewidth=1.2, label=label)
    if len(next(iter(by_iou.values()))) > 1:
        panel.fill_between([*by_iou], *zip(*(f.interval for f in found)), color=colour, alpha=0.2, linewidth=0)
