"""The data check: what a COCO instance file holds, and all that is wrong with it, found in one pass."""

import math
import os
import warnings
from collections import Counter
from operator import mul
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from faster_coco_eval import mask_api_new_cpp as checked_rle
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from ...errors import InputError
from ...images import LIMIT, read_image, stored_size
from .coco import compressed, has_area, is_ignored, missing_files, place, read, shown

NUMBERS = {int, float}
NAMED = 3  # ids, or names, in a sentence
SHOWN = 8  # findings, and classes, in a text; the others are counted
# A box is off where a side is further from its mask's extent than these pixels plus this share of the object: polygons
# are rounded, and boxes of some data sets lie one pixel beside.
PIXELS, SHARE = 2, 0.05


class Flaw(Exception):
    """What is wrong with one annotation, and what to do; the caller knows where."""


class Finding(NamedTuple):
    """What is wrong, in one place or more, and what to do: an error where the data cannot be used as they are, or else
    a warning. first: a sentence with the first place. names: of all places. ``str``: the sentence and the others."""

    error: bool
    first: str
    names: List

    def __str__(self):
        return self.first + (f" ({len(self.names)} such: {_some(self.names)})" if self.names[1:] else "")


class Survey(NamedTuple):
    """What :func:`survey` finds.

    content: of the file, as :func:`bmask.study.datasets.coco.read` has it. findings: all that is wrong. empty: ids of
    the annotations whose mask has no area, where these are no errors. classes: number of objects by name, in the order
    of their ids. sides: (N,), the square root of each box's area in pixels. image_sizes: (M, 2), height and width.
    objects: (M,), in each image. edges: (P, 2), for each polygon the mean distance of its points in pixels and as a
    share of the object's side. rle: whether any mask is one. crowds: their number.
    """

    content: Dict
    findings: List[Finding]
    empty: List[int]
    classes: Dict[str, int]
    sides: np.ndarray
    image_sizes: np.ndarray
    objects: np.ndarray
    edges: np.ndarray
    rle: bool
    crowds: int

    @property
    def errors(self) -> List[str]:
        return [str(finding) for finding in self.findings if finding.error]

    @property
    def warnings(self) -> List[str]:
        return [str(finding) for finding in self.findings if not finding.error]


class Mask(NamedTuple):
    """Area in pixels; extent: left, top, right and bottom; edges: the mean distance of each polygon's points."""

    area: float
    extent: Sequence[float]
    edges: Sequence[float] = ()


def check_coco(json_file: Path, image_root: Path, *, drop_zero_area: bool = False, open_images: bool = False) -> dict:
    """The content of a COCO instance file that is to be used, as :func:`bmask.study.datasets.coco.read` has it.

    With ``drop_zero_area`` annotations whose mask has no area (COCO train2017 has two) are removed from it with a
    warning; the file itself stays as it is. Images are read only with ``open_images``.

    Raises InputError for the first of the errors that :func:`survey` finds.
    """
    found = survey(json_file, image_root, drop_zero_area, open_images=False)
    content, errors = found.content, found.errors
    if open_images and not errors:
        errors = [str(finding) for finding in _look_at_images(content["images"], image_root)]
    if errors:
        more = f" (and {len(errors) - 1} more, which check-data lists)" if errors[1:] else ""
        raise InputError(f"{json_file}: {errors[0]}{more}")
    if empty := found.empty:
        some = _some(empty)
        warnings.warn(f"{json_file}: dropped {len(empty)} annotations of zero area (id {some})", stacklevel=2)
        kept = {a["id"] for a in content["annotations"]}.difference(empty)
        content["annotations"] = [a for a in content["annotations"] if a["id"] in kept]
    return content


def survey(json_file: Path, image_root: Path, drop_zero_area: bool = False, open_images: bool = True) -> Survey:
    """Look for all that is wrong with a COCO instance file and with its images.

    Args:
        drop_zero_area: masks without an area are no errors.
        open_images: read all images that are there, as training does, with a progress bar.

    Raises:
        InputError: the file cannot be read as such a file at all.
    """
    content = read(json_file)
    found = _Findings()
    images = found.by_id("image", content["images"])
    sound = {number: image for number, image in images.items() if found.is_image(image)}
    categories = found.by_id("category", content["categories"])
    found.by_id("annotation", content["annotations"])
    found.names(content["images"], categories, image_root)

    masks, empty, seen = [], [], set()  # each mask after its annotation and image
    for annotation in content["annotations"]:
        number = annotation["image_id"]
        image = images.get(number) if type(number) is int else None
        if image and number not in sound:
            continue  # found above
        try:
            mask = _mask(annotation, image, categories)
            if not (mask.area or drop_zero_area):
                raise Flaw("has a mask of zero area; remove it")
        except Flaw as flaw:
            found.add_annotation(True, str(flaw), annotation, image)
            continue
        if not mask.area:
            empty.append(annotation["id"])
            continue
        masks.append((annotation, image, mask))
        if is_ignored(annotation):
            found.add_annotation(
                False, "has ignore set; it is read as a crowd, not learnt or counted", annotation, image
            )
        if not has_area(annotation):
            what = "has no area that is a positive number; it is taken from the mask"
            found.add_annotation(False, what, annotation, image)
        key = (number, annotation["category_id"], mask.area, *mask.extent)
        if key in seen:
            what = "has the class, extent and area of another one in its image; remove one if they are the same"
            found.add_annotation(False, what, annotation, image)
        seen.add(key)

    objects = [x for x in masks if not x[0]["iscrowd"]]
    if objects:
        found.boxes(objects)
    elif masks:
        what = "are crowds (iscrowd 1), which are neither learnt nor counted; write iscrowd 0 for single objects"
        found.add(True, what, f"all {len(masks)} annotations")
    elif len(empty) == len(content["annotations"]):
        found.add(True, "has a mask of any area; write the file anew", "no annotation")
    used = {annotation["category_id"] for annotation, *_ in masks}
    for number in sorted(categories.keys() - used):
        category = f"category {number} ({shown(categories[number]['name'])})"
        found.add(False, "has no annotation; it cannot be learnt or measured", category, categories[number]["name"])
    findings = list(found.kinds.values())
    if open_images:
        findings += _look_at_images(content["images"], image_root)

    sizes = [x for x in content["images"] if all(type(x[key]) is int for key in ("id", "height", "width"))]
    in_image = Counter(image["id"] for _, image, _ in masks)
    in_class = Counter(a["category_id"] for a in content["annotations"] if type(a["category_id"]) is int)
    boxes = np.array([annotation["bbox"] for annotation, *_ in masks], float).reshape(-1, 4)
    return Survey(
        content,
        findings,
        empty,
        {str(categories[number]["name"]): in_class[number] for number in sorted(categories)},
        np.sqrt(boxes[:, 2:].prod(1).clip(0)),
        np.array([(image["height"], image["width"]) for image in sizes]).reshape(-1, 2),
        np.array([in_image[image["id"]] for image in sizes], int),
        np.array([(edge, edge / mask.area**0.5) for *_, mask in masks for edge in mask.edges]).reshape(-1, 2),
        any(isinstance(annotation["segmentation"], dict) for annotation, *_ in masks),
        sum(annotation["iscrowd"] for annotation, *_ in masks),
    )


def to_text(name: str, found: Survey) -> str:
    """What was found, on less than a screen."""
    lines = [f"{name}: {len(found.image_sizes)} images, {len(found.sides)} objects of {len(found.classes)} classes"]
    most = sorted(found.classes.items(), key=lambda item: -item[1])
    rest = f", and {len(most) - SHOWN} more" if len(most) > SHOWN else ""
    lines.append("  classes   " + ", ".join(f"{shown(c)} {n}" for c, n in most[:SHOWN]) + rest)
    if len(found.image_sizes):
        low, high = found.image_sizes.min(0), found.image_sizes.max(0)
        lines.append(f"  images    {low[0]} to {high[0]} pixels high, {low[1]} to {high[1]} wide")
    if len(found.sides):
        shares = [np.mean(s) for s in (found.sides < 32, (found.sides >= 32) & (found.sides < 96), found.sides >= 96)]
        small, medium, large = (f"{100 * share:.0f}%" for share in shares)
        lines.append(
            f"  objects   {found.sides.min():.0f} to {found.sides.max():.0f} pixels (square root of the box's area), "
            f"median {np.median(found.sides):.0f}; {small} below 32, {medium} below 96, {large} above; up to "
            f"{found.objects.max()} in an image, {(found.objects == 0).sum()} images without; {found.crowds} crowds"
        )
    if len(found.edges):
        pixels, share = np.median(found.edges, axis=0)
        lines.append(
            f"  outlines  polygons with a point every {pixels:.1f} pixels, {100 * share:.0f}% of the object's size "
            "(medians)" + ("; others are masks" if found.rle else "")
        )
    elif found.rle:
        lines.append("  outlines  masks, to the pixel")
    for kind, sentences in (("error", found.errors), ("warning", found.warnings)):
        lines += [f"  {kind:<9} {sentence}" for sentence in sentences[:SHOWN]]
        lines += [f"  {kind:<9} and {len(sentences) - SHOWN} more kinds"] if len(sentences) > SHOWN else []
    return "\n".join(lines if found.findings else [*lines, "  nothing wrong was found"])


class _Findings:
    """Findings of one kind, in the order in which they come, are one."""

    def __init__(self):
        self.kinds: Dict[Tuple[bool, str], Finding] = {}

    def add(self, error: bool, what: str, where: str = "", name: Any = "", kind: str = "") -> None:
        first = Finding(error, f"{where} {what}".strip(), [])
        self.kinds.setdefault((error, kind or what), first).names.append(name)

    def add_annotation(self, error: bool, what: str, annotation: Dict, image: Optional[Dict]) -> None:
        number = annotation["id"]
        self.add(error, what, f"annotation {shown(number)}" + (f" of {place(image)}" if image else ""), number)

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
            where = "image {} with the file_name {}, height {} and width {}".format(
                *map(shown, (image["id"], name, *sides))
            )
            what = "needs a text and two positive whole numbers there; correct its entry"
        elif sides[0] * sides[1] > LIMIT:
            where = f"{place(image)} with {sides[0]} x {sides[1]} pixels"
            what = f"is larger than the {LIMIT:,} pixels that are read; correct its entry, or cut it into parts"
        else:
            return True
        self.add(True, what, where, image["id"])
        return False

    def names(self, images: List[Dict], categories: Dict[int, Dict], image_root: Path) -> None:
        """Of files that are not there or listed twice, and of categories."""
        named = [image for image in images if isinstance(image["file_name"], str)]
        if missing := missing_files(named, image_root):
            self.add(True, missing)
        known = {}
        for image in named:
            if known.setdefault(image["file_name"], image) is not image:
                self.add(False, "is listed more than once; list each file once", place(image), image["file_name"])
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

    def boxes(self, objects: List[Tuple[Dict, Dict, Mask]]) -> None:
        """Boxes that are not those of their masks, and what they look like instead; masks where no image is."""
        boxes = np.array([annotation["bbox"] for annotation, *_ in objects], float)
        extents = np.array([mask.extent for *_, mask in objects], float)
        sides = np.array([(image["width"], image["height"]) for _, image, _ in objects], float)
        corner, size = boxes[:, :2], boxes[:, 2:]
        large = extents[:, 2:] - extents[:, :2]
        allowed = PIXELS + SHARE * large.max(1)

        def fits(start, end):
            return np.abs(np.concatenate([start, end], axis=1) - extents).max(1) <= allowed

        common = (np.minimum(corner + size, extents[:, 2:]) - np.maximum(corner, extents[:, :2])).clip(0).prod(1)
        union = size.clip(0).prod(1) + large.prod(1) - common
        flat = (size <= 0).any(1)
        kinds = {  # of a box that is off, the first that it is
            "without width or height": flat,
            "that is the whole image": (np.abs(corner) <= 1).all(1) & (np.abs(size - sides) <= 1).all(1),
            "in shares of the image's sides": (boxes >= 0).all(1) & (boxes <= 1).all(1),
            "of the corners [x1, y1, x2, y2]": fits(corner, size),
            "of the centre, width and height": fits(corner - size / 2, corner + size / 2),
            "with x and y exchanged": fits(corner[:, ::-1], (corner + size)[:, ::-1])
            | fits(corner[:, ::-1], size[:, ::-1]),
            "that lies elsewhere than its mask": common < union / 4,
            "that is not its mask's": np.ones(len(boxes), bool),
        }
        off = np.flatnonzero(flat | ~fits(corner, corner + size))
        first = np.argmax([*kinds.values()], axis=0)[off]
        # A few are the slip of an annotator, which costs little; most are a converter's, and nothing can be learnt.
        error = 2 * np.bincount(first, minlength=len(kinds)) > len(boxes)
        error[-1] = False
        for k, kind in zip(off, first):
            what = f"has a box {list(kinds)[kind]}; write [x, y, width, height] of the mask in pixels"
            self.add_annotation(bool(error[kind]), what, *objects[k][:2])
        tiny = np.flatnonzero(extents.max(1) <= 1)
        what = "has a mask smaller than a pixel, as most have, like shares of the image's sides; write pixels"
        for k in tiny if 2 * len(tiny) > len(objects) else ():
            self.add_annotation(True, what, *objects[k][:2])
        for k in np.flatnonzero((extents < -1).any(1) | (extents[:, 2:] > sides + 1).any(1)):
            what = "has a mask that reaches outside of its image; it is cut off there"
            self.add_annotation(False, what, *objects[k][:2])


def _look_at_images(images: List[Dict], image_root: Path) -> List[Finding]:
    """Errors of the images that are there, read as training does: what cannot be used, and other sizes."""
    found = _Findings()
    for image in tqdm(images, desc="images", unit="image"):
        path = os.path.join(image_root, str(image["file_name"]))
        if not os.path.lexists(path):
            continue  # found above
        try:
            size = read_image(path).shape[:2]
        except InputError as error:
            # Of one kind are those that the same is to be done about.
            found.add(True, str(error), name=image["file_name"], kind=str(error).rpartition("; ")[2])
            continue
        listed = (image["height"], image["width"])
        if size != listed and type(listed[0]) is type(listed[1]) is int:  # or else found above
            sides = "{} x {} in the list, {} x {} as displayed".format(*listed, *size)
            what = "has another size than the list says; correct height and width there"
            if stored_size(path) == listed:
                what = (
                    "is rotated by its EXIF data when it is displayed, and listed as it is stored; write height, width "
                    "and annotations as displayed"
                )
            found.add(True, what, f"{place(image)[:-1]}: {sides})", image["file_name"])
    return list(found.kinds.values())


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
    if not (numbers and all(-1e9 < number < 1e9 for number in bbox)):
        raise Flaw("has a bbox that is not four finite numbers; write [x, y, width, height]")
    if annotation["iscrowd"] not in (0, 1):
        raise Flaw("has an iscrowd that is neither 0 nor 1; correct it")
    area = annotation.get("area")
    if isinstance(area, float) and not math.isfinite(area):
        raise Flaw("has an area that is no finite number; leave it out, and it is taken from the mask")
    read_mask = _rle_mask if isinstance(annotation["segmentation"], dict) else _polygon_mask
    return read_mask(annotation["segmentation"], image["height"], image["width"])


def _polygon_mask(polygons: Any, height: int, width: int) -> Mask:
    """The area is by the shoelace formula, summed over the parts: no polygon is rasterised."""
    if not (isinstance(polygons, list) and {list}.issuperset(map(type, polygons))):
        raise Flaw(
            "has a segmentation that is neither a list of polygons, [[x1, y1, x2, y2, ...], ...], nor an RLE; write it "
            "as one of them"
        )
    area, all_xs, all_ys, edges = 0.0, [], [], []
    for polygon in polygons:
        if len(polygon) % 2:
            raise Flaw(f"has a polygon of {len(polygon)} numbers, an odd count; write x and y of every point")
        if len(polygon) < 6:
            points = "1 point" if len(polygon) == 2 else f"{len(polygon) // 2} points"
            raise Flaw(f"has a polygon of {points} where three are needed; correct or remove the annotation")
        xs, ys = polygon[0::2], polygon[1::2]
        points = list(zip(xs, ys))
        try:
            left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
            area += abs(sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1]))) / 2
            edges.append(sum(map(math.dist, points, points[1:] + points[:1])) / len(points))
        except (TypeError, OverflowError):
            area = math.nan
        near = math.isfinite(area) and -width <= left and right <= 2 * width and -height <= top and bottom <= 2 * height
        if not near:
            raise Flaw(
                "has a polygon whose coordinates are not all finite numbers, or further outside of its image than the "
                "image is large; write pixels"
            )
        all_xs += left, right
        all_ys += top, bottom
    if area <= 1e-6:  # rounding leaves a little on points in a line
        return Mask(0.0, (0, 0, 0, 0))
    left, top, right, bottom = min(all_xs), min(all_ys), max(all_xs), max(all_ys)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise Flaw("has a mask outside of its image; correct or remove it")
    return Mask(area, (left, top, right, bottom), edges)


def _rle_mask(rle: Dict, height: int, width: int) -> Mask:
    if rle.get("size") != [height, width]:
        raise Flaw(
            f"has an RLE of size {shown(rle.get('size'))} where the image is [{height}, {width}]; encode the mask at"
            " the image's own size"
        )
    runs = rle.get("counts")
    try:
        if isinstance(runs, str):  # not by pycocotools, which reads past the end of a broken one
            runs = checked_rle.toUncompressedRLE([rle])[0]["counts"]
        sound = {int}.issuperset(map(type, runs)) and min(runs) >= 0 and sum(runs) == height * width
    except (TypeError, ValueError, RuntimeError):
        sound = False
    if not sound:
        raise Flaw("has an RLE that does not decode to its image's number of pixels; encode the mask again")
    if 0 in runs[1 : len(runs) // 2 * 2]:
        raise Flaw("has an RLE with runs of no pixel, which pycocotools misreads; encode the mask again")
    left, top, wide, high = rle_tools.toBbox(compressed(rle, height, width)).tolist()
    return Mask(sum(runs[1::2]), (left, top, left + wide, top + high))


def _some(names: List) -> str:
    return ", ".join(map(shown, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
