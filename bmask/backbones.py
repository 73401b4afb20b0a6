"""timm's networks as detectron2 backbones: any of them under detectron2's FPN, and HRNetV2 with its own pyramid."""

from importlib import resources
from pathlib import Path
from typing import Dict

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn
from torch.nn import functional as F

STAGES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}  # strides, by detectron2's names


class TimmNetwork(Backbone):
    """Feature maps res2 to res5, of strides 4 to 32, from images (N, 3, H, W), by a network of timm that has these."""

    def __init__(self, name: str, weights: str = "", bn_eps: float = 0.0, freeze_at: int = 0, in_channels: int = 3):
        """
        Args:
            name: timm's name of the network, such as ``efficientnet_lite0``.
            weights: see ``MODEL.TIMM.WEIGHTS`` in :func:`bmask.config.add_bmask_config`.
            bn_eps: epsilon of all BatchNorms; 0 for timm's.
            freeze_at: k above 0 freezes all that the feature map of stride 2^k depends on.

        Raises:
            ValueError: the network has no feature map of such a stride, or the weights are another network's.
        """
        import timm  # here, so that everything else works without it

        super().__init__()
        model = dict(model_name=name, in_chans=in_channels, pretrained=weights == "timm")
        self.body = timm.create_model(**model, features_only=True)
        self.strides = self.body.feature_info.reduction()
        if not {*STAGES.values(), 2 ** (freeze_at or 2)} <= {*self.strides}:
            raise ValueError(f"{name} has feature maps of strides {self.strides}: name a network with 4, 8, 16 and 32")
        for layer in self.body.modules():
            if isinstance(layer, nn.BatchNorm2d) and bn_eps:
                layer.eps = bn_eps
        if weights not in ("", "timm"):
            whole = _by_name(read_weights(weights), timm.create_model(name, in_chans=in_channels).state_dict())
            self.body.load_state_dict({key: whole[key] for key in self.body.state_dict()})
        if freeze_at:
            self.body.eval()
            with torch.enable_grad():
                self.body(torch.zeros(1, in_channels, 64, 64))[self.strides.index(2**freeze_at)].sum().backward()
            self.body.train()
            for parameter in self.body.parameters():
                parameter.requires_grad_(parameter.grad is None)
                parameter.grad = None

    def output_shape(self):
        channels = dict(zip(self.strides, self.body.feature_info.channels()))
        return {name: ShapeSpec(channels=channels[stride], stride=stride) for name, stride in STAGES.items()}

    def forward(self, images: torch.Tensor):
        maps = dict(zip(self.strides, self.body(images)))
        return {name: maps[stride] for name, stride in STAGES.items()}


def read_weights(place: str) -> Dict[str, torch.Tensor]:
    """The tensors in a file, or, for ``package:NAME/FILE``, in a file of an installed package."""
    package, _, file = place.removeprefix("package:").partition("/")
    path = resources.files(package) / file if place.startswith("package:") else Path(place)
    return torch.load(path, map_location="cpu", weights_only=True)


def _by_name(weights: Dict[str, torch.Tensor], model: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Weights by the names that a model has; of another library's names the order tells which is which."""
    if weights.keys() != model.keys() and [x.shape for x in weights.values()] == [x.shape for x in model.values()]:
        weights = dict(zip(model, weights.values()))
    if missing := model.keys() - weights.keys():
        raise ValueError(f"the weights lack {len(missing)} of the network's tensors ({min(missing)}, ...)")
    return weights


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The network of ``MODEL.TIMM`` under detectron2's FPN, frozen as ``MODEL.BACKBONE.FREEZE_AT`` says.

    Its BatchNorm is frozen where ``MODEL.RESNETS.NORM`` says so of ResNet's.
    """
    network, fpn = cfg.MODEL.TIMM, cfg.MODEL.FPN
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    bottom_up = TimmNetwork(network.NAME, network.WEIGHTS, network.BN_EPS, frozen, input_shape.channels)
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        from timm.layers.norm_act import freeze_batch_norm_2d

        # timm's, as its BatchNorm may have the activation inside, which detectron2's would lose.
        freeze_batch_norm_2d(bottom_up)
    return FPN(
        bottom_up,
        fpn.IN_FEATURES,
        fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=fpn.FUSE_TYPE,
    )


class HRNetFPN(Backbone):
    """HRNetV2 with the pyramid of its work on detection (Table 1, HRNetV2-W32-FPN; HRNetV2p, Wang et al., 2019).

    The network keeps four resolutions side by side. They are brought to the finest and joined, and the levels p2 to p6,
    of strides 4 to 64, are pooled from the result.
    """

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
