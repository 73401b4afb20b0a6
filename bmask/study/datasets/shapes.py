"""The embedded data set: overlapping shapes, texture on texture, annotated exactly or as coarsely as wished.

The outline alone tells the class; colour and texture are drawn without looking at it. Every picture is a
function of (seed, split, index), so asking for more pictures does not change the first ones.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import MapDataset
from pycocotools import mask as rle_tools
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..files import whole_folder, write_bytes
from .coco import outline

CLASSES = ("star", "blob", "gear", "leaf")
SPLITS = ("train", "val")

MIN_VISIBLE_SHARE = 0.4  # of an object's pixels, those outside the picture included
MIN_VISIBLE_PIXELS = 40
TRIES = 20  # places tried for an object before it is left out
PICTURES_A_WORKER = 100  # fewer are not worth starting another process for

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (u, v), outer radius 1, to inside or not


def generate(folder: Path, *, seed: int, num_train: int, num_val: int, image_size: int) -> None:
    """Write the pictures and their annotations in COCO format; does nothing where ``folder`` exists.

    Leaves ``images/{train,val}/000000.png`` (8-bit, ``image_size`` pixels square) and
    ``annotations/instances_{train,val}_fine.json``, which holds the visible pixels of each object as compressed RLE.
    """
    folder = Path(folder)
    if folder.exists():
        return
    with whole_folder(folder) as draft:
        (draft / "annotations").mkdir()
        with tqdm(total=num_train + num_val, desc="shapes", unit="image") as bar:
            for split, count in zip(SPLITS, (num_train, num_val)):
                _write_split(draft, seed, split, count, image_size, bar)


def _write_split(draft: Path, seed: int, split: str, count: int, size: int, bar: tqdm) -> None:
    folder = draft / "images" / split
    folder.mkdir(parents=True)
    pictures = DataLoader(
        MapDataset(range(count), partial(_write_picture, folder, seed, split, size)),
        batch_size=None,
        collate_fn=list,
        num_workers=min(os.cpu_count() or 1, count // PICTURES_A_WORKER),
        worker_init_fn=_single_threaded,
    )
    images, annotations = [], []
    for number, (name, objects) in enumerate(pictures, start=1):
        images.append({"id": number, "file_name": name, "height": size, "width": size})
        for instance in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **instance})
        bar.update()
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    info = {"description": f"embedded shapes, {split}, fine annotations"}
    info |= {"seed": seed, "num_images": count, "image_size": size}
    content = {"info": info, "categories": categories, "images": images, "annotations": annotations}
    (draft / "annotations" / f"instances_{split}_fine.json").write_text(json.dumps(content), encoding="utf-8")


def _single_threaded(_: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork


def _write_picture(folder: Path, seed: int, split: str, size: int, index: int) -> tuple[str, list[dict]]:
    """Gives the file's name and the annotations, without their ids."""
    picture, classes, masks = _scene(seed, split, index, size)
    path = folder / f"{index:06d}.png"
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"cannot write {path}")
    objects = [{"category_id": c + 1, "iscrowd": 0, **_exact(mask)} for c, mask in zip(classes, masks)]
    return path.name, objects


def coarsen(folder: Path, split: str, coarseness: float) -> None:
    """Annotate a split as COCO is: a simplified polygon a few pixels off for each object (Section 4.4, Fig. 7a).

    Leaves ``annotations/instances_{split}_coarse{coarseness}.json`` in a folder of :func:`generate`, with the ids and
    the order of the fine annotations; does nothing where the file exists.

    Args:
        coarseness: how far a polygon may be off, as a share of the square root of the object's area.
    """
    target = Path(folder) / "annotations" / f"instances_{split}_coarse{coarseness:g}.json"
    if target.exists():
        return
    content = json.loads((target.parent / f"instances_{split}_fine.json").read_text(encoding="utf-8"))
    info = content["info"]
    info["description"] = f"embedded shapes, {split}, coarse annotations ({coarseness:g})"
    rngs = {}
    for k, instance in enumerate(content["annotations"]):
        image = instance["image_id"]
        if image not in rngs:
            rngs[image] = _rng(info["seed"], split, image - 1, stream=1)
        mask = rle_tools.decode(instance["segmentation"])
        content["annotations"][k] = {**instance, **_coarse(mask, coarseness, rngs[image])}
    write_bytes(target, json.dumps(content).encode())


def _rng(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    """A generator for one picture: stream 0 for the picture itself, 1 for its coarse annotations."""
    sequence = np.random.SeedSequence([seed, SPLITS.index(split), index], spawn_key=(stream,))
    return np.random.default_rng(sequence)


def _scene(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
    """One picture (size, size, 3), uint8, and its objects from back to front.

    The objects come as class indices and visible masks (size, size), bool.
    """
    rng = _rng(seed, split, index, stream=0)
    unit = size / 128
    base = rng.uniform(95, 160) + rng.normal(0, 15, 3)
    canvas = _textured(rng, base, (size, size), unit)
    owner = np.full((size, size), -1)  # the object that each pixel shows
    classes, areas, centres = [], [], []
    for category in rng.integers(len(CLASSES), size=rng.integers(4, 9)):
        for _ in range(TRIES):
            radius, centre = unit * rng.uniform(12, 36), rng.uniform(0, size, 2)
            if centres and rng.random() < 0.5:  # beside an earlier object, so that many overlap
                centre = np.clip(rng.choice(centres) + rng.normal(0, radius, 2), 0, size)
            outline = OUTLINES[CLASSES[category]](rng, radius)
            (y, x), samples = _rasterise(outline, radius, centre, rng)
            mask, side = samples[1::3, 1::3], len(samples) // 3
            there = np.s_[max(y, 0) : min(y + side, size), max(x, 0) : min(x + side, size)]
            here = np.s_[max(-y, 0) : min(side, size - y), max(-x, 0) : min(side, size - x)]
            attempt = owner.copy()
            attempt[there][mask[here]] = len(classes)
            visible = np.bincount(attempt.ravel() + 1, minlength=len(classes) + 2)[1:]
            totals = np.array([*areas, mask.sum()])
            if (visible < np.maximum(MIN_VISIBLE_SHARE * totals, MIN_VISIBLE_PIXELS)).any():
                continue
            cover = samples.reshape(side, 3, side, 3).mean((1, 3), dtype=np.float32)[..., None]
            fill = _textured(rng, base, (side, side), unit)
            canvas[there] += cover[here] * (fill[here] - canvas[there])
            owner = attempt
            classes.append(int(category))
            areas.append(totals[-1])
            centres.append(centre)
            break
    light = 1 + 0.12 * _noise(rng, (size, size), 64 * unit)[..., None]
    grain = 4 * rng.standard_normal(canvas.shape, dtype=np.float32)
    picture = np.clip(canvas * light + grain, 0, 255).astype(np.uint8)
    return picture, classes, [owner == number for number in range(len(classes))]


def _rasterise(
    outline: Outline, radius: float, centre: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[int, int], np.ndarray]:
    """Sample a turned and squeezed ``outline`` 3 x 3 times a pixel, the middle one at the pixel's centre.

    ``centre`` is (y, x) in pixels. Gives (row, column) of the first pixel and the samples (3 n, 3 n), bool.
    """
    angle, squeeze = np.float32(rng.uniform(0, 2 * np.pi)), rng.uniform(0.8, 1.0)
    row, column = (int(np.floor(c - radius)) for c in centre)
    steps = (np.arange(3 * (int(np.ceil(2 * radius)) + 1)) + 0.5) / 3
    y = ((row + steps - centre[0]) / radius).astype(np.float32)[:, None]
    x = ((column + steps - centre[1]) / radius).astype(np.float32)[None, :]
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return (row, column), outline(u, v / squeeze)


def _polar(radius_at: Callable[[np.ndarray], np.ndarray]) -> Outline:
    """The outline whose radius is a function of the angle, given in turns (0 to 1)."""
    steps = 4096  # tabulated, for speed: at 64 pixels from the centre a step is a tenth of a pixel
    squared = (radius_at((np.arange(steps) + 0.5) / steps) ** 2).astype(np.float32)

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        step = ((np.arctan2(v, u) / (2 * np.pi) + 0.5) * steps).astype(np.int32)
        return u * u + v * v < squared.take(step, mode="clip")

    return inside


def _star(rng: np.random.Generator, radius: float) -> Outline:
    arms, depth = int(rng.integers(4, 8)), rng.uniform(0.45, 0.65)
    lengths, notch = rng.uniform(0.8, 1.0, arms), 0.9 * (1 - depth)

    def radius_at(turns: np.ndarray) -> np.ndarray:
        arm = np.minimum((turns * arms).astype(int), arms - 1)
        towards_tip = 1 - np.abs(2 * (turns * arms - arm) - 1)
        return notch + (lengths[arm] - notch) * towards_tip

    return _polar(radius_at)


def _blob(rng: np.random.Generator, radius: float) -> Outline:
    depths, phases = rng.uniform(0.05, 0.2, 3), rng.uniform(0, 2 * np.pi, 3)

    def radius_at(turns: np.ndarray) -> np.ndarray:
        waves = sum(d * np.cos(2 * np.pi * k * turns + p) for k, d, p in zip((2, 3, 4), depths, phases))
        return (1 + waves) / (1 + depths.sum())

    return _polar(radius_at)


def _gear(rng: np.random.Generator, radius: float) -> Outline:
    teeth, depth, slope = int(rng.integers(7, 11)), rng.uniform(0.22, 0.32), rng.uniform(3, 5)

    def radius_at(turns: np.ndarray) -> np.ndarray:
        wave = np.abs(2 * ((turns * teeth) % 1) - 1)
        return 1 - depth + depth * np.clip(slope * (wave - 0.5) + 0.5, 0, 1)

    return _polar(radius_at)


def _leaf(rng: np.random.Generator, radius: float) -> Outline:
    width, bend, stalk_end = rng.uniform(0.36, 0.5), rng.uniform(-0.25, 0.25), rng.uniform(-0.55, -0.4)
    notches, depth = int(rng.integers(5, 9)), rng.uniform(0.2, 0.35)
    stalk = max(0.05, 0.9 / radius)  # a stalk thinner than a pixel would come out as dots

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        along = np.clip((u - stalk_end) / (0.97 - stalk_end), 0, 1)
        blade = width * np.sin(np.pi * along**0.75) * (1 - depth * ((along * notches) % 1))
        half_width = np.where(u < 0.5, np.maximum(blade, stalk), blade)
        return (np.abs(v - bend * (u**2 - 0.3)) < half_width) & (u > -0.95)

    return inside


OUTLINES = {"star": _star, "blob": _blob, "gear": _gear, "leaf": _leaf}


def _noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> np.ndarray:
    """Smooth noise, float32, of about unit deviation and nothing shorter than ``wavelength`` pixels."""
    height, width = (int(np.ceil(2 * side / wavelength)) + 3 for side in shape)
    knots = rng.standard_normal((height, width), dtype=np.float32)
    zoomed = cv2.resize(knots, None, fx=wavelength / 2, fy=wavelength / 2, interpolation=cv2.INTER_CUBIC)
    return zoomed[: shape[0], : shape[1]]


def _textured(rng: np.random.Generator, base: np.ndarray, shape: tuple[int, int], unit: float) -> np.ndarray:
    """A patch (height, width, 3), float32: a colour near ``base`` under noise, stripes or a weave."""
    kind, angle, wavelength = rng.integers(3), np.float32(rng.uniform(0, np.pi)), unit * rng.uniform(4, 10)
    if kind == 0:
        pattern = _noise(rng, shape, wavelength)
    else:
        y, x = np.indices(shape, dtype=np.float32) * np.float32(2 * np.pi / wavelength)
        warp = 1.2 * _noise(rng, shape, 24 * unit)
        pattern = 1.4 * np.sin(np.cos(angle) * x + np.sin(angle) * y + warp)
        if kind == 2:
            pattern *= 1.4 * np.sin(np.cos(angle) * y - np.sin(angle) * x + warp)
    colour = base + rng.normal(0, 42, 3)
    contrast = rng.uniform(6, 13) * (1 + rng.normal(0, 0.3, 3))
    return colour.astype(np.float32) + pattern[..., None] * contrast.astype(np.float32)


def _exact(mask: np.ndarray) -> dict:
    found = outline(rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8)))
    return {"segmentation": found.pop("segmentation"), **found}  # in this order: the data's fingerprint is of the text


def _coarse(mask: np.ndarray, coarseness: float, rng: np.random.Generator) -> dict:
    """Polygons around the mask's large parts, simplified by a tolerance that grows with the object."""
    zoom = 4  # contours run through pixel centres; enlarged, they lie 1/8 pixel inside the edge, not 1/2
    x, y, width, height = cv2.boundingRect(mask)
    enlarged = mask[y : y + height, x : x + width].repeat(zoom, 0).repeat(zoom, 1)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    sizes = [cv2.contourArea(contour) for contour in contours]
    tolerance = coarseness * np.sqrt(mask.sum())
    polygons = []
    for contour, area in zip(contours, sizes):
        if area < max(sizes) / 4:
            continue
        for share in (1, 0.5, 0.25, 0):  # a part too small for the tolerance keeps more of its outline
            points = cv2.approxPolyDP(contour, share * tolerance * zoom, True)[:, 0]
            points = (points + 0.5) / zoom + (x, y) + rng.normal(0, 0.5 * share * tolerance, points.shape)
            points = np.clip(points, 0, mask.shape[::-1]).round(2)
            if len(points) >= 3 and cv2.contourArea(points.astype(np.float32)) >= 0.5 * area / zoom**2:
                break
        polygons.append(points.ravel().tolist())
    covered = rle_tools.merge(rle_tools.frPyObjects(polygons, *mask.shape))
    return {**outline(covered), "segmentation": polygons}
