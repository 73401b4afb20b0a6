"""What the models of finished runs predict, stored small for the figures, and tied to the runs' records.

The first validation images, with their objects, are in ``predictions/pictures.npz`` beside the records; what a run
predicts for them is in ``<run>.npz`` beside it, as far as a figure needs it. With the truth's boxes given, every model
is asked about the same RoIs.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import cv2
import numpy as np
import torch
from faster_coco_eval import COCO
from tqdm.auto import tqdm

from ..boundary import boundary_targets
from ..config import predicts_boundaries
from ..errors import InputError
from ..images import read_image
from . import datasets, evaluate, runs, true_boxes
from .datasets.coco import fingerprint
from .datasets.mapper import ImageMapper
from .files import npz, write_bytes
from .true_boxes import SIDE

MAX_IMAGES, MAX_OBJECTS = 24, 150  # the first images, as long as they have no more objects
# COCO's numbers of the licences by which pictures may be passed on, as parts of figures.
LICENCES = {4: "CC BY 2.0", 5: "CC BY-SA 2.0", 7: "no known copyright restrictions"}
MIN_SCORE = 0.3  # detections below are not kept
# What can be kept of a run. Masks and boundaries: in the true boxes. Quality: of the boundaries, with the calibration.
PARTS = ("masks", "boundaries", "found", "quality")
IMAGES = "pictures.npz"
# Levels of the probabilities in each map.
LEVELS = {"masks": 64, "boundaries": 64, "found_masks": 256, "found_boundaries": 64}


@dataclass(frozen=True)
class Images:
    """The first K validation images, with the N objects in them.

    pictures: K arrays (H, W, 3), uint8, RGB. masks: N arrays (H, W), bool. boxes: (N, 4), x0 y0 x1 y1, pixels.
    image_of: (N,), which picture an object is in. classes: (N,), from 0. roi_masks: (N, 28, 28), bool, the masks in
    their boxes. credits: K texts, whose a picture is and by which licence; "" where the data do not say.
    """

    pictures: List[np.ndarray]
    masks: List[np.ndarray]
    boxes: np.ndarray
    image_of: np.ndarray
    classes: np.ndarray
    roi_masks: np.ndarray
    credits: List[str]
    fingerprint: str

    @property
    def roi_boundaries(self) -> np.ndarray:
        """(N, 28, 28), bool: the boundary targets."""
        return boundary_targets(torch.from_numpy(self.roi_masks)).numpy() > 0


@dataclass(frozen=True)
class Predictions:
    """What one run predicts; None for parts that have not been kept, and for boundaries of a head without.

    masks, boundaries: (N, 28, 28), in the boxes of the objects of :class:`Images`. annotated: (N, 28, 28), bool, for a
    run that is trained on coarse annotations, the coarse masks of these objects. found_*: its D detections in these
    images, ``found_in`` (D,) says in which. quality: for the M objects of all validation images, by name of the measure
    (see :func:`bmask.study.evaluate.boundary_quality`), and ``image`` that they are in. calibration: see
    :func:`bmask.study.evaluate.calibration`. Probabilities are rounded to :data:`LEVELS`, never across 0.5.
    """

    masks: Optional[np.ndarray] = None
    boundaries: Optional[np.ndarray] = None
    annotated: Optional[np.ndarray] = None
    found_in: Optional[np.ndarray] = None
    found_boxes: Optional[np.ndarray] = None
    found_classes: Optional[np.ndarray] = None
    found_masks: Optional[np.ndarray] = None
    found_boundaries: Optional[np.ndarray] = None
    quality: Optional[Dict[str, np.ndarray]] = None
    calibration: Optional[np.ndarray] = None


def load_images(shown: Sequence[runs.Run]) -> Images:
    """The images of runs whose predictions have been kept. Raises InputError where they are not the same for all."""
    images = [_read_images(folder) for folder in sorted({_path(run).parent for run in shown})]
    if len({x.fingerprint for x in images}) > 1:
        raise InputError(
            f"the shipped predictions of profile {shown[0].profile} are of other images than those made here; leave "
            "REUSE out to make them all here"
        )
    return images[0]


def _read_images(folder: Path) -> Images:
    with np.load(folder / IMAGES) as stored:
        meta = json.loads(str(stored["meta"]))
        pictures = [_decoded(stored[f"picture{k}"]) for k in range(meta["pictures"])]
        image_of = stored["image_of"]
        shapes = [pictures[k].shape[:2] for k in image_of]
        ends = np.cumsum([height * width for height, width in shapes])
        pixels = np.unpackbits(stored["masks"]).astype(bool)
        masks = [part.reshape(shape) for part, shape in zip(np.split(pixels, ends), shapes)]
        parts = (stored[name] for name in ("boxes", "image_of", "classes", "roi_masks"))
        credits = meta.get("credits", [""] * len(pictures))
        return Images(pictures, masks, *parts, credits, meta["fingerprint"])


def load(run: runs.Run, parts: Collection[str]) -> Predictions:
    """What a run predicts, these parts and what else has been kept.

    Raises:
        InputError: these have not been kept, or belong to another training or data.
    """
    kept = _kept(run)
    if kept is None or not kept.issuperset(parts):
        raise InputError(
            f"the predictions of {run.name} have not been kept, or are of another training; `python -m bmask "
            f"predictions --variant {run.variant} --profile {run.profile} --seeds {run.seed}` trains it, where that "
            "has not been done, and keeps them"
        )
    with np.load(_path(run)) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "meta"}
    arrays |= {name: np.float32(arrays[name]) / (levels - 1) for name, levels in LEVELS.items() if name in arrays}
    measures = {name[8:]: arrays.pop(name) for name in list(arrays) if name.startswith("quality_")}
    return Predictions(**arrays, quality=measures or None)


def load_all(wanted: Mapping[runs.Run, Collection[str]]) -> Tuple[Images, Dict[runs.Run, Predictions]]:
    """The images, and what runs predict for them; see :func:`load`."""
    found = {run: load(run, parts) for run, parts in wanted.items()}
    images = load_images(list(wanted))
    if not images.masks:
        raise InputError(
            f"the first {len(images.pictures)} test images hold no object to draw; give images that do the lowest ids"
        )
    return images, found


def ensure(wanted: Mapping[runs.Run, Collection[str]], options: runs.Options) -> None:
    """Keep these parts of the predictions of finished runs of one profile, where they have not been kept, from their
    checkpoints. Parts that have been kept stay.

    Raises:
        InputError: a run has not been trained here, or the data are not sound.
    """
    left = {}
    for run, parts in wanted.items():
        kept = _kept(run)
        if kept is None or not kept.issuperset(parts):
            left[run] = {*parts, *(kept or ())}
    if not left:
        return
    device = runs.check_device(options)
    for run in left:
        if not (run.own_record.exists() and (run.trained_as.folder / "checkpoint.pth").exists()):
            raise InputError(
                f"{run.name} was not trained here, and there are no predictions of it: leave REUSE out to train it"
            )
    first = next(iter(left))
    data = datasets.prepare(first.cfg, options.data and Path(options.data), runs.OUTPUT)
    credits = _credits(datasets.coco.read(data.val.json, ["images"])["images"])
    dataset = sorted(data.val.load(), key=lambda image: (image["image_id"] not in credits, image["image_id"]))
    images = _keep_images(first.profile, data, dataset, credits)
    seen = {run: dataset if "quality" in parts else dataset[: len(images.pictures)] for run, parts in left.items()}
    with runs.threads_of(first.cfg, device), tqdm(total=sum(map(len, seen.values())), unit="image") as bar:
        for run, parts in left.items():
            bar.set_description(f"{run.variant} seed {run.seed}: predictions")
            own = datasets.prepare(run.cfg, None, runs.OUTPUT) if run.cfg.STUDY.SHAPES.COARSENESS else data
            arrays = _predict(run, parts, own, seen[run], images, device, bar)
            write_bytes(_path(run), _packed(arrays, {**_tie(run), "parts": sorted(parts)}))


def _path(run: runs.Run) -> Path:
    return run.results / "predictions" / f"{run.name}.npz"


def _tie(run: runs.Run) -> Dict:
    """What predictions have to be of: this record, of this training, and these images."""
    with np.load(_path(run).with_name(IMAGES)) as stored:
        meta = json.loads(str(stored["meta"]))
    return {
        "run": run.name,
        "record": hashlib.sha256(run.record_path.read_bytes()).hexdigest(),
        "fingerprint": meta["fingerprint"],
    }


def _kept(run: runs.Run) -> Optional[Set[str]]:
    """The parts that have been kept; None where there is nothing of this training."""
    path = _path(run)
    if not (path.exists() and run.record_path.exists() and path.with_name(IMAGES).exists()):
        return None
    with np.load(path) as stored:
        meta = json.loads(str(stored["meta"]))
    parts = meta.pop("parts", ())
    return set(parts) if meta == _tie(run) else None


def _packed(arrays: Dict[str, np.ndarray], meta: Dict) -> bytes:
    return npz({"meta": np.array(json.dumps(meta)), **arrays})


def _decoded(stored: np.ndarray) -> np.ndarray:
    return cv2.imdecode(stored, cv2.IMREAD_COLOR)[:, :, ::-1]


def _credits(images: List[Dict]) -> Dict[int, str]:
    """For each image that a figure may show whose it is and by which licence, or "" where the data do not say.

    Where none may be passed on, all: in results of one's own they may be seen.
    """
    free = {
        image["id"]: f"{image['flickr_url']} ({LICENCES[image['license']]})" if image.get("flickr_url") else ""
        for image in images
        if not image.get("flickr_url") or image.get("license") in LICENCES
    }
    return free or {image["id"]: "" for image in images}


def _keep_images(profile: str, data: datasets.Data, dataset: List[Dict], credits: Dict[int, str]) -> Images:
    known = fingerprint(data.val.json)
    path = runs.results(profile) / "predictions" / IMAGES
    if path.exists():
        images = _read_images(path.parent)
        if images.fingerprint == known:
            return images
    truth = COCO(datasets.coco.truth(data.val.json))
    arrays, masks, boxes, classes, image_of = {}, [], [], [], []
    shown = [image for image in dataset[:MAX_IMAGES] if image["image_id"] in credits]
    for k, image in enumerate(shown):
        if k and len(masks) + len(image["annotations"]) > MAX_OBJECTS:
            break
        picture = read_image(image["file_name"])[:, :, ::-1]
        # A figure enlarges small images. At full quality a JPEG of them is as large as they are.
        quality = 90 if max(picture.shape) < 256 else 75
        options = (cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
        arrays[f"picture{k}"] = cv2.imencode(".jpg", picture, options)[1]
        for annotation, mask in true_boxes.objects(truth, image):
            masks.append(mask)
            image_of.append(k)
            classes.append(annotation["category_id"])
            boxes.append(true_boxes.corners(annotation))
    rois = [true_boxes.in_rois(mask[None], box[None])[0] for mask, box in zip(masks, np.array(boxes))]
    # These images may hold no object at all.
    arrays |= {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "image_of": np.array(image_of, int)}
    arrays |= {"classes": np.array(classes, int), "roi_masks": np.array(rois, bool).reshape(-1, SIDE, SIDE)}
    arrays["masks"] = np.packbits(np.concatenate([np.zeros(0, bool), *(mask.ravel() for mask in masks)]))
    number = sum(name.startswith("picture") for name in arrays)
    meta = {"fingerprint": known, "pictures": number, "credits": [credits[x["image_id"]] for x in shown[:number]]}
    write_bytes(path, _packed(arrays, meta))
    return _read_images(path.parent)


@torch.no_grad()
def _predict(
    run: runs.Run, parts: Collection[str], data, dataset: List[Dict], images: Images, device: str, bar: tqdm
) -> Dict[str, np.ndarray]:
    cfg = runs.on_device(run.cfg, device)
    boundaries = predicts_boundaries(cfg)
    cfg.MODEL.BOUNDARY_MASK_HEAD.OUTPUT_BOUNDARIES = boundaries
    model = evaluate.load_model(cfg, run.trained_as.folder / "checkpoint.pth")
    mapper, truth = ImageMapper(cfg, is_train=False), COCO(datasets.coco.truth(data.val.json))
    coarse = COCO(datasets.coco.truth(data.val_coarse.json)) if data.val_coarse else None
    in_true_boxes = not {"masks", "boundaries", "quality"}.isdisjoint(parts)
    kept, found, annotated, measured = [], [], [], []
    for k, image in enumerate(dataset):
        bar.update()
        inputs = mapper(image)
        objects = true_boxes.objects(truth, image) if in_true_boxes else []
        shown = k < len(images.pictures)
        if shown and "found" in parts:
            with torch.autocast(device, enabled=cfg.SOLVER.AMP.ENABLED):
                detections = model.inference([inputs], do_postprocess=False)[0].to("cpu")
            found.append((k, detections[detections.scores >= MIN_SCORE], true_boxes.scale(image, inputs)))
        if not objects:
            continue
        boxes = np.array([true_boxes.corners(annotation) for annotation, _ in objects])
        predicted = true_boxes.predict(cfg, model, image, inputs, [annotation for annotation, _ in objects])
        if shown:
            kept.append(predicted)
            if coarse and "masks" in parts:
                annotated.append(true_boxes.annotated_in_rois(coarse, image, boxes))
        if boundaries and "quality" in parts:
            exact = true_boxes.in_rois(np.array([mask for _, mask in objects]), boxes)
            targets = boundary_targets(torch.from_numpy(exact))
            measured.append((k, predicted.pred_boundaries[:, 0].float(), targets))

    def maps(instances, field):
        return torch.cat([torch.zeros(0, SIDE, SIDE), *(x.get(field)[:, 0].float() for x in instances)]).numpy()

    arrays = {}
    if "masks" in parts:
        arrays["masks"] = maps(kept, "pred_masks")
        if coarse:
            arrays["annotated"] = np.concatenate([np.zeros((0, SIDE, SIDE), bool), *annotated])
    if "found" in parts:
        shown = [instances for _, instances, _ in found]
        arrays["found_masks"] = maps(shown, "pred_masks")
        arrays["found_in"] = np.concatenate([np.full(len(x), k) for k, x, _ in found])
        arrays["found_boxes"] = np.concatenate([x.pred_boxes.tensor.numpy() / scale for _, x, scale in found])
        arrays["found_classes"] = np.concatenate([x.pred_classes.numpy() for x in shown])
        if boundaries:
            arrays["found_boundaries"] = maps(shown, "pred_boundaries")
    if boundaries and "boundaries" in parts:
        arrays["boundaries"] = maps(kept, "pred_boundaries")
    if boundaries and "quality" in parts:
        probabilities, targets = (torch.cat([m[i] for m in measured]) for i in (1, 2))
        arrays["quality_image"] = np.concatenate([np.full(len(p), k) for k, p, _ in measured])
        for name, values in evaluate.boundary_quality(probabilities, targets).items():
            arrays[f"quality_{name}"] = values.float().numpy()
        arrays["calibration"] = evaluate.calibration(probabilities, targets).numpy()
    return arrays | {name: _rounded(arrays[name], levels) for name, levels in LEVELS.items() if name in arrays}


def _rounded(probabilities: np.ndarray, levels: int) -> np.ndarray:
    """The nearest of the levels from 0 to 1, as its number; of two that are as near, such as at 0.5, the lower."""
    return np.ceil((levels - 1) * probabilities - 0.5).astype(np.uint8)
