import itertools
from functools import partial

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from bmask import BoundaryPreservingHead, MaskScoringHead, SobelMaskHead, add_bmask_config
from bmask import head as head_module
from bmask.ablations import FusionBlocksHead, RefinedMasksHead
from bmask.boundary import boundary_targets, sobel
from bmask.losses import BOUNDARY_LOSSES, boundary_loss
from bmask.mask_scoring import MaskIoUHead
from bmask.study import config, cost

LEVELS = {f"p{k}": ShapeSpec(channels=8, stride=2**k) for k in (2, 3, 4, 5)}
P2_TO_P5 = tuple(LEVELS)


def make_head(**switches):
    torch.manual_seed(0)
    kind = FusionBlocksHead if "num_fusion_blocks" in switches else BoundaryPreservingHead
    return kind(LEVELS, **{"num_classes": 3, "conv_dim": 8, **switches})


def make_features(images=2, size=64):
    return {name: torch.randn(images, 8, size // s.stride, size // s.stride) for name, s in LEVELS.items()}


def make_proposals(counts, size=64):
    """Foreground proposals as the RoI heads hand them over: one Instances an image."""
    proposals = []
    for count in counts:
        x = Instances((size, size))
        corner = torch.rand(count, 2) * 20
        x.proposal_boxes = Boxes(torch.cat([corner, corner + 20 + torch.rand(count, 2) * 20], dim=1))
        x.gt_classes = torch.randint(0, 3, (count,))
        x.gt_masks = BitMasks(torch.rand(count, size, size) > 0.5)
        proposals.append(x)
    return proposals


def make_detections(counts, size=64):
    detections = []
    for proposals in make_proposals(counts, size):
        x = Instances(proposals.image_size)
        x.pred_boxes, x.pred_classes = proposals.proposal_boxes, proposals.gt_classes
        detections.append(x)
    return detections


FUSIONS = list(itertools.product([True, False], repeat=2))
SWITCHES = [
    *({"m2b_fusion": a, "b2m_fusion": b} for a, b in FUSIONS),
    *({"supervision": s} for s in ("mask", "none")),
    *({"loss": x} for x in BOUNDARY_LOSSES),
    *(
        {"boundary_in_features": f, "boundary_resolution": r}
        for f, r in itertools.product([("p2",), P2_TO_P5], [14, 28])
    ),
    {"dice_squared": False, "threshold": 0.1, "bce_weight": 2.0},
    {"num_classes": 1},
    {"norm": "GN", "conv_dim": 32},
    {"num_mask_conv": 2, "num_boundary_conv": 1},
    *({"num_fusion_blocks": 2, "m2b_fusion": a, "b2m_fusion": b} for a, b in FUSIONS),
]


ROI = ShapeSpec(channels=8, height=14, width=14)


def make_roi_head(kind, **options):
    torch.manual_seed(0)
    return kind(ROI, num_classes=3, conv_dims=[8] * 5, **options)


def scored(make, *arguments):
    """The head with Mask Scoring R-CNN's on top of it."""
    iou_head = MaskIoUHead(in_channels=8, resolution=14, num_classes=3, conv_dim=8, fc_dim=16)
    return make(*arguments, mask_iou_head=iou_head)


MASK, BOTH = {"loss_mask"}, {"loss_mask", "loss_boundary"}
HEADS = {
    **{str(s): (partial(make_head, **s), MASK if s.get("supervision") == "none" else BOTH) for s in SWITCHES},
    "sobel": (lambda: make_roi_head(SobelMaskHead), BOTH),
    "sobel with mask scoring": (lambda: scored(make_roi_head, SobelMaskHead), BOTH | {"loss_mask_iou"}),
    "mask scoring": (lambda: scored(make_roi_head, MaskScoringHead), MASK | {"loss_mask_iou"}),
    "bmask with mask scoring": (lambda: scored(make_head), BOTH | {"loss_mask_iou"}),
}


def inputs_for(head, counts):
    """What detectron2's RoI heads hand over: the feature maps, or the pooled features of the boxes."""
    return make_features() if isinstance(head, BoundaryPreservingHead) else torch.randn(sum(counts), 8, 14, 14)


def test_zeros_beside_the_rois_change_neither_losses_nor_gradients(monkeypatch):
    """Of zeros that fill the RoIs of a GPU up to a multiple."""
    proposals, features, found = make_proposals([3, 2]), make_features(), []
    for more in (0, 3):
        monkeypatch.setattr(head_module, "laid_out", lambda x, _, more=more: F.pad(x, (0,) * 7 + (more,)))
        head = make_head()
        losses = head(features, proposals)
        sum(losses.values()).backward()
        found.append([*losses.values(), *(p.grad for p in head.parameters())])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found))


@pytest.mark.parametrize("build,names", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("counts", [[3, 2], [0, 3], [0, 0]], ids=str)
def test_every_head_trains_all_of_its_parameters_and_predicts_also_without_an_object(build, names, counts):
    head = build()
    losses = head(inputs_for(head, counts), make_proposals(counts))
    assert set(losses) == names and all(torch.isfinite(x) for x in losses.values())
    assert sum(counts) or all(x == 0 for x in losses.values())
    sum(losses.values()).backward()
    # Every parameter has a gradient, or ranks of a distributed job would wait for each other.
    assert [n for n, p in head.named_parameters() if p.grad is None] == []
    detections = make_detections(counts)
    for x in detections:
        x.scores = torch.full((len(x),), 0.5)
    assert head.eval()(inputs_for(head, counts), detections) is detections
    assert [x.pred_masks.shape for x in detections] == [(n, 1, 28, 28) for n in counts]
    assert all(x.has("mask_scores") == ("loss_mask_iou" in names) for x in detections)
    assert not any(x.has("pred_boundaries") for x in detections)


@pytest.mark.parametrize("counts", [[2, 2], [0, 0]], ids=str)
@pytest.mark.parametrize("m2b,b2m", FUSIONS)
def test_boundaries_are_given_on_request_and_do_not_change_the_masks(m2b, b2m, counts):
    quiet, loud = (make_head(m2b_fusion=m2b, b2m_fusion=b2m, output_boundaries=o).eval() for o in (False, True))
    features, detections = make_features(), make_detections(counts)
    masks = [x.pred_masks for x in quiet(features, detections)]
    output = loud(features, detections)
    assert all(torch.equal(a, x.pred_masks) for a, x in zip(masks, output))
    assert [x.pred_boundaries.shape for x in output] == [(n, 1, 28, 28) for n in counts]


@pytest.mark.parametrize("m2b,b2m", FUSIONS)
def test_a_branch_depends_on_the_other_through_its_fusion_alone(m2b, b2m):
    head = make_head(m2b_fusion=m2b, b2m_fusion=b2m)
    rm, rb = torch.randn(2, 8, 14, 14, requires_grad=True), torch.randn(2, 8, 28, 28, requires_grad=True)

    def depends(output, inputs):
        gradient = torch.autograd.grad(output.sum(), inputs, allow_unused=True, retain_graph=True)[0]
        return gradient is not None and bool(gradient.abs().sum() > 0)

    mask, boundary = head.layers(rm, rb)
    assert depends(mask, rm) and depends(boundary, rb)
    assert depends(boundary, rm) == m2b
    assert depends(mask, rb) == b2m


def conv(head, name, x, **options):
    layer = getattr(head, name)
    return torch.nn.functional.conv2d(x, layer.weight, layer.bias, **options).relu()


def test_the_fusion_is_equation_1():
    head = make_head(num_boundary_conv=0, b2m_fusion=False)
    rm, rb = torch.randn(2, 8, 14, 14), torch.randn(2, 8, 28, 28)
    fm = rm
    for k in range(4):
        fm = conv(head, f"mask_fcn{k + 1}", fm, padding=1)
    expected = conv(head, "mask_to_boundary", fm) + conv(head, "downsample", rb, stride=2, padding=1)
    assert torch.allclose(head.layers(rm, rb)[1], expected, atol=1e-6)


def test_only_the_map_of_the_instances_class_is_predicted():
    head = make_head().eval()
    features, detections = make_features(1), make_detections([3])
    mask, _ = head.layers(*head.pool(features, [detections[0].pred_boxes]))
    every_class = head.mask_predictor(torch.relu(head.mask_deconv(mask))).sigmoid()
    expected = every_class[torch.arange(3), detections[0].pred_classes]
    assert torch.allclose(head(features, detections)[0].pred_masks[:, 0], expected, atol=1e-6)


def test_boundary_features_come_from_p2_or_from_the_level_of_the_rois_scale():
    boxes = [Boxes(torch.tensor([[0.0, 0, 60, 60], [0, 0, 230, 230]]))]  # P2 and P4 by scale
    features = {name: torch.full_like(f, k) for k, (name, f) in enumerate(make_features(1, 256).items(), 2)}
    levels = lambda **s: make_head(**s).pool(features, boxes)[1].amax((1, 2, 3)).tolist()  # noqa: E731
    assert levels() == [2, 2]
    assert levels(boundary_in_features=P2_TO_P5) == [2, 4]


def test_the_targets_are_those_of_the_ground_truth(monkeypatch):
    """A head that is certain of the ground truth's mask and boundary has next to no loss."""
    head = make_head(num_classes=1)
    proposals = make_proposals([1])
    x = proposals[0]
    x.proposal_boxes = Boxes(torch.tensor([[8.0, 8, 36, 36]]))  # 28 pixels: one a cell, no resampling
    square = torch.zeros(1, 64, 64, dtype=torch.bool)
    square[:, 14:30, 12:26] = True
    x.gt_masks = BitMasks(square)
    crop = square[:, 8:36, 8:36].float()
    inner = torch.zeros_like(crop)
    inner[:, 7:21, 5:17] = 1
    certain = [40 * (2 * crop - 1), 40 * (2 * (crop - inner) - 1)]
    monkeypatch.setattr(head_module, "predict_class", lambda *_: certain.pop(0))
    losses = head(make_features(1), proposals)
    assert losses["loss_mask"] < 1e-6 and losses["loss_boundary"] < 1e-6


@pytest.mark.parametrize(
    "switches,message",
    [
        ({"supervision": "edges"}, "edges.*boundary, mask, none"),
        ({"loss": "focal"}, "focal.*dice_bce"),
        ({"boundary_resolution": 20}, "20.*14"),
        ({"supervision": "none", "b2m_fusion": False}, "nothing uses the boundary branch"),
        ({"supervision": "none", "output_boundaries": True}, "no boundaries"),
        ({"num_fusion_blocks": 3}, "4 convolutions .* 2 .* 3 fusion blocks"),
    ],
)
def test_impossible_switches_are_one_sentence(switches, message):
    with pytest.raises(ValueError, match=message):
        make_head(**switches)


@pytest.mark.parametrize(
    "variant,paper",
    [("mask_rcnn", 0.46), ("mask_rcnn_larger_head", 0.925), ("bmask_rcnn", 0.95), ("mask_scoring_rcnn_800", 0.46)],
)
def test_multiply_adds_are_those_of_table_8(variant, paper):
    """8 x 256 x 256 x 9 x 14 x 14 is 0.925, which the paper rounds up to 0.93."""
    assert cost.multiply_adds(variant) == pytest.approx(paper, abs=0.005)


def test_a_second_pair_of_fusion_blocks_costs_next_to_nothing():
    one, two = cost.multiply_adds("bmask_rcnn"), cost.multiply_adds("bmask_rcnn_two_fusion_blocks")
    assert two - one == pytest.approx(2 * 256 * 256 * 14 * 14 / 1e9)  # two 1x1 convolutions


def test_layers_have_the_names_of_the_released_weights():
    cfg = get_cfg()
    add_bmask_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "BoundaryPreservingHead"
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    prefix = "roi_heads.mask_head."
    for name in ("StandardROIHeads", "CascadeROIHeads"):
        cfg.MODEL.ROI_HEADS.NAME = name
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = name.startswith("Cascade")
        model = build_model(cfg)
        state = {k[len(prefix) :]: v.shape for k, v in model.state_dict().items() if k.startswith(prefix)}
        layers = [f"mask_fcn{k}" for k in (1, 2, 3, 4)] + ["boundary_fcn1", "boundary_fcn2"]
        layers += ["mask_final_fusion", "downsample", "mask_to_boundary", "boundary_to_mask"]
        layers += ["mask_deconv", "mask_predictor", "boundary_deconv", "boundary_predictor"]
        assert set(state) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
        assert state["boundary_predictor.weight"] == (80, 256, 1, 1)
        assert state["downsample.weight"] == (256, 256, 3, 3)


def test_one_line_of_config_switches_the_head_on():
    cfg = config.resolve("mask_rcnn", "smoke").clone()
    cfg.defrost()
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", "BoundaryPreservingHead", "MODEL.DEVICE", "cpu"])
    with pytest.raises(ValueError, match="POOLER_TYPE"):
        build_model(cfg)
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    image = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 64, "width": 64}
    model = build_model(cfg)
    assert isinstance(model.roi_heads.mask_head, BoundaryPreservingHead)
    image["instances"] = Instances((64, 64))
    image["instances"].gt_boxes = Boxes(torch.tensor([[8.0, 8, 40, 40]]))
    image["instances"].gt_classes = torch.tensor([1])
    image["instances"].gt_masks = BitMasks(torch.ones(1, 64, 64, dtype=torch.bool))
    with EventStorage():
        losses = model([image])
    assert {"loss_mask", "loss_boundary", "loss_cls", "loss_box_reg"} <= set(losses)
    with torch.no_grad():
        assert model.eval()([image])[0]["instances"].pred_masks.shape[1:] == (64, 64)


def test_two_fusion_blocks_alternate_between_the_branches():
    head = make_head(num_fusion_blocks=2)
    rm, rb = torch.randn(2, 8, 14, 14), torch.randn(2, 8, 28, 28)
    mask, boundary = rm, conv(head, "downsample", rb, stride=2, padding=1)
    for k in (1, 2, 3):
        mask = conv(head, f"mask_fcn{k}", mask, padding=1)
    boundary = conv(head, "boundary_fcn1", conv(head, "mask_to_boundary", mask) + boundary, padding=1)
    mask = conv(head, "mask_fcn4", conv(head, "boundary_to_mask", boundary) + mask, padding=1)
    boundary = conv(head, "boundary_fcn2", conv(head, "mask_to_boundary2", mask) + boundary, padding=1)
    mask = conv(head, "mask_final_fusion", conv(head, "boundary_to_mask2", boundary) + mask, padding=1)
    for ours, expected in zip(head.layers(rm, rb), (mask, boundary)):
        assert torch.allclose(ours, expected, atol=1e-6)


def test_refined_masks_are_the_mean_of_mask_and_what_its_boundary_encloses(monkeypatch):
    plain = make_head(output_boundaries=True).eval()
    refining = RefinedMasksHead(LEVELS, num_classes=3, conv_dim=8).eval()
    refining.load_state_dict(plain.state_dict())
    features, detections = make_features(1), make_detections([3])
    ring = torch.full((3, 28, 28), -40.0)
    ring[:, 5, 5:20] = ring[:, 19, 5:20] = ring[:, 5:20, 5] = ring[:, 5:20, 19] = 40.0
    predict, boundary = head_module.predict_class, (plain.boundary_predictor, refining.boundary_predictor)
    monkeypatch.setattr(
        head_module,
        "predict_class",
        lambda x, layer, c: ring if any(layer is b for b in boundary) else predict(x, layer, c),
    )
    masks = plain(features, detections)[0].pred_masks.clone()
    refined = refining(features, detections)[0].pred_masks
    inside = torch.zeros(28, 28)
    inside[5:20, 5:20] = 1
    assert torch.allclose(refined, (masks + inside) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="no boundaries"):
        RefinedMasksHead(LEVELS, num_classes=3, conv_dim=8, supervision="mask")


def test_without_additions_the_head_is_mask_rcnns_to_the_bit():
    ours, theirs = make_roi_head(MaskScoringHead), make_roi_head(MaskRCNNConvUpsampleHead)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    features, proposals = torch.randn(5, 8, 14, 14), make_proposals([3, 2])
    with EventStorage():
        expected = mask_rcnn_loss(theirs.layers(features), proposals)
    assert torch.equal(ours(features, proposals)["loss_mask"], expected)
    detections, copies = make_detections([4, 1]), make_detections([4, 1])
    for a, b in zip(detections, copies):
        b.pred_boxes, b.pred_classes = a.pred_boxes, a.pred_classes
    ours.eval()(features, detections)
    theirs.eval()(features, copies)
    assert all(torch.equal(a.pred_masks, b.pred_masks) for a, b in zip(detections, copies))


def test_the_sobel_heads_boundary_comes_from_the_mask_of_the_instances_class_and_starts_undecided():
    """As masks do: otherwise the first steps would pull at the mask branch for a random boundary."""
    head = make_roi_head(SobelMaskHead, output_boundaries=True).eval()
    (found,) = head(torch.randn(3, 8, 14, 14), make_detections([3]))
    expected = head.boundary_fcn2(head.boundary_fcn1(sobel(found.pred_masks[:, 0]))).sigmoid()
    assert torch.allclose(found.pred_boundaries, expected, atol=1e-6)
    assert (found.pred_boundaries - 0.5).abs().max() < 0.01


def test_the_sobel_heads_loss_is_dice_bce_of_the_boundary_and_reaches_the_mask_branch():
    head = make_roi_head(SobelMaskHead)
    proposals, features = make_proposals([2, 1]), torch.randn(3, 8, 14, 14)
    losses = head(features, proposals)
    logits = head.layers(features)[torch.arange(3), torch.cat([x.gt_classes for x in proposals])]
    masks = torch.cat([x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, 28) for x in proposals]).float()
    boundary = head.boundary_fcn2(head.boundary_fcn1(sobel(logits.sigmoid())))[:, 0]
    assert torch.allclose(losses["loss_boundary"], boundary_loss(boundary, boundary_targets(masks)))
    losses["loss_boundary"].backward()
    assert head.mask_fcn1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("sobel_head", [False, True])
def test_the_boundary_loss_has_a_weight_beside_the_mask_loss(sobel_head):
    def losses(weight):
        torch.manual_seed(0)
        head = make_roi_head(SobelMaskHead, loss_weight=weight) if sobel_head else make_head(loss_weight=weight)
        torch.manual_seed(1)
        return head(torch.randn(3, 8, 14, 14) if sobel_head else make_features(), make_proposals([2, 1]))

    whole, tenth = losses(1.0), losses(0.1)
    assert torch.allclose(tenth["loss_boundary"], 0.1 * whole["loss_boundary"]) and whole["loss_boundary"] > 0
    assert torch.equal(tenth["loss_mask"], whole["loss_mask"])
