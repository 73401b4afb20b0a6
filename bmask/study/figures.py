"""From records and kept predictions to the paper's figures, each with a caption that says what was found."""

from itertools import product
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import pandas as pd
import torch
import yaml
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from matplotlib.figure import Figure

from ..boundary import sobel
from ..errors import InputError
from . import draw, predictions, runs, stats, tables
from .config import EXPERIMENTS, nearest
from .draw import COLOURS, LEVELS, TRUTH, Panel
from .files import write_bytes
from .paste import strongest_boundaries
from .predictions import Images, Predictions

NAMES = {
    "mask_rcnn": "Mask R-CNN",
    "bmask_rcnn": "BMask R-CNN",
    "bmask_rcnn_bce": "BCE",
    "bmask_rcnn_weighted_bce": "weighted BCE",
    "bmask_rcnn_dice": "Dice",
}
LOSSES = {**NAMES, "bmask_rcnn": "Dice-BCE"}
PREFIX = "figure-"  # of a figure's number, where tables have theirs
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # of detectron2's ROIPooler: a box of 224 pixels is pooled from P4
Drawn = Dict[str, Tuple[Figure, str]]  # figure and caption, by the name of their files


def specs() -> Dict[str, Dict]:
    """What ``experiments/figures.yaml`` says, by the figure's number or name."""
    return yaml.safe_load((EXPERIMENTS / "figures.yaml").read_text())


def spec(number: str) -> Dict:
    """What it says of one figure. Raises InputError for one that it does not know."""
    known = specs()
    if number not in known:
        raise nearest("figure", number, list(known))
    return known[number]


def title(number: str) -> str:
    """How the figure is called: "Figure 6. What ...", or its own title for one without a number."""
    text = spec(number)["title"]
    return f"Figure {number}. {text}" if number[0].isdigit() else text


def folder(profile: str) -> Path:
    """Where the profile's figures are written."""
    return runs.results(profile) / "figures"


def captions(number: str, results: Path) -> List[Path]:
    """The captions, ``.md``, of a figure in a folder of results; ``.png`` and ``.svg`` lie beside them."""
    stem, here = f"figure{number}" if number[0].isdigit() else number, results / "figures"
    return [path for name in (f"{stem}.md", f"{stem}_*.md") for path in sorted(here.glob(name))]


def variants(number: str, profile: str) -> List[str]:
    """The models that the figure shows."""
    info = spec(number)
    return info.get("paper") if "paper" in info and profile.startswith("paper") else info["variants"]


def figure_runs(number: str, profile: str, seeds: List[int]) -> List[runs.Run]:
    """The runs that the figure needs."""
    return [runs.Run(variant, profile, seed) for variant, seed in product(variants(number, profile), seeds)]


def predicted_runs(number: str, profile: str, seeds: List[int]) -> Dict[runs.Run, List[str]]:
    """Those of them whose predictions it needs, and which parts of these."""
    info = spec(number)
    parts = {seeds[0]: info.get("parts", [])}
    parts |= {seed: info["further_seeds"] for seed in seeds[1:] if "further_seeds" in info}
    return {runs.Run(v, profile, seed): parts[seed] for v, seed in product(info.get("predictions", []), parts)}


def kept_predictions(number: str, profile: str, seeds: List[int]) -> Tuple[Images, Dict[Tuple[str, int], Predictions]]:
    """The images of a figure, and what its models predict for them, by variant and seed."""
    wanted = predicted_runs(number, profile, seeds)
    found = {(run.variant, run.seed): predictions.load(run, parts) for run, parts in wanted.items()}
    return predictions.load_images(list(wanted)), found


def write(number: str, profile: str, seeds: List[int]) -> List[Path]:
    """Write the figure's ``.png``, ``.svg`` and caption, ``.md``, and return the paths of the first.

    Raises:
        InputError: a run has not been carried out, or its predictions have not been kept; says which command does it.
    """
    paths, heading = [], title(number)
    setting = _setting(figure_runs(number, profile, seeds), profile, seeds)
    for name, (figure, caption) in DRAW[number](profile, seeds).items():
        paths.append(folder(profile) / f"{name}.png")
        text = f"**{heading}.** {caption} {setting}\n"
        write_bytes(paths[-1].with_suffix(".md"), text.encode())
        for suffix in (".png", ".svg"):
            draw.save(figure, paths[-1].with_suffix(suffix))
    tables.note_made(PREFIX + number, profile, seeds)
    return paths


def _setting(shown: List[runs.Run], profile: str, seeds: List[int]) -> str:
    text = f"Profile `{profile}`, " + ("one seed." if len(seeds) == 1 else f"{len(seeds)} seeds.")
    shipped = 0 if runs.PUBLISH else sum(run.results == runs.shipped(profile) for run in shown)
    return text + (f" {shipped} of its {len(shown)} runs are shipped ones." if shipped else "")


def _over(seeds: List[int]) -> str:
    return "images" if len(seeds) == 1 else "images and seeds"


def _records(names: Sequence[str], profile: str, seeds: List[int]) -> Dict[str, Dict[int, Dict]]:
    """The records by variant and seed. Raises InputError where one is missing or of a failed run."""
    found = {}
    for variant, seed in product(names, seeds):
        run = runs.Run(variant, profile, seed)
        record = run.record()
        if record is None:
            raise InputError(
                f"{run.name} has not been run; `python -m bmask run --variant {variant} --profile {profile} "
                f"--seeds {seed}` does it"
            )
        if "failed" in record:
            raise InputError(f"{run.name} has failed ({record['failed']}); there is nothing to draw")
        found.setdefault(variant, {})[seed] = record
    return found


def _ap_curves(profile: str, seeds: List[int]) -> Drawn:
    """Fig. 1."""
    base, ours = pair = variants("1", profile)
    records = _records(pair, profile, seeds)
    lines = [
        {"panel": panel, "variant": variant, "seed": seed, "iou": float(iou), "AP": ap}
        for panel, kind in (("masks", "segm"), ("boundaries (Boundary AP)", "boundary"))
        for variant, seed in product(pair, seeds)
        for iou, ap in records[variant][seed]["metrics"][kind]["per_iou"].items()
    ]
    curves = pd.DataFrame(lines)
    paper = pd.read_csv(EXPERIMENTS / "paper" / "figure1_ap_curves.csv")
    paper = paper.rename(columns={"mask_rcnn": base, "bmask_rcnn": ours})
    names = {base: "Mask R-CNN", ours: "BMask R-CNN"}
    gain = {
        metric: np.mean([_ap(records[ours][s], metric) - _ap(records[base][s], metric) for s in seeds])
        for metric in ("AP50", "AP75")
    }
    low, high = tables.interval(records[ours], records[base], "AP75 - AP50")
    growth = gain["AP75"] - gain["AP50"]
    verdict = "grows with the threshold" if low > 0 else "falls with the threshold" if high < 0 else None
    verdict = verdict or "is not shown to grow with the threshold: the interval contains zero"
    caption = (
        "AP of masks and Boundary AP at IoU thresholds from 0.50 to 0.95, and what BMask R-CNN gains over Mask "
        f"R-CNN. The gain of the masks is {gain['AP50']:+.1f} AP points at 0.50 and {gain['AP75']:+.1f} at 0.75, "
        f"a difference of {growth:+.1f}{_interval(low, high)}, so here it {verdict}; in the paper it grows from "
        "+1.0 to +2.3. Bands go from the lowest to the highest seed. Hollow: the paper's curves (ResNet-101, 800 "
        "pixels, COCO; up to 0.85)."
    )
    return {"figure1": (draw.ap_curves(curves, names, paper), caption)}


def _ap(record: Dict, metric: str) -> float:
    kind, key = tables.METRICS[metric]
    return record["metrics"][kind][key]


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" (95% interval {low:+.1f} to {high:+.1f})"


def _examples(profile: str, seeds: List[int]) -> Drawn:
    """Figs. 2, 3 and 8."""
    images, found = kept_predictions("2", profile, seeds)
    found = {variant: p for (variant, _), p in found.items()}
    pasted = {v: [_pasted(p, images, k) for k in range(len(images.pictures))] for v, p in found.items()}
    ious = {v: _best_ious(images, found[v], pasted[v]) for v in found}
    change = pd.Series(ious["bmask_rcnn"] - ious["mask_rcnn"])
    gain = change.groupby(images.image_of).mean().sort_values(kind="stable")  # of images with objects
    number, rows = len(gain), {}
    for words, k in (
        ("largest gain", gain.index[-1]),
        ("median", gain.index[number // 2]),
        ("largest loss" if gain.iloc[0] < 0 else "smallest gain", gain.index[0]),
    ):
        inside = np.flatnonzero(images.image_of == k)
        n = inside[change.abs()[inside].argmax()]
        picture = images.pictures[k]
        ours = found["bmask_rcnn"]
        outlines = [(images.masks[m], TRUTH) for m in inside]
        row = {"ground truth": Panel(picture, outlines, box=images.boxes[n])}
        for variant in found:
            outlines = [(mask, COLOURS[variant]) for mask in pasted[variant][k]]
            row[NAMES[variant]] = Panel(picture, outlines)
        row["boundaries"] = Panel(_boundaries(ours, images, k))
        row["RoI: truth"] = Panel(images.roi_masks[n].astype(float))
        row["Mask R-CNN "] = Panel(found["mask_rcnn"].masks[n].astype(float))
        row["BMask R-CNN "] = Panel(ours.masks[n].astype(float))
        row["its boundary"] = Panel(ours.boundaries[n].astype(float))
        rows[f"{words} ({100 * gain[k]:+.0f})"] = row
    caption = (
        f"Ground truth, detections with a score of {predictions.MIN_SCORE} or more, and the boundaries that BMask "
        f"R-CNN predicts for them. Of the first {number} test images those are shown in which the mean IoU of the "
        "objects, each with the best mask of its class, changes most for the better, as the median, and most for "
        "the worse (in brackets: by how many points). Right: for the object in the dotted box, the one that "
        "changes most, the truth and the raw 28x28 predictions in its true box. The mean change over the "
        f"{number} images is {100 * gain.mean():+.1f} points; in {(gain > 0).sum()} it is a gain, in "
        f"{(gain < 0).sum()} a loss."
    )
    return {"figure2": (draw.pictures(rows, side=1.0), caption)}


def shown_images(run: runs.Run, count: int) -> Figure:
    """The first test images with their truth, and what a run finds in them and where it sees boundaries."""
    images, found = predictions.load_images([run]), predictions.load(run, ["found"])
    rows = {}
    for k in range(min(count, len(images.pictures))):
        picture, inside = images.pictures[k], np.flatnonzero(images.image_of == k)
        rows[f"image {k + 1}"] = {
            "ground truth": Panel(picture, [(images.masks[n], TRUTH) for n in inside]),
            run.variant: Panel(picture, [(mask, draw.OURS) for mask in _pasted(found, images, k)]),
        }
        if found.found_boundaries is not None:
            rows[f"image {k + 1}"]["boundaries"] = Panel(_boundaries(found, images, k))
    return draw.pictures(rows, side=1.8)


def _pasted(found: Predictions, images: Images, k: int) -> np.ndarray:
    """The masks detected in picture k: (D, H, W), bool."""
    masks, boxes, size = _detected(found, images, k, found.found_masks)
    return paste_masks_in_image(masks, boxes, size).bool().numpy()


def _boundaries(found: Predictions, images: Images, k: int) -> np.ndarray:
    """The strongest boundary of what is detected in picture k: (H, W), in [0, 1]."""
    return strongest_boundaries(*_detected(found, images, k, found.found_boundaries)).numpy()


def _detected(found: Predictions, images: Images, k: int, maps: np.ndarray):
    """Of picture k: those of the maps (D, 28, 28), their boxes, and the picture's height and width."""
    here = found.found_in == k
    boxes = Boxes(torch.from_numpy(found.found_boxes[here]))
    return torch.from_numpy(maps[here]).float(), boxes, images.pictures[k].shape[:2]


def _best_ious(images: Images, found: Predictions, pasted: List[np.ndarray]) -> np.ndarray:
    """(N,): for each object the IoU of the best mask of its class."""
    best = np.zeros(len(images.masks))
    for n, (k, mask) in enumerate(zip(images.image_of, images.masks)):
        candidates = pasted[k][found.found_classes[found.found_in == k] == images.classes[n]]
        best[n] = max((_iou(candidate, mask) for candidate in candidates), default=0)
    return best


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / max((one | other).sum(), 1)


def _roi_features(profile: str, seeds: List[int]) -> Drawn:
    """Fig. 5."""
    images, _ = kept_predictions("5", profile, seeds)
    strategies = {v: runs.Run(v, profile, seeds[0]).cfg for v in variants("5", profile)}
    levels = {v: [_levels(cfg, images, k) for k in range(len(images.pictures))] for v, cfg in strategies.items()}
    spread = [len(set(levels["bmask_rcnn_p2p5_14"][k])) for k in range(len(images.pictures))]
    k = int(np.argmax(spread))
    inside = np.flatnonzero(images.image_of == k)
    boxes = images.boxes[inside]
    largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    rows = {"RoIs": {}, "one RoI": {}}
    for variant, cfg in strategies.items():
        side, names = cfg.MODEL.BOUNDARY_MASK_HEAD.POOLER_RESOLUTION, cfg.MODEL.BOUNDARY_MASK_HEAD.IN_FEATURES
        heading = f"{'P2' if len(names) == 1 else 'P2 ~ P5'}, {side}x{side}"
        outlines = [
            (_filled(box, images.pictures[k].shape), LEVELS[level]) for box, level in zip(boxes, levels[variant][k])
        ]
        rows["RoIs"][heading] = Panel(images.pictures[k], outlines)
        stride = 2 ** int(levels[variant][k][largest][1:]) / _scale(cfg, images.pictures[k])
        rows["one RoI"][heading] = _sampled(images.pictures[k], boxes[largest], stride, side)
    share = pd.Series(np.concatenate(levels["bmask_rcnn_p2p5_14"])).value_counts(normalize=True).sort_index()
    words = ", ".join(f"{100 * value:.0f}% from {level.upper()}" for level, value in share.items())
    caption = (
        "The RoI features of the boundary in Table 5, drawn from the configuration of the runs. Above: the "
        f"objects of the test image with the most levels among the first {len(images.pictures)}, outlined in the "
        "colour of the level that the boundary features are pooled from. Below: the largest of these RoIs, at "
        "the resolution of its level, and the points where RoIAlign puts the middles of its bins. Pooled by "
        f"scale, the objects of these images come {words} (detectron2 pools a box of {CANONICAL_SIZE} pixels of "
        "the network's input from P4, of half the size from P3, and so on)."
    )
    if len(share) == 1:
        caption += " So P2 and P2 ~ P5 are the same here, and Table 5 cannot tell them apart."
    legend = {LEVELS[level]: level.upper() for level in share.index}
    return {"figure5": (draw.pictures(rows, side=1.5, legend=legend), caption)}


def _scale(cfg, picture: np.ndarray) -> float:
    """How much the network's input is larger than the picture, by the configuration."""
    height, width = picture.shape[:2]
    return min(cfg.INPUT.MIN_SIZE_TEST / min(height, width), cfg.INPUT.MAX_SIZE_TEST / max(height, width))


def _levels(cfg, images: Images, k: int) -> List[str]:
    """The feature map that the boundary features of each object of picture k are pooled from."""
    names = cfg.MODEL.BOUNDARY_MASK_HEAD.IN_FEATURES
    if len(names) == 1:
        return [names[0]] * int((images.image_of == k).sum())
    boxes = torch.from_numpy(images.boxes[images.image_of == k]) * _scale(cfg, images.pictures[k])
    numbers = [int(name[1:]) for name in names]
    chosen = assign_boxes_to_levels([Boxes(boxes)], min(numbers), max(numbers), CANONICAL_SIZE, CANONICAL_LEVEL)
    return [names[i] for i in chosen.tolist()]


def _filled(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    mask = np.zeros(shape[:2], bool)
    x0, y0, x1, y1 = np.round(box).astype(int)
    mask[y0:y1, x0:x1] = True
    return mask


def _sampled(picture: np.ndarray, box: np.ndarray, stride: float, side: int) -> Panel:
    """A RoI as its feature map resolves it: cells of ``stride`` pixels, and the middles of the bins."""
    x0, y0, x1, y1 = box
    scale = 112 / max(x1 - x0, y1 - y0)
    width, height = (max(int(round((b - a) * scale)), 1) for a, b in ((x0, x1), (y0, y1)))
    x, y = (a + (np.arange(n) + 0.5) / scale for a, n in ((x0, width), (y0, height)))
    x, y = (((values // stride) + 0.5) * stride for values in (x, y))
    rows, columns = (np.clip(v.astype(int), 0, n - 1) for v, n in ((y, picture.shape[0]), (x, picture.shape[1])))
    middles = (np.arange(side) + 0.5) / side
    points = np.stack(np.meshgrid(middles * width - 0.5, middles * height - 0.5), axis=-1).reshape(-1, 2)
    return Panel(picture[rows][:, columns], points=points)


def _boundary_losses(profile: str, seeds: List[int]) -> Drawn:
    """Fig. 6."""
    images, found = kept_predictions("6", profile, seeds)
    kinds = variants("6", profile)
    first = {v: found[v, seeds[0]] for v in kinds}
    shown = _quantiles(_areas(images), (0.2, 0.4, 0.6, 0.8))
    rows = {words: loss_panels(images, first, n) for words, n in shown}
    caption = (
        "The boundaries that the losses of Table 7 teach: raw 28x28 probabilities in the true boxes of the same "
        f"objects, seed {seeds[0]}. Of the objects of the first {len(images.pictures)} test images those are "
        "shown whose box has a size at the 20th, 40th, 60th and 80th percentile."
    )
    drawn = {"figure6": (draw.pictures(rows, side=1.0), caption)}

    lines = []
    for measure, v in product(("thickness", "precision", "recall"), kinds):
        measured = [found[v, s].quality for s in seeds]
        ends = stats.mean_of_objects([(quality["image"], quality[measure]) for quality in measured])
        lines.append({"variant": v, "measure": measure, **dict(zip(("mean", "low", "high"), ends))})
    frame = pd.DataFrame(lines)
    calibrations = {v: sum(found[v, s].calibration for s in seeds) for v in kinds}
    names = {v: LOSSES[v] for v in kinds}
    thickness = frame[frame["measure"] == "thickness"].set_index("variant")["mean"]
    means = ", ".join(f"{LOSSES[v]} {thickness[v]:.2f}".replace("nan", "–") for v in kinds)
    error = ", ".join(f"{LOSSES[v]} {_calibration_error(calibrations[v]):.3f}" for v in kinds)
    count = len(first[kinds[0]].quality["image"])
    caption = (
        f"How good these boundaries are, over all {count} objects of the test images, in their true boxes: the "
        "thickness of what has a probability above 0.5, in pixels of the 28x28 map (dotted: 1, as the truth; "
        f"{means}), and the shares of its pixels within one pixel of the truth (precision) and of the truth's "
        f"within one pixel of it (recall). Lines are 95% bootstrap intervals over {_over(seeds)}. Right: what "
        "share of the pixels with a predicted probability is boundary; the mean distance to the diagonal, by "
        "pixels, is: "
        f"{error}."
    )
    drawn["figure6_numbers"] = (draw.boundary_numbers(frame, calibrations, names), caption)
    ((_, n),) = _quantiles(_areas(images), (0.5,))
    caption = (
        "Dice and BCE of a made-up prediction: the true boundary of the object with the median box, shifted, and "
        "dilated. Its pixels have a probability of 0.9, the others of 0.1. The losses have different units: "
        "compare the shapes."
    )
    drawn["figure6_surface"] = (draw.loss_surface(images.roi_boundaries[n]), caption)
    return drawn


def loss_panels(images: Images, found: Dict[str, Predictions], n: int) -> Dict[str, Panel]:
    """Object n, its boundary, and what each of the models of Fig. 6 predicts."""
    return {
        "image": Panel(_crop(images, n)),
        "truth": Panel(images.roi_boundaries[n].astype(float)),
        **{LOSSES[v]: Panel(p.boundaries[n].astype(float)) for v, p in found.items()},
    }


def _areas(images: Images) -> np.ndarray:
    return np.prod(images.boxes[:, 2:] - images.boxes[:, :2], axis=1)


def _quantiles(values: np.ndarray, shares: Sequence[float]) -> List[Tuple[str, int]]:
    """The objects at these quantiles of a value, and what they are called."""
    order = np.argsort(values, kind="stable")
    return [(f"{100 * share:.0f}%", int(order[int(share * (len(order) - 1))])) for share in shares]


def _crop(images: Images, n: int) -> np.ndarray:
    """The picture within the box of object n, resampled to the sides of the RoI maps, four times as fine."""
    x0, y0, x1, y1 = images.boxes[n]
    side = 4 * predictions.SIDE
    middles = (np.arange(side) + 0.5) / side
    picture = images.pictures[images.image_of[n]]
    rows = np.clip((y0 + middles * (y1 - y0)).astype(int), 0, picture.shape[0] - 1)
    columns = np.clip((x0 + middles * (x1 - x0)).astype(int), 0, picture.shape[1] - 1)
    return picture[rows][:, columns]


def _calibration_error(calibration: np.ndarray) -> float:
    """The expected calibration error: the distance of share and probability, averaged over the pixels."""
    pixels, probability, boundary = calibration.T
    return float(np.abs(probability - boundary).sum() / pixels.sum())


def _coarse_annotations(profile: str, seeds: List[int]) -> Drawn:
    """Fig. 7a, and what Section 4.4 says of it."""
    records = _records(variants("7a", profile), profile, seeds)
    lines = []
    for variant in records:
        ours, base = records[variant], records[variant.replace("bmask_rcnn", "mask_rcnn")]
        if ours is base:
            continue
        coarse = "annotation_iou" in ours[seeds[0]]
        for metric in ("AP", "AP75"):
            line = {"metric": metric, "annotation_iou": ours[seeds[0]].get("annotation_iou", 1.0)}
            for truth, name in (("exact", metric), ("coarse", f"{metric}_coarse" if coarse else metric)):
                line[truth] = np.mean([_ap(ours[s], name) - _ap(base[s], name) for s in seeds])
                line[f"{truth} low"], line[f"{truth} high"] = tables.interval(ours, base, name)
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
        f"Lines are 95% intervals over {_over(seeds)}. IoU of the annotation, and "
        f"gains in AP with exact and with coarse truth: {gains}."
    )
    drawn = {"figure7a": (draw.coarseness(frame), caption)}

    images, found = kept_predictions("7a", profile, seeds)
    (found,) = found.values()
    ious = np.array([_iou(a, m) for a, m in zip(found.annotated, images.roi_masks)])
    rows = {}
    for words, n in _quantiles(ious, (0.1, 0.5, 0.9)):
        rows[f"{words}: IoU {ious[n]:.2f}"] = {
            "image": Panel(_crop(images, n)),
            "annotation": Panel(found.annotated[n].astype(float)),
            "truth": Panel(images.roi_masks[n].astype(float)),
            "mask": Panel(found.masks[n].astype(float)),
            "boundary": Panel(found.boundaries[n].astype(float)),
            "true boundary": Panel(images.roi_boundaries[n].astype(float)),
        }
    predicted = [(mask > 0.5) for mask in found.masks]
    with_exact, with_coarse = (
        np.mean([_iou(p, m) for p, m in zip(predicted, truth)]) for truth in (images.roi_masks, found.annotated)
    )
    caption = (
        "What BMask R-CNN predicts after training on polygons that are off by 8%: objects whose annotation has "
        "an IoU with the exact mask at the 10th, 50th and 90th percentile of those in the first "
        f"{len(images.pictures)} test images, in their true boxes. Over all of these the annotations have a mean "
        f"IoU of {ious.mean():.3f} with the exact masks, the predicted masks of {with_exact:.3f}, and the "
        f"predictions and the annotations of {with_coarse:.3f}."
    )
    drawn["figure7a_examples"] = (draw.pictures(rows, side=1.0), caption)
    return drawn


def _sobel(profile: str, seeds: List[int]) -> Drawn:
    """Fig. 7b."""
    images, found = kept_predictions("7b", profile, seeds)
    (found,) = found.values()
    ious = np.array([_iou(mask > 0.5, truth) for mask, truth in zip(found.masks, images.roi_masks)])
    rows = {}
    for words, n in _quantiles(ious, (0.1, 0.5, 0.9)):
        mask = torch.from_numpy(found.masks[n]).float()
        x, y = sobel(mask[None])[0].numpy()
        rows[f"{words}: IoU {ious[n]:.2f}"] = {
            "image": Panel(_crop(images, n)),
            "mask": Panel(mask.numpy()),
            "Sobel, x": Panel(x, signed=True),
            "Sobel, y": Panel(y, signed=True),
            "boundary": Panel(found.boundaries[n].astype(float)),
            "true boundary": Panel(images.roi_boundaries[n].astype(float)),
        }
    caption = (
        "The Sobel mask head: the predicted mask, the Sobel operator in x and y of it (orange: falling, violet: "
        "rising), and the boundary that two convolutions make of these, beside the true one. Of the objects of "
        f"the first {len(images.pictures)} test images those whose mask has an IoU at the 10th, 50th and 90th "
        "percentile."
    )
    return {"figure7b": (draw.pictures(rows, side=1.0), caption)}


def _curves(profile: str, seeds: List[int]) -> Drawn:
    return {
        "curves": training_curves([runs.Run(v, profile, s) for v, s in product(variants("curves", profile), seeds)])
    }


def training_curves(shown: List[runs.Run]) -> Tuple[Figure, str]:
    """Losses, and AP, during the training of any runs of one profile, with the caption."""
    names, seeds = list(dict.fromkeys(r.variant for r in shown)), sorted({r.seed for r in shown})
    records = _records(names, shown[0].profile, seeds)
    losses, precisions = [], []
    for variant, seed in product(names, seeds):
        record = records[variant][seed]
        iterations = record["losses"]["iteration"]
        for term, values in record["losses"].items():
            where = {"variant": variant, "seed": seed, "panel": term.removeprefix("loss_").replace("_", " ") + " loss"}
            if term != "iteration":
                losses += [{**where, "iteration": i, "value": value} for i, value in zip(iterations, values)]
        last = {"iteration": iterations[-1], **record["metrics"]}
        for looked in [*record.get("validation", []), last]:
            where = {"variant": variant, "seed": seed, "iteration": looked["iteration"]}
            for kind, panel in (("segm", "mask AP"), ("bbox", "box AP")):
                precisions.append({**where, "panel": panel, "value": looked[kind]["AP"]})
    caption = (
        f"Losses, each the mean over {records[names[0]][seeds[0]]['losses']['iteration'][0]} iterations, and AP "
        "on the test images. Bands go from the lowest to the highest seed."
    )
    return draw.training_curves(pd.DataFrame(losses + precisions), draw.colours(names)), caption


DRAW = {
    "1": _ap_curves,
    "2": _examples,
    "5": _roi_features,
    "6": _boundary_losses,
    "7a": _coarse_annotations,
    "7b": _sobel,
    "curves": _curves,
}
