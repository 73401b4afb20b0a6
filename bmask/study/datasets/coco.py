"""How a COCO instance file is read, in one way for training, evaluation and the data check."""

import gc
import hashlib
import json
import os
import re
import reprlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, List

from pycocotools import mask as rle_tools

from ...errors import InputError

REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation"),
    "categories": ("id", "name"),
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def fingerprint(*json_files: Path) -> str:
    """The first 16 hex digits of the SHA-256 of the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for json_file in json_files:
        with open(json_file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def read(json_file: Path, lists: Iterable[str] = tuple(REQUIRED)) -> dict:
    """The content of a COCO instance file.

    UTF-8, UTF-16 and UTF-32 are read, with a byte order mark or without, and bytes of a file name that are none of
    these as the file system has them. Ids, sides and ``iscrowd`` that are whole numbers in another form (``1.0``,
    ``"0001"``) become integers. ``iscrowd`` is 0 where it is missing or null, and 1 where ``ignore`` is set: both are
    neither learnt nor counted as wrong. What has no such reading stays as it is.

    Args:
        lists: of ``images``, ``annotations`` and ``categories``, those that have to be there; others may be missing.

    Raises:
        InputError: the file is not there, or is no such file.
    """
    json_file = Path(json_file)
    content = _parse(json_file)
    for name, keys in REQUIRED.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if entries is None and isinstance(content, dict) and name not in lists:
            content[name] = entries = []
        if not isinstance(entries, list):
            raise InputError(
                f"{json_file} has no list {name!r}; convert it to a COCO instance file, an object with the"
                " lists 'images', 'annotations' and 'categories'"
            )
        if not entries and name in lists:
            raise InputError(f"{json_file} lists no {name}; check how it was written or give another file")
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(key in entry for key in keys):
                missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
                known = f" (id {shown(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""
                raise InputError(
                    f"entry {position} of {name!r}{known} in {json_file} lacks {', '.join(missing)}; add what"
                    " is missing or remove the entry"
                )
            for key in keys:
                if type(entry[key]) is not int and (key.endswith("id") or key in ("height", "width")):
                    entry[key] = _whole(entry[key])
    for category in content["categories"]:
        if isinstance(category["name"], (int, float)):
            category["name"] = str(category["name"])
    for annotation in content["annotations"]:
        crowd = annotation.get("iscrowd")
        crowd = int(crowd or 0) if crowd is None or isinstance(crowd, bool) else _whole(crowd)
        annotation["iscrowd"] = 1 if crowd == 0 and is_ignored(annotation) else crowd
        if isinstance(annotation["segmentation"], dict):
            size = annotation["segmentation"].get("size")
            if isinstance(size, list):
                annotation["segmentation"]["size"] = [_whole(side) for side in size]
    return content


def truth(json_file: Path) -> dict:
    """The content of a sound file to compare detections with: every annotation has a mask and an ``area``.

    Where it is missing or no positive number, the area is that of the mask, as COCO's evaluation has it for detections.
    """
    content = read(json_file)
    sides = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    content = {name: content[name] for name in REQUIRED}
    content["annotations"] = [a for a in content["annotations"] if a["segmentation"]]
    for annotation in content["annotations"]:
        if not has_area(annotation):
            encoded = compressed(annotation["segmentation"], *sides[annotation["image_id"]])
            annotation["area"] = float(rle_tools.area(encoded))
    return content


def category_ids(content: dict) -> List[int]:
    """The file's category id of each class."""
    return sorted(category["id"] for category in content["categories"])


def outline(rle: Dict) -> Dict:
    """Box, area in pixels and mask of an annotation, from pycocotools' compressed RLE."""
    return {
        "bbox": rle_tools.toBbox(rle).tolist(),
        "area": int(rle_tools.area(rle)),
        "segmentation": {**rle, "counts": rle["counts"].decode()},
    }


def is_ignored(annotation: Dict) -> bool:
    return bool(_whole(annotation.get("ignore")))


def has_area(annotation: Dict) -> bool:
    return type(annotation.get("area")) in (int, float) and annotation["area"] > 0


def compressed(segmentation: Any, height: int, width: int) -> Dict:
    """Polygons, or an RLE of either kind, as a compressed RLE."""
    if isinstance(segmentation, list):
        return rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle_tools.frPyObjects(segmentation, height, width)
    return segmentation


def missing_files(images: List[Dict], image_root: Path) -> str:
    """A sentence that names the first of the ``images`` whose file is not there; empty where all are."""
    present: Dict[str, set] = {}  # listed once: asking for each file is slow on network file systems
    missing = []
    for image in images:
        folder, name = os.path.split(os.path.join(image_root, image["file_name"]))
        if folder not in present:
            try:
                with os.scandir(folder) as listing:
                    present[folder] = {entry.name for entry in listing}
            except (OSError, ValueError):  # the latter for a name that no file can have
                present[folder] = set()
        if name not in present[folder]:
            missing.append(image)
    if not missing:
        return ""
    return (
        f"{place(missing[0])} is not in {image_root}, where {len(missing)} of its {len(images)} images are missing; "
        "correct the folder or add them"
    )


def place(image: Dict) -> str:
    """An image as it stands in a sentence."""
    return f"image {shown(image['id'])} ({shown(image['file_name'])})"


def shown(value: Any) -> str:
    """A value of a file as it stands in a sentence: short, on one line, and printable everywhere."""
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 100:
        return value
    return _SHORT.repr(value)


@contextmanager
def collecting_no_garbage():
    """While millions of objects are made that are kept: to look through them again and again takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collecting_no_garbage()
def _parse(json_file: Path) -> Any:
    try:
        if json_file.is_file() or not json_file.exists():
            raw = json_file.read_bytes()
            encoding = json.detect_encoding(raw)
            return json.loads(raw.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict"))
        wrong = "cannot be read: it is no file; give a JSON file"
    except FileNotFoundError:
        wrong = "does not exist; check its path"
    except OSError as error:
        wrong = f"cannot be read ({error.strerror}); check its permissions"
    except RecursionError:
        wrong = "is nested too deeply; write it again"
    except ValueError as error:
        wrong = f"is not JSON, or cut off ({error}); write or download it again"
    raise InputError(f"the annotation file {json_file} {wrong}")


def _whole(value: Any) -> Any:
    """The whole number that a value stands for, or the value itself."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
        return int(value)
    return value
