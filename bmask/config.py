"""The configuration keys of the mask heads and backbones, and configurations that come as text."""

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.projects.point_rend import add_pointrend_config

from . import backbones  # noqa: F401  registers them
from .ablations import FusionBlocksHead, RefinedMasksHead, SobelMaskHead
from .errors import InputError, one_line
from .head import BoundaryPreservingHead
from .joint import JointHead

# What YAML, yacs and detectron2 raise for a file that is no configuration.
UNFIT = (
    AssertionError, AttributeError, KeyError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, yaml.YAMLError,
)  # fmt: skip


def default_config() -> CN:
    """detectron2's defaults, PointRend's, and :func:`add_bmask_config`'s."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    add_bmask_config(cfg)
    return cfg


def add_bmask_config(cfg: CN) -> None:
    """Add the keys of the mask heads and of the backbones. The defaults are the paper's.

    In a detectron2 project, one line of YAML under ``MODEL`` then switches the head on::

        ROI_MASK_HEAD: {NAME: BoundaryPreservingHead, POOLER_TYPE: "", NUM_CONV: 4, POOLER_RESOLUTION: 14}
    """
    cfg.MODEL.BOUNDARY_MASK_HEAD = CN()
    head = cfg.MODEL.BOUNDARY_MASK_HEAD
    # Feature maps that the boundary RoI features R_b are pooled from. More than one: by scale (Table 5).
    head.IN_FEATURES = ("p2",)
    # Side of R_b in pixels: the mask head's, or a multiple of it (Table 5).
    head.POOLER_RESOLUTION = 28
    # RoIAlign for both R_m and R_b. MODEL.ROI_MASK_HEAD.POOLER_TYPE has to be empty: the head pools itself.
    head.POOLER_TYPE = "ROIAlignV2"
    # 3x3 convolutions of the boundary branch after the fusion.
    head.NUM_CONV = 2
    # Fusion blocks, mask to boundary and boundary to mask (Eq. 1, Table 6).
    head.M2B_FUSION = True
    head.B2M_FUSION = True
    # FusionBlocksHead: how often both are done, one after the other, with as many 3x3 convolutions (Section 4.2).
    head.NUM_FUSION_BLOCKS = 1
    # What the boundary branch learns: "boundary", "mask", or "none" for no loss at all (Table 4).
    head.SUPERVISION = "boundary"
    # "bce", "weighted_bce", "dice" or "dice_bce" (Table 7).
    head.LOSS = "dice_bce"
    # The weight of the boundary loss beside the mask loss: 1 in Eq. 4.
    head.LOSS_WEIGHT = 1.0
    # Lambda of Eq. 2: the weight of BCE beside Dice.
    head.BCE_WEIGHT = 1.0
    # Squares in the denominator of Dice, as in Eq. 3. The released code has none: False.
    head.DICE_SQUARED = True
    # Laplacian responses above it are boundary. The released code has 0.1: the same on binary masks.
    head.THRESHOLD = 0.0
    # At inference the boundary is not needed. True adds it to the instances, as pred_boundaries.
    head.OUTPUT_BOUNDARIES = False
    # RefinedMasksHead: average each mask with what its boundary encloses, at inference (Section 4.5).
    head.REFINE_MASKS = False
    # A MaskIoU head beside the mask head (Table 2). The mask head has to be one of this package; Mask R-CNN's own is
    # MaskScoringHead here.
    cfg.MODEL.MASK_SCORING = False
    cfg.MODEL.SOBEL_MASK_HEAD = CN()
    # Channels between the two 3x3 convolutions that follow the Sobel operator. Fig. 7b does not say.
    cfg.MODEL.SOBEL_MASK_HEAD.CONV_DIM = 16
    # build_timm_fpn_backbone: timm's name of the network; its weights, "" for none, "timm" for timm's own (downloaded),
    # a file, or "package:NAME/FILE" of an installed package; and epsilon of its BatchNorms, 0 for timm's.
    cfg.MODEL.TIMM = CN({"NAME": "efficientnet_lite0", "WEIGHTS": "", "BN_EPS": 0.0})
    cfg.MODEL.HRNET = CN()
    # timm's name of the backbone build_hrnetv2p_backbone (Table 1), and whether to start from ImageNet weights.
    cfg.MODEL.HRNET.NAME = "hrnet_w32"
    cfg.MODEL.HRNET.PRETRAINED = False


def without_weights(cfg: CN) -> None:
    """Have a model start at random: nothing is fetched for it, or read."""
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.HRNET.PRETRAINED = "", "", False


def check_heads(cfg: CN, name) -> None:
    """Raise InputError where the configuration called ``name`` wants of its mask head what that cannot do."""
    head, boundary = cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.BOUNDARY_MASK_HEAD
    for key, wanted, kind, instead in (
        ("MASK_SCORING", cfg.MODEL.MASK_SCORING, JointHead, "MaskScoringHead or BoundaryPreservingHead"),
        ("BOUNDARY_MASK_HEAD.NUM_FUSION_BLOCKS", boundary.NUM_FUSION_BLOCKS > 1, FusionBlocksHead, "FusionBlocksHead"),
        ("BOUNDARY_MASK_HEAD.REFINE_MASKS", boundary.REFINE_MASKS, RefinedMasksHead, "RefinedMasksHead"),
    ):
        if wanted and not issubclass(_class_of(head), kind):
            raise InputError(
                f"MODEL.{key} of the configuration {name} has no effect on the mask head {head}; take {instead}, or "
                "leave it off"
            )


def predicts_boundaries(cfg: CN) -> bool:
    """Whether the model can be asked for the boundaries that it has learned (``OUTPUT_BOUNDARIES``)."""
    kind, supervision = _class_of(cfg.MODEL.ROI_MASK_HEAD.NAME), cfg.MODEL.BOUNDARY_MASK_HEAD.SUPERVISION
    return issubclass(kind, SobelMaskHead) or issubclass(kind, BoundaryPreservingHead) and supervision == "boundary"


def _class_of(head: str) -> type:
    return ROI_MASK_HEAD_REGISTRY.get(head) if head in ROI_MASK_HEAD_REGISTRY else object


def from_text(text: str, name: str = "a record") -> CN:
    """The model's configuration in the YAML of a record called ``name``, not frozen. No code in it is run.

    Raises:
        InputError: it is no such text.
    """
    cfg = default_config()
    try:
        given = CN.load_cfg(text)
        given.pop("STUDY", None)  # data and schedule, which a model does not have
        cfg.merge_from_other_cfg(given)
        head, switches = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.BOUNDARY_MASK_HEAD
        if head.NAME == "BoundaryPreservingHead":  # had these heads as switches: in records of before
            head.NAME = "FusionBlocksHead" if switches.NUM_FUSION_BLOCKS > 1 else head.NAME
            head.NAME = "RefinedMasksHead" if switches.REFINE_MASKS else head.NAME
    except UNFIT as error:
        raise InputError(f"the configuration in {name} cannot be read ({one_line(error)}); give another") from error
    return cfg
