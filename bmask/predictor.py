"""From trained weights to instances in images of your own, and to a model for deployment."""

import glob
import json
import sys
import warnings
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data import transforms as T
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.export import TracingAdapter
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as rle_tools
from tqdm import tqdm

from . import config
from .boundary import strongest_boundaries
from .errors import InputError
from .files import write_bytes, write_file
from .images import SUFFIXES, read_image


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
        device: Optional[str] = None,
        boundaries: bool = False,
    ):
        """
        Args:
            weights: the ``checkpoint.pth`` of a run, or, with ``config_file``, released weights (see
                :mod:`bmask.released`).
            device: "cpu" or "cuda"; by default a GPU where there is one.
            boundaries: also predict boundaries.

        Raises:
            InputError: the files are not there or do not fit, or the model has not learned boundaries.
        """
        weights = Path(weights)
        if not weights.is_file():
            raise InputError(f"there are no weights {weights}; correct the path")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if config_file:
            from . import released

            cfg, self.model, _ = released.load(config_file, weights, device=device)
            self.classes = [str(k) for k in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        else:
            record = weights.with_name("record.json")
            if not record.exists():
                raise InputError(
                    f"there is no record.json beside {weights}, and so no configuration; give one with --config"
                )
            content = json.loads(record.read_text())
            cfg = config.from_text(content["config"])
            self.classes = list(content["metrics"]["segm"]["per_class"])
            cfg.MODEL.DEVICE = device
            self.model = build_model(cfg)
            saved = torch.load(weights, map_location=device, weights_only=True)
            self.model.load_state_dict(saved["model"])
        if boundaries:
            if not config.predicts_boundaries(cfg):
                raise InputError(f"the model of {weights} has not learned boundaries; leave --boundaries out")
            self.model.roi_heads.mask_head.output_boundaries = True
        self.cfg = cfg
        self.model.eval()
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def inputs(self, image: np.ndarray) -> Dict:
        """One image, (H, W, 3), uint8, RGB, as detectron2's models take it."""
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        image = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).astype("float32"))
        return {"image": tensor, "height": height, "width": width}

    @torch.no_grad()
    def __call__(self, images: Union[np.ndarray, Sequence[np.ndarray]]) -> Union[Instances, List[Instances]]:
        """Instances in one image or, in one batch, in several.

        Args:
            images: (H, W, 3), uint8, RGB; or several of these, of any sizes.

        Returns:
            For each image detectron2's ``Instances``, on the CPU: ``pred_boxes``, ``scores``, ``pred_classes``,
            ``pred_masks`` (R, H, W), bool; with ``boundaries`` ``pred_boundaries`` (R, 1, 28, 28), in [0, 1], in the
            boxes.
        """
        single = isinstance(images, np.ndarray)
        batch = [self.inputs(image) for image in ([images] if single else images)]
        with torch.autocast(self.cfg.MODEL.DEVICE, enabled=self.cfg.SOLVER.AMP.ENABLED):
            outputs = self.model(batch)
        found = [output["instances"].to("cpu") for output in outputs]
        return found[0] if single else found

    def export(self, path: Path, image: np.ndarray) -> None:
        """Write the model as TorchScript, traced by detectron2's adapter on one image.

        The traced model takes a float tensor (3, H, W) as :meth:`inputs` makes it, of any size. It returns boxes (R, 4)
        at the input's scale, classes (R,), masks (R, 1, 28, 28) in the boxes, in [0, 1], scores (R,), and the input's
        size. It is checked to find in another image, the mirrored one, what the model itself finds.

        Raises:
            RuntimeError: it does not.
        """

        def inference(model, inputs):
            return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

        sample, other = (self.inputs(x)["image"] for x in (image, np.ascontiguousarray(image[:, ::-1])))
        adapter = TracingAdapter(self.model, [{"image": sample}], inference)
        # Numbers of instances differ from image to image: as tensors they become part of the trace.
        with torch.no_grad(), warnings.catch_warnings(), patch_builtin_len(["bmask.heads"]):
            warnings.simplefilter("ignore")  # of every assertion that the trace leaves out
            traced = torch.jit.trace(adapter, (sample,), check_trace=False)
            expected, found = adapter(other), traced(other)
        for one, two in zip(expected, found):
            if one.shape != two.shape or not torch.allclose(one.float(), two.float(), atol=1e-4):
                raise RuntimeError("the traced model does not find what the model finds: it is not written")
        write_file(Path(path), lambda draft: torch.jit.save(traced, str(draft)))


def image_paths(names: Sequence[str]) -> List[Path]:
    """The images that files, folders and patterns such as ``"*.jpg"`` stand for, in order, each once.

    Raises:
        InputError: one of them stands for nothing.
    """
    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            here = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            here = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name))]
        if not here:
            raise InputError(f"there is no image {name}; name files, folders or patterns")
        found += here
    return list(dict.fromkeys(found))


def predict(
    predictor: Predictor, paths: List[Path], out: Path, min_score: float, boundaries: bool
) -> List[str]:
    """Write, for each image, what is found in it, and ``predictions.json`` of all, in COCO format with scores.

    Args:
        min_score: instances below are left out.
        boundaries: also write ``NAME_boundaries.png``, the strongest boundary at each pixel, 0 to 255.

    Returns:
        What is wrong with the images that could not be read, a sentence each.
    """
    metadata = Metadata().set(thing_classes=predictor.classes)
    categories = [{"id": k, "name": name} for k, name in enumerate(predictor.classes, 1)]
    content = {"images": [], "annotations": [], "categories": categories}
    broken, taken = [], set()
    for path in tqdm(paths, unit="image"):
        try:
            image = read_image(path)
        except InputError as error:
            broken.append(str(error))
            tqdm.write(f"bmask: {error}", file=sys.stderr)
            continue
        found = predictor(image)
        found = found[found.scores >= min_score]
        name = path.stem  # images of the same name from two folders are told apart by a number
        while name in taken:
            name = f"{path.stem}_{len(taken)}"
        taken.add(name)
        overlay = Visualizer(image, metadata).draw_instance_predictions(found).get_image()
        _write_png(out / f"{name}.png", overlay[:, :, ::-1])
        if boundaries:
            strongest = strongest_boundaries(found.pred_boundaries[:, 0], found.pred_boxes, image.shape[:2])
            _write_png(out / f"{name}_boundaries.png", (255 * strongest).round().byte().numpy())
        number = len(content["images"]) + 1
        height, width = image.shape[:2]
        content["images"].append({"id": number, "file_name": str(path), "height": height, "width": width})
        for instance in instances_to_coco_json(found, number):
            instance |= {"id": len(content["annotations"]) + 1, "iscrowd": 0}
            instance |= {"category_id": instance["category_id"] + 1}
            instance |= {"area": int(rle_tools.area(instance["segmentation"]))}
            content["annotations"].append(instance)
    write_bytes(out / "predictions.json", json.dumps(content).encode())
    return broken


def _write_png(path: Path, picture: np.ndarray) -> None:
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(picture))[1].tobytes())
