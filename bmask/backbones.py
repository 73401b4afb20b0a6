"""HRNetV2 with its feature pyramid, as a detectron2 backbone (Table 1, HRNetV2-W32-FPN).

The network is timm's. It keeps four resolutions side by side; the pyramid of HRNet's work on detection (HRNetV2p,
Wang et al., 2019) brings them to the finest, joins them, and pools the levels from the result.
"""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F


class HRNetFPN(Backbone):
    """Feature maps p2 to p6, of strides 4 to 64, from images (N, 3, H, W)."""

    def __init__(self, name: str, out_channels: int, pretrained: bool = False, in_channels: int = 3):
        """
        Args:
            name: timm's name of the network, such as ``hrnet_w32``.
            out_channels: channels of every level.
            pretrained: start from timm's ImageNet weights (downloaded).
        """
        import timm  # here, so that everything else works without it

        super().__init__()
        self.body = timm.create_model(
            name,
            pretrained,
            features_only=True,
            out_indices=(1, 2, 3, 4),
            feature_location="",  # the four resolutions themselves, without what classification adds
            in_chans=in_channels,
        )
        self.reduce = Conv2d(sum(self.body.feature_info.channels()), out_channels, kernel_size=1)
        self._out_features = ["p2", "p3", "p4", "p5", "p6"]
        self.outputs = nn.ModuleList(
            Conv2d(out_channels, out_channels, kernel_size=3, padding=1) for _ in self._out_features
        )
        # As HRNet's own detection code starts the pyramid, and detectron2 ResNet's. PyTorch's default is a third of the
        # variance, and levels that are as much smaller.
        for layer in (self.reduce, *self.outputs):
            weight_init.c2_xavier_fill(layer)
        self._shapes = {
            level: ShapeSpec(channels=out_channels, stride=2**k) for k, level in enumerate(self._out_features, 2)
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    def output_shape(self):
        return self._shapes

    def forward(self, images: torch.Tensor):
        maps = self.body(images)
        size = maps[0].shape[-2:]
        joined = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps[1:]]
        x = self.reduce(torch.cat([maps[0], *joined], dim=1))
        return {
            level: conv(F.avg_pool2d(x, kernel_size=2**k, ceil_mode=True) if k else x)
            for k, (level, conv) in enumerate(zip(self._out_features, self.outputs))
        }


@BACKBONE_REGISTRY.register()
def build_hrnetv2p_backbone(cfg, input_shape: ShapeSpec) -> HRNetFPN:
    """The backbone of ``MODEL.HRNET``; its BatchNorm is frozen where ``MODEL.RESNETS.NORM`` says so of ResNet's."""
    hrnet = cfg.MODEL.HRNET
    backbone = HRNetFPN(hrnet.NAME, cfg.MODEL.FPN.OUT_CHANNELS, hrnet.PRETRAINED, input_shape.channels)
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        backbone = FrozenBatchNorm2d.convert_frozen_batchnorm(backbone)
    return backbone
