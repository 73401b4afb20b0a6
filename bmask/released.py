"""Configurations and weights made elsewhere: the authors' release, and detectron2's model zoo.

Both come as a YAML file of detectron2 and a checkpoint, ``.pth`` or ``.pkl``. A checkpoint is a pickle, which can
name any code to be run: only tensors, arrays and plain containers are read, and everything else is refused.
"""

import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

from .config import UNFIT, check_heads, default_config, without_weights
from .errors import InputError, one_line

# In some versions' checkpoints and not in others', and without effect on what a model of this configuration detects.
HARMLESS = re.compile(r"pixel_mean$|pixel_std$|anchor_generator\.cell_anchors|\.num_batches_tracked$")
SHOWN = 3  # names in a sentence or a line


@dataclass(frozen=True)
class Report:
    """How the parameters of a model and of a checkpoint match, by their names.

    loaded: in both, with one shape. missing: in the model alone. unexpected: in the checkpoint alone. wrong_shape: in
    both, with two shapes, which stand behind the name.
    """

    loaded: List[str]
    missing: List[str]
    unexpected: List[str]
    wrong_shape: List[str]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_shape)

    def flaws(self) -> List[str]:
        """A phrase for each way not to match, with the number of parameters and the first of them."""
        kinds = {"missing in the file": self.missing, "unexpected": self.unexpected, "of wrong shape": self.wrong_shape}
        return [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]

    def __str__(self):
        total = len(self.loaded) + len(self.missing) + len(self.wrong_shape)
        return "\n".join([f"{len(self.loaded)} of {total} parameters loaded", *self.flaws()])


def load(config_file, weights, partial: bool = False, device: str = "auto") -> Tuple[CfgNode, torch.nn.Module, Report]:
    """A model made elsewhere, ready for inference.

    Args:
        config_file: a YAML file of detectron2, or its name in detectron2's model zoo.
        weights: a ``.pkl`` or a file of ``torch.save``: a state dict, or one under ``model``.
        partial: accept weights that do not match in full; what is not in the file keeps its random start.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The configuration, frozen, the model, and how the parameters matched.

    Raises:
        InputError: a file is not there, does not fit or is not safe to read, or the weights match in part alone.
    """
    return fill(read_config(config_file), weights, partial, device, config_file)


def fill(
    cfg: CfgNode, weights, partial: bool = False, device: str = "auto", config_file=None
) -> Tuple[CfgNode, torch.nn.Module, Report]:
    """As :func:`load`, for the configuration of a file or, without, of the record of the run that has the weights."""
    name = config_file or "its record"
    hint = "give the configuration that belongs to it, or accept that with --partial"
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = choose_device(device)
    without_weights(cfg)  # no other than the file's
    cfg.MODEL.WEIGHTS = str(weights)  # not to be taken for others
    cfg.freeze()
    checkpoint = read_checkpoint(Path(weights))
    try:
        model = build_model(cfg)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} describes no model ({one_line(error)}); correct it") from error
    try:
        report = _fill(model, checkpoint)
    except ValueError as error:  # of detectron2's heuristics
        raise InputError(
            f"the names in {weights} do not tell its parameters apart ({one_line(error)}); give a checkpoint with "
            "whole names"
        ) from None
    if not report.loaded:
        raise InputError(f"no parameter in {weights} fits the model of {name}; give the checkpoint that belongs to it")
    if not (partial or report.complete):
        raise InputError(
            f"{weights} does not match the model of {name}: {', '.join(report.flaws())}; "
            + (hint if config_file else "give the checkpoint that belongs to it")
        )
    return cfg, model.eval().to(memory_format=torch.channels_last), report


def choose_device(name: str = "auto") -> str:
    """The device, "cpu" or "cuda". Raises InputError for one that is not here."""
    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not gpu):
        raise InputError(f"there is no device {name!r} here; use cpu" + " or cuda" * gpu)
    return "cuda" if gpu and name != "cpu" else "cpu"


class _Config(CfgNode):
    """Finds the files of detectron2's own ``configs`` folder that a file builds on, wherever it has been moved to."""

    @classmethod
    def _open_cfg(cls, filename):  # fvcore has its subclasses open files by this name, and by no other
        if not Path(filename).exists() and "configs/" in filename:
            filename = model_zoo.get_config_file(filename.rpartition("configs/")[2])
        return super()._open_cfg(filename)


def read_config(config_file) -> CfgNode:
    """The configuration in a YAML file of detectron2, or one of its model zoo's by name.

    Raises:
        InputError: there is no such file, it has keys or values that do not fit, or the model predicts no masks, or not
            what MODEL.MASK_SCORING asks for.
    """
    path = str(config_file)
    if not path.endswith((".yaml", ".yml")):
        raise InputError(f"the configuration {path} is no .yaml file; give one, code is not run")
    if not Path(path).is_file():
        try:
            path = model_zoo.get_config_file(path)
        except RuntimeError:
            raise InputError(
                f"there is no configuration {path}, as a file or in detectron2's model zoo; correct its path"
            ) from None
    cfg = _Config(default_config())
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except UNFIT as error:
        raise InputError(
            f"{config_file} does not fit the configuration ({one_line(error)}); correct or remove that"
        ) from error
    if not cfg.MODEL.MASK_ON:
        raise InputError(
            f"the model of {config_file} predicts no masks (MODEL.MASK_ON); give one of instance segmentation"
        )
    check_heads(cfg, config_file)
    cfg.freeze()
    return cfg


def read_checkpoint(path: Path) -> Dict[str, Any]:
    """What a checkpoint holds under ``model`` and beside it; a bare state dict is put there. Tensors are on the CPU.

    Raises:
        InputError: the file cannot be read, asks for code to be run, or holds no state dict.
    """
    try:
        with open(path, "rb") as stream:
            if path.suffix == ".pkl":
                content = _Unpickler(stream, encoding="latin1").load()
            else:
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise InputError(
                f"{path} asks for {asked[1]} to be run, which weights have no need of; do not trust it, or save the "
                "state dict alone"
            ) from None
        raise InputError(f"{path} is no checkpoint, or cut off; download or save it again") from None
    if not (isinstance(content, dict) and isinstance(content.get("model"), dict)):
        content = {"model": content}
    state = content["model"]
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} holds no state dict; save one, or a dict with one under 'model'")
    tensors = {}
    for name, value in state.items():
        value = value.values if isinstance(value, _Array) else value
        if not isinstance(name, str) or not isinstance(value, (np.ndarray, torch.Tensor)):
            raise InputError(
                f"{path} holds no state dict, as its entry {name!r} is no array; save one, or a dict with one under "
                "'model'"
            )
        tensors[name] = torch.as_tensor(value)
    if all(name.startswith("module.") for name in tensors):  # saved as a DataParallel model
        tensors = {name[len("module.") :]: value for name, value in tensors.items()}
    return {**content, "model": tensors}


def _fill(model: torch.nn.Module, checkpoint: Dict[str, Any]) -> Report:
    own, state = model.state_dict(), checkpoint["model"]
    if checkpoint.get("matching_heuristics"):  # the names of a part of the model, such as a backbone's
        state = align_and_update_state_dicts(own, state, c2_conversion=False)
    own, state = ({k: x for k, x in names.items() if not HARMLESS.search(k)} for names in (own, state))
    loaded = {k: state[k] for k, x in own.items() if k in state and state[k].shape == x.shape}
    model.load_state_dict(loaded, strict=False)
    return Report(
        loaded=list(loaded),
        missing=[k for k in own if k not in state],
        unexpected=[k for k in state if k not in own],
        wrong_shape=[
            f"{k}: {_shape(state[k])} in the file, {_shape(own[k])} in the model"
            for k in own
            if k in state and k not in loaded
        ],
    )


class _Number:
    """Stands for ``numpy.dtype`` in a pickle. numpy's own takes objects and any memory layout."""

    def __init__(self, name: str, *_):
        self.dtype = np.dtype(name) if isinstance(name, str) else None
        if self.dtype is None or self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError("an array of other things than numbers")

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray`` in a pickle; ``values`` is the array, in this machine's byte order."""

    def __init__(self, shape=(0,), number: Optional[_Number] = None, data=b"", order: str = "C"):
        self.values = None
        if number is not None:
            # Python 2 wrote bytes as text.
            data = data.encode("latin1") if isinstance(data, str) else data
            values = np.frombuffer(data, number.dtype).reshape(shape, order=order)
            self.values = values.astype(number.dtype.newbyteorder("="))

    def __setstate__(self, state):
        _, shape, number, fortran, data = state
        self.__init__(shape, number, data, "F" if fortran else "C")


def _from_buffer(data, number, shape, order, axes=None):
    """What protocol 5 calls: of an array whose axes are swapped, with order "K", that of the memory, and the axes."""
    found = _Array(shape, number, data, "C" if order == "K" else order)
    found.values = found.values.transpose(axes) if order == "K" else found.values
    return found


class _Unpickler(pickle.Unpickler):
    """Knows plain containers and arrays of numbers, in the pickles of numpy 1 and 2, and nothing else."""

    def find_class(self, module, name):
        known = {
            "collections.OrderedDict": OrderedDict,
            # How protocols below 3 write bytes, and those of an empty array.
            "_codecs.encode": lambda text, _: text.encode("latin1"),
            "__builtin__.bytes": lambda: b"",
            "numpy.dtype": _Number,
            "numpy.ndarray": _Array,
        }
        for core in ("numpy.core", "numpy._core"):
            known[f"{core}.multiarray._reconstruct"] = lambda *_: _Array()
            known[f"{core}.multiarray.scalar"] = lambda number, data: _Array((), number, data)
            known[f"{core}.numeric._frombuffer"] = _from_buffer
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return known[f"{module}.{name}"]


def _first(names: List[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


class _FeatureMapsForMasks:
    """RoI heads that leave all pooling for masks to the mask head, whatever the configuration says."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        cfg = cfg.clone()
        cfg.defrost()
        mask, boundary = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.BOUNDARY_MASK_HEAD
        # The released code has no key of its own for R_b.
        boundary.POOLER_TYPE, mask.POOLER_TYPE = mask.POOLER_TYPE or boundary.POOLER_TYPE, ""
        return super().from_config(cfg, input_shape)


@ROI_HEADS_REGISTRY.register()
class BoundaryROIHeads(_FeatureMapsForMasks, StandardROIHeads):
    """Standard RoI heads by the name that the released configurations use, with any ``POOLER_TYPE``.

    Losses stay as ``MODEL.BOUNDARY_MASK_HEAD`` has them: the paper's, where it is not told otherwise.
    """


@ROI_HEADS_REGISTRY.register()
class CascadeBoundaryROIHeads(_FeatureMapsForMasks, CascadeROIHeads):
    """Cascade RoI heads alike."""
