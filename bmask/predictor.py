"""From trained weights to instances in images of your own, and to a model for deployment."""

import functools
import glob
import hashlib
import json
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import cv2
import matplotlib
import numpy as np
import torch
from detectron2.export import TracingAdapter
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_tools
from tqdm.auto import tqdm

from . import config
from .boundary import pasted, strongest_boundaries
from .errors import InputError, one_line
from .files import fitting, make_folder, read_checkpoint, write_bytes, write_file
from .images import SUFFIXES, Resize, read_image, to_rgb

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # knows more scripts than OpenCV's
# Bytes of an image's name that leave room for what is added, of 255. A character has up to four.
LONGEST = 200


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
        boundaries: Optional[bool] = False,
    ):
        """
        Args:
            weights: the ``checkpoint.pth`` of a run, or, with ``config_file``, released weights (see
                :mod:`bmask.released`).
            device: "cpu" or "cuda"; by default a GPU where there is one.
            boundaries: also predict boundaries; None: where the model has learned them.

        Raises:
            InputError: the files are not there or do not fit, or the model has not learned boundaries.
        """
        weights = Path(weights)
        if not weights.is_file():
            raise InputError(f"there are no weights {weights}; correct the path")
        gpu = torch.cuda.is_available()
        device = device or ("cuda" if gpu else "cpu")
        if device not in ("cpu", "cuda") or device == "cuda" and not gpu:
            raise InputError(f"there is no device {device!r} here; use cpu" + " or cuda" * gpu)
        if config_file:
            from . import released

            cfg, self.model, _ = released.load(config_file, weights, device=device)
            self.classes = [str(k) for k in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        else:
            cfg, self.classes = _recorded(weights.with_name("record.json"), weights)
            cfg.MODEL.DEVICE = device
            saved = read_checkpoint(weights, device)
            with fitting(weights):
                self.model = build_model(cfg)
                self.model.load_state_dict(saved["model"])
        learned = config.predicts_boundaries(cfg)
        if boundaries and not learned:
            raise InputError(f"the model of {weights} has not learned boundaries; leave --boundaries out")
        if learned and boundaries is not False:
            self.model.roi_heads.mask_head.output_boundaries = True
        self.cfg = cfg
        self.model.eval()
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
    def _found(
        self, images: Sequence[np.ndarray], min_score: float
    ) -> List[Tuple[Instances, Tuple[int, int]]]:
        """For each image its instances at the scale of the model's input, and the image's height and width."""
        batch = [self.inputs(image) for image in images]
        with (
            torch.autocast(self.cfg.MODEL.DEVICE, enabled=self.cfg.SOLVER.AMP.ENABLED),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of what detectron2 calls: nothing that a reader can mend
            outputs = self.model.inference(batch, do_postprocess=False)
        if isinstance(outputs, tuple):  # of a panoptic model, which has more to say
            outputs = outputs[0]
        found = [instances[instances.scores >= min_score] for instances in outputs]
        for instances in found:
            instances.pred_masks = instances.pred_masks.float()
        return [(x, (inputs["height"], inputs["width"])) for x, inputs in zip(found, batch)]

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
        cfg = config.from_text(content["config"], str(record))
        cfg.MODEL.HRNET.PRETRAINED = False  # nothing is fetched: all weights are in the checkpoint
        classes = list(content["metrics"]["segm"]["per_class"])
        if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(f"{len(classes)} names for {cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes")
        return cfg, classes
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{record} is no record of a run, or cut off ({one_line(error)}); give the weights of another run, or name "
            "their configuration with --config"
        ) from None


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
                here = [
                    p
                    for match in sorted(glob.glob(str(name), recursive=True))
                    for p in _images_at(Path(match))
                ]
        except OSError as error:
            raise InputError(
                f"{name} cannot be read ({error.strerror}); correct the path or its permissions"
            ) from None
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
            raise InputError(
                f"{folder} is the folder of {folders[place]}, which is read; name another with --out"
            )
    for path in written:
        place = _place(path)
        if place and place in places:
            raise InputError(
                f"{path} would replace {places[place]}, which is read; name another place with --out"
            )


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
                said = InputError(
                    f"{path} is too much for this machine or model ({one_line(error)}); make it smaller"
                )
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
