"""What a mask head does in boxes that are right: the truth's boxes and classes are given to it, and it draws the masks.

AP says whether objects are found, classified and outlined. Here every model is asked about the same RoIs, so models
differ in their masks alone, object by object.
"""

from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from faster_coco_eval import COCO
from torch.nn import functional as F

from ..boundary import boundary_targets
from . import evaluate
from .datasets import coco
from .datasets.mapper import ImageMapper

SIDE = 28  # of the RoIs, in pixels


def objects(truth: COCO, image: Dict) -> List[Tuple[Dict, np.ndarray]]:
    """The annotations of an image that have a box and are no crowds, in detectron2's form, and their masks (H, W)."""
    stored = [a for a in truth.imgToAnns[image["image_id"]] if not a.get("iscrowd")]
    shown = [a for a in image["annotations"] if not a.get("iscrowd")]
    return [(a, truth.annToMask(s).astype(bool)) for a, s in zip(shown, stored)]


def corners(annotation: Dict) -> np.ndarray:
    """x0, y0, x1, y1 of its box."""
    x, y, width, height = annotation["bbox"]
    return np.array([x, y, x + width, y + height], np.float32)


def in_rois(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Masks (R, H, W) in their boxes (R, 4), as the heads are trained: (R, 28, 28), bool."""
    return BitMasks(torch.from_numpy(masks)).crop_and_resize(torch.from_numpy(boxes), SIDE).numpy()


def annotated_in_rois(truth: COCO, image: Dict, boxes: np.ndarray) -> np.ndarray:
    """The masks of an image's objects in an instance file, in boxes (R, 4): (R, 28, 28), bool."""
    return in_rois(np.array([mask for _, mask in objects(truth, image)]), boxes)


def scale(image: Dict, inputs: Dict) -> np.ndarray:
    """(4,), what takes x0 y0 x1 y1 of an image to what the mapper makes of it."""
    height, width = inputs["image"].shape[1:]
    return np.array([width / image["width"], height / image["height"]] * 2, np.float32)


def predict(cfg: CfgNode, model: torch.nn.Module, image: Dict, inputs: Dict, annotations: List[Dict]) -> Instances:
    """What the mask head says of these objects of an image, with the probabilities in their boxes as ``pred_masks``.

    Args:
        image, inputs: in detectron2's dataset format, and what the mapper makes of it.
    """
    boxes = np.array([corners(annotation) for annotation in annotations]) * scale(image, inputs)
    rois = Instances(inputs["image"].shape[1:], pred_boxes=Boxes(torch.from_numpy(boxes)))
    rois.pred_classes = torch.tensor([annotation["category_id"] for annotation in annotations])
    rois.scores = torch.ones(len(annotations))
    with torch.autocast(cfg.MODEL.DEVICE, enabled=cfg.SOLVER.AMP.ENABLED):
        return model.inference([inputs], [rois.to(cfg.MODEL.DEVICE)], do_postprocess=False)[0].to("cpu")


@torch.no_grad()
def measure(
    cfg: CfgNode,
    model: torch.nn.Module,
    images: List[Dict],
    json: Path,
    report: Callable[[int, int], None],
    annotated: Optional[Path] = None,
) -> Dict[str, np.ndarray]:
    """Compare the masks in the true boxes with the truth, at 28x28 pixels.

    Args:
        images: in detectron2's dataset format, in the order of their ids, with their masks in the COCO file ``json``.
        report: called with the number of images done and the number of all.
        annotated: another COCO file, with masks of the same objects as coarse as those that the model was trained on.

    Returns:
        For the N objects of a data set, (N,): ``image``, the place of the object's image by its id; in percent
        ``IoU`` of the mask, ``IoU75``, 100 for an IoU above 0.75 and else 0, and ``F``, the F-score of its boundary at
        one pixel; NaN where an object has none of the 28x28 pixels; ``overlap``, see :func:`overlaps`; and with
        ``annotated`` ``finer``, what the mask's IoU has above that of the annotation.
    """
    mapper, truth = ImageMapper(cfg, is_train=False), COCO(coco.truth(json))
    coarse = annotated and COCO(coco.truth(annotated))
    empty = torch.zeros(0, SIDE, SIDE)
    found = [(np.zeros(0, int), empty, empty.bool(), torch.zeros(0, dtype=torch.float64))]
    drawn = [empty.bool()]  # annotations
    for k, image in enumerate(images):
        if shown := objects(truth, image):
            annotations, masks = zip(*shown)
            predicted = predict(cfg, model, image, mapper(image), annotations)
            boxes = np.array([corners(annotation) for annotation in annotations])
            exact = in_rois(np.array(masks), boxes)
            if coarse:
                drawn.append(torch.from_numpy(annotated_in_rois(coarse, image, boxes)))
            # PointRend's masks are finer.
            probabilities = F.adaptive_avg_pool2d(predicted.pred_masks.float(), SIDE)[:, 0]
            found.append((np.full(len(shown), k), probabilities, torch.from_numpy(exact), overlaps(predicted)))
        report(k + 1, len(images))
    places, probabilities, targets, shared = zip(*found)
    targets = torch.cat(targets)
    measured = compare(torch.cat(probabilities) > 0.5, targets)
    if coarse:
        measured["finer"] = measured["IoU"] - compare(torch.cat(drawn), targets)["IoU"]
    return {"image": np.concatenate(places), **measured, "overlap": torch.cat(shared).numpy()}


def overlaps(predicted: Instances) -> torch.Tensor:
    """The percentage of each of R masks that lies in others' masks as well; NaN for a box that meets no other.

    Args:
        predicted: from :func:`predict`. The masks are put into the model's input, whose pixels are counted.
    """
    boxes = predicted.pred_boxes
    masks = paste_masks_in_image(predicted.pred_masks[:, 0].float(), boxes, predicted.image_size).flatten(1)
    shared = 100 * ((masks & (masks.sum(0) > 1)).sum(1).double() / masks.sum(1)).nan_to_num(0)
    shared[(pairwise_iou(boxes, boxes) > 0).sum(1) < 2] = torch.nan
    return shared


def compare(masks: torch.Tensor, targets: torch.Tensor) -> Dict[str, np.ndarray]:
    """``IoU``, ``IoU75`` and ``F`` of masks (R, H, W), bool, as in :func:`measure`, (R,)."""
    iou = (masks & targets).flatten(1).sum(1) / (masks | targets).flatten(1).sum(1)
    quality = evaluate.boundary_quality(boundary_targets(masks), boundary_targets(targets))
    precision, recall = quality["precision"].nan_to_num(0), quality["recall"]  # an empty mask has no boundary
    f = (2 * precision * recall / (precision + recall)).nan_to_num(0)
    found = 100 * torch.stack([iou, (iou > 0.75).float(), f]).double()
    found[:, ~targets.flatten(1).any(1)] = torch.nan
    return dict(zip(("IoU", "IoU75", "F"), found.numpy()))


def means(measured: Dict[str, np.ndarray]) -> Dict[str, Optional[float]]:
    """Of what :func:`measure` gives, over the objects; None where there is no object."""
    seen = {name: values[~np.isnan(values)] for name, values in measured.items() if name != "image"}
    return {name: float(values.mean()) if len(values) else None for name, values in seen.items()}
