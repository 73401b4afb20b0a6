"""The boundary-preserving mask head (Section 3.2, Fig. 4), as a detectron2 mask head.

It needs no RoI heads of its own: with an empty ``MODEL.ROI_MASK_HEAD.POOLER_TYPE`` detectron2's standard and
cascade RoI heads hand a mask head the whole dict of feature maps, and this one pools what it needs from it.
"""

from typing import Dict, List, Sequence, Tuple

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from .boundary import boundary_targets
from .losses import BOUNDARY_LOSSES, bce_loss, boundary_loss

SUPERVISIONS = ("boundary", "mask", "none")


@ROI_MASK_HEAD_REGISTRY.register()
class BoundaryPreservingHead(nn.Module):
    """Learns the mask and the boundary of each instance together.

    In the shapes below R is the number of RoIs of all images of a batch, C the number of channels of the
    feature maps, M the side of the mask RoI features (14) and B that of the boundary RoI features (28).
    """

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
        norm: str = "",
        m2b_fusion: bool = True,
        b2m_fusion: bool = True,
        supervision: str = "boundary",
        loss: str = "dice_bce",
        bce_weight: float = 1.0,
        dice_squared: bool = True,
        threshold: float = 0.0,
        output_boundaries: bool = False,
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
            m2b_fusion, b2m_fusion: the fusion blocks (Eq. 1, Table 6).
            supervision: what the boundary branch learns: ``boundary``, ``mask`` or ``none`` (Table 4).
            loss, bce_weight, dice_squared: see :func:`bmask.losses.boundary_loss` (Eqs. 2 and 3, Table 7).
            threshold: see :func:`bmask.boundary.boundary_targets`.
            output_boundaries: add ``pred_boundaries`` to the instances at inference.

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
        if supervision == "none" and output_boundaries:
            raise ValueError("without boundary supervision there are no boundaries to output")
        self.class_agnostic = num_classes == 1
        self.mask_in_features, self.boundary_in_features = list(mask_in_features), list(boundary_in_features)
        self.supervision, self.threshold = supervision, threshold
        self.loss_options = dict(kind=loss, bce_weight=bce_weight, dice_squared=dice_squared)
        self.output_boundaries = output_boundaries

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
            nn.init.normal_(layer.weight, std=0.001)
            nn.init.zeros_(layer.bias)
            return layer

        self.mask_pooler = pooler(self.mask_in_features, mask_resolution)
        self.boundary_pooler = pooler(self.boundary_in_features, boundary_resolution)

        # The names of the layers are the released code's, so that its weights load.
        in_channels = input_shape[self.mask_in_features[0]].channels
        self.mask_fcns, self.boundary_fcns = [], []
        for k in range(num_mask_conv):
            self.mask_fcns.append(conv(conv_dim if k else in_channels))
            self.add_module(f"mask_fcn{k + 1}", self.mask_fcns[-1])
        self.downsample = conv(
            input_shape[self.boundary_in_features[0]].channels, stride=boundary_resolution // mask_resolution
        )
        self.mask_to_boundary = conv(conv_dim, kernel_size=1) if m2b_fusion else None
        for k in range(num_boundary_conv):
            self.boundary_fcns.append(conv(conv_dim))
            self.add_module(f"boundary_fcn{k + 1}", self.boundary_fcns[-1])
        self.boundary_to_mask = conv(conv_dim, kernel_size=1) if b2m_fusion else None
        self.mask_final_fusion = conv(conv_dim)
        self.mask_deconv, self.mask_predictor = deconv(), predictor()
        if supervision != "none":
            self.boundary_deconv, self.boundary_predictor = deconv(), predictor()

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
            "norm": mask.NORM,
            "m2b_fusion": boundary.M2B_FUSION,
            "b2m_fusion": boundary.B2M_FUSION,
            "supervision": boundary.SUPERVISION,
            "loss": boundary.LOSS,
            "bce_weight": boundary.BCE_WEIGHT,
            "dice_squared": boundary.DICE_SQUARED,
            "threshold": boundary.THRESHOLD,
            "output_boundaries": boundary.OUTPUT_BOUNDARIES,
        }

    def forward(self, features: Dict[str, torch.Tensor], instances: List[Instances]):
        """
        Args:
            features: feature maps (N, C, H, W) by name, of N images.
            instances: N ``Instances``. In training the foreground proposals, with ``proposal_boxes``,
                ``gt_classes`` and ``gt_masks``; at inference the detections, with ``pred_boxes`` and
                ``pred_classes``.

        Returns:
            In training a dict with ``loss_mask`` and, where the boundary branch is supervised,
            ``loss_boundary`` (L_mask and L_b of Eq. 4). At inference ``instances``, with ``pred_masks``
            (R_n, 1, 2M, 2M) in [0, 1] added to each and, if asked for, ``pred_boundaries`` alike.
        """
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        classes = torch.cat([x.gt_classes if self.training else x.pred_classes for x in instances])
        mask, boundary = self.layers(
            *self.pool(features, boxes), with_boundary=self.training or self.output_boundaries
        )
        mask_logits = self._predict(mask, self.mask_deconv, self.mask_predictor, classes)
        boundary_logits = None
        if self.supervision != "none" and boundary is not None:
            boundary_logits = self._predict(boundary, self.boundary_deconv, self.boundary_predictor, classes)

        if self.training:
            return self._losses(mask_logits, boundary_logits, instances)
        self._add_field(instances, "pred_masks", mask_logits)
        if self.output_boundaries:
            self._add_field(instances, "pred_boundaries", boundary_logits)
        return instances

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
        for layer in self.mask_fcns:
            mask = layer(mask)
        if with_boundary or self.boundary_to_mask is not None:
            boundary = self.downsample(boundary)
            if self.mask_to_boundary is not None:
                boundary = self.mask_to_boundary(mask) + boundary  # Eq. 1
            for layer in self.boundary_fcns:
                boundary = layer(boundary)
        else:
            boundary = None
        if self.boundary_to_mask is not None:
            mask = self.boundary_to_mask(boundary) + mask
        return self.mask_final_fusion(mask), boundary

    def _predict(self, x, deconv, predictor, classes):
        """Logits (R, 2M, 2M) of the class of each RoI; the other classes' maps are never computed."""
        x = F.relu(deconv(x))
        if self.class_agnostic:
            return predictor(x)[:, 0]
        weight, bias = predictor.weight[classes, :, 0, 0], predictor.bias[classes]
        return torch.einsum("rchw,rc->rhw", x, weight) + bias[:, None, None]

    def _losses(self, mask_logits, boundary_logits, instances):
        side = mask_logits.shape[-1]
        masks = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side) for x in instances if len(x)]
        masks = torch.cat(masks).float() if masks else torch.zeros_like(mask_logits, dtype=torch.float32)
        losses = {"loss_mask": bce_loss(mask_logits.float(), masks)}
        if boundary_logits is not None:
            targets = boundary_targets(masks, self.threshold) if self.supervision == "boundary" else masks
            losses["loss_boundary"] = boundary_loss(boundary_logits.float(), targets, **self.loss_options)
        return losses

    @staticmethod
    def _add_field(instances, name, logits):
        for x, y in zip(instances, logits[:, None].sigmoid().split([len(x) for x in instances])):
            x.set(name, y)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
