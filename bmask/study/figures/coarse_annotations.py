"""Fig. 7a: coarse annotations, precise predictions, and what Section 4.4 says of them."""

from typing import Dict, List, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import compare, predictions
from ..runs import Run
from .style import COLUMN, OURS, PAPER, Drawn, Panel, crop, iou, new_figure, pictures, quantiles, styled


def draw(shown: List[Run], kept: Dict[Run, Sequence[str]]) -> Drawn:
    records = compare.records(shown)
    seeds, lines = list(records["bmask_rcnn"]), []
    for variant in records:
        ours, base = records[variant], records[variant.replace("bmask_rcnn", "mask_rcnn")]
        if ours is base:
            continue
        coarse = "annotation_iou" in ours[seeds[0]]
        for metric in ("AP", "AP75"):
            line = {"metric": metric, "annotation_iou": ours[seeds[0]].get("annotation_iou", 1.0)}
            for truth, name in (("exact", metric), ("coarse", f"{metric}_coarse" if coarse else metric)):
                line[truth] = np.mean([compare.value(ours[s], name) - compare.value(base[s], name) for s in seeds])
                line[f"{truth} low"], line[f"{truth} high"] = compare.interval(ours, base, name)
            lines.append(line)
    frame = pd.DataFrame(lines).sort_values("annotation_iou", ascending=False)
    levels = frame[frame["metric"] == "AP"]
    gains = "; ".join(
        f"{line.annotation_iou:.2f}: {line.exact:+.1f} and {line.coarse:+.1f}" for line in levels.itertuples()
    )
    caption = (
        "AP that BMask R-CNN gains over Mask R-CNN when both are trained on polygons that are off by 0, 2, 4, 8 "
        "and 16% of the size of the object (the square root of its area), over the mean IoU of these polygons "
        "with the exact masks; measured with the exact masks and with polygons as coarse as those trained on. "
        f"Lines are 95% intervals over images{' and seeds' if len(seeds) > 1 else ''}. IoU of the annotation, and "
        f"gains in AP with exact and with coarse truth: {gains}."
    )
    drawn = {"figure7a": (_plot(frame), caption)}

    images, found = predictions.load_all(kept)
    (found,) = found.values()
    ious = np.array([iou(a, m) for a, m in zip(found.annotated, images.roi_masks)])
    rows = {}
    for words, n in quantiles(ious, (0.1, 0.5, 0.9)):
        rows[f"{words}: IoU {ious[n]:.2f}"] = {
            "image": Panel(crop(images, n)),
            "annotation": Panel(found.annotated[n].astype(float)),
            "truth": Panel(images.roi_masks[n].astype(float)),
            "mask": Panel(found.masks[n].astype(float)),
            "boundary": Panel(found.boundaries[n].astype(float)),
            "true boundary": Panel(images.roi_boundaries[n].astype(float)),
        }
    predicted = [(mask > 0.5) for mask in found.masks]
    with_exact, with_coarse = (
        np.mean([iou(p, m) for p, m in zip(predicted, truth)]) for truth in (images.roi_masks, found.annotated)
    )
    caption = (
        "What BMask R-CNN predicts after training on polygons that are off by 8%: objects whose annotation has "
        "an IoU with the exact mask at the 10th, 50th and 90th percentile of those in the first "
        f"{len(images.pictures)} test images, in their true boxes. Over all of these the annotations have a mean "
        f"IoU of {ious.mean():.3f} with the exact masks, the predicted masks of {with_exact:.3f}, and the "
        f"predictions and the annotations of {with_coarse:.3f}."
    )
    drawn["figure7a_examples"] = (pictures(rows, side=1.0), caption)
    return drawn


@styled
def _plot(frame: pd.DataFrame) -> Figure:
    """A panel a ``metric`` of the frame: what is gained by ``exact`` and by ``coarse`` masks, with intervals."""
    metrics = list(dict.fromkeys(frame["metric"]))
    figure = new_figure(COLUMN, 2.6)
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
