"""One way of reading images, for training, evaluation, prediction and the data check."""

import copy
from pathlib import Path
from typing import Dict, Union

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size
from PIL import Image, ImageOps

from .errors import InputError

# How files end that Pillow itself reads: not those that it knows the name of alone, or has Ghostscript read.
SUFFIXES = tuple(
    suffix
    for suffix, kind in sorted(Image.registered_extensions().items())
    if kind in {*Image.OPEN, "MPO"} - {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
)
Image.MAX_IMAGE_PIXELS = 2**29  # Pillow warns above it, and refuses twice as many: such an image takes 3 GB
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for a file


def read_image(path: Union[str, Path]) -> np.ndarray:
    """The image of a file as it is displayed: rotated as its EXIF says, without transparency, as :func:`to_rgb` has it.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        InputError: the file is no image, or cut off, or has values that :func:`to_rgb` refuses.
    """
    try:
        with Image.open(path) as picture:
            ImageOps.exif_transpose(picture, in_place=True)
            as_it_is = picture.mode == "RGB" or picture.mode[0] in "IF"  # a large image is not copied needlessly
            array = np.asarray(picture if as_it_is else picture.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"there is no image {path}; correct the path") from None
    except BROKEN as error:
        raise InputError(f"{path} is no image that can be read ({error}); replace or remove it") from None
    return to_rgb(array, str(path))


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


class ImageMapper(DatasetMapper):
    """detectron2's mapper from a record of a data set to a model's input, with :func:`read_image`."""

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        settings = super().from_config(cfg, is_train)
        settings["augmentations"] = [
            Resize(a.short_edge_length, a.max_size, "range" if a.is_range else "choice", a.interp)
            if type(a) is T.ResizeShortestEdge
            else a
            for a in settings["augmentations"]
        ]
        return settings

    def __call__(self, record: Dict) -> Dict:
        record = copy.deepcopy(record)
        image = read_image(record["file_name"])
        check_image_size(record, image)
        augmented = T.AugInput(image[:, :, ::-1] if self.image_format == "BGR" else image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(record, transforms, image.shape[:2])
        else:
            record.pop("annotations", None)
        return record
