"""Fig. 7a: coarse annotations, precise predictions, and what Section 4.4 says of them."""

from typing import Dict, List, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import compare, predictions, stats
from ..runs import Run
from .style import COLOURS, OURS, PAGE, PAPER, SYSTEMS, Drawn, Panel, crop, iou, new_figure, pictures, spread, styled


def draw(shown: List[Run], kept: Dict[Run, Sequence[str]]) -> Drawn:
    records = compare.records(shown)
    seeds, lines, finer = list(records["bmask_rcnn"]), [], []
    for variant in records:
        ours, base = records[variant], records[variant.replace("bmask_rcnn", "mask_rcnn")]
        if ours is base:
            continue
        coarse = "annotation_iou" in ours[seeds[0]]
        place = {"variant": variant, "annotation_iou": ours[seeds[0]].get("annotation_iou", 1.0)}
        for metric in ("AP", "AP75"):
            line = {**place, "metric": metric}
            for truth, name in (("exact", metric), ("coarse", f"{metric}_coarse" if coarse else metric)):
                line[truth] = np.mean([compare.value(ours[s], name) - compare.value(base[s], name) for s in seeds])
                line[f"{truth} low"], line[f"{truth} high"] = compare.interval(ours, base, name)
            lines.append(line)
        if coarse:
            for system, by_seed in (("mask_rcnn", base), ("bmask_rcnn", ours)):
                found = compare.contrast([(1, by_seed)], "finer")
                low, high = found.interval
                finer.append({**place, "system": system, "finer": found.mean, "low": low, "high": high})
    frame = pd.DataFrame(lines).sort_values("annotation_iou", ascending=False)
    finer = pd.DataFrame(finer)
    drawn = {"figure7a": (_plot(frame, finer), _caption(shown, records, frame, finer))}

    images, found = predictions.load_all(kept)
    ((run, found),) = found.items()
    predicted = found.masks > 0.5
    of_annotations, of_predictions = (
        np.array([iou(one, truth) for one, truth in zip(masks, images.roi_masks)])
        for masks in (found.annotated, predicted)
    )
    rows = {}
    for words, n in zip(("a rough annotation", "a typical one", "a good one"), spread(of_annotations)):
        maps = {"annotation": found.annotated, "predicted mask": found.masks, "predicted boundary": found.boundaries}
        rows[f"{words},\nIoU {of_annotations[n]:.2f}"] = {
            "image": Panel(crop(images, n)),
            **{name: Panel(each[n].astype(float), contour=images.roi_masks[n]) for name, each in maps.items()},
        }
    difference = stats.mean_of_objects([(images.image_of, 100 * (of_predictions - of_annotations))])
    low, high = difference.interval
    words = "closer to" if low > 0 else "further from" if high < 0 else "neither closer to nor further from"
    caption = (
        f"The predictions are {words} the exact masks than annotations of the kind that the model was trained on: mean "
        f"IoU {of_predictions.mean():.3f} against {of_annotations.mean():.3f}, {difference.mean:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}]. BMask R-CNN, seed {run.seed}, trained on polygons that are off by "
        f"{_percent(run)}%; the {len(of_annotations)} objects of the first {len(images.pictures)} test images in their "
        "true boxes. Rows: the annotations whose IoU with the exact mask is at the 10th, 50th and 90th percentile. The "
        "line is the exact contour."
    )
    scales = {("predicted mask", "predicted boundary"): "probability"}
    drawn["figure7a_examples"] = (pictures(rows, side=1.3, scales=scales), caption)
    return drawn


def _percent(run: Run) -> int:
    """How far the polygons are off that a run is trained on, in percent of the size of the object."""
    return round(100 * run.cfg.STUDY.SHAPES.COARSENESS)


def _caption(shown: List[Run], records: Dict, frame: pd.DataFrame, finer: pd.DataFrame) -> str:
    gains = frame[frame["metric"] == "AP"]
    most, coarsest = gains.iloc[0], gains.iloc[-1]
    terms = [
        (sign * side, records[system])
        for line, sign in ((most, 1), (coarsest, -1))
        for system, side in ((line.variant, 1), (line.variant.replace("bmask_rcnn", "mask_rcnn"), -1))
    ]
    change = compare.contrast(terms, "AP")
    each = "; ".join(
        f"{line.annotation_iou:.2f}: {line.exact:+.1f} and {line.coarse:+.1f}" for line in gains.itertuples()
    )
    *grades, last = map(str, sorted({_percent(run) for run in shown}))
    ours = finer[finer["system"] == "bmask_rcnn"].sort_values("annotation_iou", ascending=False)
    above = "; ".join(f"{line.annotation_iou:.2f}: {line.finer:+.1f}" for line in ours.itertuples())
    return (
        f"BMask R-CNN gains {most.exact:+.1f} AP over Mask R-CNN when both are trained on exact masks, and "
        f"{coarsest.exact:+.1f} when on the coarsest annotations, a difference of {change.mean:+.1f} "
        f"{'[{:+.1f}, {:+.1f}]'.format(*change.interval)}. "
        f"In true boxes the IoU of its masks less that of the annotations is, in points (right): {above}. "
        f"Annotations are polygons that are off by {', '.join(grades)} and {last}% of the size of the object (the "
        "square root of its area); from left to right they get worse. Gains are measured with the exact masks and with "
        "polygons as coarse as those trained on. Lines are 95% intervals over images"
        f"{' and seeds' if len(records['bmask_rcnn']) > 1 else ''}. IoU of the annotation, and gain with exact and "
        f"with coarse truth: {each}."
    )


@styled
def _plot(frame: pd.DataFrame, finer: pd.DataFrame) -> Figure:
    """A panel a ``metric`` of the frame: what is gained by ``exact`` and by ``coarse`` masks, with intervals.

    finer: what masks have above their annotations in IoU, by system: the last panel.
    """
    metrics = list(dict.fromkeys(frame["metric"]))
    figure = new_figure(PAGE, 2.6)
    panels = figure.subplots(1, len(metrics) + 1)
    for panel, metric in zip(panels, metrics):
        lines = frame[frame["metric"] == metric]
        for truth, shade, look, shift in (("exact", OURS, "o-", 0.002), ("coarse", PAPER, "s--", -0.002)):
            _with_intervals(panel, lines, truth, f"{truth} ", look, shade, f"measured with {truth} masks", shift)
        panel.set_title(f"gain in {metric}")
    panels[1].sharey(panels[0])
    panels[0].set_ylabel("points")
    handles, labels = panels[0].get_legend_handles_labels()
    for (system, name), look, shift in zip(SYSTEMS.items(), ("s--", "o-"), (-0.002, 0.002)):
        lines = finer[finer["system"] == system].sort_values("annotation_iou")
        _with_intervals(panels[-1], lines, "finer", "", look, COLOURS[system], name, shift)
    panels[-1].set_title("IoU of mask minus IoU of annotation")
    panels[-1].legend(fontsize=7)
    for panel in panels:
        panel.axhline(0, color="0.4", linewidth=1)
        panel.invert_xaxis()
        panel.set_xlabel("IoU of annotation and exact mask")
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _with_intervals(
    panel, lines: pd.DataFrame, value: str, ends: str, look: str, colour: str, label: str, shift: float
) -> None:
    """A value of each line over the IoU of the annotation, a little aside, and its interval."""
    x = lines["annotation_iou"] + shift
    panel.vlines(x, lines[f"{ends}low"], lines[f"{ends}high"], color=colour, linewidth=1)
    panel.plot(x, lines[value], look, color=colour, label=label)
