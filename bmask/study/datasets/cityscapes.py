"""Cityscapes (Cordts et al., CVPR 2016), fine annotations: from its own layout to COCO format."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from ...errors import InputError
from ..files import whole_folder
from .coco import outline

SPLITS = ("train", "val")
IMAGE, TRUTH = "_leftImg8bit.png", "_gtFine_instanceIds.png"
BROKEN = (OSError, SyntaxError, ValueError)  # what Pillow raises, by what is wrong with a PNG


def convert(root: Path, folder: Path) -> None:
    """Write ``instances_train.json`` and ``instances_val.json`` to ``folder``; does nothing where it exists.

    Reads ``leftImg8bit`` and ``gtFine`` under ``root`` as Cityscapes' own zips unpack them. File names are
    relative to ``leftImg8bit/<split>``; categories have Cityscapes' label ids, and both files list all 8.
    Masks are exact, as compressed RLE. Groups, such as parked bicycles that no one told apart, are crowd.

    Raises InputError for a part of the layout that is missing, a file that cannot be read, an annotation of
    another size than its image, or where cityscapesScripts is not installed. Of the pictures only the
    headers are read.
    """
    root, folder = Path(root), Path(folder)
    if folder.exists():
        return
    categories = {label.id: label.name for label in instance_labels()}
    pairs = {split: _pairs(root, split) for split in SPLITS}
    bar = tqdm(total=sum(map(len, pairs.values())), desc="cityscapes", unit="image")
    with bar, whole_folder(folder) as draft:
        for split in SPLITS:
            images, annotations = [], []
            for number, (image, truth) in enumerate(pairs[split], start=1):
                ids = _read_ids(truth)
                height, width = ids.shape
                if (size := _size(image)) != (width, height):
                    raise InputError(
                        f"{truth} is {width} x {height} pixels, its image {size[0]} x {size[1]}; unpack"
                        " gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip again"
                    )
                name = f"{image.parent.name}/{image.name}"
                images.append({"id": number, "file_name": name, "height": height, "width": width})
                for category, crowd, rle in _instances(ids, categories):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": number,
                            "category_id": category,
                            "iscrowd": crowd,
                            **outline(rle),
                        }
                    )
                bar.update()
            content = {
                "info": {"description": f"Cityscapes gtFine, {split}", "url": "https://www.cityscapes-dataset.com"},
                "categories": [{"id": id, "name": name} for id, name in categories.items()],
                "images": images,
                "annotations": annotations,
            }
            (draft / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def test_images(root: Path) -> list[dict]:
    """The images of ``leftImg8bit/test`` in detectron2's dataset format, without annotations.

    ``image_id`` counts from 0 in the order of cities and names, ``file_name`` is absolute. Raises InputError
    where the folder, any image in it, or the header of an image is missing.
    """
    records = []
    for image_id, image in enumerate(_images(Path(root), "test")):
        width, height = _size(image)
        records.append({"file_name": str(image.absolute()), "image_id": image_id, "height": height, "width": width})
    return records


def instance_labels() -> list:
    """Cityscapes' 8 evaluated labels with instances, by id, as cityscapesScripts' tuples."""
    labels = scripts("helpers.labels").labels
    return sorted((x for x in labels if x.hasInstances and not x.ignoreInEval), key=lambda x: x.id)


def scripts(name: str) -> ModuleType:
    """A module of cityscapesScripts, which only Cityscapes needs; InputError where it is not installed."""
    try:
        return import_module(f"cityscapesscripts.{name}")
    except ImportError as error:
        raise InputError(
            f"Cityscapes needs the package cityscapesScripts, which cannot be imported ({error}); install it"
            " with `pip install --no-deps cityscapesScripts pyquaternion`"
        ) from None


def truth_file(image: Path, gt_folder: Path) -> Path:
    """The instance ids of an image in a split's folder of gtFine; InputError where there are none."""
    truth = gt_folder / image.parent.name / (image.name.removesuffix(IMAGE) + TRUTH)
    if not truth.is_file():
        raise InputError(
            f"the image {image} has no annotation {truth}; unpack gtFine_trainvaltest.zip again, or remove the image"
        )
    return truth


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    gt_folder = _folder(root, "gtFine", split)
    return [(image, truth_file(image, gt_folder)) for image in _images(root, split)]


def _images(root: Path, split: str) -> list[Path]:
    folder = _folder(root, "leftImg8bit", split)
    if not (images := sorted(folder.glob(f"*/*{IMAGE}"))):
        raise InputError(
            f"{folder} holds no <city>/*{IMAGE}; unpack leftImg8bit_trainvaltest.zip in {root}, or correct its path"
        )
    return images


def _folder(root: Path, tree: str, split: str) -> Path:
    for folder in (root, root / tree, root / tree / split):
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}; unpack {tree}_trainvaltest.zip in {root}, or correct its path"
            )
    return root / tree / split


def _size(image: Path) -> tuple[int, int]:
    """Width and height."""
    try:
        with Image.open(image) as picture:
            return picture.size
    except BROKEN:
        raise InputError(f"{image} is no readable PNG; unpack leftImg8bit_trainvaltest.zip again") from None


def _read_ids(truth: Path) -> np.ndarray:
    """H x W, uint16."""
    try:
        with Image.open(truth) as picture:
            ids = np.asarray(picture)
    except BROKEN:
        ids = None
    if ids is None or ids.dtype != np.uint16 or ids.ndim != 2:
        raise InputError(f"{truth} is no readable PNG of 16-bit instance ids; unpack gtFine_trainvaltest.zip again")
    return ids


def _instances(ids: np.ndarray, labels: dict[int, str]) -> Iterator[tuple[int, int, dict]]:
    """Label id, 1 for a group or 0, and RLE of each instance in H x W ids, in the order of the ids.

    A single instance's id is its label's id * 1000 + k; a group's, or a stuff region's, is the label's own.
    """
    columns = cv2.transpose(ids)  # RLE runs down the columns; ten times as fast as numpy's asfortranarray
    for instance_id in np.flatnonzero(np.bincount(ids.ravel())).tolist():
        label, crowd = (instance_id, 1) if instance_id < 1000 else (instance_id // 1000, 0)
        if label in labels:
            yield label, crowd, rle_tools.encode((columns == instance_id).view(np.uint8).T)
