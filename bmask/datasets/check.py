"""The data check: a COCO instance file is read and proved sound before anything is spent on it."""

import gc
import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from operator import mul
from pathlib import Path

import numpy as np

from ..errors import InputError

REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation"),
    "categories": ("id", "name"),
}


class Flaw(Exception):
    """What is wrong with one annotation, and what to do; the caller knows where."""


def check_coco(json_file: Path, image_root: Path, *, drop_zero_area: bool = False) -> dict:
    """Read a COCO instance file whose images lie under ``image_root``, and validate all of it.

    Returns the parsed file. With ``drop_zero_area`` annotations whose mask has no area (COCO train2017
    has two) are removed from it with a warning; the file itself stays as it is. No polygon is rasterised.

    Raises InputError at the first flaw.
    """
    json_file, image_root = Path(json_file), Path(image_root)
    data = parse(json_file)
    images = _by_id(json_file, "image", data["images"])
    categories = _by_id(json_file, "category", data["categories"])
    for image in data["images"]:
        name, sides = image["file_name"], (image["height"], image["width"])
        if not isinstance(name, str) or not all(isinstance(side, int) and side > 0 for side in sides):
            raise InputError(
                f"image {image['id']} in {json_file} has the file_name {name!r}, height {sides[0]!r} and"
                f" width {sides[1]!r}, which must be a text and two positive integers; correct its entry"
            )
    check_files(json_file, image_root, data["images"])

    _by_id(json_file, "annotation", data["annotations"])
    empty = []
    for annotation in data["annotations"]:
        image_id = annotation["image_id"]
        image = images.get(image_id) if isinstance(image_id, (int, str)) else None
        try:
            area = checked_area(annotation, image, categories)
            if area == 0 and not drop_zero_area:
                raise Flaw(
                    "has a mask of zero area; remove it or have such annotations dropped (drop_zero_area)"
                )
        except Flaw as flaw:
            owner = f" of image {image['id']} ({image['file_name']})" if image else ""
            raise InputError(f"annotation {annotation['id']}{owner} in {json_file} {flaw}") from None
        if area == 0:
            empty.append(annotation["id"])
    if empty:
        some = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        warnings.warn(f"{json_file}: dropped {len(empty)} annotations of zero area (id {some})", stacklevel=2)
        dropped = set(empty)
        data["annotations"] = [a for a in data["annotations"] if a["id"] not in dropped]
        if not data["annotations"]:
            raise InputError(f"no annotation in {json_file} has a mask of any area; write the file anew")
    return data


def fingerprint(*json_files: Path) -> str:
    """The first 16 hex digits of the SHA-256 of the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for json_file in json_files:
        with open(json_file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def parse(json_file: Path) -> dict:
    """The file's content, with the lists and the keys that make it a COCO instance file."""
    collecting = gc.isenabled()
    gc.disable()  # millions of new lists and no garbage: collecting takes most of the time for COCO train2017
    try:
        data = json.loads(json_file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"the annotation file {json_file} does not exist; check its path") from None
    except OSError as error:
        raise InputError(
            f"the annotation file {json_file} cannot be read ({error.strerror}); check its permissions"
        ) from None
    except ValueError as error:
        raise InputError(
            f"the annotation file {json_file} is not JSON, or cut off ({error}); write or download it again"
        ) from None
    finally:
        if collecting:
            gc.enable()
    for name, keys in REQUIRED.items():
        entries = data.get(name) if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise InputError(
                f"{json_file} has no list {name!r}; convert it to a COCO instance file, an object with the"
                " lists 'images', 'annotations' and 'categories'"
            )
        if not entries:
            raise InputError(f"{json_file} lists no {name}; check how it was written or give another file")
        for position, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                known = f" (id {entry['id']!r})" if isinstance(entry, dict) and "id" in entry else ""
                raise InputError(
                    f"entry {position} of {name!r}{known} in {json_file} lacks {', '.join(missing)}; add what"
                    " is missing or remove the entry"
                )
    return data


def _by_id(json_file: Path, kind: str, entries: Iterable[dict]) -> dict:
    found = {}
    for entry in entries:
        if not isinstance(entry["id"], (int, str)):
            raise InputError(f"the {kind} id {entry['id']!r} in {json_file} is no number; give it one")
        if entry["id"] in found:
            raise InputError(
                f"the {kind} id {entry['id']!r} occurs more than once in {json_file}; give every {kind} an id"
                " of its own"
            )
        found[entry["id"]] = entry
    return found


def check_files(json_file: Path, image_root: Path, images: list[dict]) -> None:
    """Raise InputError where the file of one of the ``images`` of ``json_file`` is not under ``image_root``."""
    present: dict[str, set[str]] = {}  # listed once: asking for each file is slow on network file systems
    missing = []
    for image in images:
        folder, name = os.path.split(os.path.join(image_root, image["file_name"]))
        if folder not in present:
            try:
                with os.scandir(folder) as listing:
                    present[folder] = {entry.name for entry in listing}
            except OSError:
                present[folder] = set()
        if name not in present[folder]:
            missing.append(image)
    if missing:
        raise InputError(
            f"image {missing[0]['id']} ({missing[0]['file_name']}) of {json_file} is not in {image_root},"
            f" where {len(missing)} of its {len(images)} images are missing; correct the folder or add them"
        )


def checked_area(annotation: dict, image: dict | None, categories: dict) -> float:
    """The area of an annotation's mask in pixels; raises Flaw where the annotation is not sound."""
    if image is None:
        raise Flaw(
            f"names image {annotation['image_id']!r}, which the file does not list; add the image or"
            " remove the annotation"
        )
    if not isinstance(annotation["category_id"], (int, str)) or annotation["category_id"] not in categories:
        raise Flaw(
            f"names category {annotation['category_id']!r}, which the file does not list; add the category or"
            " correct the annotation"
        )
    bbox = annotation["bbox"]
    if (
        not isinstance(bbox, list)
        or len(bbox) != 4
        or not all(isinstance(side, (int, float)) for side in bbox)
    ):
        raise Flaw("has a bbox that is not four numbers; write [x, y, width, height]")
    return _area(annotation["segmentation"], image["height"], image["width"])


def _area(segmentation: list | dict, height: int, width: int) -> float:
    """Area in pixels: of polygons by the shoelace formula, summed over the parts; of an RLE by its runs."""
    if isinstance(segmentation, dict):
        return _rle_area(segmentation, height, width)
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise Flaw(
            "has a segmentation that is neither a list of polygons nor an RLE; write it as one of them"
        )
    total = 0.0
    for polygon in segmentation:
        if len(polygon) % 2:
            raise Flaw(f"has a polygon of {len(polygon)} numbers, an odd count; write x and y of every point")
        if len(polygon) < 6:
            points = "1 point" if len(polygon) == 2 else f"{len(polygon) // 2} points"
            raise Flaw(f"has a polygon of {points} where three are needed; correct or remove the annotation")
        xs, ys = polygon[0::2], polygon[1::2]
        try:
            total += abs(sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1]))) / 2
        except TypeError:
            raise Flaw("has a polygon whose coordinates are not all numbers; correct them") from None
    return total if total > 1e-6 else 0.0  # rounding leaves a little on points in a line


def _rle_area(rle: dict, height: int, width: int) -> int:
    if rle.get("size") != [height, width]:
        raise Flaw(
            f"has an RLE of size {rle.get('size')} where the image is [{height}, {width}]; encode the mask"
            " at the image's own size"
        )
    counts = rle.get("counts")
    runs = _decode(counts) if isinstance(counts, str) else counts
    sound = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not sound or sum(runs) != height * width:
        raise Flaw("has an RLE that does not decode to its image's number of pixels; encode the mask again")
    return sum(runs[1::2])


def _decode(counts: str) -> list[int] | None:
    """The runs of a compressed RLE, None where it is broken: pycocotools reads past the end of a broken one.

    A run takes one or more characters of five bits each, the lowest first, offset by 48; bit 5 says that
    another one follows and bit 4 of the last one is the sign. From the fourth run on it is the
    difference to the run two before.
    """
    codes = np.array([ord(character) for character in counts]) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()
