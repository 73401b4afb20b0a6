"""Every variant as a whole model, at the smallest size."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from bmask.study import config

BOXES = {"loss_rpn_cls", "loss_rpn_loc"}
STANDARD = BOXES | {"loss_cls", "loss_box_reg"}
CASCADE = BOXES | {f"{loss}_stage{k}" for loss in ("loss_cls", "loss_box_reg") for k in range(3)}


def build(variant, **changes):
    cfg = config.resolve(variant, "smoke").clone()
    cfg.defrost()
    cfg.merge_from_list([x for item in {"MODEL.DEVICE": "cpu", **changes}.items() for x in item])
    seed_all_rng(0)
    return build_model(cfg), cfg


def image(objects):
    x = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "height": 64, "width": 64}
    x["instances"] = Instances((64, 64))
    x["instances"].gt_boxes = Boxes(torch.tensor([[8.0, 8, 40, 40], [20, 30, 60, 60]])[:objects])
    x["instances"].gt_classes = torch.tensor([1, 3])[:objects]
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 30:60, 20:60] = True
    x["instances"].gt_masks = BitMasks(masks[:objects])
    return x


def loss_names(variant):
    """The terms of the total loss (Eq. 4), by what the variant is."""
    names = set(CASCADE if variant.startswith("cascade") else STANDARD) | {"loss_mask"}
    if ("bmask" in variant or "sobel" in variant) and "no_supervision" not in variant:
        names.add("loss_boundary")
    if "scoring" in variant:
        names.add("loss_mask_iou")
    if "pointrend" in variant:
        names.add("loss_mask_point")
    return names


@pytest.mark.parametrize("variant", config.available("variant"))
def test_every_system_trains_and_detects(variant):
    model, cfg = build(variant, **{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0})
    # Images with objects, and without any. detectron2's PointRend does not take a batch without a single one.
    for objects in ([2, 1], [1, 0] if variant == "pointrend_800" else [0, 0]):
        with EventStorage():
            losses = model([image(n) for n in objects])
        assert set(losses) == loss_names(variant)
        assert all(torch.isfinite(x) for x in losses.values())
        sum(losses.values()).backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    with torch.no_grad():
        found = model.eval()([image(0)])[0]["instances"]
        assert len(found) and found.pred_masks.shape == (len(found), 64, 64)
        assert found.has("mask_scores") == ("scoring" in variant)
        nothing = Instances((64, 64))
        nothing.pred_boxes, nothing.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
        nothing.pred_classes = torch.zeros(0, dtype=torch.long)
        assert len(model.inference([image(0)], [nothing])[0]["instances"].pred_masks) == 0


@pytest.mark.parametrize("variant", config.available("variant"))
def test_a_configuration_that_is_written_and_read_is_the_same_run(variant):
    cfg = config.resolve(variant, "cpu")
    assert config.identity(CfgNode.load_cfg(cfg.dump())) == config.identity(cfg)


def test_cascade_and_standard_roi_heads_give_the_head_the_same_state_dict():
    heads = [build(v)[0].roi_heads.mask_head for v in ("bmask_rcnn_release", "cascade_bmask_rcnn_release")]
    assert type(heads[0]) is type(heads[1])
    shapes = [{name: x.shape for name, x in head.state_dict().items()} for head in heads]
    assert shapes[0] == shapes[1]


def test_mask_scoring_ranks_masks_and_leaves_boxes_alone():
    model, _ = build("mask_scoring_rcnn_800", **{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0})
    plain, _ = build("mask_rcnn_800", **{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0})
    plain.load_state_dict(model.state_dict(), strict=False)
    x = image(0)
    with torch.no_grad():
        scored, unscored = model.eval()([x])[0]["instances"], plain.eval()([x])[0]["instances"]
    assert torch.equal(scored.scores, unscored.scores)
    assert torch.equal(scored.pred_masks, unscored.pred_masks)
    assert not torch.equal(scored.mask_scores, scored.scores)


@pytest.mark.parametrize("variant,changes", [("bmask_rcnn_release", True), ("cascade_bmask_rcnn_release", False)])
def test_the_boxes_that_masks_are_trained_in_are_the_box_heads_but_in_cascades(variant, changes):
    masks = []
    for predicted in (True, False):
        model, _ = build(variant, **{"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": predicted})
        with EventStorage():
            masks.append(model([image(2)])["loss_boundary"])
    assert torch.equal(*masks) != changes
