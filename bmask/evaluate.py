"""What a model finds: detections and their time, average precision, and examples to look at."""

import itertools
import time
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.utils import comm
from faster_coco_eval import COCO, COCOeval_faster
from torch.utils.data import DataLoader

IOU_TYPES = ("bbox", "segm", "boundary")


def load_model(cfg: CfgNode, checkpoint: Path) -> torch.nn.Module:
    """The model of a configuration with the weights of a checkpoint, ready for inference."""
    model = build_model(cfg)
    model.load_state_dict(torch.load(checkpoint, map_location=cfg.MODEL.DEVICE, weights_only=True)["model"])
    return model.eval()


@torch.no_grad()
def detect(
    cfg: CfgNode, model: torch.nn.Module, dataset: List[Dict], report: Callable[[int, int], None]
) -> Tuple[List[Dict], float]:
    """Run the model on every image, shared between the ranks.

    Args:
        dataset: images in detectron2's dataset format.
        report: called with the number of images done and the number of all, on this rank.

    Returns:
        On rank 0 the detections in COCO's results format, with ``category_id`` counted from 0, and the median
        milliseconds that the model took for one image, reading and mask encoding left out. On other ranks
        an empty list and 0.
    """
    sampler = InferenceSampler(len(dataset))
    loader = DataLoader(
        MapDataset(dataset, DatasetMapper(cfg, is_train=False)),
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
        detections += instances_to_coco_json(outputs[0]["instances"].to("cpu"), inputs[0]["image_id"])
        report(done, len(sampler))
    gathered = comm.gather((detections, milliseconds), dst=0)
    if not comm.is_main_process():
        return [], 0.0
    detections, milliseconds = (list(itertools.chain(*x)) for x in zip(*gathered))
    return detections, float(np.median(milliseconds))


@torch.no_grad()
def example_rows(runs: Sequence, data, device: str, count: int, min_score: float = 0.3) -> List[Dict]:
    """What :func:`bmask.figures.examples` draws: the first ``count`` validation images, whatever they show.

    Args:
        runs: the finished runs whose models are to be shown, with their checkpoints in place.
        data: the :class:`bmask.datasets.Data` of the runs.
        min_score: detections below are not shown.
    """
    truth = COCO(data.val.json)
    images = sorted(data.val.load(), key=lambda x: x["image_id"])[:count]
    rows = []
    for image in images:
        picture = cv2.imread(image["file_name"])[:, :, ::-1]
        masks = [truth.annToMask(a) for a in truth.imgToAnns[image["image_id"]]]
        rows.append({"image": (picture, []), "ground truth": (picture, masks)})
    for run in runs:
        cfg = run.cfg.clone()
        cfg.defrost()
        head = cfg.MODEL.BOUNDARY_MASK_HEAD
        boundaries = (
            cfg.MODEL.ROI_MASK_HEAD.NAME == "BoundaryPreservingHead" and head.SUPERVISION == "boundary"
        )
        cfg.MODEL.DEVICE, head.OUTPUT_BOUNDARIES = device, boundaries
        model, mapper = load_model(cfg, run.folder / "checkpoint.pth"), DatasetMapper(cfg, is_train=False)
        for image, row in zip(images, rows):
            picture = row["image"][0]
            found = model([mapper(image)])[0]["instances"].to("cpu")
            found = found[found.scores >= min_score]
            row[run.variant] = (picture, found.pred_masks.numpy())
            if boundaries:
                pasted = paste_masks_in_image(
                    found.pred_boundaries[:, 0], found.pred_boxes, picture.shape[:2], threshold=-1
                )
                strongest = pasted.amax(0).numpy() / 255 if len(found) else np.zeros(picture.shape[:2])
                row[f"{run.variant}: boundary"] = (strongest, [])
    return rows


def average_precision(truth: Path, detections: List[Dict], max_dets: int = 100) -> Dict[str, Dict]:
    """COCO's average precision, in percent, for boxes, masks and boundaries (Cheng et al., CVPR 2021).

    Args:
        truth: a COCO instance file.
        detections: in COCO's results format, with the ids of ``truth``.
        max_dets: detections that count, an image and class.

    Returns:
        For each of ``bbox``, ``segm`` and ``boundary`` a dict with AP, AP50, AP75, APs, APm, APl,
        ``per_iou`` {"0.50": AP, ...} and ``per_class`` {name: AP}. None stands where the truth has no object.
    """
    ground_truth = COCO(truth)
    return {kind: _coco_ap(ground_truth, detections, kind, max_dets) for kind in IOU_TYPES}


def _coco_ap(ground_truth: COCO, detections: List[Dict], kind: str, max_dets: int) -> Dict:
    if kind != "bbox":
        # The size of a detection is then its mask's area, as for the truth, not its box's.
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    evaluation = COCOeval_faster(
        ground_truth, ground_truth.loadRes(detections), kind, print_function=lambda *_: None
    )
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    # IoU threshold x recall x class x size (all, small, medium, large), at max_dets
    precision = np.asarray(evaluation.eval["precision"])[..., -1]

    def mean(values):
        values = values[values > -1]
        return float(100 * values.mean()) if values.size else None

    thresholds = [f"{t:.2f}" for t in evaluation.params.iouThrs]
    everything = precision[..., 0]
    return {
        "AP": mean(everything),
        "AP50": mean(everything[thresholds.index("0.50")]),
        "AP75": mean(everything[thresholds.index("0.75")]),
        **{name: mean(precision[..., k]) for k, name in enumerate(("APs", "APm", "APl"), 1)},
        "per_iou": {t: mean(everything[k]) for k, t in enumerate(thresholds)},
        "per_class": {
            ground_truth.cats[c]["name"]: mean(everything[:, :, k])
            for k, c in enumerate(evaluation.params.catIds)
        },
    }


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
