"""One way of reading images, for training, evaluation, prediction and the data check."""

import re
from pathlib import Path
from typing import Tuple, Union

import cv2
import numpy as np
from detectron2.data import transforms as T
from PIL import Image, ImageOps

from .errors import InputError

# How files end that Pillow itself reads: not those that it knows the name of alone, or has Ghostscript read.
SUFFIXES = tuple(
    suffix
    for suffix, kind in sorted(Image.registered_extensions().items())
    if kind in {*Image.OPEN, "MPO"} - {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
)
LIMIT = 2**29  # pixels of an image: 23,170 x 23,170, which take 1.6 GB
Image.MAX_IMAGE_PIXELS = LIMIT  # Pillow itself warns above it, and raises above twice as many


def read_image(path: Union[str, Path]) -> np.ndarray:
    """The image of a file as it is displayed: rotated as its EXIF says, without transparency, as :func:`to_rgb` has it.

    Of a file with several images, such as a TIFF of pages, it is the first.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        InputError: the file is no image, or cut off, or larger than ``LIMIT``, or has values that :func:`to_rgb`
            refuses.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > LIMIT:
                raise Image.DecompressionBombError
            wide_colours = picture.mode[0] != "I" and re.search(";16[BLN]", str(picture.tile))
            picture.load()
            if wide_colours:
                array = _with_16_bits(path, picture)
            else:
                ImageOps.exif_transpose(picture, in_place=True)
                as_it_is = picture.mode == "RGB" or picture.mode[0] in "IF"  # a large image is not copied needlessly
                array = np.asarray(picture if as_it_is else picture.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"there is no image {path}; correct the path") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has more than the {LIMIT:,} pixels that are read; cut it into parts") from None
    except Exception as error:  # Pillow's plugins raise what their parsers happen to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is no image that can be read ({reason}); replace or remove it") from None
    return to_rgb(array, str(path))


def stored_size(path: Union[str, Path]) -> Tuple[int, int]:
    """Height and width of the image of a file before its rotation."""
    with Image.open(path) as picture:
        return picture.height, picture.width


def _with_16_bits(path: Union[str, Path], picture: Image.Image) -> np.ndarray:
    """Colours of 16 bits, of which Pillow keeps the upper 8: (H, W, 3), uint16, RGB, rotated as ``picture`` is."""
    array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.ndim != 3 or array.shape[:2] != (picture.height, picture.width):
        raise ValueError("16 bits a colour in a form that is not known")
    pixels = Image.fromarray(np.arange(picture.height * picture.width, dtype=np.int32).reshape(array.shape[:2]))
    pixels.getexif().update(picture.getexif())
    return array[:, :, 2::-1].reshape(-1, 3)[np.asarray(ImageOps.exif_transpose(pixels))]


def to_rgb(image: np.ndarray, name: str = "the image") -> np.ndarray:
    """Values of any whole-number type as 8-bit RGB.

    Integers of more than 8 bits, common in microscopy, are scaled linearly, each image's smallest value to 0 and its
    largest to 255: cameras use 10 to 16 of the bits, and a file does not say how many.

    Args:
        image: (H, W), (H, W, 1) grey, (H, W, 3) RGB, or (H, W, 4) RGB and transparency, which is left out.
        name: of the image, for the error.

    Returns:
        (H, W, 3), uint8.

    Raises:
        InputError: another shape, or values that are not whole numbers.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise InputError(f"{name} has the shape {image.shape}; give height x width, and 1, 3 or 4 channels")
    image = image[:, :, :3]
    if image.dtype.kind not in "iu":
        raise InputError(
            f"{name} has values of type {image.dtype}, whose range is not known; save it with whole numbers, such as 0 "
            "to 255"
        )
    if image.dtype != np.uint8:
        low, high = int(image.min()), int(image.max())
        image = np.round((image.astype(np.float64) - low) * (255 / max(high - low, 1))).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


class Resize(T.ResizeShortestEdge):
    """detectron2's, but that very thin images keep a pixel."""

    def get_transform(self, image: np.ndarray):
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return transform
