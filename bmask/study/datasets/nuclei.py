"""Nuclei: BBBC038 (2018 Data Science Bowl, stage 1, CC0), from its original layout to COCO format."""

import hashlib
import json
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Optional

import cv2
import numpy as np
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from ...errors import InputError
from ..files import whole_folder
from .archives import download, opened, ready
from .coco import outline

URL = "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip"


def convert(source: Optional[Path], folder: Path, *, val_share: float = 0.2) -> None:
    """Write stage1_train as COCO: its zip, unpacked, or None to download it. Does nothing where ``folder`` has it.

    Leaves ``images/<ImageId>.png`` (RGB), ``instances_train.json`` and ``instances_val.json`` (compressed
    RLE). A hash of the image id puts about ``val_share`` of the images into val, so that the part an image
    belongs to does not depend on the others. Empty masks are skipped.

    Raises InputError for a folder that holds something else, and for a source that is not stage1_train or has a file
    that cannot be read.
    """
    folder = Path(folder)
    if ready(folder / "instances_val.json"):
        return
    source = Path(source or download(URL, folder.with_suffix(".zip")))
    with opened(source, URL) as (names, read), whole_folder(folder) as draft:
        images, masks = _layout(source, names)
        (draft / "images").mkdir()
        parts = {"train": ([], []), "val": ([], [])}
        annotation_id = 0
        for number, image_id in enumerate(tqdm(sorted(images), desc="nuclei", unit="image"), start=1):
            picture = read(images[image_id], partial(_decode, cv2.IMREAD_COLOR))  # drops the alpha channel
            height, width = picture.shape[:2]
            if not cv2.imwrite(str(draft / "images" / f"{image_id}.png"), picture):
                raise OSError(f"cannot write {draft / 'images' / image_id}.png")
            entries, annotations = parts["val" if _position(image_id) < val_share else "train"]
            entries.append({"id": number, "file_name": f"{image_id}.png", "height": height, "width": width})
            for name in sorted(masks[image_id]):
                mask = read(name, partial(_decode, cv2.IMREAD_GRAYSCALE), (height, width))
                if not mask.any():
                    continue
                annotation_id += 1
                rle = rle_tools.encode(np.asfortranarray(mask > 0, dtype=np.uint8))
                where = {"id": annotation_id, "image_id": number, "category_id": 1, "iscrowd": 0}
                annotations.append({**where, **outline(rle)})
        for part, (entries, annotations) in parts.items():
            content = {
                "info": {"description": f"2018 Data Science Bowl stage 1 (BBBC038), {part}", "url": URL},
                "licenses": [{"id": 1, "name": "CC0-1.0"}],
                "categories": [{"id": 1, "name": "nucleus"}],
                "images": entries,
                "annotations": annotations,
            }
            (draft / f"instances_{part}.json").write_text(json.dumps(content), encoding="utf-8")


def _layout(source: Path, names: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The file of each image id, and the mask files of each: <ImageId>/{images,masks}/*.png, at any depth."""
    images, masks = {}, defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        if len(path.parts) < 3:
            continue
        image_id, kind = path.parts[-3:-1]
        if kind == "images" and path.stem == image_id:
            images[image_id] = name
        elif kind == "masks":
            masks[image_id].append(name)
    if not images or not masks:
        raise InputError(
            f"{source} holds no <ImageId>/images/<ImageId>.png with <ImageId>/masks/*.png; give stage1_train"
            f" of BBBC038 in its original layout, from {URL}"
        )
    if orphans := sorted(masks.keys() - images.keys()):
        raise InputError(
            f"{source} has masks of {orphans[0]} and no image {orphans[0]}/images/{orphans[0]}.png; unpack or"
            " download stage1_train.zip again"
        )
    return images, masks


def _decode(flag: int, content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), flag)


def _position(image_id: str) -> float:
    """A place in [0, 1) that is the same everywhere (Python's own hash of a text is not)."""
    return int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16) / 16**8
