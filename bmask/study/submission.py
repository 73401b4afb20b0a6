"""Detections as the evaluation servers of COCO and Cityscapes take them, and Cityscapes' own AP.

Detections are in COCO's results format: a list of dicts with ``image_id``, ``category_id``, ``segmentation``
(compressed RLE), ``score`` and, from Mask Scoring R-CNN, ``mask_score``, which then ranks the masks.
"""

import copy
import json
import tempfile
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from .datasets.cityscapes import scripts, truth_file
from .files import write_file

# [type]_[testset]_[alg]_results, of the JSON and of the zip: https://cocodataset.org/#upload
COCO_NAME = "detections_test-dev2017_bmask_results"


def coco_zip(detections: list[dict], path: Path) -> None:
    """Write what COCO's test-dev server takes for masks: a zip of one JSON, at its top level.

    The server wants the zip to be called ``COCO_NAME`` + ".zip". Entries are as in
    https://cocodataset.org/#format-results for segments, without a box: the mask's area is then the size.
    """
    results = [
        {
            "image_id": detection["image_id"],
            "category_id": detection["category_id"],
            "segmentation": detection["segmentation"],
            "score": _score(detection),
        }
        for detection in detections
    ]
    _write_zip(path, [(f"{COCO_NAME}.json", json.dumps(results).encode())])


def write_cityscapes(detections: list[dict], images: list[dict], folder: Path) -> None:
    """Write Cityscapes' instance results, as cityscapesscripts' evalInstanceLevelSemanticLabeling reads them.

    Each image gets a text file ``<its name>_pred.txt``, with a line ``<PNG> <label id> <score>`` for each of
    its detections, and the PNGs beside it: 0 and 255, of the image's size. One without detections gets an
    empty text file; detections of images that are not in ``images`` are left out.

    Args:
        detections: with Cityscapes' label ids as ``category_id``.
        images: in detectron2's dataset format (``file_name`` and ``image_id`` are read).
        folder: made where it does not exist.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _cityscapes_files(detections, images):
        (folder / name).write_bytes(content)


def cityscapes_zip(detections: list[dict], images: list[dict], path: Path) -> None:
    """Write the files of :func:`write_cityscapes` as a zip, which is whole or not there."""
    _write_zip(path, _cityscapes_files(detections, images))


def cityscapes_average_precision(detections: list[dict], images: list[dict], gt_root: Path) -> dict:
    """Average precision in percent, over the given images, by cityscapesScripts itself.

    It differs from COCO's: an object below 100 pixels is ignored, as are detections that lie on groups or
    unlabelled pixels, and the precision is not made monotonic.

    Args:
        detections, images: as for :func:`write_cityscapes`.
        gt_root: the split's folder of instance ids, such as ``gtFine/val``.

    Returns:
        ``AP``, ``AP50`` and ``per_class`` {name: AP}. None stands where the images have no object.

    Raises:
        InputError: an image has no annotation under ``gt_root``, or cityscapesScripts is not installed.
    """
    evaluation = scripts("evaluation.evalInstanceLevelSemanticLabeling")
    truth = [str(truth_file(Path(image["file_name"]), Path(gt_root))) for image in images]
    args = copy.copy(evaluation.args)
    args.quiet = True
    evaluation.setInstanceLabels(args)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mean over no class
        write_cityscapes(detections, images, folder)
        args.predictionPath = folder
        predicted = [str(Path(folder) / f"{Path(image['file_name']).stem}_pred.txt") for image in images]
        # The steps of evaluateImgLists, but for the matches.json that it leaves in the current folder, and
        # cannot write with numpy 2.4, whose counts are no numbers to json.
        instances = evaluation.instances2dict(truth)
        with patch.object(np, "in1d", np.isin, create=True):  # numpy 2.4 has removed it
            matches = evaluation.matchGtWithPreds(predicted, truth, instances, args)
        averages = evaluation.computeAverages(_precision(evaluation, matches, args), args)

    def percent(value: float) -> float | None:
        return None if np.isnan(value) else float(100 * value)

    return {
        "AP": percent(averages["allAp"]),
        "AP50": percent(averages["allAp50%"]),
        "per_class": {name: percent(x["ap"]) for name, x in averages["classes"].items()},
    }


def _precision(evaluation: ModuleType, matches: dict, args: object) -> np.ndarray:
    """1 x classes x overlaps: ``evaluateMatches``, called for each class and overlap by itself.

    It fails with an IndexError where a class has objects, all missed, and detections, all to be ignored: the
    AP of no detection, 0, is then right.
    """
    precision = np.zeros((1, len(args.instLabels), len(args.overlaps)))
    for row, label in enumerate(args.instLabels):
        for column, overlap in enumerate(args.overlaps):
            one = copy.copy(args)
            one.instLabels, one.overlaps = [label], [overlap]
            with suppress(IndexError):
                precision[0, row, column] = evaluation.evaluateMatches(matches, one).item()
    return precision


def _score(detection: dict) -> float:
    return float(detection.get("mask_score", detection["score"]))


def _cityscapes_files(detections: list[dict], images: list[dict]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, the text file of an image after its masks."""
    found = defaultdict(list)
    for detection in detections:
        found[detection["image_id"]].append(detection)
    for image in images:
        stem, lines = Path(image["file_name"]).stem, []
        for number, detection in enumerate(found[image["image_id"]]):
            name = f"{stem}_{number}.png"
            mask = rle_tools.decode(detection["segmentation"])
            yield name, cv2.imencode(".png", mask * 255)[1].tobytes()
            lines.append(f"{name} {detection['category_id']} {_score(detection)}\n")
        yield f"{stem}_pred.txt", "".join(lines).encode()


def _write_zip(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    def write(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive:
            for name, content in files:
                # A bare ZipInfo holds no time: the same detections are the same bytes.
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)

    write_file(Path(path), write)
