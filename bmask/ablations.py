"""What the paper tries beside the boundary-preserving head, built on top of it, or of Mask R-CNN's."""

from typing import Optional

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch.nn import functional as F

from .boundary import enclosed, sobel
from .head import BoundaryPreservingHead, fuse
from .joint import JointHead, undecided
from .losses import OPTIONS, check_options
from .mask_scoring import MaskIoUHead, build_mask_iou_head


@ROI_MASK_HEAD_REGISTRY.register()
class FusionBlocksHead(BoundaryPreservingHead):
    """Mask and boundary features fused more than once, both ways (Section 4.2).

    The convolutions stay as many: the boundary branch's are shared out between the blocks, and each further block takes
    one of the mask branch's.
    """

    @configurable
    def __init__(self, input_shape, *, num_fusion_blocks: int = 2, **options):
        """
        Args:
            num_fusion_blocks: how often both are done.
            input_shape, options: see :class:`BoundaryPreservingHead`.

        Raises:
            ValueError: the convolutions do not share out between the blocks.
        """
        self.num_fusion_blocks = num_fusion_blocks
        super().__init__(input_shape, **options)

    @classmethod
    def from_config(cls, cfg, input_shape):
        blocks = cfg.MODEL.BOUNDARY_MASK_HEAD.NUM_FUSION_BLOCKS
        return {**super().from_config(cfg, input_shape), "num_fusion_blocks": blocks}

    def _add_fusion(self, conv, m2b_fusion, b2m_fusion, num_boundary_conv):
        blocks, num_mask_conv = self.num_fusion_blocks, len(self.mask_fcns)
        if num_boundary_conv % blocks or num_mask_conv < blocks:
            raise ValueError(
                f"{num_mask_conv} convolutions of the mask branch and {num_boundary_conv} of the boundary branch "
                f"do not share out between {blocks} fusion blocks"
            )
        self.blocks, share = [], num_boundary_conv // blocks
        for k in range(blocks):
            suffix, last = str(k + 1) if k else "", num_mask_conv - blocks + k + 1
            m2b = self._named(f"mask_to_boundary{suffix}", conv(kernel_size=1)) if m2b_fusion else None
            fcns = [self._named(f"boundary_fcn{k * share + j + 1}", conv()) for j in range(share)]
            b2m = self._named(f"boundary_to_mask{suffix}", conv(kernel_size=1)) if b2m_fusion else None
            self.blocks.append((self.mask_fcns[last - 1 if k else 0 : last], m2b, fcns, b2m))

    def layers(self, mask, boundary, with_boundary=True):
        with_boundary |= self.blocks[0][-1] is not None
        boundary = self.downsample(boundary) if with_boundary else None
        for mask_fcns, *fusion in self.blocks:
            for layer in mask_fcns:
                mask = layer(mask)
            if with_boundary:
                mask, boundary = fuse(mask, boundary, *fusion)
        return self.mask_final_fusion(mask), boundary


@ROI_MASK_HEAD_REGISTRY.register()
class RefinedMasksHead(BoundaryPreservingHead):
    """At inference each mask is averaged with what its boundary encloses (Section 4.5)."""

    @configurable
    def __init__(self, input_shape, **options):
        super().__init__(input_shape, **{**options, "output_boundaries": True})

    def forward(self, features, instances):
        found = super().forward(features, instances)
        if not self.training:
            for x in found:
                x.pred_masks = (x.pred_masks + enclosed(x.pred_boundaries[:, 0])[:, None]) / 2
        return found


@ROI_MASK_HEAD_REGISTRY.register()
class MaskScoringHead(JointHead, MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head, with a MaskIoU head beside it in Mask Scoring R-CNN (Table 2)."""

    loss_options = {}

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
        scoring = build_mask_iou_head(cfg, input_shape.channels)
        return {**super().from_config(cfg, input_shape), "mask_iou_head": scoring}

    def layers(self, x):
        # detectron2's head is a Sequential of all its modules: here there are others as well.
        for layer in (*self.conv_norm_relus, self.deconv, self.deconv_relu, self.predictor):
            x = layer(x)
        return x

    def forward(self, x, instances):
        """RoI features (R, C, M, M), and the instances of each image; see :meth:`JointHead.outputs`."""
        classes = torch.cat([i.gt_classes if self.training else i.pred_classes for i in instances])
        logits = self.layers(x)
        chosen = 0 if logits.shape[1] == 1 else classes
        mask = logits[torch.arange(len(classes), device=classes.device), chosen]
        return self.outputs(x, mask, self.predict_boundary(mask), classes, instances)

    def predict_boundary(self, mask_logits: torch.Tensor) -> Optional[torch.Tensor]:
        """The logits (R, 2M, 2M) of the boundary, from the mask's, in a head that has some."""


@ROI_MASK_HEAD_REGISTRY.register()
class SobelMaskHead(MaskScoringHead):
    """Mask R-CNN's head whose predicted mask has to have the right boundary (Section 4.4, Fig. 7b).

    The Sobel operator finds the mask's edges in x and y, and two 3x3 convolutions make the boundary from them.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        boundary_conv_dim: int = 16,
        loss: str = "dice_bce",
        loss_weight: float = 1.0,
        bce_weight: float = 1.0,
        dice_squared: bool = True,
        threshold: float = 0.0,
        output_boundaries: bool = False,
        **options,
    ):
        """
        Args:
            boundary_conv_dim: channels between the two convolutions; the paper does not say.
            loss, loss_weight, bce_weight, dice_squared, threshold, output_boundaries: see
                :class:`BoundaryPreservingHead`.
            input_shape, options: see :class:`MaskScoringHead`.
        """
        super().__init__(input_shape, **options)
        check_options("boundary", loss)
        self.output_boundaries = output_boundaries
        self.loss_options = dict(kind=loss, weight=loss_weight, threshold=threshold)
        self.loss_options |= dict(bce_weight=bce_weight, dice_squared=dice_squared)
        self.boundary_fcn1 = Conv2d(2, boundary_conv_dim, kernel_size=3, padding=1, activation=F.relu)
        self.boundary_fcn2 = Conv2d(boundary_conv_dim, 1, kernel_size=3, padding=1)
        weight_init.c2_msra_fill(self.boundary_fcn1)
        undecided(self.boundary_fcn2)

    @classmethod
    def from_config(cls, cfg, input_shape):
        boundary = cfg.MODEL.BOUNDARY_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            **{name: boundary[name.upper()] for name in OPTIONS if name != "supervision"},
            "boundary_conv_dim": cfg.MODEL.SOBEL_MASK_HEAD.CONV_DIM,
        }

    def predict_boundary(self, mask_logits: torch.Tensor) -> Optional[torch.Tensor]:
        if self.training or self.output_boundaries:
            return self.boundary_fcn2(self.boundary_fcn1(sobel(mask_logits.sigmoid())))[:, 0]
