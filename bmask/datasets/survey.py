"""The data check: everything worth knowing of a data set before anything is spent on it."""

from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from .check import Flaw, checked_area, parse

SHOWN = 8  # findings, and classes, that are listed; the others are counted


class Survey(NamedTuple):
    """What :func:`survey` finds.

    errors, warnings: sentences. classes: number of objects by name, in the order of their ids. sides: (N,), the square
    root of each box's area in pixels. image_sizes: (M, 2), height and width. objects: (M,), in each image. edges: for
    each polygon the mean distance of its points in pixels and as a share of the object's side. rle: whether any mask is
    one. crowds: their number.
    """

    errors: List[str]
    warnings: List[str]
    classes: Dict[str, int]
    sides: np.ndarray
    image_sizes: np.ndarray
    objects: np.ndarray
    edges: np.ndarray
    rle: bool
    crowds: int


def survey(json_file: Path, image_root: Path) -> Survey:
    """Read a COCO instance file and all of its images.

    Raises:
        InputError: the file cannot be read as such a file at all.
    """
    content = parse(json_file)
    try:
        from hotcoco import COCO
    except ImportError:
        raise InputError(
            "the data check needs hotcoco, which is not installed; `pip install hotcoco`"
        ) from None
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"]: category for category in content["categories"]}
    errors, warnings = _looked_at_images(content["images"], Path(image_root))
    findings = COCO(str(json_file)).healthcheck()
    for target, found in ((errors, findings["errors"]), (warnings, findings["warnings"])):
        target += [f"{f['message'].rstrip('.')} ({_some(f['affected_ids'])})" for f in found]
    flaws: Dict[str, List] = {}
    sides, edges, crowds, rle, objects = [], [], 0, False, Counter()
    for annotation in content["annotations"]:
        if annotation["image_id"] not in images or annotation["category_id"] not in categories:
            continue  # found above
        try:
            area = checked_area(annotation, images[annotation["image_id"]], categories)
        except Flaw as flaw:
            flaws.setdefault(str(flaw), []).append(annotation["id"])
            continue
        if area == 0:
            flaws.setdefault("has a mask of zero area; remove it", []).append(annotation["id"])
            continue
        crowds += bool(annotation.get("iscrowd"))
        objects[annotation["image_id"]] += 1
        width, height = annotation["bbox"][2:]
        sides.append(max(width * height, 0) ** 0.5)
        if isinstance(annotation["segmentation"], list):
            edges += [(edge, edge / area**0.5) for edge in map(_mean_edge, annotation["segmentation"])]
        else:
            rle = True
    errors += [f"{len(ids)} annotations: {flaw} ({_some(ids)})" for flaw, ids in flaws.items()]
    counts = Counter(a["category_id"] for a in content["annotations"])
    return Survey(
        errors,
        warnings,
        {str(categories[c]["name"]): counts[c] for c in sorted(categories)},
        np.array(sides),
        np.array([(image["height"], image["width"]) for image in content["images"]]),
        np.array([objects[number] for number in images]),
        np.array(edges).reshape(-1, 2),
        rle,
        crowds,
    )


def _looked_at_images(images: List[Dict], root: Path) -> Tuple[List[str], List[str]]:
    missing, corrupt, other = [], [], []
    for image in tqdm(images, desc="images", unit="image"):
        path = root / str(image["file_name"])
        if not path.is_file():
            missing.append(image["file_name"])
            continue
        try:
            with Image.open(path) as picture:
                picture.load()
                if picture.size != (image["width"], image["height"]):
                    other.append(image["file_name"])
        except (OSError, SyntaxError, ValueError):
            corrupt.append(image["file_name"])
    found = (
        (missing, f"images are not in {root}"),
        (corrupt, "images cannot be read, or are cut off"),
        (other, "images have another size than the file says"),
    )
    errors = [f"{len(names)} {what} ({_some(names)})" for names, what in found if names]
    names = Counter(image["file_name"] for image in images)
    twice = [name for name, count in names.items() if count > 1]
    return errors, [f"{len(twice)} files are listed more than once ({_some(twice)})"] if twice else []


def _mean_edge(polygon: List[float]) -> float:
    points = np.array(polygon, float).reshape(-1, 2)
    return float(np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).mean())


def _some(names: List) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")


def to_text(name: str, found: Survey) -> str:
    """What was found, on less than a screen."""
    lines = [
        f"{name}: {len(found.image_sizes)} images, {len(found.sides)} objects of {len(found.classes)} classes"
    ]
    most = sorted(found.classes.items(), key=lambda item: -item[1])
    rest = f", and {len(most) - SHOWN} more" if len(most) > SHOWN else ""
    lines.append("  classes   " + ", ".join(f"{c} {n}" for c, n in most[:SHOWN]) + rest)
    low, high = found.image_sizes.min(0), found.image_sizes.max(0)
    lines.append(f"  images    {low[0]} to {high[0]} pixels high, {low[1]} to {high[1]} wide")
    if len(found.sides):
        shares = [
            np.mean(s)
            for s in (found.sides < 32, (found.sides >= 32) & (found.sides < 96), found.sides >= 96)
        ]
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
    return "\n".join(lines if found.errors or found.warnings else [*lines, "  nothing wrong was found"])
