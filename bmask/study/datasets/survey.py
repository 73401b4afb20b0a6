"""The data check: everything worth knowing of a data set before anything is spent on it."""

from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple

import numpy as np

from .check import examine, look_at_images, read, shown

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
    content = read(json_file)
    found, masks = examine(content, image_root)
    found += look_at_images(content["images"], image_root)
    sides, edges, crowds, rle, objects = [], [], 0, False, Counter()
    for annotation, mask in zip(content["annotations"], masks):
        if mask is None:
            continue
        crowds += annotation["iscrowd"]
        objects[annotation["image_id"]] += 1
        width, height = annotation["bbox"][2:]
        sides.append(max(width * height, 0) ** 0.5)
        if isinstance(annotation["segmentation"], list):
            edges += [(edge, edge / mask.area**0.5) for edge in map(_mean_edge, annotation["segmentation"])]
        else:
            rle = True
    images = [x for x in content["images"] if all(type(x[key]) is int for key in ("id", "height", "width"))]
    categories = [x for x in content["categories"] if type(x["id"]) is int]
    counts = Counter(a["category_id"] for a in content["annotations"] if type(a["category_id"]) is int)
    return Survey(
        [finding.text for finding in found if finding.error],
        [finding.text for finding in found if not finding.error],
        {str(c["name"]): counts[c["id"]] for c in sorted(categories, key=lambda category: category["id"])},
        np.array(sides),
        np.array([(image["height"], image["width"]) for image in images]).reshape(-1, 2),
        np.array([objects[image["id"]] for image in images], int),
        np.array(edges).reshape(-1, 2),
        rle,
        crowds,
    )


def _mean_edge(polygon: List[float]) -> float:
    points = np.array(polygon, float).reshape(-1, 2)
    return float(np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).mean())


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
    return "\n".join(lines if found.errors or found.warnings else [*lines, "  nothing wrong was found"])
