"""The mask heads: boundary-preserving (Section 3.2, Fig. 4), Sobel (Section 4.4, Fig. 7b), and Mask R-CNN's own.

They are detectron2 mask heads and need no RoI heads of their own: with an empty ``MODEL.ROI_MASK_HEAD.POOLER_TYPE``
detectron2's standard and cascade RoI heads hand a mask head the whole dict of feature maps, and the
boundary-preserving head pools what it needs from it. The RoI heads here only read the released configurations.
"""

from abc import abstractmethod
from typing import Dict, List, Optional, Sequence, Tuple

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from .boundary import boundary_targets, enclosed, sobel
from .losses import BOUNDARY_LOSSES, bce_loss, boundary_loss
from .mask_scoring import (
    MaskIoUHead,
    build_mask_iou_head,
    instance_areas,
    mask_iou_loss,
    mask_iou_targets,
)

SUPERVISIONS = ("boundary", "mask", "none")


class JointHead:
    """What the heads have in common: losses in training, fields of the instances at inference.

    In the shapes below R is the number of RoIs of all images of a batch, C the number of channels of the
    feature maps, M the side of the mask RoI features (14) and B that of the boundary RoI features (28).

    A head sets the attributes ``supervision``, ``threshold``, ``loss_options``, ``output_boundaries``,
    ``refine_masks`` and ``mask_iou_head``, and predicts.
    """

    @abstractmethod
    def predict(self, features, boxes: List[Boxes], classes: torch.Tensor, with_boundary: bool):
        """
        Args:
            features: what detectron2's RoI heads hand over.
            boxes: N ``Boxes``, R of them together.
            classes: (R,), the class of each RoI.
            with_boundary: whether the boundary is asked for.

        Returns:
            The RoI features R_m (R, C, M, M), and the logits (R, 2M, 2M) of mask and boundary; None for a boundary
            that was not asked for or is not learned.
        """

    def forward(self, features, instances: List[Instances]):
        """
        Args:
            features: feature maps (N, C, H, W) of N images by name, or with a ``POOLER_TYPE`` the RoI features R_m.
            instances: N ``Instances``. In training the foreground proposals, with ``proposal_boxes``,
                ``gt_classes`` and ``gt_masks``; at inference the detections, with ``pred_boxes``,
                ``pred_classes`` and, for mask scoring, ``scores``.

        Returns:
            In training a dict with ``loss_mask`` and, where the boundary branch is supervised,
            ``loss_boundary`` (L_mask and L_b of Eq. 4); with mask scoring ``loss_mask_iou`` as well. At inference
            ``instances``, with ``pred_masks`` (R_n, 1, 2M, 2M) in [0, 1] added to each; if asked for
            ``pred_boundaries`` alike; with mask scoring ``mask_scores`` (R_n,).
        """
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        classes = torch.cat([x.gt_classes if self.training else x.pred_classes for x in instances])
        roi_features, mask_logits, boundary_logits = self.predict(
            features, boxes, classes, self.training or self.output_boundaries or self.refine_masks
        )
        ious = None
        if self.mask_iou_head is not None:
            ious = self.mask_iou_head(roi_features, mask_logits, classes)
        if self.training:
            return self._losses(mask_logits, boundary_logits, ious, instances)
        fields = {"pred_masks": mask_logits[:, None].sigmoid()}
        if self.output_boundaries:
            fields["pred_boundaries"] = boundary_logits[:, None].sigmoid()
        if self.refine_masks:
            fields["pred_masks"] = (fields["pred_masks"] + enclosed(boundary_logits.sigmoid())[:, None]) / 2
        if ious is not None:
            fields["mask_scores"] = torch.cat([x.scores for x in instances]) * ious
        for name, values in fields.items():
            for x, value in zip(instances, values.split([len(x) for x in instances])):
                x.set(name, value)
        return instances

    def _losses(self, mask_logits, boundary_logits, ious, instances):
        side = mask_logits.shape[-1]
        masks = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side) for x in instances if len(x)]
        masks = torch.cat(masks).float() if masks else torch.zeros_like(mask_logits, dtype=torch.float32)
        losses = {"loss_mask": bce_loss(mask_logits.float(), masks)}
        if boundary_logits is not None:
            targets = masks if self.supervision == "mask" else boundary_targets(masks, self.threshold)
            losses["loss_boundary"] = boundary_loss(boundary_logits.float(), targets, **self.loss_options)
        if ious is not None:
            iou_targets = mask_iou_targets(mask_logits, masks, instance_areas(instances, side))
            losses["loss_mask_iou"] = mask_iou_loss(ious.float(), iou_targets)
        return losses


@ROI_MASK_HEAD_REGISTRY.register()
class MaskScoringHead(JointHead, MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head with a MaskIoU head beside it: Mask Scoring R-CNN (Huang et al., CVPR 2019)."""

    supervision, output_boundaries, refine_masks = "none", False, False

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, mask_iou_head: Optional[MaskIoUHead] = None, **options):
        """
        Args:
            input_shape: shape of the RoI features.
            mask_iou_head: see :mod:`bmask.mask_scoring`.
            options: see detectron2's ``MaskRCNNConvUpsampleHead``.
        """
        super().__init__(input_shape, **options)
        self.mask_iou_head = mask_iou_head

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            **super().from_config(cfg, input_shape),
            "mask_iou_head": build_mask_iou_head(cfg, input_shape.channels),
        }

    def layers(self, x):
        # detectron2's head is a Sequential of all its modules: here there are others as well.
        for layer in (*self.conv_norm_relus, self.deconv, self.deconv_relu, self.predictor):
            x = layer(x)
        return x

    def predict(self, features, boxes, classes, with_boundary):
        logits = self.layers(features)
        if logits.shape[1] == 1:
            return features, logits[:, 0], None
        return features, logits[torch.arange(len(classes), device=classes.device), classes], None


@ROI_MASK_HEAD_REGISTRY.register()
class SobelMaskHead(MaskScoringHead):
    """Mask R-CNN's head whose predicted mask has to have the right boundary (Section 4.4, Fig. 7b).

    The Sobel operator finds the mask's edges in x and y, and two 3x3 convolutions make the boundary from them.
    """

    supervision = "boundary"

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        boundary_conv_dim: int = 16,
        loss: str = "dice_bce",
        bce_weight: float = 1.0,
        dice_squared: bool = True,
        threshold: float = 0.0,
        output_boundaries: bool = False,
        **options,
    ):
        """
        Args:
            boundary_conv_dim: channels between the two convolutions; the paper does not say.
            loss, bce_weight, dice_squared, threshold, output_boundaries: see :class:`BoundaryPreservingHead`.
            input_shape, options: see :class:`MaskScoringHead`.
        """
        super().__init__(input_shape, **options)
        _one_of("loss", loss, BOUNDARY_LOSSES)
        self.threshold, self.output_boundaries = threshold, output_boundaries
        self.loss_options = dict(kind=loss, bce_weight=bce_weight, dice_squared=dice_squared)
        self.boundary_fcn1 = Conv2d(2, boundary_conv_dim, kernel_size=3, padding=1, activation=F.relu)
        self.boundary_fcn2 = Conv2d(boundary_conv_dim, 1, kernel_size=3, padding=1)
        weight_init.c2_msra_fill(self.boundary_fcn1)
        _init_predictor(self.boundary_fcn2)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            **super().from_config(cfg, input_shape),
            **_boundary_options(cfg),
            "boundary_conv_dim": cfg.MODEL.SOBEL_MASK_HEAD.CONV_DIM,
        }

    def predict(self, features, boxes, classes, with_boundary):
        features, mask_logits, _ = super().predict(features, boxes, classes, with_boundary)
        if not with_boundary:
            return features, mask_logits, None
        return (
            features,
            mask_logits,
            self.boundary_fcn2(self.boundary_fcn1(sobel(mask_logits.sigmoid())))[:, 0],
        )


@ROI_MASK_HEAD_REGISTRY.register()
class BoundaryPreservingHead(JointHead, nn.Module):
    """Learns the mask and the boundary of each instance together."""

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        mask_in_features: Sequence[str] = ("p2", "p3", "p4", "p5"),
        boundary_in_features: Sequence[str] = ("p2",),
        mask_resolution: int = 14,
        boundary_resolution: int = 28,
        pooler_type: str = "ROIAlignV2",
        sampling_ratio: int = 0,
        conv_dim: int = 256,
        num_mask_conv: int = 4,
        num_boundary_conv: int = 2,
        num_fusion_blocks: int = 1,
        norm: str = "",
        m2b_fusion: bool = True,
        b2m_fusion: bool = True,
        supervision: str = "boundary",
        loss: str = "dice_bce",
        bce_weight: float = 1.0,
        dice_squared: bool = True,
        threshold: float = 0.0,
        output_boundaries: bool = False,
        refine_masks: bool = False,
        mask_iou_head: Optional[MaskIoUHead] = None,
    ):
        """
        Args:
            input_shape: shape of each feature map, by name.
            num_classes: number of masks and boundaries predicted for each RoI; 1 is class-agnostic.
            mask_in_features, boundary_in_features: feature maps that R_m and R_b are pooled from; of several,
                each RoI is pooled from the one that fits its scale (Table 5, "P2 ~ P5").
            mask_resolution, boundary_resolution: M and B; B is a multiple of M.
            pooler_type, sampling_ratio: RoIAlign's, see detectron2's ``ROIPooler``.
            conv_dim, num_mask_conv, num_boundary_conv, norm: width, depth and normalisation of the branches.
            num_fusion_blocks: how often mask and boundary features are fused, both ways (Section 4.2). The
                convolutions stay as many: the boundary branch's are shared out between the blocks, and each
                further block takes one of the mask branch's.
            m2b_fusion, b2m_fusion: the fusion blocks (Eq. 1, Table 6).
            supervision: what the boundary branch learns: ``boundary``, ``mask`` or ``none`` (Table 4).
            loss, bce_weight, dice_squared: see :func:`bmask.losses.boundary_loss` (Eqs. 2 and 3, Table 7).
            threshold: see :func:`bmask.boundary.boundary_targets`.
            output_boundaries: add ``pred_boundaries`` to the instances at inference.
            refine_masks: at inference, average each mask with what its boundary encloses (Section 4.5); see
                :func:`bmask.boundary.enclosed`.
            mask_iou_head: see :mod:`bmask.mask_scoring`.

        Raises:
            ValueError: a switch has an unknown value, or the switches leave the boundary branch unused.
        """
        super().__init__()
        _one_of("supervision", supervision, SUPERVISIONS)
        _one_of("loss", loss, BOUNDARY_LOSSES)
        if boundary_resolution % mask_resolution:
            raise ValueError(
                f"the boundary RoI resolution {boundary_resolution} is no multiple of the mask's {mask_resolution}"
            )
        if supervision == "none" and not b2m_fusion:
            raise ValueError(
                "without boundary supervision and without B2M fusion nothing uses the boundary branch: switch one on"
            )
        if supervision != "boundary" and (output_boundaries or refine_masks):
            raise ValueError(
                "without boundary supervision there are no boundaries to output or to refine masks with"
            )
        if num_boundary_conv % num_fusion_blocks or num_mask_conv < num_fusion_blocks:
            raise ValueError(
                f"{num_mask_conv} convolutions of the mask branch and {num_boundary_conv} of the boundary branch "
                f"do not share out between {num_fusion_blocks} fusion blocks"
            )
        self.class_agnostic = num_classes == 1
        self.mask_in_features, self.boundary_in_features = list(mask_in_features), list(boundary_in_features)
        self.supervision, self.threshold = supervision, threshold
        self.loss_options = dict(kind=loss, bce_weight=bce_weight, dice_squared=dice_squared)
        self.output_boundaries, self.refine_masks = output_boundaries, refine_masks

        def pooler(in_features, resolution):
            scales = [1.0 / input_shape[f].stride for f in in_features]
            return ROIPooler(resolution, scales, sampling_ratio, pooler_type)

        def conv(in_channels, kernel_size=3, stride=1):
            layer = Conv2d(
                in_channels,
                conv_dim,
                kernel_size=kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                bias=not norm,
                norm=get_norm(norm, conv_dim),
                activation=F.relu,
            )
            weight_init.c2_msra_fill(layer)
            return layer

        def deconv():
            layer = ConvTranspose2d(conv_dim, conv_dim, kernel_size=2, stride=2)
            weight_init.c2_msra_fill(layer)
            return layer

        def predictor():
            layer = Conv2d(conv_dim, num_classes, kernel_size=1)
            _init_predictor(layer)
            return layer

        self.mask_pooler = pooler(self.mask_in_features, mask_resolution)
        self.boundary_pooler = pooler(self.boundary_in_features, boundary_resolution)

        # The names of the layers are the released code's, so that its weights load.
        def add(name, layer):
            self.add_module(name, layer)
            return layer

        in_channels = input_shape[self.mask_in_features[0]].channels
        mask_fcns = [
            add(f"mask_fcn{k + 1}", conv(conv_dim if k else in_channels)) for k in range(num_mask_conv)
        ]
        self.downsample = conv(
            input_shape[self.boundary_in_features[0]].channels, stride=boundary_resolution // mask_resolution
        )
        # Of each fusion block: mask convolutions, M2B, boundary convolutions, B2M.
        self.blocks = []
        for k in range(num_fusion_blocks):
            suffix = str(k + 1) if k else ""
            last, share = num_mask_conv - num_fusion_blocks + k + 1, num_boundary_conv // num_fusion_blocks
            m2b = add(f"mask_to_boundary{suffix}", conv(conv_dim, kernel_size=1)) if m2b_fusion else None
            boundary_fcns = [
                add(f"boundary_fcn{j + 1}", conv(conv_dim)) for j in range(k * share, (k + 1) * share)
            ]
            b2m = add(f"boundary_to_mask{suffix}", conv(conv_dim, kernel_size=1)) if b2m_fusion else None
            self.blocks.append((mask_fcns[last - 1 if k else 0 : last], m2b, boundary_fcns, b2m))
        self.b2m_fusion = b2m_fusion
        self.mask_final_fusion = conv(conv_dim)
        self.mask_deconv, self.mask_predictor = deconv(), predictor()
        if supervision != "none":
            self.boundary_deconv, self.boundary_predictor = deconv(), predictor()
        self.mask_iou_head = mask_iou_head

    @classmethod
    def from_config(cls, cfg, input_shape):
        if isinstance(input_shape, ShapeSpec):
            raise ValueError(
                "BoundaryPreservingHead pools its own features: set MODEL.ROI_MASK_HEAD.POOLER_TYPE to ''"
            )
        mask, boundary = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.BOUNDARY_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if mask.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "mask_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "boundary_in_features": boundary.IN_FEATURES,
            "mask_resolution": mask.POOLER_RESOLUTION,
            "boundary_resolution": boundary.POOLER_RESOLUTION,
            "pooler_type": boundary.POOLER_TYPE,
            "sampling_ratio": mask.POOLER_SAMPLING_RATIO,
            "conv_dim": mask.CONV_DIM,
            "num_mask_conv": mask.NUM_CONV,
            "num_boundary_conv": boundary.NUM_CONV,
            "num_fusion_blocks": boundary.NUM_FUSION_BLOCKS,
            "norm": mask.NORM,
            "m2b_fusion": boundary.M2B_FUSION,
            "b2m_fusion": boundary.B2M_FUSION,
            "supervision": boundary.SUPERVISION,
            "refine_masks": boundary.REFINE_MASKS,
            "mask_iou_head": build_mask_iou_head(
                cfg, input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
            ),
            **_boundary_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor], boxes, classes, with_boundary):
        roi_features, boundary = self.pool(features, boxes)
        mask, boundary = self.layers(roi_features, boundary, with_boundary)
        mask_logits = self._predict(mask, self.mask_deconv, self.mask_predictor, classes)
        if self.supervision == "none" or not with_boundary:
            return roi_features, mask_logits, None
        return (
            roi_features,
            mask_logits,
            self._predict(boundary, self.boundary_deconv, self.boundary_predictor, classes),
        )

    def pool(
        self, features: Dict[str, torch.Tensor], boxes: List[Boxes]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """The RoI features R_m (R, C, M, M) and R_b (R, C, B, B)."""
        return (
            self.mask_pooler([features[f] for f in self.mask_in_features], boxes),
            self.boundary_pooler([features[f] for f in self.boundary_in_features], boxes),
        )

    def layers(self, mask: torch.Tensor, boundary: torch.Tensor, with_boundary: bool = True):
        """Everything between RoI features and predictors: what Table 8 counts.

        Args:
            mask, boundary: R_m and R_b, see :meth:`pool`.
            with_boundary: False leaves out the boundary branch where the mask does not depend on it.

        Returns:
            The features of both branches, (R, conv_dim, M, M) each; None for a branch that was left out.
        """
        boundary = self.downsample(boundary) if with_boundary or self.b2m_fusion else None
        for mask_fcns, m2b, boundary_fcns, b2m in self.blocks:
            for layer in mask_fcns:
                mask = layer(mask)
            if boundary is None:
                continue
            if m2b is not None:
                boundary = m2b(mask) + boundary  # Eq. 1
            for layer in boundary_fcns:
                boundary = layer(boundary)
            if b2m is not None:
                mask = b2m(boundary) + mask
        return self.mask_final_fusion(mask), boundary

    def _predict(self, x, deconv, predictor, classes):
        """Logits (R, 2M, 2M) of the class of each RoI; the other classes' maps are never computed."""
        x = F.relu(deconv(x))
        if self.class_agnostic:
            return predictor(x)[:, 0]
        weight, bias = predictor.weight[classes, :, 0, 0], predictor.bias[classes]
        return torch.einsum("rchw,rc->rhw", x, weight) + bias[:, None, None]


class _FeatureMapsForMasks:
    """RoI heads that leave all pooling for masks to the mask head, whatever the configuration says."""

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        cfg = cfg.clone()
        cfg.defrost()
        mask, boundary = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.BOUNDARY_MASK_HEAD
        # The released code has no key of its own for R_b.
        boundary.POOLER_TYPE, mask.POOLER_TYPE = mask.POOLER_TYPE or boundary.POOLER_TYPE, ""
        return super()._init_mask_head(cfg, input_shape)


@ROI_HEADS_REGISTRY.register()
class BoundaryROIHeads(_FeatureMapsForMasks, StandardROIHeads):
    """Standard RoI heads by the name that the released configurations use, with any ``POOLER_TYPE``.

    Losses stay as ``MODEL.BOUNDARY_MASK_HEAD`` has them: the paper's, where it is not told otherwise.
    """


@ROI_HEADS_REGISTRY.register()
class CascadeBoundaryROIHeads(_FeatureMapsForMasks, CascadeROIHeads):
    """Cascade RoI heads alike."""


def _init_predictor(layer: Conv2d) -> None:
    """As detectron2 starts a layer whose outputs are logits: undecided."""
    nn.init.normal_(layer.weight, std=0.001)
    nn.init.zeros_(layer.bias)


def _boundary_options(cfg) -> Dict:
    """What the boundary branches of both heads have in common."""
    boundary = cfg.MODEL.BOUNDARY_MASK_HEAD
    return {
        "loss": boundary.LOSS,
        "bce_weight": boundary.BCE_WEIGHT,
        "dice_squared": boundary.DICE_SQUARED,
        "threshold": boundary.THRESHOLD,
        "output_boundaries": boundary.OUTPUT_BOUNDARIES,
    }


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
