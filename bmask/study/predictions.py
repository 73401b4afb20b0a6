"""What the models of finished runs predict, stored small for the figures, and tied to the runs' records.

The first validation images, with their objects, are in ``predictions/images.npz`` beside the records; what a run
predicts for them is in ``<run>.npz`` beside it. With the truth's boxes given, every model is asked about the same RoIs.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import cv2
import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from faster_coco_eval import COCO
from tqdm.auto import tqdm

from ..boundary import boundary_targets
from ..config import predicts_boundaries
from ..errors import InputError
from ..images import read_image
from . import datasets, evaluate, runs
from .datasets.coco import fingerprint
from .datasets.mapper import ImageMapper
from .files import write_bytes

MAX_IMAGES, MAX_OBJECTS = 24, 150  # the first images, as long as they have no more objects
MIN_SCORE = 0.3  # detections below are not kept
SIDE = 28  # of the RoIs, in pixels


@dataclass(frozen=True)
class Images:
    """The first K validation images, with the N objects in them.

    pictures: K arrays (H, W, 3), uint8, RGB. masks: N arrays (H, W), bool. boxes: (N, 4), x0 y0 x1 y1, pixels.
    image_of: (N,), which picture an object is in. classes: (N,), from 0. roi_masks: (N, 28, 28), bool, the masks in
    their boxes.
    """

    pictures: List[np.ndarray]
    masks: List[np.ndarray]
    boxes: np.ndarray
    image_of: np.ndarray
    classes: np.ndarray
    roi_masks: np.ndarray
    fingerprint: str

    @property
    def roi_boundaries(self) -> np.ndarray:
        """(N, 28, 28), bool: the boundary targets."""
        return boundary_targets(torch.from_numpy(self.roi_masks)).numpy() > 0


@dataclass(frozen=True)
class Predictions:
    """What one run predicts. Probabilities are float16, in steps of 1/256; boundaries are None for a head without.

    masks, boundaries: (N, 28, 28), in the boxes of the objects of :class:`Images`. annotated: (N, 28, 28), bool, for a
    run that is trained on coarse annotations, the coarse masks of these objects. found_*: its D detections in these
    images, ``found_in`` (D,) says in which. quality: for the M objects of all validation images, by name of the measure
    (see :func:`bmask.evaluate.boundary_quality`), and ``image`` that they are in. calibration: see
    :func:`bmask.evaluate.calibration`.
    """

    masks: np.ndarray
    boundaries: Optional[np.ndarray]
    annotated: Optional[np.ndarray]
    found_in: np.ndarray
    found_boxes: np.ndarray
    found_classes: np.ndarray
    found_masks: np.ndarray
    found_boundaries: Optional[np.ndarray]
    quality: Optional[Dict[str, np.ndarray]]
    calibration: Optional[np.ndarray]


def load_images(shown: Sequence[runs.Run]) -> Images:
    """The images of runs whose predictions have been kept.

    Raises:
        InputError: they have not been kept, or are not the same for all of the runs.
    """
    for run in shown:
        if not _kept(run):
            raise _not_kept(run)
    images = [_read_images(folder) for folder in sorted({_path(run).parent for run in shown})]
    if len({x.fingerprint for x in images}) > 1:
        raise InputError(
            f"the shipped predictions of profile {shown[0].profile} are of other images than those made here; leave "
            "REUSE out to make them all here"
        )
    return images[0]


def _read_images(folder: Path) -> Images:
    with np.load(folder / "images.npz") as stored:
        meta = json.loads(str(stored["meta"]))
        pictures = [_decoded(stored[f"picture{k}"]) for k in range(meta["pictures"])]
        image_of = stored["image_of"]
        masks = [
            np.unpackbits(stored[f"mask{n}"], count=pictures[k].shape[0] * pictures[k].shape[1])
            .reshape(pictures[k].shape[:2])
            .astype(bool)
            for n, k in enumerate(image_of)
        ]
        return Images(
            pictures,
            masks,
            stored["boxes"],
            image_of,
            stored["classes"],
            stored["roi_masks"],
            meta["fingerprint"],
        )


def load(run: runs.Run) -> Predictions:
    """What a run predicts. Raises InputError where it has not been kept, or belongs to another training or data."""
    if not _kept(run):
        raise _not_kept(run)
    with np.load(_path(run)) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "meta"}
    measures = {name[8:]: arrays.pop(name) for name in list(arrays) if name.startswith("quality_")}
    optional = ("boundaries", "annotated", "found_boundaries", "calibration")
    return Predictions(**{**dict.fromkeys(optional), **arrays}, quality=measures or None)


def _not_kept(run: runs.Run) -> InputError:
    return InputError(
        f"the predictions of {run.name} have not been kept, or are of another training; `python -m bmask predictions "
        f"--variant {run.variant} --profile {run.profile} --seeds {run.seed}` trains it, where that has not been done, "
        "and keeps them"
    )


def ensure(wanted: List[runs.Run], options: runs.Options) -> None:
    """Keep the predictions of finished runs of one profile, from their checkpoints, where they have not been kept.

    Raises:
        InputError: a run has not been trained here, or the data are not sound.
    """
    left = [run for run in wanted if not _kept(run)]
    if not left:
        return
    device = runs.check_device(options)
    if device == "cpu":
        torch.set_num_threads(left[0].cfg.STUDY.THREADS)
    for run in left:
        if not (run.own_record.exists() and (run.trained_as.folder / "checkpoint.pth").exists()):
            raise InputError(
                f"{run.name} was not trained here, and there are no predictions of it: leave REUSE out to train it"
            )
    data = datasets.prepare(left[0].cfg, options.data and Path(options.data), runs.OUTPUT)
    dataset = sorted(data.val.load(), key=lambda image: image["image_id"])
    images = _keep_images(left[0].profile, data, dataset)
    with tqdm(total=len(dataset) * len(left), unit="image") as bar:
        for run in left:
            bar.set_description(f"{run.variant} seed {run.seed}: predictions")
            if run.cfg.STUDY.SHAPES.COARSENESS:
                data = datasets.prepare(run.cfg, None, runs.OUTPUT)
            write_bytes(_path(run), _packed(_predict(run, data, dataset, images, device, bar), _tie(run)))


def _path(run: runs.Run) -> Path:
    return run.results / "predictions" / f"{run.name}.npz"


def _tie(run: runs.Run) -> Dict:
    """What predictions have to be of: this record, of this training, and these images."""
    with np.load(_path(run).with_name("images.npz")) as stored:
        meta = json.loads(str(stored["meta"]))
    return {
        "run": run.name,
        "record": hashlib.sha256(run.record_path.read_bytes()).hexdigest(),
        "fingerprint": meta["fingerprint"],
    }


def _kept(run: runs.Run) -> bool:
    path = _path(run)
    if not (path.exists() and run.record_path.exists() and path.with_name("images.npz").exists()):
        return False
    with np.load(path) as stored:
        return json.loads(str(stored["meta"])) == _tie(run)


def _packed(arrays: Dict[str, np.ndarray], meta: Dict) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), **arrays)
    return buffer.getvalue()


def _decoded(stored: np.ndarray) -> np.ndarray:
    return cv2.imdecode(stored, cv2.IMREAD_COLOR)[:, :, ::-1]


def _keep_images(profile: str, data: datasets.Data, dataset: List[Dict]) -> Images:
    truth, known = COCO(datasets.coco.truth(data.val.json)), fingerprint(data.val.json)
    path = runs.results(profile) / "predictions" / "images.npz"
    if path.exists():
        images = _read_images(path.parent)
        if images.fingerprint == known:
            return images
    arrays, masks, boxes, classes, image_of = {}, [], [], [], []
    for k, image in enumerate(dataset[:MAX_IMAGES]):
        if k and len(masks) + len(image["annotations"]) > MAX_OBJECTS:
            break
        picture = read_image(image["file_name"])[:, :, ::-1]
        # At full quality a JPEG of a small image is as large as the image.
        arrays[f"picture{k}"] = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        for annotation, mask in _objects(truth, image):
            arrays[f"mask{len(masks)}"] = np.packbits(mask)
            masks.append(mask)
            image_of.append(k)
            classes.append(annotation["category_id"])
            boxes.append(_corners(annotation))
    rois = [_in_rois(mask[None], box[None])[0] for mask, box in zip(masks, np.array(boxes))]
    arrays |= {"boxes": np.array(boxes, np.float32), "image_of": np.array(image_of)}
    arrays |= {"classes": np.array(classes), "roi_masks": np.array(rois)}
    meta = {"fingerprint": known, "pictures": sum(name.startswith("picture") for name in arrays)}
    write_bytes(path, _packed(arrays, meta))
    return _read_images(path.parent)


def _objects(truth: COCO, image: Dict):
    """The annotations of an image that have a box and are no crowds, in detectron2's form, and their masks (H, W)."""
    stored = [a for a in truth.imgToAnns[image["image_id"]] if not a.get("iscrowd")]
    shown = [a for a in image["annotations"] if not a.get("iscrowd")]
    return [(a, truth.annToMask(s).astype(bool)) for a, s in zip(shown, stored)]


def _corners(annotation: Dict) -> np.ndarray:
    x, y, width, height = annotation["bbox"]
    return np.array([x, y, x + width, y + height], np.float32)


def _in_rois(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Masks (R, H, W) in their boxes (R, 4), as the heads are trained: (R, 28, 28), bool."""
    return BitMasks(torch.from_numpy(masks)).crop_and_resize(torch.from_numpy(boxes), SIDE).numpy()


@torch.no_grad()
def _predict(run: runs.Run, data, dataset: List[Dict], images: Images, device: str, bar: tqdm) -> Dict:
    cfg = runs.on_device(run.cfg, device)
    boundaries = predicts_boundaries(cfg)
    cfg.MODEL.BOUNDARY_MASK_HEAD.OUTPUT_BOUNDARIES = boundaries
    model = evaluate.load_model(cfg, run.trained_as.folder / "checkpoint.pth")
    mapper, truth = ImageMapper(cfg, is_train=False), COCO(datasets.coco.truth(data.val.json))
    coarse = COCO(datasets.coco.truth(data.val_coarse.json)) if data.val_coarse else None
    kept, found, annotated, measured = [], [], [], []
    for k, image in enumerate(dataset):
        bar.update()
        inputs = mapper(image)
        size = inputs["image"].shape[1:]
        scale = np.array([size[1] / image["width"], size[0] / image["height"]] * 2, np.float32)

        def predict(given=None):
            with torch.autocast(device, enabled=cfg.SOLVER.AMP.ENABLED):
                return model.inference([inputs], given, do_postprocess=False)[0].to("cpu")

        objects = _objects(truth, image)
        shown = k < len(images.pictures)
        if shown:
            detections = predict()
            found.append((k, detections[detections.scores >= MIN_SCORE], scale))
        if not objects:
            continue
        boxes = np.array([_corners(annotation) for annotation, _ in objects])
        rois = Instances(size, pred_boxes=Boxes(torch.from_numpy(boxes * scale)))
        rois.pred_classes = torch.tensor([annotation["category_id"] for annotation, _ in objects])
        rois.scores = torch.ones(len(objects))
        predicted = predict([rois.to(device)])
        if shown:
            kept.append(predicted)
            if coarse:
                masks = np.array([mask for _, mask in _objects(coarse, image)])
                annotated.append(_in_rois(masks, boxes))
        if boundaries:
            exact = _in_rois(np.array([mask for _, mask in objects]), boxes)
            targets = boundary_targets(torch.from_numpy(exact))
            measured.append((k, predicted.pred_boundaries[:, 0].float(), targets))

    def maps(instances, field):
        values = torch.cat([x.get(field)[:, 0].float() for x in instances])
        return (256 * values).round().div(256).half().numpy()  # finer steps would double the file

    shown = [instances for _, instances, _ in found]
    arrays = {"masks": maps(kept, "pred_masks"), "found_masks": maps(shown, "pred_masks")}
    arrays["found_in"] = np.concatenate([np.full(len(x), k) for k, x, _ in found])
    arrays["found_boxes"] = np.concatenate([x.pred_boxes.tensor.numpy() / scale for _, x, scale in found])
    arrays["found_classes"] = np.concatenate([x.pred_classes.numpy() for x in shown])
    if coarse:
        arrays["annotated"] = np.concatenate(annotated)
    if boundaries:
        arrays["boundaries"] = maps(kept, "pred_boundaries")
        arrays["found_boundaries"] = maps(shown, "pred_boundaries")
        probabilities, targets = (torch.cat([m[i] for m in measured]) for i in (1, 2))
        arrays["quality_image"] = np.concatenate([np.full(len(p), k) for k, p, _ in measured])
        for name, values in evaluate.boundary_quality(probabilities, targets).items():
            arrays[f"quality_{name}"] = values.float().numpy()
        arrays["calibration"] = evaluate.calibration(probabilities, targets).numpy()
    return arrays
