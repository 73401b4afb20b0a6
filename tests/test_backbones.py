import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone

from bmask.backbones import HRNetFPN, build_hrnetv2p_backbone
from bmask.study import config


@pytest.fixture(scope="module")
def w32():
    return HRNetFPN("hrnet_w32", 256)


def test_hrnetv2_w32_has_the_papers_size(w32):
    """28.5 M in HRNet's work on poses, which leaves out the last fusion of the lower resolutions."""
    body = sum(p.numel() for p in w32.body.parameters())
    unused = sum(p.numel() for layers in w32.body.stage4[-1].fuse_layers[1:] for p in layers.parameters())
    assert (body - unused) / 1e6 == pytest.approx(28.5, abs=0.05)
    # 1x1 from 32 + 64 + 128 + 256 channels, and five 3x3, with biases
    pyramid = (480 + 1) * 256 + 5 * (9 * 256 + 1) * 256
    assert sum(p.numel() for p in w32.parameters()) == body + pyramid


def test_levels_have_strides_4_to_64(w32):
    shapes = w32.output_shape()
    with torch.no_grad():
        maps = w32.eval()(torch.zeros(1, 3, 96, 160))
    assert list(maps) == list(shapes) == ["p2", "p3", "p4", "p5", "p6"]
    for name, x in maps.items():
        stride = shapes[name].stride
        assert x.shape == (1, 256, -(-96 // stride), -(-160 // stride))


def test_the_pyramid_starts_with_a_variance_of_one_over_the_fan_in(w32):
    for layer in (w32.reduce, *w32.outputs):
        assert layer.weight.var().item() * layer.weight[0].numel() == pytest.approx(1, rel=0.02)
        assert not layer.bias.any()


def test_its_levels_start_as_large_as_those_of_resnet():
    sizes = []
    for variant in ("mask_rcnn_800", "mask_rcnn_800_hrnet"):
        torch.manual_seed(0)
        backbone = build_backbone(config.resolve(variant, "cpu"))
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1)))
        sizes.append({level: x.std().item() for level, x in maps.items()})
    resnet, hrnet = sizes
    assert list(hrnet) == list(resnet) == ["p2", "p3", "p4", "p5", "p6"]
    assert all(0.5 < hrnet[level] / resnet[level] < 2 for level in hrnet)


@pytest.mark.parametrize("profile,frozen", [("paper", True), ("cpu", False)])
def test_batchnorm_is_frozen_where_the_profile_freezes_it(profile, frozen):
    cfg = config.resolve("mask_rcnn_800_hrnet", profile).clone()
    cfg.defrost()
    assert cfg.MODEL.HRNET.PRETRAINED == frozen  # ImageNet weights where the ResNets have them
    cfg.MODEL.HRNET.PRETRAINED = False
    backbone = build_hrnetv2p_backbone(cfg, ShapeSpec(channels=3))
    kinds = {type(m) for m in backbone.modules() if "BatchNorm" in type(m).__name__}
    assert (kinds == {FrozenBatchNorm2d}) == frozen
