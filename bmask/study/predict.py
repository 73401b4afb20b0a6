"""From image files to what is found in them, as files."""

import functools
import glob
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

import cv2
import matplotlib
import numpy as np
from detectron2.utils.colormap import colormap
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from ..errors import InputError, one_line
from ..images import SUFFIXES, read_image
from ..predictor import Predictor
from .files import make_folder, write_bytes
from .paste import pasted, strongest_boundaries

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # knows more scripts than OpenCV's
# Bytes of an image's name that leave room for what is added, of 255. A character has up to four.
LONGEST = 200


def image_paths(names: Union[str, Path, Sequence[Union[str, Path]]]) -> List[Path]:
    """The images that files, folders and patterns such as ``"*.jpg"`` stand for, in order, each once.

    Of a folder these are the files in it, but not in folders in it, that end like an image and are not hidden.
    ``"folder/**/*.jpg"`` looks into all of them.

    Raises:
        InputError: one of them stands for nothing.
    """
    if not names:
        raise InputError("there are no images; name files, folders or patterns")
    found = []
    for name in [names] if isinstance(names, (str, Path)) else names:
        path = Path(name)
        try:
            if os.path.lexists(path):
                here = _images_at(path)
            else:
                here = [p for match in sorted(glob.glob(str(name), recursive=True)) for p in _images_at(Path(match))]
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror}); correct the path or its permissions") from None
        if not here:
            raise InputError(f"there is no image {name}; name files, folders or patterns")
        found += here
    return list({os.path.abspath(path): path for path in reversed(found)}.values())[::-1]


def _images_at(path: Path) -> List[Path]:
    if not path.is_dir():
        return [path]
    named = (p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return [p for p in named if p.is_file() or p.is_symlink()]  # a broken link is said to be one


def written_files(paths: Sequence[Path], boundaries: bool) -> Dict[Path, List[str]]:
    """What is written about each image: its overlay and its map of boundaries, relative to the folder of all.

    The image's whole name, and its folders below the one that all images are in, stand before what is added: no two
    images share a file. Digits that stand for its place are in names that differ from others in small and capital
    letters alone, which some disks take for one, and in those that would be too long.
    """
    places = {path: os.path.abspath(path) for path in paths}
    above = os.path.commonpath([os.path.dirname(place) for place in places.values()])
    names = {path: Path(os.path.relpath(place, above)) for path, place in places.items()}
    alike = Counter(str(name).casefold() for name in names.values())
    for path, name in names.items():
        if alike[str(name).casefold()] > 1 or len(os.fsencode(name.name)) > LONGEST:
            place = hashlib.sha256(os.fsencode(places[path])).hexdigest()
            names[path] = name.with_name(f"{name.name[: LONGEST // 5]}-{place[:12]}")
    kinds = ("overlay", "boundaries")[: 1 + boundaries]
    return {path: [f"{name}.{kind}.png" for kind in kinds] for path, name in names.items()}


def keep_apart(out: Path, names: Iterable[str], read: Sequence[Path], images: Sequence[Path] = ()) -> None:
    """See that nothing that is written to the folder ``out``, under ``names``, replaces what is read.

    Args:
        read: files beside which it may be written.
        images: files whose folders nothing is written to.

    Raises:
        InputError: something would, by whatever name or link.
    """
    places = {_place(path): path for path in (*read, *images)}
    folders = {_place(path.parent): path for path in images}
    written = [out / name for name in names]
    for folder in {out, *(path.parent for path in written)}:
        place = _place(folder)
        if place and place in folders:
            raise InputError(f"{folder} is the folder of {folders[place]}, which is read; name another with --out")
    for path in written:
        place = _place(path)
        if place and place in places:
            raise InputError(f"{path} would replace {places[place]}, which is read; name another place with --out")


def _place(path: Path) -> Optional[Tuple[int, int]]:
    """What a file or folder is called by the system alone."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def predict(
    predictor: Predictor, written: Dict[Path, List[str]], out: Path, min_score: float, boundaries: bool
) -> List[str]:
    """Write, for each image, what is found in it, and ``predictions.json`` of all, in COCO format with scores.

    There each image has, beside its own name, the name of its ``overlay`` and, with ``boundaries``, of the map of its
    ``boundaries``. It is written when this is interrupted as well, with what has been found.

    Args:
        written: the images and what is written of each, from :func:`written_files`, kept apart by :func:`keep_apart`.
        min_score: instances below are left out.
        boundaries: also write the strongest boundary at each pixel, 0 to 255.

    Returns:
        What is wrong with the images that could not be read or looked at, a sentence each.

    Raises:
        InputError: nothing can be written to ``out``.
    """
    make_folder(out)
    categories = [{"id": k, "name": name} for k, name in enumerate(predictor.classes, 1)]
    content = {"images": [], "annotations": [], "categories": categories}
    broken = []
    try:
        for path, names in tqdm(written.items(), unit="image"):
            try:
                size, annotations, pictures = _looked_at(predictor, path, min_score, boundaries)
                for name, picture in zip(names, pictures):
                    write_bytes(out / name, picture)
            except (InputError, MemoryError, RuntimeError) as error:
                said = InputError(f"{path} is too much for this machine or model ({one_line(error)}); make it smaller")
                broken.append(str(error if isinstance(error, InputError) else said))
                tqdm.write(f"bmask: {broken[-1]}", file=sys.stderr)
                continue
            number = len(content["images"]) + 1
            image = {"id": number, "file_name": str(path), "height": size[0], "width": size[1]}
            content["images"].append(image | dict(zip(("overlay", "boundaries"), names)))
            for annotation in annotations:
                ids = {"id": len(content["annotations"]) + 1, "image_id": number}
                content["annotations"].append(ids | annotation)
    finally:
        write_bytes(out / "predictions.json", json.dumps(content).encode())
    return broken


def _looked_at(
    predictor: Predictor, path: Path, min_score: float, boundaries: bool
) -> Tuple[Tuple[int, int], List[Dict], List[memoryview]]:
    """An image's height and width, its annotations, and its overlay and map of boundaries as PNG.

    Masks are as large as the image: there is never more than one.
    """
    image = np.array(read_image(path))
    size = image.shape[:2]
    found = predictor.in_boxes(image, min_score)
    annotations = []
    for k, score in enumerate(found.scores.tolist()):
        one = found[k]
        mask = pasted(one.roi_masks[0, 0], one.pred_boxes.tensor[0], size).numpy()
        _draw(image, mask, k)
        rle = rle_tools.encode(np.asfortranarray(mask.view(np.uint8)))
        rle["counts"] = rle["counts"].decode()
        x0, y0, x1, y1 = one.pred_boxes.tensor[0].tolist()
        annotations.append(
            {
                "category_id": one.pred_classes.item() + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
                "segmentation": rle,
                "iscrowd": 0,
                "area": int(rle_tools.area(rle)),
            }
        )
    for annotation in annotations:
        text = f"{predictor.classes[annotation['category_id'] - 1]} {100 * annotation['score']:.0f}%"
        _label(image, text, annotation["bbox"])
    pictures = [_png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR, dst=image))]
    if boundaries:
        strongest = strongest_boundaries(found.pred_boundaries[:, 0], found.pred_boxes, size)
        pictures.append(_png(strongest.mul_(255).round_().byte().numpy()))
    return size, annotations, pictures


def _draw(image: np.ndarray, mask: np.ndarray, k: int) -> None:
    """Shade the mask (H, W) of the instance of number ``k`` in an image (H, W, 3), and outline it."""
    colour = [int(c) for c in colormap(rgb=True)[k % 74]]  # greys follow
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    within = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask = mask[within]
    for shade, channel in zip(colour, np.moveaxis(image[within], 2, 0)):
        channel[mask] = channel[mask] // 2 + shade // 2
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, min(image.shape[:2]) // 400)
    cv2.drawContours(image, outlines, -1, colour, thickness, offset=(int(columns[0]), int(rows[0])))


@functools.lru_cache(8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), size)


def _label(image: np.ndarray, text: str, box: Sequence[float]) -> None:
    """Write a line, white on dark, into the corner of a box, x y width height, that has room for it."""
    font = _font(max(10, int(np.sqrt(image.shape[0] * image.shape[1]) / 90)))
    text = " ".join(text.split())
    right, bottom = font.getbbox(text)[2:]
    letters = Image.new("L", (int(right) + 4, int(bottom) + 4))
    if letters.width > box[2] or letters.height > box[3]:
        return
    ImageDraw.Draw(letters).text((2, 2), text, fill=255, font=font)
    under = image[int(box[1]) :, int(box[0]) :][: letters.height, : letters.width]
    shown = np.asarray(letters)[: under.shape[0], : under.shape[1], None]
    np.maximum(under // 3, shown, out=under)


def _png(picture: np.ndarray) -> memoryview:
    written, content = cv2.imencode(".png", picture)
    if not written:
        raise RuntimeError("it cannot be written as PNG")
    return content.ravel().data
