"""Where the data of a configuration lies, in COCO format, and whether it is fit to be used."""

import hashlib
import json
import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from detectron2.structures import BoxMode
from pycocotools import mask as rle_tools

from ...errors import InputError
from ..files import write_bytes
from . import cityscapes, shapes
from .check import check_coco
from .coco import category_ids, fingerprint, read

OF_IMAGE = {"images": "id", "annotations": "image_id"}  # where the two lists of a file have an image's number


class Split(NamedTuple):
    """One half of a data set: a COCO instance file and the folder that its file names are relative to."""

    json: Path
    images: Path

    def load(self) -> List[Dict]:
        """The images in detectron2's dataset format, in the order of their ids.

        As detectron2's own loader, but for the reading of the file (:func:`bmask.study.datasets.coco.read`). Classes
        are counted in the order of their ids. Annotations may be missing, as in test sets.
        """
        content = read(self.json, ("images", "categories"))
        classes = {number: k for k, number in enumerate(category_ids(content))}
        records = {
            image["id"]: {
                "file_name": os.path.join(self.images, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": [],
            }
            for image in sorted(content["images"], key=lambda image: image["id"])
        }
        for annotation in content["annotations"]:
            mask = annotation["segmentation"]
            if not mask:
                continue
            if isinstance(mask, dict) and isinstance(mask["counts"], list):
                mask = rle_tools.frPyObjects(mask, *mask["size"])
            records[annotation["image_id"]]["annotations"].append(
                {
                    "iscrowd": annotation["iscrowd"],
                    "bbox": annotation["bbox"],
                    "category_id": classes[annotation["category_id"]],
                    "segmentation": mask,
                    "bbox_mode": BoxMode.XYWH_ABS,
                }
            )
        return list(records.values())


class Data(NamedTuple):
    """Both splits, 16 hexadecimal digits that stand for the contents of their files, and ``val``'s id of each class.

    Where training is on coarse annotations, ``val_coarse`` is ``val`` annotated alike. ``val_second`` is the profile's
    second test set where it is at hand, which has ``val``'s categories, and a fingerprint of its own.
    """

    train: Split
    val: Split
    fingerprint: str
    category_ids: List[int]
    val_coarse: Optional[Split] = None
    val_second: Optional[Split] = None
    second_fingerprint: Optional[str] = None


def given(images: Path, json: Path) -> Split:
    """The images and the instance file that a command line names, in this order, or the other where that is seen."""
    turned = not images.is_dir() and not json.is_file() and (images.is_file() or json.is_dir())
    return Split(images, json) if turned else Split(json, images)


def locate(cfg, data: Optional[Path], output: Path) -> Dict[str, Split]:
    """The splits ``train`` and ``val`` of the configured data set, and ``val_coarse`` (see :class:`Data`).

    Args:
        cfg: a resolved configuration.
        data: the folder of the data set; by default ``$DETECTRON2_DATASETS/coco`` for COCO, ``.../cityscapes`` for
            Cityscapes, and ``output/data/NAME`` for what is prepared. The embedded shapes are under ``output/data``,
            always.
        output: the folder that everything is written under.

    Raises:
        InputError: the data set is unknown, or its folder does not exist, or it has no exact masks to make coarse.
    """
    name, coarseness = cfg.STUDY.DATASET, cfg.STUDY.SHAPES.COARSENESS
    if name == "shapes":
        if data:
            raise InputError(
                f"DATA is {data}, but this profile makes its own data: leave DATA out, or use PROFILE=nuclei or paper"
            )
        folder = shapes_folder(cfg, output)

        def split(name, coarseness):
            grade = f"coarse{coarseness:g}" if coarseness else "fine"
            return Split(folder / f"annotations/instances_{name}_{grade}.json", folder / "images" / name)

        splits = {"train": split("train", coarseness), "val": split("val", 0)}
        return {**splits, "val_coarse": split("val", coarseness)} if coarseness else splits
    if coarseness:
        raise InputError(
            f"coarse annotations are made from the exact masks of the embedded shapes, and {name} has none: use "
            "PROFILE=cpu or gpu_shapes"
        )
    if name == "own":
        if data:
            raise InputError(f"DATA is {data}, but this profile names its own data: leave DATA out")
        own = cfg.STUDY.OWN
        return {
            "train": Split(Path(own.TRAIN_JSON), Path(own.TRAIN_IMAGES)),
            "val": Split(Path(own.VAL_JSON), Path(own.VAL_IMAGES)),
        }
    if name in ("nuclei", "coco_person"):
        command = f"`python -m bmask prepare-{name.replace('_', '-')}`"
        folder = _existing(data or output / "data" / name, f"{command} makes one")
        return {s: Split(folder / f"instances_{s}.json", folder / "images") for s in ("train", "val")}
    if name == "coco":
        folder = coco_folder(data)
        return {s: Split(folder / f"annotations/instances_{s}2017.json", folder / f"{s}2017") for s in ("train", "val")}
    if name == "cityscapes":
        folder = cityscapes_folder(data)
        # Converted once for each place that the data set is read from.
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        return {
            s: Split(output / "data" / f"cityscapes-{place}" / f"instances_{s}.json", folder / "leftImg8bit" / s)
            for s in ("train", "val")
        }
    raise InputError(f"STUDY.DATASET is {name!r}: known are shapes, nuclei, coco_person, coco, cityscapes and own")


def coco_folder(data: Optional[Path]) -> Path:
    """The folder of COCO 2017, in detectron2's layout. Raises InputError where there is none."""
    return _existing(data or downloaded() / "coco", "download COCO 2017 from cocodataset.org")


def cityscapes_folder(data: Optional[Path]) -> Path:
    """The folder with ``leftImg8bit`` and ``gtFine``. Raises InputError where there is none."""
    return _existing(data or downloaded() / "cityscapes", "download it from cityscapes-dataset.com")


def downloaded() -> Path:
    """The folder that detectron2 has its data sets in."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def shapes_folder(cfg, output: Path) -> Path:
    options = cfg.STUDY.SHAPES
    return output / "data" / f"shapes-{options.SEED}-{options.NUM_TRAIN}-{options.NUM_VAL}-{options.IMAGE_SIZE}px"


def prepare(cfg, data: Optional[Path], output: Path) -> Data:
    """Make (the embedded shapes), convert (Cityscapes) and check the configured data.

    The second test set is ``output/data/NAME``, if that is there, with ``instances.json`` and ``images``.

    Raises:
        InputError: something is wrong with the data; see :func:`bmask.study.datasets.check.check_coco`.
    """
    splits = locate(cfg, data, output)
    second = output / "data" / cfg.STUDY.SECOND_TEST
    if cfg.STUDY.SECOND_TEST and second.exists():
        if not (second / "instances.json").exists():
            raise InputError(
                f"{second} holds no instances.json; move it elsewhere, and "
                f"`python -m bmask prepare-{cfg.STUDY.SECOND_TEST} --source` makes a test set of it"
            )
        splits["val_second"] = Split(second / "instances.json", second / "images")
    if cfg.STUDY.DATASET == "shapes":
        options = cfg.STUDY.SHAPES
        shapes.generate(
            shapes_folder(cfg, output),
            seed=options.SEED,
            num_train=options.NUM_TRAIN,
            num_val=options.NUM_VAL,
            image_size=options.IMAGE_SIZE,
        )
        if options.COARSENESS:
            for name in ("train", "val"):
                shapes.coarsen(shapes_folder(cfg, output), name, options.COARSENESS)
    if cfg.STUDY.DATASET == "cityscapes":
        cityscapes.convert(cityscapes_folder(data), splits["val"].json.parent)
    categories = {}
    for name, split in splits.items():
        content = check_coco(split.json, split.images, drop_zero_area=cfg.STUDY.DROP_ZERO_AREA)
        if len(content["categories"]) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise InputError(
                f"{split.json} has {len(content['categories'])} categories, but the profile expects "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: set MODEL.ROI_HEADS.NUM_CLASSES in the profile"
            )
        categories[name] = {category["id"]: category["name"] for category in content["categories"]}
    if categories.get("val_second", categories["val"]) != categories["val"]:
        raise InputError(
            f"{splits['val_second'].json} has other categories than {splits['val'].json}; give it the "
            "same ids and names, or remove it"
        )
    if cfg.STUDY.HELD_OUT:
        if cfg.STUDY.SHAPES.COARSENESS:
            raise InputError("a profile NAME-heldout has no exact masks to test coarse annotations on; take NAME")
        splits = _held_out(splits["train"], output)
    return Data(
        **splits,
        fingerprint=fingerprint(splits["train"].json, splits["val"].json),
        category_ids=sorted(categories["val"]),
        second_fingerprint=fingerprint(splits["val_second"].json) if "val_second" in splits else None,
    )


def _held_out(train: Split, output: Path) -> Dict[str, Split]:
    """Every fifth image of a split to test on, the others to train on; written under ``output``."""
    content = read(train.json, ("images", "categories"))
    numbers = sorted(image["id"] for image in content["images"])
    halves, folder = {"val": {*numbers[::5]}}, output / "data" / f"heldout-{fingerprint(train.json)}"
    halves["train"] = {*numbers} - halves["val"]
    for name, kept in halves.items():
        half = {key: [x for x in content[key] if x[number] in kept] for key, number in OF_IMAGE.items()}
        write_bytes(folder / f"instances_{name}.json", json.dumps({**content, **half}).encode())
    return {name: Split(folder / f"instances_{name}.json", train.images) for name in halves}


def _existing(folder: Path, hint: str) -> Path:
    if not folder.is_dir():
        raise InputError(f"there is no data folder {folder}: name it with DATA=... ({hint})")
    return folder
