"""What BMask R-CNN gains where the truth is coarse, as COCO's polygons are, and where it is drawn to the pixel."""

from typing import List

import numpy as np

from .. import compare
from ..runs import Run
from .style import COLUMN, OURS, PAPER, Drawn, new_figure, styled

METRICS = {"IoU": "mask IoU", "F": "boundary F", "AP": "AP"}


@styled
def draw(shown: List[Run], _) -> Drawn:
    base, ours = compare.records(shown).values()
    figure = new_figure(COLUMN, 1.8)
    panel, places = figure.subplots(), np.arange(len(METRICS))
    panel.axvline(0, color="0.4", linewidth=1)
    said = []
    for name, suffix, colour, marker, shift in (
        ("coarse", "", PAPER, "s", -0.12),
        ("precise", "_second", OURS, "o", 0.12),
    ):
        metrics = [metric + suffix for metric in METRICS]
        gains = [np.mean([compare.value(ours[s], m) - compare.value(base[s], m) for s in ours]) for m in metrics]
        if np.isnan(gains).all():
            said.append(f"{name}: not measured, as Penn-Fudan was not there (`prepare-pennfudan`)")
            continue
        ends = [compare.interval(ours, base, metric) for metric in metrics]
        panel.hlines(places + shift, *zip(*ends), color=colour, linewidth=1.5)
        panel.plot(gains, places + shift, marker, color=colour, label=f"{name} truth")
        each = zip(METRICS.values(), gains, ends)
        said.append(
            f"{name}: " + ", ".join(f"{m} {gain:+.1f} [{low:+.1f}, {high:+.1f}]" for m, gain, (low, high) in each)
        )
    panel.set_yticks(places, METRICS.values())
    panel.set_ylim(len(METRICS) - 0.5, -0.5)
    panel.set_xlabel("gain of BMask R-CNN (points)")
    figure.legend(loc="outside lower center", ncols=2)
    caption = (
        "What BMask R-CNN gains over Mask R-CNN, trained on coarse annotations, on the test images of the profile, "
        "whose annotations are as coarse, and on its second test set, whose masks are drawn to the pixel. IoU and F in "
        "true boxes. Lines are 95% intervals over images, with their objects"
        + (", and seeds" if len(ours) > 1 else "")
        + f". Gains, {'; '.join(said)}."
    )
    return {"precise": (figure, caption)}
