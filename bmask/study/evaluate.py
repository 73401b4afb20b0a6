"""What a model finds: detections and their time, average precision, and how good its boundaries are."""

import itertools
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from faster_coco_eval import COCO, COCOeval_faster
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
        ``metrics``, in percent (see :func:`bmask.average_precision`), the number of ``images``, and the median
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
        report: called with text for a reader now and then: with COCO's 5,000 images the resamples take minutes.

    Returns:
        For each of the kinds a dict with AP, AP50, AP75, APs, APm, APl,
        ``per_iou`` {"0.50": AP, ...} and ``per_class`` {name: AP}. None stands where the truth has no object.
        For ``bbox`` and ``segm`` also ``bootstrap``: AP, AP50 and AP75 on the resamples, the same for all models on the
        same images, so that differences between models are paired.
    """
    content = coco.truth(truth)
    # To COCO's evaluation an object that is number 0 is never found, and images below 0 are none.
    numbers = {number: k for k, number in enumerate(sorted(image["id"] for image in content["images"]), 1)}
    for image in content["images"]:
        image["id"] = numbers[image["id"]]
    for number, annotation in enumerate(content["annotations"], 1):
        annotation.update(id=number, image_id=numbers[annotation["image_id"]])
    detections = [{**d, "image_id": numbers[d["image_id"]]} for d in detections]
    ground_truth = COCO(content)
    return {kind: _coco_ap(ground_truth, detections, kind, max_dets, resamples, report) for kind in kinds}


def _coco_ap(
    ground_truth: COCO, detections: List[Dict], kind: str, max_dets: int, resamples: int, report: Callable[[str], None]
) -> Dict:
    report(f"AP of {IOU_TYPES[kind]}")
    if kind != "bbox":
        # The size of a detection is then its mask's area, as for the truth, not its box's.
        detections = [
            {**{k: v for k, v in d.items() if k != "bbox"}, "score": d.get("mask_score", d["score"])}
            for d in detections
        ]
    evaluation = COCOeval_faster(
        ground_truth, ground_truth.loadRes(detections), kind, print_function=lambda *_: None, separate_eval=True
    )
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    # IoU threshold x recall x class x size (all, small, medium, large), at max_dets
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    thresholds = [f"{t:.2f}" for t in evaluation.params.iouThrs]
    everything = precision[..., 0]
    metrics = {
        **_headline(everything, thresholds),
        **{name: _mean(precision[..., k]) for k, name in enumerate(("APs", "APm", "APl"), 1)},
        "per_iou": {t: _mean(everything[k]) for k, t in enumerate(thresholds)},
        "per_class": {
            ground_truth.cats[c]["name"]: _mean(everything[:, :, k]) for k, c in enumerate(evaluation.params.catIds)
        },
    }
    if resamples and kind != "boundary":
        metrics["bootstrap"] = _bootstrap(
            evaluation,
            thresholds,
            resamples,
            lambda done: report(f"AP of {IOU_TYPES[kind]}, resample {done}/{resamples}"),
        )
    return metrics


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


def _bootstrap(
    evaluation: COCOeval_faster, thresholds: List[str], resamples: int, report: Callable[[int], None]
) -> Dict[str, List[Optional[float]]]:
    """The headline metrics with the images drawn anew: what was matched in each is known, so AP alone is computed.

    The library keeps what was matched under private names, and has no public one.
    """
    params, matched = evaluation._paramsEval, evaluation._evalImgs_cpp  # class x size x image
    images, sizes = len(params.imgIds), len(params.areaRng)
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    by_class = [matched[k * sizes * images :][:images] for k in range(len(params.catIds))]

    def measure(draw):
        evaluation._evalImgs_cpp = [found[i] for found in by_class for i in draw]
        evaluation.accumulate()
        return _headline(np.asarray(evaluation.eval["precision"])[..., 0, -1], thresholds)

    return stats.resample(measure, images, resamples, report)


def _headline(precision: np.ndarray, thresholds: List[str]) -> Dict[str, Optional[float]]:
    return {
        "AP": _mean(precision),
        "AP50": _mean(precision[thresholds.index("0.50")]),
        "AP75": _mean(precision[thresholds.index("0.75")]),
    }


def _mean(precision: np.ndarray) -> Optional[float]:
    valid = precision[precision > -1]
    return float(100 * valid.mean()) if valid.size else None


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
