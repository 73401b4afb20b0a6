"""The data check: how a COCO instance file is read, and one list of all that is wrong with it."""

import gc
import hashlib
import json
import math
import os
import re
import reprlib
import warnings
from operator import mul
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from ...errors import InputError
from ...images import LIMIT, read_image, stored_size

REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation"),
    "categories": ("id", "name"),
}
NUMBERS = {int, float}
NAMED = 3  # ids, or names, in a sentence
# A box is off where a side is further from its mask's extent than these pixels plus this share of the object: polygons
# are rounded, and boxes of some data sets lie one pixel beside.
PIXELS, SHARE = 2, 0.05


class Flaw(Exception):
    """What is wrong with one annotation, and what to do; the caller knows where."""


class Finding(NamedTuple):
    """What the check has found. error: the data cannot be used as they are; otherwise the text is a warning.

    text: a sentence that names the first place, and how many more there are.
    """

    error: bool
    text: str


class Mask(NamedTuple):
    """Area of a mask in pixels, and its extent: left, top, right and bottom."""

    area: float
    extent: Sequence[float]


def check_coco(json_file: Path, image_root: Path, *, drop_zero_area: bool = False, open_images: bool = False) -> dict:
    """Read a COCO instance file whose images lie under ``image_root``, and validate all of it.

    Returns the content as :func:`read` has it. With ``drop_zero_area`` annotations whose mask has no area (COCO
    train2017 has two) are removed from it with a warning; the file itself stays as it is. No polygon is rasterised, and
    images are read only with ``open_images``.

    Raises InputError for the first of the errors.
    """
    json_file = Path(json_file)
    content = read(json_file)
    findings, masks = examine(content, image_root, drop_zero_area)
    if open_images and not any(f.error for f in findings):
        findings += look_at_images(content["images"], image_root)
    errors = [f.text for f in findings if f.error]
    if errors:
        more = f" (and {len(errors) - 1} more, which check-data lists)" if errors[1:] else ""
        raise InputError(f"{json_file}: {errors[0]}{more}")
    if empty := [a["id"] for a, mask in zip(content["annotations"], masks) if not mask.area]:
        some = _some(empty)
        warnings.warn(f"{json_file}: dropped {len(empty)} annotations of zero area (id {some})", stacklevel=2)
        content["annotations"] = [a for a, mask in zip(content["annotations"], masks) if mask.area]
        if not content["annotations"]:
            raise InputError(f"no annotation in {json_file} has a mask of any area; write the file anew")
    return content


def fingerprint(*json_files: Path) -> str:
    """The first 16 hex digits of the SHA-256 of the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for json_file in json_files:
        with open(json_file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def read(json_file: Path, lists: Iterable[str] = tuple(REQUIRED)) -> dict:
    """The content of a COCO instance file, the one reading for training, evaluation and the check.

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
    for image in content["images"]:
        _make_whole(image, ("id", "height", "width"))
    for category in content["categories"]:
        _make_whole(category, ("id",))
        if isinstance(category["name"], (int, float)):
            category["name"] = str(category["name"])
    for annotation in content["annotations"]:
        _make_whole(annotation, ("id", "image_id", "category_id"))
        crowd = annotation.get("iscrowd")
        crowd = int(crowd or 0) if crowd is None or isinstance(crowd, bool) else _whole(crowd)
        annotation["iscrowd"] = 1 if crowd == 0 and _ignored(annotation) else crowd
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
        if not _has_area(annotation):
            encoded = _encoded(annotation["segmentation"], *sides[annotation["image_id"]])
            annotation["area"] = float(rle_tools.area(encoded))
    return content


def examine(
    content: dict, image_root: Path, drop_zero_area: bool = False
) -> Tuple[List[Finding], List[Optional[Mask]]]:
    """All that is wrong with the content of a file, its images not being opened, and the mask of each annotation.

    The mask of an annotation that is not sound, or of an image that is not, is None.
    """
    found = _Findings()
    images = found.by_id("image", content["images"])
    sound = {number: image for number, image in images.items() if found.is_image(image)}
    present = [image for image in content["images"] if isinstance(image["file_name"], str)]
    if missing := _missing(present, image_root):
        found.add(True, _are_missing(missing, present, image_root), _place(missing[0]))
    categories = found.by_id("category", content["categories"])
    found.names(categories)
    found.by_id("annotation", content["annotations"])

    masks: List[Optional[Mask]] = []
    seen, used, ignored, without_area = set(), set(), [], []
    for annotation in content["annotations"]:
        masks.append(None)
        number = annotation["image_id"]
        image = images.get(number) if type(number) is int else None
        if image and number not in sound:
            continue  # found above
        try:
            mask = _mask(annotation, image, categories)
            if not (mask.area or drop_zero_area):
                raise Flaw("has a mask of zero area; remove it")
        except Flaw as flaw:
            owner = f" of {_place(image)}" if image else ""
            found.add(True, str(flaw), f"annotation {shown(annotation['id'])}{owner}", annotation["id"])
            continue
        masks[-1] = mask
        if not mask.area:
            continue
        used.add(annotation["category_id"])
        if _ignored(annotation):
            ignored.append(annotation["id"])
        if not _has_area(annotation):
            without_area.append(annotation["id"])
        key = (number, annotation["category_id"], mask.area, *mask.extent)
        if key in seen:
            what = "has the class, extent and area of another one in its image; remove one if they are the same"
            found.add(False, what, f"annotation {annotation['id']} of {_place(image)}", annotation["id"])
        seen.add(key)

    kept = [(a, m, sound[a["image_id"]]) for a, m in zip(content["annotations"], masks) if m and m.area]
    objects = [x for x in kept if not x[0]["iscrowd"]]
    if kept and not objects:
        what = "are crowds (iscrowd 1), which are neither learnt nor counted; write iscrowd 0 for single objects"
        found.add(True, what, f"all {len(kept)} annotations")
    _compare_boxes(found, objects)
    for ids, what in (
        (ignored, "have ignore set, and are read as crowds, neither learnt nor counted"),
        (without_area, "have no area that is a positive number, and it is taken from the mask"),
    ):
        if ids:
            found.add(False, f"{what} ({_some(ids)})", f"{len(ids)} annotations")
    if unused := [category["name"] for number, category in categories.items() if number not in used]:
        found.add(False, f"have no annotation ({_some(unused)})", f"{len(unused)} categories")
    names = [image["file_name"] for image in present]
    if len(set(names)) < len(names):
        seen.clear()
        twice = [name for name in names if name in seen or seen.add(name)]
        found.add(False, f"are listed more than once ({_some(twice)})", f"{len(twice)} files")
    return found.sentences(), masks


def look_at_images(images: List[Dict], image_root: Path) -> List[Finding]:
    """Read all images that are there, with a progress bar, as training does: what cannot be used, and other sizes."""
    found, unreadable = _Findings(), {}  # errors by what is to be done
    for image in tqdm(images, desc="images", unit="image"):
        path = os.path.join(image_root, str(image["file_name"]))
        if not os.path.lexists(path):
            continue  # found by examine
        try:
            size = read_image(path).shape[:2]
        except InputError as error:
            text = str(error)
            unreadable.setdefault(text.rpartition("; ")[2], (text, []))[1].append(image["file_name"])
            continue
        listed = (image["height"], image["width"])
        if size != listed and type(listed[0]) is type(listed[1]) is int:  # or else found by examine
            sides = "{} x {} in the list, {} x {} as displayed".format(*listed, *size)
            what = "has another size than the list says; correct height and width there"
            if stored_size(path) == listed:
                what = (
                    "is rotated by its EXIF data when it is displayed, and listed as it is stored; write height, width "
                    "and annotations as displayed"
                )
            found.add(True, what, f"{_place(image)[:-1]}: {sides})", image["file_name"])
    return [
        Finding(True, text + (f" ({len(names)} such: {_some(names)})" if names[1:] else ""))
        for text, names in unreadable.values()
    ] + found.sentences()


def check_files(json_file: Path, image_root: Path, images: list[dict]) -> None:
    """Raise InputError where the file of one of the ``images`` of ``json_file`` is not under ``image_root``."""
    if missing := _missing(images, image_root):
        what = _are_missing(missing, images, image_root)
        raise InputError(f"{json_file}: {_place(missing[0])} {what}")


def shown(value: Any) -> str:
    """A value of a file as it stands in a sentence: short, on one line, and printable everywhere."""
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 100:
        return value
    return _SHORT.repr(value)


class _Findings:
    """Findings of one kind, in the order in which they come, are one sentence."""

    def __init__(self):
        self.kinds: Dict[Tuple[bool, str], Tuple[str, List]] = {}

    def add(self, error: bool, what: str, place: str, name: Any = "") -> None:
        self.kinds.setdefault((error, what), (place, []))[1].append(name)

    def sentences(self) -> List[Finding]:
        return [
            Finding(error, f"{place} {what}".strip() + (f" ({len(n)} such: {_some(n)})" if n[1:] else ""))
            for (error, what), (place, n) in self.kinds.items()
        ]

    def by_id(self, kind: str, entries: List[Dict]) -> Dict[int, Dict]:
        """The entries with an id of their own; of two with the same the first."""
        by_id = {}
        for entry in entries:
            number = entry["id"]
            if type(number) is not int or not -(2**63) < number < 2**63:
                self.add(True, "is no whole number; give it one", f"{kind} id {shown(number)}", number)
            elif number in by_id:
                what = f"occurs more than once; give every {kind} an id of its own"
                self.add(True, what, f"{kind} id {number}", number)
            else:
                by_id[number] = entry
        return by_id

    def is_image(self, image: Dict) -> bool:
        name, sides = image["file_name"], (image["height"], image["width"])
        if not isinstance(name, str) or not all(type(side) is int and side > 0 for side in sides):
            entry = "image {} with the file_name {}, height {} and width {}".format(
                *map(shown, (image["id"], name, *sides))
            )
            what = "needs a text and two positive whole numbers there; correct its entry"
        elif sides[0] * sides[1] > LIMIT:
            entry = f"{_place(image)} with {sides[0]} x {sides[1]} pixels"
            what = f"is larger than the {LIMIT:,} pixels that are read; correct its entry, or cut it into parts"
        else:
            return True
        self.add(True, what, entry, image["id"])
        return False

    def names(self, categories: Dict[int, Dict]) -> None:
        known = {}
        for number, category in categories.items():
            name = category["name"]
            try:
                name.encode()
            except (AttributeError, UnicodeEncodeError):
                what = f"has the name {shown(name)}, which is no text that can be written; give it another"
                self.add(True, what, f"category {number}", number)
                continue
            if name in known:
                what = f"has the name of category {known[name]}, {shown(name)}; give it another, or make them one"
                self.add(True, what, f"category {number}", number)
            known[name] = number


def _parse(json_file: Path) -> Any:
    collecting = gc.isenabled()
    gc.disable()  # millions of new lists and no garbage: collecting takes most of the time for COCO train2017
    try:
        if json_file.exists() and not json_file.is_file():
            raise InputError(f"the annotation file {json_file} cannot be read: it is no file; give a JSON file")
        raw = json_file.read_bytes()
        encoding = json.detect_encoding(raw)
        return json.loads(raw.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict"))
    except FileNotFoundError:
        raise InputError(f"the annotation file {json_file} does not exist; check its path") from None
    except OSError as error:
        raise InputError(
            f"the annotation file {json_file} cannot be read ({error.strerror}); check its permissions"
        ) from None
    except RecursionError:
        raise InputError(f"the annotation file {json_file} is nested too deeply; write it again") from None
    except ValueError as error:
        raise InputError(
            f"the annotation file {json_file} is not JSON, or cut off ({error}); write or download it again"
        ) from None
    finally:
        if collecting:
            gc.enable()


def _make_whole(entry: Dict, keys: Iterable[str]) -> None:
    for key in keys:
        if type(entry[key]) is not int:
            entry[key] = _whole(entry[key])


def _whole(value: Any) -> Any:
    """The whole number that a value stands for, or the value itself."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
        return int(value)
    return value


def _ignored(annotation: Dict) -> bool:
    return bool(_whole(annotation.get("ignore")))


def _has_area(annotation: Dict) -> bool:
    return type(annotation.get("area")) in NUMBERS and annotation["area"] > 0


def _missing(images: List[Dict], image_root: Path) -> List[Dict]:
    """The images whose files are not there."""
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
    return missing


def _are_missing(missing: List[Dict], images: List[Dict], image_root: Path) -> str:
    return (
        f"is not in {image_root}, where {len(missing)} of its {len(images)} images are missing; correct the folder or "
        "add them"
    )


def _place(image: Dict) -> str:
    return f"image {shown(image['id'])} ({shown(image['file_name'])})"


def _some(names: List) -> str:
    return ", ".join(map(shown, names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def _mask(annotation: Dict, image: Optional[Dict], categories: Dict[int, Dict]) -> Mask:
    """The mask of an annotation; raises Flaw where the annotation is not sound."""
    if image is None:
        raise Flaw(
            f"names image {shown(annotation['image_id'])}, which the file does not list; add the image or remove the "
            "annotation"
        )
    category = annotation["category_id"]
    if type(category) is not int or category not in categories:
        raise Flaw(
            f"names category {shown(category)}, which the file does not list; add the category or correct the "
            "annotation"
        )
    bbox = annotation["bbox"]
    numbers = isinstance(bbox, list) and len(bbox) == 4 and NUMBERS.issuperset(map(type, bbox))
    if not (numbers and sum(map(abs, bbox)) < 1e9):  # nor is NaN below it
        raise Flaw("has a bbox that is not four finite numbers; write [x, y, width, height]")
    if annotation["iscrowd"] not in (0, 1):
        raise Flaw("has an iscrowd that is neither 0 nor 1; correct it")
    area = annotation.get("area")
    if isinstance(area, float) and not math.isfinite(area):
        raise Flaw("has an area that is no finite number; leave it out, and it is taken from the mask")
    segmentation, height, width = annotation["segmentation"], image["height"], image["width"]
    if isinstance(segmentation, dict):
        return _rle_mask(segmentation, height, width)
    mask = _polygon_mask(segmentation, height, width)
    left, top, right, bottom = mask.extent
    if mask.area and (right <= 0 or bottom <= 0 or left >= width or top >= height):
        raise Flaw("has a mask outside of its image; correct or remove it")
    return mask


def _polygon_mask(segmentation: Any, height: int, width: int) -> Mask:
    """The area is by the shoelace formula, summed over the parts."""
    if not (isinstance(segmentation, list) and {list}.issuperset(map(type, segmentation))):
        raise Flaw(
            "has a segmentation that is neither a list of polygons, [[x1, y1, x2, y2, ...], ...], nor an RLE; write it "
            "as one of them"
        )
    area, all_xs, all_ys = 0.0, [], []
    for polygon in segmentation:
        if len(polygon) % 2:
            raise Flaw(f"has a polygon of {len(polygon)} numbers, an odd count; write x and y of every point")
        if len(polygon) < 6:
            points = "1 point" if len(polygon) == 2 else f"{len(polygon) // 2} points"
            raise Flaw(f"has a polygon of {points} where three are needed; correct or remove the annotation")
        xs, ys = polygon[0::2], polygon[1::2]
        try:
            left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
            if not (-width <= left and right <= 2 * width and -height <= top and bottom <= 2 * height):
                raise Flaw(
                    "has a polygon whose coordinates are further outside of its image than the image is large, or no "
                    "finite numbers; write pixels"
                )
            area += abs(sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1]))) / 2
        except TypeError:
            raise Flaw("has a polygon whose coordinates are not all numbers; correct them") from None
        all_xs += left, right
        all_ys += top, bottom
    if not math.isfinite(area):
        raise Flaw("has a polygon whose coordinates are not all finite numbers; correct them")
    # Rounding leaves a little area on points in a line.
    extent = (min(all_xs), min(all_ys), max(all_xs), max(all_ys)) if area > 1e-6 else (0, 0, 0, 0)
    return Mask(area if area > 1e-6 else 0.0, extent)


def _rle_mask(rle: Dict, height: int, width: int) -> Mask:
    if rle.get("size") != [height, width]:
        raise Flaw(
            f"has an RLE of size {shown(rle.get('size'))} where the image is [{height}, {width}]; encode the mask at"
            " the image's own size"
        )
    counts = rle.get("counts")
    if isinstance(counts, str):
        runs = _decode(counts)
        sound = runs is not None and runs.min() >= 0 and runs.sum() == height * width
    else:
        runs = counts
        sound = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
        sound = sound and sum(runs) == height * width
    if not sound:
        raise Flaw("has an RLE that does not decode to its image's number of pixels; encode the mask again")
    if 0 in runs[1 : len(runs) // 2 * 2]:
        raise Flaw("has an RLE with runs of no pixel, which pycocotools misreads; encode the mask again")
    left, top, wide, high = rle_tools.toBbox(_encoded(rle, height, width)).tolist()
    return Mask(int(np.sum(runs[1::2])), (left, top, left + wide, top + high))


def _encoded(segmentation: Any, height: int, width: int) -> Dict:
    """Polygons, or an RLE of either kind, as a compressed RLE."""
    if isinstance(segmentation, list):
        return rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle_tools.frPyObjects(segmentation, height, width)
    return segmentation


def _decode(counts: str) -> Optional[np.ndarray]:
    """The runs of a compressed RLE, None where it is broken: pycocotools reads past the end of a broken one.

    A run takes one or more characters of five bits each, the lowest first, offset by 48; bit 5 says that
    another one follows and bit 4 of the last one is the sign. From the fourth run on it is the
    difference to the run two before.
    """
    codes = np.frombuffer(counts.encode("ascii", "replace"), np.uint8).astype(int) - 48  # "?" is below 48
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
    return runs


def _compare_boxes(found: _Findings, objects: List[Tuple[Dict, Mask, Dict]]) -> None:
    """Find boxes that are not those of their masks, and what they look like instead."""
    if not objects:
        return
    boxes = np.array([annotation["bbox"] for annotation, _, _ in objects], float)
    extents = np.array([mask.extent for _, mask, _ in objects], float)
    sides = np.array([(image["width"], image["height"]) for _, _, image in objects], float)
    corner, size = boxes[:, :2], boxes[:, 2:]
    allowed = PIXELS + SHARE * (extents[:, 2:] - extents[:, :2]).max(1)

    def fits(start, end):
        return np.abs(np.concatenate([start, end], axis=1) - extents).max(1) <= allowed

    within = np.concatenate([np.maximum(corner, extents[:, :2]), np.minimum(corner + size, extents[:, 2:])], axis=1)
    common = (within[:, 2:] - within[:, :2]).clip(0).prod(1)
    union = size.clip(0).prod(1) + (extents[:, 2:] - extents[:, :2]).prod(1) - common
    flat = (size <= 0).any(1)
    off = flat | ~fits(corner, corner + size)
    kinds = {
        "without width or height": flat,
        "that is the whole image": (np.abs(corner) <= 1).all(1) & (np.abs(size - sides) <= 1).all(1),
        "in shares of the image's sides": (boxes >= 0).all(1) & (boxes <= 1).all(1),
        "of the corners [x1, y1, x2, y2]": fits(corner, size),
        "of the centre, width and height": fits(corner - size / 2, corner + size / 2),
        "with x and y exchanged": fits(corner[:, ::-1], corner[:, ::-1] + size[:, ::-1])
        | fits(corner[:, ::-1], size[:, ::-1]),
        "that lies elsewhere than its mask": common < union / 4,
        "that is not its mask's": off,
    }
    rest = np.ones(len(boxes), bool)
    for kind, mask in kinds.items():
        which = np.flatnonzero(mask & off & rest)
        rest[which] = False
        # A few are the slip of an annotator, which costs little; most are a converter's, and nothing can be learnt.
        error = 2 * len(which) > len(boxes) and kind != "that is not its mask's"
        for k in which:
            annotation, _, image = objects[k]
            place = f"annotation {annotation['id']} of {_place(image)}"
            what = f"has a box {kind}; write [x, y, width, height] of the mask in pixels"
            found.add(error, what, place, annotation["id"])
    tiny = [x for x in objects if max(x[1].extent) <= 1]
    if 2 * len(tiny) > len(objects):
        annotation, _, image = tiny[0]
        what = "is smaller than a pixel, as most are: coordinates look like shares of the image's sides; write pixels"
        found.add(True, what, f"the mask of annotation {annotation['id']} of {_place(image)}")
    outside = (extents < -1).any(1) | (extents[:, 2:] > sides + 1).any(1)
    if outside.any():
        ids = [objects[k][0]["id"] for k in np.flatnonzero(outside)]
        found.add(False, f"have a mask that reaches outside of the image ({_some(ids)})", f"{len(ids)} annotations")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
