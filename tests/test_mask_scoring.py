import pytest
import torch
from conftest import complaint
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from bmask import released
from bmask.mask_scoring import MaskIoUHead, instance_areas, mask_iou_loss, mask_iou_targets
from bmask.study import config


def logits(mask):
    return torch.where(mask, 3.0, -3.0)


def square(top, left, side, size=8):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_target_is_the_iou_of_the_mask_that_is_given():
    """Two squares of 16 pixels that share 8: 8 / 24. A perfect mask: 1. Another place: 0."""
    predicted = torch.stack([square(0, 0, 4), square(0, 0, 4), square(4, 4, 4)])
    truth = torch.stack([square(0, 2, 4), square(0, 0, 4), square(0, 0, 4)]).float()
    targets = mask_iou_targets(logits(predicted), truth, truth.sum((1, 2)))
    assert targets.tolist() == pytest.approx([8 / 24, 1, 0])


def test_what_the_roi_cuts_off_counts_as_missed():
    """The RoI shows half of an object of 32 cells, and all of that half is found: 16 / 32."""
    half = square(0, 0, 4)[None]
    assert mask_iou_targets(logits(half), half.float(), torch.tensor([32.0])).tolist() == [0.5]


def test_empty_masks_have_an_iou_of_zero():
    nothing = torch.zeros(1, 8, 8)
    assert mask_iou_targets(nothing - 1, nothing, torch.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
def test_areas_are_in_cells_of_the_roi_and_include_what_lies_outside(kind):
    """An object of 20 x 10 pixels in an RoI of 10 x 10, of which a cell of a 5 x 5 grid is 4 pixels: 50 cells."""
    x = Instances((40, 40))
    x.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10]]))
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, :10, :20] = True
    polygons = [[torch.tensor([0.0, 0, 20, 0, 20, 10, 0, 10]).double().numpy()]]
    x.gt_masks = BitMasks(mask) if kind == "bitmask" else PolygonMasks(polygons)
    assert instance_areas([x], 5).tolist() == [50]


def test_the_loss_is_half_the_squared_error_over_the_masks_that_overlap():
    predicted = torch.tensor([0.5, 0.9, 0.3], requires_grad=True)
    loss = mask_iou_loss(predicted, torch.tensor([0.7, 0.9, 0.0]))
    assert loss.item() == pytest.approx(0.5 * 0.2**2 / 2)
    loss.backward()
    assert predicted.grad[2] == 0
    assert mask_iou_loss(predicted[:0], torch.zeros(0)) == 0
    assert mask_iou_loss(predicted, torch.zeros(3)) == 0


def test_the_head_is_that_of_the_paper():
    """257 channels in, four convolutions to 7x7, two linear layers of 1024, an IoU for each class."""
    head = MaskIoUHead(in_channels=256, resolution=14, num_classes=80, conv_dim=256, fc_dim=1024)
    assert [conv.weight.shape[:2] for conv in head.convs] == [(256, 257)] + [(256, 256)] * 3
    assert [conv.stride for conv in head.convs] == [(1, 1)] * 3 + [(2, 2)]
    assert head.fcs[0].in_features == 256 * 7 * 7 and head.predictor.out_features == 80


def test_it_predicts_the_iou_of_the_instances_class_from_features_and_mask():
    torch.manual_seed(0)
    head = MaskIoUHead(in_channels=4, resolution=6, num_classes=3, conv_dim=8, fc_dim=8)
    features, masks = torch.randn(2, 4, 6, 6), torch.randn(2, 12, 12)
    every = torch.stack([head(features, masks, torch.full((2,), k)) for k in range(3)], dim=1)
    classes = torch.tensor([2, 0])
    assert torch.equal(head(features, masks, classes), every[torch.arange(2), classes])
    assert not torch.equal(head(features, -masks, classes), head(features, masks, classes))


HEADS = {
    "MaskRCNNConvUpsampleHead": False,
    "PointRendMaskHead": False,
    "MaskScoringHead": True,
    "SobelMaskHead": True,
    "BoundaryPreservingHead": True,
}


@pytest.mark.parametrize("head,scores", HEADS.items())
def test_mask_scoring_of_a_head_that_knows_nothing_of_it_is_refused(tmp_path, monkeypatch, head, scores):
    monkeypatch.setattr(config, "OUTPUT", tmp_path)
    (tmp_path / "variants").mkdir()
    path = tmp_path / "variants" / "mine.yaml"
    heads = f"{{MASK_ON: True, MASK_SCORING: True, ROI_MASK_HEAD: {{NAME: {head}}}}}"
    path.write_text(f"VERSION: 2\nMODEL: {heads}\n")
    readers = {"mine": lambda: config.resolve("mine", "cpu"), str(path): lambda: released.read_config(path)}
    for name, read in readers.items():
        if scores:
            assert read().MODEL.MASK_SCORING
        else:
            complaint(read, f"MODEL.MASK_SCORING of the configuration {name}", head, "MaskScoringHead")
