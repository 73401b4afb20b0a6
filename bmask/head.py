"""The boundary-preserving mask head (Section 3.2, Fig. 4): mask and boundary of each instance, learned together.

It is a detectron2 mask head and needs no RoI heads of its own: with an empty ``MODEL.ROI_MASK_HEAD.POOLER_TYPE``
detectron2's standard and cascade RoI heads hand a mask head the whole dict of feature maps.

In the shapes R is the number of RoIs of all N images of a batch, C the number of channels of the feature maps and D of
the head, M the side of the mask's RoI features (14) and B that of the boundary's (28).
"""

from typing import Dict, List, Optional, Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F

from .joint import JointHead, laid_out, predict_class, undecided
from .losses import OPTIONS, check_options
from .mask_scoring import MaskIoUHead, build_mask_iou_head


@ROI_MASK_HEAD_REGISTRY.register()
class BoundaryPreservingHead(JointHead, nn.Module):
    """Mask branch and boundary branch, each fused into the other."""

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
        loss_weight: float = 1.0,
        bce_weight: float = 1.0,
        dice_squared: bool = True,
        threshold: float = 0.0,
        output_boundaries: bool = False,
        mask_iou_head: Optional[MaskIoUHead] = None,
    ):
        """
        Args:
            input_shape: shape of each feature map, by name.
            num_classes: number of masks and boundaries predicted for each RoI; 1 is class-agnostic.
            mask_in_features, boundary_in_features: feature maps that R_m and R_b are pooled from; of several, each RoI
                is pooled from the one that fits its scale (Table 5, "P2 ~ P5").
            mask_resolution, boundary_resolution: M and B; B is a multiple of M.
            pooler_type, sampling_ratio: RoIAlign's, see detectron2's ``ROIPooler``.
            conv_dim, num_mask_conv, num_boundary_conv, norm: width D, depth and normalisation of the branches.
            m2b_fusion, b2m_fusion: the fusion blocks (Eq. 1, Table 6).
            supervision: what the boundary branch learns: ``boundary``, ``mask`` or ``none`` (Table 4).
            loss, bce_weight, dice_squared: see :func:`bmask.losses.boundary_loss` (Eqs. 2 and 3, Table 7).
            loss_weight: of the boundary loss beside the mask loss; 1 in Eq. 4.
            threshold: see :func:`bmask.boundary.boundary_targets`.
            output_boundaries: add ``pred_boundaries`` to the instances at inference.
            mask_iou_head: see :mod:`bmask.mask_scoring`.

        Raises:
            ValueError: a switch has an unknown value, or the switches leave the boundary branch unused.
        """
        super().__init__()
        check_options(supervision, loss)
        if boundary_resolution % mask_resolution:
            raise ValueError(
                f"the boundary's side {boundary_resolution} is no multiple of the mask's {mask_resolution}"
            )
        if supervision == "none" and not b2m_fusion:
            raise ValueError("without supervision and B2M fusion nothing uses the boundary branch: switch one on")
        if supervision != "boundary" and output_boundaries:
            raise ValueError("without boundary supervision there are no boundaries to output or to refine masks with")
        self.mask_in_features, self.boundary_in_features = list(mask_in_features), list(boundary_in_features)
        self.supervision, self.output_boundaries = supervision, output_boundaries
        self.loss_options = dict(supervision=supervision, threshold=threshold, kind=loss, weight=loss_weight)
        self.loss_options |= dict(bce_weight=bce_weight, dice_squared=dice_squared)

        def pooler(in_features, resolution):
            scales = [1.0 / input_shape[f].stride for f in in_features]
            return ROIPooler(resolution, scales, sampling_ratio, pooler_type)

        def conv(in_channels=conv_dim, kernel_size=3, stride=1):
            shape = dict(kernel_size=kernel_size, stride=stride, padding=kernel_size // 2, bias=not norm)
            layer = Conv2d(in_channels, conv_dim, **shape, norm=get_norm(norm, conv_dim), activation=F.relu_)
            weight_init.c2_msra_fill(layer)
            return layer

        def deconv():
            layer = ConvTranspose2d(conv_dim, conv_dim, kernel_size=2, stride=2)
            weight_init.c2_msra_fill(layer)
            return layer

        def predictor():
            return undecided(Conv2d(conv_dim, num_classes, kernel_size=1))

        # The layers in Fig. 4's order, by the names of the released weights.
        # R_m (R, C, M, M) -> F_m (R, D, M, M)
        self.mask_pooler = pooler(mask_in_features, mask_resolution)
        channels = [input_shape[self.mask_in_features[0]].channels, *[conv_dim] * num_mask_conv]
        self.mask_fcns = [self._named(f"mask_fcn{k}", conv(channels[k - 1])) for k in range(1, num_mask_conv + 1)]
        # R_b (R, C, B, B) -> (R, D, M, M)
        self.boundary_pooler = pooler(boundary_in_features, boundary_resolution)
        channels = input_shape[self.boundary_in_features[0]].channels
        self.downsample = conv(channels, stride=boundary_resolution // mask_resolution)
        self._add_fusion(conv, m2b_fusion, b2m_fusion, num_boundary_conv)
        self.mask_final_fusion = conv()
        # The predictors: (R, D, M, M) -> (R, classes, 2M, 2M)
        self.mask_deconv, self.mask_predictor = deconv(), predictor()
        if supervision != "none":
            self.boundary_deconv, self.boundary_predictor = deconv(), predictor()
        self.mask_iou_head = mask_iou_head
        self.to(memory_format=torch.channels_last)  # as laid_out lays out what goes in
        self.multiple = 1 if norm else 64  # a BatchNorm would see what laid_out adds

    def _add_fusion(self, conv, m2b_fusion: bool, b2m_fusion: bool, num_boundary_conv: int) -> None:
        """F_m to the boundary branch, the convolutions that make F_b, and F_b to the mask branch."""
        self.mask_to_boundary = conv(kernel_size=1) if m2b_fusion else None
        self.boundary_fcns = [self._named(f"boundary_fcn{k}", conv()) for k in range(1, num_boundary_conv + 1)]
        self.boundary_to_mask = conv(kernel_size=1) if b2m_fusion else None

    def _named(self, name: str, layer: nn.Module) -> nn.Module:
        self.add_module(name, layer)
        return layer

    @classmethod
    def from_config(cls, cfg, input_shape):
        if isinstance(input_shape, ShapeSpec):
            raise ValueError(f"{cls.__name__} pools its own features: set MODEL.ROI_MASK_HEAD.POOLER_TYPE to ''")
        rois, mask, boundary = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.BOUNDARY_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if mask.CLS_AGNOSTIC_MASK else rois.NUM_CLASSES,
            "mask_in_features": rois.IN_FEATURES,
            "boundary_in_features": boundary.IN_FEATURES,
            "mask_resolution": mask.POOLER_RESOLUTION,
            "boundary_resolution": boundary.POOLER_RESOLUTION,
            "sampling_ratio": mask.POOLER_SAMPLING_RATIO,
            "conv_dim": mask.CONV_DIM,
            "num_mask_conv": mask.NUM_CONV,
            "num_boundary_conv": boundary.NUM_CONV,
            "norm": mask.NORM,
            "mask_iou_head": build_mask_iou_head(cfg, input_shape[rois.IN_FEATURES[0]].channels),
            **{name: boundary[name.upper()] for name in ("pooler_type", "m2b_fusion", "b2m_fusion", *OPTIONS)},
        }

    def forward(self, features: Dict[str, torch.Tensor], instances: List[Instances]):
        """Feature maps (N, C, H, W) by name, and the instances of each image; see :meth:`JointHead.outputs`."""
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        classes = torch.cat([x.gt_classes if self.training else x.pred_classes for x in instances])
        r_m, r_b = self.pool(features, boxes)
        with_boundary = self.supervision != "none" and (self.training or self.output_boundaries)
        f_m, f_b = self.layers(laid_out(r_m, self.multiple), laid_out(r_b, self.multiple), with_boundary)
        mask, boundary = predict_class(F.relu_(self.mask_deconv(f_m)), self.mask_predictor, classes), None
        if with_boundary:
            boundary = predict_class(F.relu_(self.boundary_deconv(f_b)), self.boundary_predictor, classes)
        return self.outputs(r_m, mask, boundary, classes, instances)

    def pool(self, features, boxes):
        """The RoI features R_m (R, C, M, M) and R_b (R, C, B, B) of N ``Boxes``, R together."""
        r_m = self.mask_pooler([features[f] for f in self.mask_in_features], boxes)
        return r_m, self.boundary_pooler([features[f] for f in self.boundary_in_features], boxes)

    def layers(self, mask: torch.Tensor, boundary: torch.Tensor, with_boundary: bool = True):
        """From R_m and R_b to what the predictors see of both branches, (R, D, M, M): what Table 8 counts.

        Without ``with_boundary`` the second is not to be used: it is computed only where the mask depends on it.
        """
        for layer in self.mask_fcns:
            mask = layer(mask)
        if with_boundary or self.boundary_to_mask is not None:
            boundary = self.downsample(boundary)
            mask, boundary = fuse(mask, boundary, self.mask_to_boundary, self.boundary_fcns, self.boundary_to_mask)
        return self.mask_final_fusion(mask), boundary


def fuse(mask: torch.Tensor, boundary: torch.Tensor, m2b, boundary_fcns, b2m):
    """A fusion block on the features of both branches, (R, D, M, M): M2B, convolutions, B2M; None for one left out."""
    if m2b is not None:
        boundary = m2b(mask) + boundary  # Eq. 1
    for layer in boundary_fcns:
        boundary = layer(boundary)
    if b2m is not None:
        mask = b2m(boundary) + mask
    return mask, boundary
