"""Photographs of persons: 1,293 images of COCO 2017, fetched from where COCO has them, with COCO's own polygons.

Which images these are, their split and their polygons, scaled to a shorter side of 320 pixels, come with the repository
(annotations CC BY 4.0, COCO Consortium). The images belong to their authors, under the licence that each entry names.
"""

import http.client
import io
import json
import lzma
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from PIL import Image
from tqdm.auto import tqdm

from ...errors import InputError, one_line
from ..config import EXPERIMENTS
from ..files import make_folder, write_bytes
from . import downloaded

AT_ONCE = 16  # downloads
TRIES = 4  # of each, with 1, 2 and 4 seconds between
ENOUGH = 20  # failures, after which no more is tried
QUALITY = 95  # of the scaled JPEGs


def prepare(folder: Path, coco: Optional[Path] = None) -> None:
    """Write ``images/``, ``instances_train.json`` and ``instances_val.json``; goes on where it was stopped.

    Args:
        folder: made where it does not exist. Images that are there are not fetched again.
        coco: a folder of COCO 2017, with ``train2017`` and ``val2017``, to take the images from without network. By
            default those are taken that ``$DETECTRON2_DATASETS/coco`` has.

    Raises:
        InputError: images cannot be fetched, or are not those that the annotations are of. What was fetched stays.
    """
    for split in ("train2017", "val2017"):
        if coco and not (coco / split).is_dir():
            raise InputError(f"there is no {coco / split}; name the folder of COCO 2017 with --source")
    make_folder(folder / "images")
    annotated = {
        s: lzma.decompress((EXPERIMENTS / f"data/coco_person_{s}.json.xz").read_bytes()) for s in ("train", "val")
    }
    images = [image for content in annotated.values() for image in json.loads(content)["images"]]
    failed = []

    def left() -> List[Dict]:
        return [image for image in images if not (folder / "images" / image["file_name"]).exists()]

    def fetch(image: Dict) -> None:
        if len(failed) >= ENOUGH:
            return
        try:
            write_bytes(folder / "images" / image["file_name"], _read(image, coco))
        except (OSError, http.client.HTTPException, ValueError) as error:  # of the network, or of the image
            failed.append(f"{image['coco_url']}: {one_line(error)}")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        try:
            todo = left()
            list(tqdm(threads.map(fetch, todo), total=len(images), initial=len(images) - len(todo), unit="image"))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    if failed:
        raise InputError(
            f"{len(left())} images could not be fetched ({failed[0]}); give the same command again, which goes on with "
            "them, or name a folder of COCO 2017 with --source"
        )
    for split, content in annotated.items():
        write_bytes(folder / f"instances_{split}.json", content)


def _read(image: Dict, coco: Optional[Path]) -> bytes:
    """The scaled image. Raises OSError, HTTPException or ValueError where it cannot be had."""
    local = (coco or downloaded() / "coco") / image["coco_split"] / image["file_name"]
    if coco or local.exists():
        return _scaled(local.read_bytes(), image)
    for k in range(TRIES):
        try:
            with urllib.request.urlopen(image["coco_url"], timeout=30) as answer:
                return _scaled(answer.read(), image)
        except (OSError, http.client.HTTPException):
            if k == TRIES - 1:
                raise
            time.sleep(2**k)


def _scaled(content: bytes, image: Dict) -> bytes:
    """The image as large as its entry says. Raises OSError or ValueError where it is none, or another one."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        size = image["width"], image["height"]
        scale = min(size) / min(picture.size)
        if max(abs(a * scale - b) for a, b in zip(picture.size, size)) > 1:
            raise ValueError(f"it has {picture.width} x {picture.height} pixels, which is another image's size")
        return to_jpeg(picture, size)


def to_jpeg(picture: Image.Image, size: Tuple[int, int]) -> bytes:
    """The file of an image at a size, its width and height in pixels."""
    scaled = io.BytesIO()
    picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(scaled, "JPEG", quality=QUALITY)
    return scaled.getvalue()
