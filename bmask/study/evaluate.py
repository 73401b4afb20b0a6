"""What a model finds: detections and their time, average precision, and how good its boundaries are."""

import itertools
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import cv2
import faster_coco_eval
import hotcoco
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from faster_coco_eval import COCO
from hotcoco import mask as rle_tools
from tabulate import tabulate
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .. import released
from ..errors import InputError
from . import stats
from .datasets import Split, coco, coco_folder
from .datasets.check import check_coco
from .datasets.mapper import ImageMapper

IOU_TYPES = {"bbox": "boxes", "segm": "masks", "boundary": "boundaries"}
THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]  # of IoU
LEVELS = np.linspace(0, 1, 101)  # of recall
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def load_model(cfg: CfgNode, checkpoint: Path) -> torch.nn.Module:
    """The model of a configuration with the weights of a checkpoint, ready for inference."""
    return released.fill(cfg, checkpoint, device=cfg.MODEL.DEVICE)[1]


@torch.no_grad()
def detect(
    cfg: CfgNode,
    model: torch.nn.Module,
    dataset: List[Dict],
    category_ids: Sequence[int],
    report: Callable[[int, int], None],
) -> Tuple[List[Dict], float]:
    """Run the model on every image, shared between the ranks.

    Args:
        dataset: images in detectron2's dataset format.
        category_ids: the data set's id of each class.
        report: called with the number of images done and the number of all, on this rank.

    Returns:
        On rank 0 the detections in COCO's results format, with mask scoring with a ``mask_score``, and the median
        milliseconds that the model took for one image, reading and mask encoding left out. On other ranks an
        empty list and 0.
    """
    sampler = InferenceSampler(len(dataset))
    loader = DataLoader(
        MapDataset(dataset, ImageMapper(cfg, is_train=False)),
        sampler=sampler,
        batch_size=1,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )
    detections, milliseconds = [], []
    for done, inputs in enumerate(loader, 1):
        start = _now(cfg.MODEL.DEVICE)
        with torch.autocast(cfg.MODEL.DEVICE, enabled=cfg.SOLVER.AMP.ENABLED):
            outputs = model(inputs)
        milliseconds.append((_now(cfg.MODEL.DEVICE) - start) * 1000)
        instances = outputs[0]["instances"].to("cpu")
        found = instances_to_coco_json(instances, inputs[0]["image_id"])
        for detection in found:
            detection["category_id"] = category_ids[detection["category_id"]]
        if instances.has("mask_scores"):
            for detection, score in zip(found, instances.mask_scores.tolist()):
                detection["mask_score"] = score
        detections += found
        report(done, len(sampler))
    gathered = comm.gather((detections, milliseconds), dst=0)
    if not comm.is_main_process():
        return [], 0.0
    detections, milliseconds = (list(itertools.chain(*x)) for x in zip(*gathered))
    return detections, float(np.median(milliseconds))


def find_data(data: Optional[str], json: Optional[Path], images: Optional[Path]) -> Split:
    """COCO val2017, in ``data`` or where detectron2 looks for it, or else the file ``json`` with its ``images``.

    Raises:
        InputError: the folder does not exist, or one is given without the other, or both kinds are.
    """
    if (json is None) != (images is None) or (data and json):
        raise InputError(
            "the data are either COCO's folder or an instance file with its images; give --data, or both --json and "
            "--images"
        )
    if json:
        return Split(json, images)
    folder = coco_folder(data and Path(data))
    return Split(folder / "annotations/instances_val2017.json", folder / "val2017")


def measure(cfg: CfgNode, model: torch.nn.Module, split: Split) -> Dict[str, Any]:
    """Detect on all images of a split, with a progress bar, and compare with the truth.

    Args:
        cfg, model: from :func:`bmask.released.load`.

    Returns:
        ``metrics``, in percent (see :func:`average_precision`), the number of ``images``, and the median
        ``milliseconds_per_image``.

    Raises:
        InputError: the data are not sound, or have another number of classes than the model.
    """
    content = check_coco(split.json, split.images, drop_zero_area=True, open_images=True)
    classes = len(content["categories"])
    if classes != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"the model knows {cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes and {split.json} has {classes}; give the kind "
            "of data that it was trained on"
        )
    images = split.load()
    with tqdm(total=len(images), desc="detecting", unit="image") as bar:
        detections, milliseconds = detect(cfg, model, images, coco.category_ids(content), lambda *_: bar.update())
    max_dets = cfg.TEST.DETECTIONS_PER_IMAGE
    metrics = average_precision(split.json, detections, max_dets, resamples=0)
    return {"metrics": metrics, "images": len(images), "milliseconds_per_image": milliseconds}


def boundary_quality(probabilities: torch.Tensor, targets: torch.Tensor, tolerance: int = 1) -> Dict[str, torch.Tensor]:
    """How thick and how right each predicted boundary is, its pixels being those above 0.5.

    Args:
        probabilities: (R, H, W), in [0, 1].
        targets: (R, H, W), from :func:`bmask.boundary.boundary_targets`.
        tolerance: pixels, diagonals counting as one, within which a pixel of one boundary meets the other.

    Returns:
        Three tensors (R,). ``thickness``: predicted pixels over half the number of pixel sides between them and others,
        about 1 for a target; ``precision``: the share of predicted pixels that meet the target; ``recall``: the
        share of the target's pixels that meet the prediction. NaN where there are no such pixels.
    """
    predicted, targets = probabilities > 0.5, targets > 0.5
    padded = F.pad(predicted, (1, 1, 1, 1))
    sides = sum(padded.diff(dim=d).flatten(1).sum(1) for d in (1, 2))

    def share(pixels, others):
        near = F.max_pool2d(others[:, None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)[:, 0] > 0
        return (pixels & near).flatten(1).sum(1) / pixels.flatten(1).sum(1)

    return {
        "thickness": predicted.flatten(1).sum(1) / (sides / 2),
        "precision": share(predicted, targets),
        "recall": share(targets, predicted),
    }


def calibration(probabilities: torch.Tensor, targets: torch.Tensor, bins: int = 10) -> torch.Tensor:
    """Whether of the pixels with a predicted probability of p a share of p is boundary.

    Returns:
        (bins, 3), float64: for each of the equal intervals of [0, 1] the number of pixels, the sum of their
        probabilities and the number of those that are boundary.
    """
    p, y = probabilities.flatten().double(), targets.flatten().double()
    interval = (p * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, 3, dtype=torch.float64)
    return sums.index_add_(0, interval, torch.stack([torch.ones_like(p), p, y], dim=1))


@coco.collecting_no_garbage()
def average_precision(
    truth: Path,
    detections: List[Dict],
    max_dets: int = 100,
    kinds: Sequence[str] = tuple(IOU_TYPES),
    resamples: int = stats.RESAMPLES,
    report: Callable[[str], None] = lambda _: None,
) -> Dict[str, Dict]:
    """COCO's average precision, in percent, for boxes, masks and boundaries (Cheng et al., CVPR 2021).

    Args:
        truth: a COCO instance file, as :func:`bmask.study.datasets.coco.truth` reads it.
        detections: in COCO's results format, with the ids of ``truth``. Masks and boundaries are ranked by
            ``mask_score`` where there is one.
        max_dets: detections that count, an image and class.
        kinds: of ``bbox``, ``segm`` and ``boundary``.
        resamples: of the images, for intervals.
        report: called with text for a reader now and then.

    Returns:
        For each of the kinds a dict with AP, AP50, AP75, APs, APm, APl,
        ``per_iou`` {"0.50": AP, ...} and ``per_class`` {name: AP}. None stands where the truth has no object.
        For ``bbox`` and ``segm`` also ``bootstrap``: AP, AP50 and AP75 on the resamples, the same for all models on the
        same images, so that differences between models are paired.
    """
    content = coco.truth(truth)
    # COCO's evaluations take an object number 0 for none, or refuse numbers below 0 and what else a file may hold.
    images, classes = (
        {number: k for k, number in enumerate(sorted(entry["id"] for entry in content[name]), 1)}
        for name in ("images", "categories")
    )
    names = {classes[category["id"]]: category["name"] for category in content["categories"]}

    def renumbered(annotation, *keys):
        numbers = {"image_id": images[annotation["image_id"]], "category_id": classes[annotation["category_id"]]}
        return {**numbers, **{key: annotation[key] for key in keys}}

    content = {
        "images": [{"id": images[i["id"]], "height": i["height"], "width": i["width"]} for i in content["images"]],
        "categories": [{"id": k, "name": name} for k, name in names.items()],
        "annotations": [
            {**renumbered(a, "bbox", "segmentation", "area"), "id": k, "iscrowd": a.get("iscrowd", 0)}
            for k, a in enumerate(content["annotations"], 1)
        ],
    }
    boxes = [renumbered(d, "bbox", "score") for d in detections]
    # Without its box the size of a detection is its mask's area, as for the truth.
    masks = [{**renumbered(d, "segmentation"), "score": d.get("mask_score", d["score"])} for d in detections]
    found = {}
    for kind in kinds:
        report(f"AP of {IOU_TYPES[kind]}")
        given = boxes if kind == "bbox" else masks
        evaluation = _evaluated(content, given, kind, max_dets)
        # IoU threshold x recall x class x size (all, small, medium, large), at max_dets
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        everything = precision[..., 0]
        found[kind] = {
            **_headline(everything),
            **{name: _mean(precision[..., k]) for k, name in enumerate(("APs", "APm", "APl"), 1)},
            "per_iou": {f"{t:.2f}": _mean(everything[k]) for k, t in enumerate(THRESHOLDS)},
            "per_class": {names[c]: _mean(everything[:, :, k]) for k, c in enumerate(evaluation.params.catIds)},
        }
        if resamples and kind != "boundary":
            report(f"AP of {IOU_TYPES[kind]} on resamples")
            found[kind]["bootstrap"] = _bootstrap(evaluation, len(images), resamples)
    return found


def _evaluated(content: Dict, detections: List[Dict], kind: str, max_dets: int):
    """COCO's evaluation, carried out."""
    if kind == "boundary":
        truth, options = faster_coco_eval.COCO(content), {"separate_eval": True, "rle_iou_max_workers": 1}
        evaluation = _BoundaryEvaluation(
            truth, truth.loadRes(detections), "segm", print_function=lambda *_: None, **options
        )
    else:
        truth = hotcoco.COCO(content)
        evaluation = hotcoco.COCOeval(truth, truth.loadRes(detections), kind)
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


class _BoundaryEvaluation(faster_coco_eval.COCOeval_faster):
    """COCO's evaluation by the smaller one of the IoUs of masks and of boundaries (Cheng et al., CVPR 2021).

    The library's own computes the boundary of each mask, and most detections match nothing: here it is computed where
    the masks' IoU reaches the lowest threshold.
    """

    def computeIoU(self, image: int, category: int):
        ious = super().computeIoU(image, category)
        if len(ious):
            truth, found = (
                x.get_instances([image], [category], True)[0][0] for x in (self.gt_dataset, self.dt_dataset)
            )
            found = sorted(found, key=lambda d: -d["score"])  # as the rows of ious
            for d, t in zip(*np.nonzero(ious >= THRESHOLDS[0])):
                if not truth[t].get("iscrowd"):
                    ious[d, t] = min(ious[d, t], boundary_iou(found[d]["rle"], truth[t]["rle"]))
        return ious


def boundary_iou(*rles: Dict) -> float:
    """Boundary IoU of two masks of one size, as compressed RLEs: of their pixels within 2% of the image's diagonal of
    what is outside (Cheng et al., CVPR 2021)."""
    boxes = np.array([rle_tools.to_bbox(rle) for rle in rles])
    left, top = boxes[:, :2].min(0).astype(int)
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(0).astype(int)
    shown = np.ascontiguousarray(rle_tools.decode(list(rles))[top:bottom, left:right])
    width = max(1, round(0.02 * float(np.hypot(*rles[0]["size"]))))
    outside = cv2.copyMakeBorder(shown, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(outside, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    first, second = np.moveaxis(shown > inner, 2, 0)
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)


def to_markdown(metrics: Dict[str, Dict]) -> str:
    """The metrics of :func:`average_precision` as a table, in percent; a dash where nothing is to be found."""
    rows = [[IOU_TYPES[kind], *(found[name] for name in COLUMNS)] for kind, found in metrics.items()]
    return tabulate(rows, ("", *COLUMNS), tablefmt="github", floatfmt=".1f", missingval="–")


def annotation_iou(truth: Path, annotated: Path) -> float:
    """The mean IoU of the masks of two COCO instance files with the same objects: how good an annotation is."""
    pair = COCO(coco.truth(truth)), COCO(coco.truth(annotated))
    ious = []
    for number in pair[0].anns:
        exact, coarse = (side.annToMask(side.anns[number]).astype(bool) for side in pair)
        ious.append((exact & coarse).sum() / (exact | coarse).sum())
    return float(np.mean(ious))


def _bootstrap(evaluation: hotcoco.COCOeval, images: int, resamples: int) -> Dict[str, List[Optional[float]]]:
    """AP, AP50 and AP75 with the images drawn anew: what was matched in each is known, so AP is a sum with weights.

    An image that is drawn twice counts twice. So precision and recall at a detection are sums, over detections that are
    as good or better, of how often their images were drawn.
    """
    times = stats.times(images, resamples).astype(np.float64)  # draw x image
    params = evaluation.params
    by_class = {category: [] for category in params.catIds}
    # Matches are handed over for each size of objects, which takes long: here for all sizes together.
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    evaluation.evaluate()
    for matched in filter(None, evaluation.eval_imgs):
        by_class[matched["category_id"]].append(matched)
    ap = np.full((len(THRESHOLDS), len(by_class), resamples), np.nan)
    for k, parts in enumerate(by_class.values()):
        if parts:
            image = [part["image_id"] - 1 for part in parts]  # images are numbered from 1
            objects = [len(part["gtIgnore"]) - sum(part["gtIgnore"]) for part in parts]
            order = np.argsort(-np.concatenate([part["dtScores"] for part in parts]), kind="stable")
            of_image = np.repeat(image, [len(part["dtScores"]) for part in parts])[order]
            matches, ignored = (
                np.concatenate([np.reshape(part[name], (len(THRESHOLDS), -1)) for part in parts], axis=1)[:, order] > 0
                for name in ("dtMatched", "dtIgnore")
            )
            chunk = max(1, 2**24 // max(1, len(order)))
            for start in range(0, resamples, chunk):
                drawn = slice(start, start + chunk)
                ap[:, k, drawn] = _weighted_ap(
                    times[drawn, of_image], matches & ~ignored, ignored, times[drawn, image] @ objects
                )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without an object has no AP
        found = {"AP": np.nanmean(ap, axis=(0, 1))}
        found |= {f"AP{100 * t:.0f}": np.nanmean(ap[THRESHOLDS.index(t)], axis=0) for t in (0.5, 0.75)}
    return {name: [None if np.isnan(x) else 100 * x for x in v.tolist()] for name, v in found.items()}


def _weighted_ap(weights: np.ndarray, matched: np.ndarray, ignored: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """COCO's AP of one class where a detection counts as often as its weight says: (T, B), NaN without an object.

    Args:
        weights: (B, D), whole numbers, of D detections, the surest first, in B draws.
        matched, ignored: (T, D), bool: true positives, and detections that do not count, by IoU threshold.
        objects: (B,), the weighted number of objects.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        counted = weights.cumsum(1)
        found = np.zeros((len(matched), len(weights)))
        for t, (hits, out) in enumerate(zip(matched, ignored)):
            # Precision rises at true positives alone, so its envelope and recall are known there.
            positives = weights[:, hits].cumsum(1)
            number = counted[:, hits] - (weights * out).cumsum(1)[:, hits] if out.any() else counted[:, hits]
            precision = np.nan_to_num(positives / number)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = positives / objects[:, None]
            # How many of the 101 recall levels have been reached, exactly as levels <= recall.
            reached = np.minimum(np.nan_to_num(recall * 100).astype(np.int64), 100)
            reached += (LEVELS[np.minimum(reached + 1, 100)] <= recall) & (reached < 100)
            reached -= LEVELS[reached] > recall
            steps = np.diff(reached + 1, axis=1, prepend=0)
            found[t] = (envelope * steps).sum(1) / len(LEVELS)
    found[:, objects == 0] = np.nan
    return found


def _headline(precision: np.ndarray) -> Dict[str, Optional[float]]:
    return {
        "AP": _mean(precision),
        "AP50": _mean(precision[THRESHOLDS.index(0.5)]),
        "AP75": _mean(precision[THRESHOLDS.index(0.75)]),
    }


def _mean(precision: np.ndarray) -> Optional[float]:
    valid = precision[precision > -1]
    return float(100 * valid.mean()) if valid.size else None


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
