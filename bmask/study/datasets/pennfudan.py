"""Penn-Fudan: 170 photographs of pedestrians whose masks are drawn to the pixel, a second and precise test set.

From Wang, Shi, Song and Shen, Object Detection Combining Recognition and Segmentation, ACCV 2007. The data are for
research and may not be passed on: what is shown of them is numbers, never an image.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Optional

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from ...errors import InputError
from ..files import whole_folder
from . import Split
from .archives import download, opened, ready
from .check import check_coco
from .coco import compressed, outline
from .coco_person import to_jpeg

URL = "https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip"
SIDE = 320  # pixels of the shorter side, at most, as in coco_person
WANTED = f"give PennFudanPed.zip, its unpacked folder or a prepared one, or download {URL} again"

Photograph = tuple[str, bytes, tuple[int, int], list[dict]]  # name, JPEG, height and width, an RLE a person


def convert(source: Optional[Path], folder: Path) -> None:
    """Write the photographs as one test set in COCO format; does nothing where ``folder`` has it.

    Leaves ``images/<name>.jpg`` and ``instances.json`` (compressed RLE, ids in the order of the names).

    Args:
        source: the authors' zip or its unpacked folder, whose images and masks are scaled to a shorter side of ``SIDE``
            pixels where it has more; or a prepared folder, with ``images`` and ``instances.json`` or one such file a
            split, which is taken as it is; None downloads the authors' zip.

    Raises:
        InputError: ``source`` is none of these, or an image or a mask is missing or cannot be read.
    """
    if ready(folder / "instances.json"):
        return
    source = source or download(URL, folder.with_suffix(".zip"))
    files = sorted(source.glob("instances*.json"))
    images, annotations = [], []
    with whole_folder(folder) as draft:
        (draft / "images").mkdir()
        for name, content, (height, width), masks in tqdm(
            _prepared(source, files) if files else _original(source), desc="pennfudan", unit="image"
        ):
            if not re.fullmatch(r"(Fudan|Penn)Ped\d{5}\.jpg", name):
                raise InputError(f"{source} holds {name}, which is no image of Penn-Fudan; {WANTED}")
            (draft / "images" / name).write_bytes(content)
            images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
            for rle in masks:
                ids = {"id": len(annotations) + 1, "image_id": len(images), "category_id": 1, "iscrowd": 0}
                annotations.append({**ids, **outline(rle)})
        content = {
            "info": {"description": "Penn-Fudan pedestrians, for research, not to be passed on", "url": URL},
            "categories": [{"id": 1, "name": "person"}],
            "images": images,
            "annotations": annotations,
        }
        (draft / "instances.json").write_text(json.dumps(content), encoding="utf-8")


def _prepared(source: Path, files: list[Path]) -> Iterator[Photograph]:
    records = []
    for file in files:
        check_coco(file, source / "images")
        records += Split(file, source / "images").load()
    for record in sorted(records, key=lambda record: record["file_name"]):
        path, size = Path(record["file_name"]), (record["height"], record["width"])
        masks = [rle_tools.merge([compressed(a["segmentation"], *size)]) for a in record["annotations"]]
        yield path.name, path.read_bytes(), size, masks


def _original(source: Path) -> Iterator[Photograph]:
    with opened(source, URL) as (names, read):
        files = {}
        for name in names:
            *_, kind, file = "", *PurePosixPath(name).parts
            if kind in ("PNGImages", "PedMasks"):
                files[kind, file.removesuffix(".png").removesuffix("_mask")] = name
        if not files:
            raise InputError(f"{source} holds no PNGImages/*.png with PedMasks/*_mask.png; {WANTED}")
        for stem in sorted({stem for _, stem in files}):
            for kind, what in {"PNGImages": "image", "PedMasks": "mask"}.items():
                if (kind, stem) not in files:
                    raise InputError(f"{source} has no {what} of {stem} in {kind}; {WANTED}")
            picture = read(files["PNGImages", stem], _picture)
            labels = read(files["PedMasks", stem], _labels, picture.size[::-1])
            width, height = (round(side * min(1, SIDE / min(picture.size))) for side in picture.size)
            # Where a person has more than half of a pixel's area, it is theirs.
            persons = [labels == number for number in np.unique(labels) if number]
            shares = [cv2.resize(p.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for p in persons]
            rles = [rle_tools.encode(np.asfortranarray(share > 0.5, dtype=np.uint8)) for share in shares]
            yield f"{stem}.jpg", to_jpeg(picture, (width, height)), (height, width), rles


def _picture(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
    return picture


def _labels(content: bytes) -> np.ndarray:
    """(H, W), 0 for the background and a number a person: grey levels, or places in a palette."""
    labels = np.asarray(_picture(content))
    if labels.ndim != 2:
        raise ValueError("colours, not labels")
    return labels
