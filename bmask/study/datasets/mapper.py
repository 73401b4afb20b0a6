"""From a record of a data set to a model's input."""

import copy
from typing import Dict

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size

from ...errors import InputError
from ...images import Resize, read_image


class ImageMapper(DatasetMapper):
    """detectron2's mapper from a record of a data set to a model's input, with :func:`bmask.images.read_image`.

    Raises:
        InputError: see :func:`bmask.images.read_image`; or the image has another size than the record says.
    """

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
        try:
            check_image_size(record, image)
        except SizeMismatchError:
            height, width = image.shape[:2]
            raise InputError(
                f"{record['file_name']} is {height} x {width} pixels as it is displayed, and {record['height']} x "
                f"{record['width']} in its data set; correct height and width there"
            ) from None
        augmented = T.AugInput(image[:, :, ::-1] if self.image_format == "BGR" else image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(record, transforms, image.shape[:2])  # detectron2's, for its subclasses
        else:
            record.pop("annotations", None)
        return record
