"""Images in, instances out; and a trained model for deployment."""

import json
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.export import TracingAdapter
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from . import released
from .config import check_heads, from_text, predicts_boundaries
from .errors import InputError, one_line
from .images import Resize, to_rgb


class Predictor:
    """Finds instances, their masks and, where the model has learned them, their boundaries.

    ::

        predictor = Predictor("runs/cpu/bmask_rcnn-seed0-4268f3c0c2/checkpoint.pth")
        instances = predictor(image)
        instances.pred_masks, instances.scores, instances.pred_classes
    """

    def __init__(
        self,
        weights: Union[str, Path],
        config_file: Optional[Union[str, Path]] = None,
        device: str = "auto",
        boundaries: Optional[bool] = False,
    ):
        """
        Args:
            weights: the ``checkpoint.pth`` of a run, or, with ``config_file``, released weights (see
                :mod:`bmask.released`).
            device: "auto", a GPU where there is one, "cpu" or "cuda".
            boundaries: also predict boundaries; None: where the model has learned them.

        Raises:
            InputError: the files are not there or do not fit, or the model has not learned boundaries.
        """
        weights = Path(weights)
        if not weights.is_file():
            raise InputError(f"there are no weights {weights}; correct the path")
        if config_file:
            cfg, self.model, _ = released.load(config_file, weights, device=device)
            self.classes = [str(k) for k in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        else:
            cfg, self.classes = _recorded(weights.with_name("record.json"), weights)
            cfg, self.model, _ = released.fill(cfg, weights, device=device)
        learned = predicts_boundaries(cfg)
        if boundaries and not learned:
            raise InputError(f"the model of {weights} has not learned boundaries; leave --boundaries out")
        if learned and boundaries is not False:
            self.model.roi_heads.mask_head.output_boundaries = True
        self.cfg = cfg
        self.resize = Resize([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def inputs(self, image: np.ndarray) -> Dict:
        """One image, as :meth:`__call__` takes it, as detectron2's models take it."""
        if not isinstance(image, np.ndarray):
            raise InputError(
                f"the image is {type(image).__name__}, no array; give one, (H, W, 3), as bmask.images.read_image does"
            )
        image = to_rgb(image)
        height, width = image.shape[:2]
        image = self.resize.get_transform(image).apply_image(image)
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).astype("float32"))
        return {"image": tensor, "height": height, "width": width}

    def __call__(
        self, images: Union[np.ndarray, Sequence[np.ndarray]], min_score: float = 0.0
    ) -> Union[Instances, List[Instances]]:
        """Instances in one image or, in one batch, in several.

        Args:
            images: (H, W, 3), uint8, RGB; or several of these, of any sizes. What is grey, has transparency or whole
                numbers of more bits is taken as :func:`bmask.images.to_rgb` says.
            min_score: instances below are left out.

        Returns:
            For each image detectron2's ``Instances``, on the CPU: ``pred_boxes``, ``scores``, ``pred_classes``,
            ``pred_masks`` (R, H, W), bool; with ``boundaries`` ``pred_boundaries`` (R, 1, 28, 28), in [0, 1], in the
            boxes.

        Raises:
            InputError: an image is none, or has values whose range is not known.
        """
        single = not isinstance(images, (list, tuple))
        found = self._found([images] if single else images, min_score)
        found = [detector_postprocess(instances, *size).to("cpu") for instances, size in found]
        return found[0] if single else found

    def in_boxes(self, image: np.ndarray, min_score: float = 0.0) -> Instances:
        """As :meth:`__call__`, but for the masks: ``roi_masks`` (R, 1, 28, 28), in [0, 1], in the boxes.

        (R, H, W) is more than the memory holds where an image is large.
        """
        ((instances, size),) = self._found([image], min_score)
        instances.roi_masks = instances.pred_masks
        instances.remove("pred_masks")
        return detector_postprocess(instances.to("cpu"), *size)

    @torch.no_grad()
    def _found(self, images: Sequence[np.ndarray], min_score: float) -> List[Tuple[Instances, Tuple[int, int]]]:
        """For each image its instances at the scale of the model's input, and the image's height and width."""
        batch = [self.inputs(image) for image in images]
        with torch.autocast(self.cfg.MODEL.DEVICE, enabled=self.cfg.SOLVER.AMP.ENABLED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what detectron2 calls: nothing that a reader can mend
            outputs = self.model.inference(batch, do_postprocess=False)
        if isinstance(outputs, tuple):  # of a panoptic model, which has more to say
            outputs = outputs[0]
        found = [instances[instances.scores >= min_score] for instances in outputs]
        for instances in found:
            instances.pred_masks = instances.pred_masks.float()
        return [(x, (inputs["height"], inputs["width"])) for x, inputs in zip(found, batch)]

    def traced(self, image: np.ndarray) -> torch.jit.ScriptModule:
        """The model as TorchScript, traced by detectron2's adapter on one image.

        It takes a float tensor (3, H, W) as :meth:`inputs` makes it, of any size. It returns boxes (R, 4) at the
        input's scale, classes (R,), masks (R, 1, 28, 28) in the boxes, in [0, 1], scores (R,), and the input's size. It
        is checked to find in another image, the mirrored one, what the model itself finds.

        Raises:
            RuntimeError: it does not.
        """

        def inference(model, inputs):
            return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

        sample, other = (self.inputs(x)["image"] for x in (image, np.ascontiguousarray(image[:, ::-1])))
        adapter = TracingAdapter(self.model, [{"image": sample}], inference)
        # Numbers of instances differ from image to image: as tensors they become part of the trace.
        with torch.no_grad(), warnings.catch_warnings(), patch_builtin_len(["bmask.joint"]):
            warnings.simplefilter("ignore")  # of every assertion that the trace leaves out
            traced = torch.jit.trace(adapter, (sample,), check_trace=False)
            expected, found = adapter(other), traced(other)
        for one, two in zip(expected, found):
            if one.shape != two.shape or not torch.allclose(one.float(), two.float(), atol=1e-4):
                raise RuntimeError("the traced model does not find what the model finds")
        return traced


def _recorded(record: Path, weights: Path) -> Tuple[Any, List[str]]:
    """The configuration and the names of the classes in the record of a run."""
    if not record.exists():
        raise InputError(
            f"there is no record.json beside {weights}, as beside those of a finished run, and so no configuration; "
            "give one with --config"
        )
    try:
        content = json.loads(record.read_bytes())
        if "failed" in content:
            raise InputError(f"the run of {record} failed ({content['failed']}); give the weights of another")
        cfg = from_text(content["config"], str(record))
        check_heads(cfg, record)
        classes = list(content["metrics"]["segm"]["per_class"])
        if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(f"{len(classes)} names for {cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes")
        return cfg, classes
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{record} is no record of a run, or cut off ({one_line(error)}); give the weights of another run, or name "
            "their configuration with --config"
        ) from None
