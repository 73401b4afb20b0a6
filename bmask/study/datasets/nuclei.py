"""Nuclei: BBBC038 (2018 Data Science Bowl, stage 1, CC0), from its original layout to COCO format."""

import hashlib
import http.client
import json
import urllib.request
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from ...errors import InputError
from ..files import whole_folder, write_file

URL = "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip"


def download(target: Path) -> None:
    """Fetch ``URL`` to the file ``target``; does nothing where it exists, leaves nothing where it fails.

    Raises InputError when the network or the server fails.
    """
    if target.exists():
        return
    try:
        write_file(target, _fetch)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{URL} could not be downloaded to {target} ({error}); try again, or fetch it on another machine"
            " and put it there"
        ) from None


def _fetch(target: Path) -> None:
    with urllib.request.urlopen(URL, timeout=60) as answer, open(target, "wb") as stream:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc="stage1_train.zip", unit="B", unit_scale=True) as bar:
            while block := answer.read(1 << 20):
                stream.write(block)
                bar.update(len(block))
        if size and stream.tell() != size:
            raise http.client.IncompleteRead(b"", size - stream.tell())


def convert(source: Path, folder: Path, *, val_share: float = 0.2) -> None:
    """Write stage1_train, given as its zip or unpacked, as COCO; does nothing where ``folder`` exists.

    Leaves ``images/<ImageId>.png`` (RGB), ``instances_train.json`` and ``instances_val.json`` (compressed
    RLE). A hash of the image id puts about ``val_share`` of the images into val, so that the part an image
    belongs to does not depend on the others. Empty masks are skipped.

    Raises InputError for a source that is not stage1_train or has a file that cannot be read.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists():
        return
    with _opened(source) as (names, read), whole_folder(folder) as draft:
        images, masks = _layout(source, names)
        (draft / "images").mkdir()
        parts = {"train": ([], []), "val": ([], [])}
        annotation_id = 0
        for number, image_id in enumerate(tqdm(sorted(images), desc="nuclei", unit="image"), start=1):
            picture = _decode(source, images[image_id], read, cv2.IMREAD_COLOR)  # drops the alpha channel
            height, width = picture.shape[:2]
            if not cv2.imwrite(str(draft / "images" / f"{image_id}.png"), picture):
                raise OSError(f"cannot write {draft / 'images' / image_id}.png")
            entries, annotations = parts["val" if _position(image_id) < val_share else "train"]
            entries.append({"id": number, "file_name": f"{image_id}.png", "height": height, "width": width})
            for name in sorted(masks[image_id]):
                mask = _decode(source, name, read, cv2.IMREAD_GRAYSCALE)
                if mask.shape != (height, width):
                    raise InputError(
                        f"the mask {name} in {source} is {mask.shape[1]} x {mask.shape[0]} pixels, its image"
                        f" {width} x {height}; download stage1_train.zip again"
                    )
                if not mask.any():
                    continue
                annotation_id += 1
                annotations.append({"id": annotation_id, "image_id": number, **_annotation(mask)})
        for part, (entries, annotations) in parts.items():
            content = {
                "info": {"description": f"2018 Data Science Bowl stage 1 (BBBC038), {part}", "url": URL},
                "licenses": [{"id": 1, "name": "CC0-1.0"}],
                "categories": [{"id": 1, "name": "nucleus"}],
                "images": entries,
                "annotations": annotations,
            }
            (draft / f"instances_{part}.json").write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def _opened(source: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names of the source's PNG files, with / between folders, and a function that reads one."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*.png")]
        yield names, lambda name: (source / name).read_bytes()
        return
    try:
        archive = zipfile.ZipFile(source)
    except FileNotFoundError:
        raise InputError(f"{source} does not exist; download {URL} or correct the path") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{source} is neither a folder nor a complete zip ({error}); download it again from {URL}"
        ) from None
    with archive:
        yield [name for name in archive.namelist() if name.endswith(".png")], archive.read


def _layout(source: Path, names: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The file of each image id, and the mask files of each: <ImageId>/{images,masks}/*.png, at any depth."""
    images, masks = {}, defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        if len(path.parts) < 3 or path.name.startswith("."):  # macOS adds ._<name>.png to zips
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


def _decode(source: Path, name: str, read: Callable[[str], bytes], flag: int) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(read(name), np.uint8), flag)
    except (OSError, zipfile.BadZipFile, zlib.error, cv2.error):
        picture = None
    if picture is None:
        raise InputError(f"{name} in {source} is no readable PNG; download stage1_train.zip again")
    return picture


def _position(image_id: str) -> float:
    """A place in [0, 1) that is the same everywhere (Python's own hash of a text is not)."""
    return int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16) / 16**8


def _annotation(mask: np.ndarray) -> dict:
    rle = rle_tools.encode(np.asfortranarray(mask > 0, dtype=np.uint8))
    return {
        "category_id": 1,
        "iscrowd": 0,
        "bbox": rle_tools.toBbox(rle).tolist(),
        "area": int(rle_tools.area(rle)),
        "segmentation": {**rle, "counts": rle["counts"].decode()},
    }
