"""The keys of the study, and how a variant, a profile and a seed become one resolved configuration."""

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple, TypeVar

import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode as CN
from detectron2.engine import DefaultTrainer

from ..config import UNFIT, check_heads, default_config, without_weights
from ..errors import InputError, nearest, one_line

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENTS = REPOSITORY / "experiments"
T = TypeVar("T")
# Everything that is written goes under this folder: data/, profiles/, runs/ and results/.
OUTPUT = Path(os.environ.get("BMASK_OUTPUT") or REPOSITORY)
LARGEST_SEED = 2**32 - 1  # that numpy takes
# What may follow the name of a profile, see :func:`resolve`.
DERIVED = r"(-heldout)?(?:-(\d+\.?\d*)x)?(?:-lr(\d*\.?\d+))?(-samedetector)?(?:-batch([1-9]\d*))?"
# Where the configuration of a mask head is: all other keys are its detector's, its data's and its schedule's.
MASK_HEAD = tuple(f"MODEL.{key}" for key in (
    "ROI_MASK_HEAD.", "BOUNDARY_MASK_HEAD.", "SOBEL_MASK_HEAD.", "POINT_HEAD.", "MASK_SCORING",
))  # fmt: skip
# What changes where and how fast a run is computed, but not what is computed. Other backbones are what a variant may
# ask for, and count where one does, by what they set; what data are counts by their fingerprint.
NOT_IDENTITY = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "VIS_PERIOD",
    "TEST.EVAL_PERIOD",
    "STUDY.LOG_PERIOD",
    "STUDY.COST_INPUT",
    "STUDY.DEEPER_RESNET",
    "STUDY.DEEPER_TIMM.NAME",
    "STUDY.DEEPER_TIMM.WEIGHTS",
    "STUDY.HRNET",
    "STUDY.OWN.TRAIN_JSON",
    "STUDY.OWN.TRAIN_IMAGES",
    "STUDY.OWN.VAL_JSON",
    "STUDY.OWN.VAL_IMAGES",
    "STUDY.SECOND_TEST",
)
# Heads of these names were switches of that head: to a run's identity they still are.
FORMER_HEADS = {"FusionBlocksHead": "BoundaryPreservingHead", "RefinedMasksHead": "BoundaryPreservingHead"}


def add_study_config(cfg: CN) -> None:
    """Add the keys of the study: data, and how a run is carried out."""
    cfg.STUDY = CN()
    # "shapes" (generated), "nuclei", "coco_person", "coco", "cityscapes", or "own" with its four places.
    cfg.STUDY.DATASET = "shapes"
    cfg.STUDY.OWN = CN({"TRAIN_JSON": "", "TRAIN_IMAGES": "", "VAL_JSON": "", "VAL_IMAGES": ""})
    # A further data set to test on, where it is at hand under data/: "pennfudan".
    cfg.STUDY.SECOND_TEST = ""
    cfg.STUDY.SHAPES = CN()
    # The seed of the pictures. It is not the seed of the run: all runs see the same data.
    cfg.STUDY.SHAPES.SEED = 0
    cfg.STUDY.SHAPES.NUM_TRAIN = 400
    cfg.STUDY.SHAPES.NUM_VAL = 100
    # Side of the square images in pixels.
    cfg.STUDY.SHAPES.IMAGE_SIZE = 128
    # How far the polygons that are trained on may be off, as a share of the square root of the object's area; 0 trains
    # on the exact masks. Tested on exact masks always, and then on polygons as coarse as well (Section 4.4).
    cfg.STUDY.SHAPES.COARSENESS = 0.0
    # Train on four fifths of the training images and test on the others: what a schedule is chosen on.
    cfg.STUDY.HELD_OUT = False
    # Mask heads learn from the detector's feature maps, and the detector learns nothing from them.
    cfg.STUDY.SAME_DETECTOR = False
    # Leave out annotations with an empty mask instead of refusing the data: COCO's own release has a few.
    cfg.STUDY.DROP_ZERO_AREA = False
    # "sgd", the paper's, or "adamw", which learns in some hundred iterations, where SGD does not.
    cfg.STUDY.OPTIMIZER = "sgd"
    # Threads of one run on the CPU. Part of what is computed: sums are rounded in another order with more.
    cfg.STUDY.THREADS = 1
    # Iterations between two looks at the losses.
    cfg.STUDY.LOG_PERIOD = 10
    # What a variant may change of its profile: the backbone, "resnet" (the profile's, whatever it is), "deeper_resnet",
    # "hrnet" (Table 1) or "scratch" (the profile's without its weights), and the factor of the input size.
    cfg.STUDY.BACKBONE = "resnet"
    cfg.STUDY.INPUT_SCALE = 1.0
    # These other backbones in the profile, a ResNet's depth, timm's network and HRNet's name: the paper's where it does
    # not say otherwise.
    cfg.STUDY.DEEPER_RESNET = 101
    cfg.STUDY.DEEPER_TIMM = CN({"NAME": "", "WEIGHTS": ""})
    cfg.STUDY.HRNET = "hrnet_w32"
    # A variant with the weights of this one, which differs at inference alone: nothing more is trained.
    cfg.STUDY.TRAINED_AS = ""
    # Height and width in pixels of the input that Table 8 is measured with.
    cfg.STUDY.COST_INPUT = (600, 1000)


def resolve(variant: str, profile: str, seed: int = 0) -> CN:
    """The whole configuration of one run.

    detectron2's Mask R-CNN with ResNet-50-FPN and its 1x schedule, then the profile, then the variant, then
    the seed. A profile's name may be followed by these, in this order: ``-heldout``, tested on a fifth of the training
    images, which it is not trained on; ``-Fx``, F times as long; ``-lrR``, learning rate R; ``-samedetector``, the
    same-detector protocol (:mod:`bmask.study.same_detector`), without validation during the training; ``-batchN``, N
    images a batch, by the linear scaling rule.

    Raises:
        InputError: there is no such variant or profile, or a file does not fit.
    """
    name, heldout, times, rate, same_detector, batch = re.fullmatch(rf"(.*?){DERIVED}", profile, re.DOTALL).groups()
    cfg = _defaults()
    _merge(cfg, Path(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")))
    _merge(cfg, _find("profile", name))
    _merge(cfg, _find("variant", variant))
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"SEED is {seed}; give a whole number from 0 to {LARGEST_SEED}")
    cfg.SEED = int(seed)
    _set_backbone(cfg)
    for name in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
        size, scale = cfg.INPUT[name], cfg.STUDY.INPUT_SCALE
        cfg.INPUT[name] = round(size * scale) if isinstance(size, int) else tuple(round(s * scale) for s in size)
    if cfg.MODEL.ROI_MASK_HEAD.NAME == "PointRendMaskHead":
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    check_heads(cfg, variant)
    cfg.STUDY.HELD_OUT = bool(heldout)
    if times:
        solver, times = cfg.SOLVER, float(times)
        solver.MAX_ITER, solver.STEPS = round(times * solver.MAX_ITER), tuple(round(times * s) for s in solver.STEPS)
    if rate:
        cfg.SOLVER.BASE_LR = float(rate)
    cfg.STUDY.SAME_DETECTOR = bool(same_detector)
    if same_detector:
        cfg.TEST.EVAL_PERIOD = 0
    if batch:
        cfg = scale_batch(cfg, int(batch))
    if min(cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) < 1:
        raise InputError(
            f"the profile {profile} has {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images a batch; "
            "give it 1 or more of both"
        )
    cfg.freeze()
    return cfg


def same_detector(profile: str) -> str:
    """The name of a profile with the protocol of the same detector, which it may have already."""
    return re.sub(r"(-samedetector)?(-batch\d+)?$", r"-samedetector\2", profile, count=1)


def _merge(cfg: CN, path: Path) -> None:
    """Merge a file, and those that it builds on. No code in them is run."""
    try:
        if not isinstance(yaml.safe_load(path.read_bytes()), dict):
            raise ValueError("it holds no keys with values")
        cfg.merge_from_file(str(path), allow_unsafe=False)
        flat = _flat(cfg)
        for key, default in _flat_defaults().items():
            # yacs compares types, but takes null for anything, and does not look into lists.
            kinds, known = (set(map(_kind, _leaves(x))) for x in (flat.get(key), default))
            if default is not None and known and not kinds <= known:
                raise ValueError(f"{key} is {flat.get(key)!r}, and {default!r} by default, which is of another kind")
    except UNFIT as error:
        raise InputError(f"{path} does not fit the configuration ({one_line(error)}); correct that") from error


def _leaves(value) -> List:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, list) else [value]


def _kind(value) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def _set_backbone(cfg: CN) -> None:
    study, model = cfg.STUDY, cfg.MODEL
    if study.BACKBONE == "deeper_resnet" and model.BACKBONE.NAME == "build_timm_fpn_backbone":
        model.TIMM.update(study.DEEPER_TIMM)
    elif study.BACKBONE == "deeper_resnet":
        model.WEIGHTS = model.WEIGHTS.replace(f"R-{model.RESNETS.DEPTH}.", f"R-{study.DEEPER_RESNET}.")
        model.RESNETS.DEPTH = study.DEEPER_RESNET
    elif study.BACKBONE == "hrnet":
        model.BACKBONE.NAME, model.HRNET.NAME = "build_hrnetv2p_backbone", study.HRNET
        if model.WEIGHTS:  # the ResNet's, from ImageNet: take timm's, with its colours
            model.WEIGHTS, model.HRNET.PRETRAINED = "", True
            cfg.INPUT.FORMAT = "RGB"
            model.PIXEL_MEAN, model.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
        else:
            model.RESNETS.NORM, model.BACKBONE.FREEZE_AT = "BN", 0
    elif study.BACKBONE == "scratch":
        without_weights(cfg)
        model.RESNETS.NORM, model.BACKBONE.FREEZE_AT = "BN", 0
    elif study.BACKBONE != "resnet":
        raise InputError(
            f"STUDY.BACKBONE is {study.BACKBONE!r}, which is not known; choose resnet, deeper_resnet, hrnet or scratch"
        )


def scale_batch(cfg: CN, batch: int) -> CN:
    """The linear scaling rule (Section 4): learning rate, iterations and steps for ``batch`` images a batch."""
    reference = cfg.clone()
    reference.defrost()
    # detectron2 counts in workers: one an image comes to the rule.
    reference.SOLVER.REFERENCE_WORLD_SIZE = reference.SOLVER.IMS_PER_BATCH
    scaled = DefaultTrainer.auto_scale_workers(reference, batch)
    scaled.defrost()
    scaled.SOLVER.REFERENCE_WORLD_SIZE = cfg.SOLVER.REFERENCE_WORLD_SIZE
    return scaled


def identity(cfg: CN, without: Tuple[str, ...] = ()) -> str:
    """Ten hexadecimal digits that stand for everything in ``cfg`` that a run's numbers depend on.

    Keys at their defaults do not count, so a key that is added later leaves the runs that do not use it alone. Nor do
    those that begin with one of ``without``.
    """
    chosen = {key: value for key, value in _chosen(cfg).items() if key not in NOT_IDENTITY}
    if cfg.MODEL.ROI_MASK_HEAD.NAME in FORMER_HEADS:
        chosen["MODEL.ROI_MASK_HEAD.NAME"] = FORMER_HEADS[cfg.MODEL.ROI_MASK_HEAD.NAME]
    chosen = {key: value for key, value in chosen.items() if not key.startswith(without)}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:10]


def to_text(cfg: CN) -> str:
    """The keys of ``cfg`` that are not at their defaults, as YAML, for :func:`bmask.config.from_text`."""
    nested = {}
    for key, value in _chosen(cfg).items():
        *above, name = key.split(".")
        functools.reduce(lambda node, part: node.setdefault(part, {}), above, nested)[name] = value
    return yaml.safe_dump(nested, default_flow_style=None)


def _chosen(cfg: CN) -> Dict[str, Any]:
    """The keys that are not at their defaults, as {"A.B": value}."""
    defaults = _flat_defaults()
    return {key: value for key, value in _flat(cfg).items() if key not in defaults or value != defaults[key]}


def _defaults() -> CN:
    cfg = default_config()
    add_study_config(cfg)
    return cfg


@functools.cache
def _flat_defaults() -> Dict[str, Any]:
    return _flat(_defaults())


def _flat(node: CN, prefix: str = "") -> Dict[str, Any]:
    """{"A.B": value}, with tuples as lists: YAML does not tell them apart."""
    items = {}
    for name, value in node.items():
        if isinstance(value, CN):
            items.update(_flat(value, f"{prefix}{name}."))
        else:
            items[prefix + name] = json.loads(json.dumps(value))
    return items


def parse_seeds(seeds) -> List[int]:
    """The seeds in "0,1,2", or a single whole number, or a list of them: in order, each once.

    Raises:
        InputError: none is given, or something else than whole numbers that are seeds.
    """
    parts = seeds.split(",") if isinstance(seeds, str) else seeds
    parts = [str(part).strip() for part in (parts if isinstance(parts, (list, tuple, range)) else [parts])]
    if not parts or not all(re.fullmatch(r"\d{1,10}", part, re.ASCII) and int(part) <= LARGEST_SEED for part in parts):
        raise InputError(
            f"SEEDS is {seeds!r}; give whole numbers from 0 to {LARGEST_SEED} with commas between, such as 0,1,2"
        )
    return sorted(set(map(int, parts)))


def check_name(name: str) -> None:
    """Look at the name for a profile of your own, which folders will have.

    Raises:
        InputError: it cannot be one, or is one that the repository has.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
        raise InputError(f"the name {name!r} is no name for files; choose one of letters, digits, - and _ with --name")
    if re.search(r"-(batch\d*|lr[\d.]+|heldout|samedetector|[\d.]+x)$", name):
        raise InputError(f"the name {name!r} would be read as another profile's, changed; choose another with --name")
    taken = {path.stem.lower() for path in (EXPERIMENTS / "profiles").glob("*.yaml")} | {"local"}
    if name.lower() in taken:
        raise InputError(f"there is a profile {name} already, the repository's own; choose another with --name")


def available(kind: str) -> List[str]:
    """The names of all variants or profiles, ``kind`` being "variant" or "profile", those of your own included."""
    return sorted(_files(kind))


def _files(kind: str) -> Dict[str, Path]:
    folders = (OUTPUT / f"{kind}s", EXPERIMENTS / f"{kind}s")
    return {path.stem: path for folder in folders for path in folder.glob("*.yaml")}


def pick(kind: str, name: str, known: Dict[str, T]) -> T:
    """What has a name. Raises InputError for an unknown name, with the nearest known one."""
    if name not in known:
        raise nearest(kind, name, known)
    return known[name]


def _find(kind: str, name: str) -> Path:
    return pick(kind, name, dict(sorted(_files(kind).items())))
