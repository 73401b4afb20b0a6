import math

import pytest
import torch
from torch.autograd import gradcheck

from bmask.losses import BOUNDARY_LOSSES, bce_loss, boundary_loss, dice_loss, weighted_bce_loss


def slow_dice(p, y, squared, eps=1.0):
    """Eq. 3, pixel by pixel."""
    total = 0.0
    for p_map, y_map in zip(p.tolist(), y.tolist()):
        overlap = size = 0.0
        for p_row, y_row in zip(p_map, y_map):
            for a, b in zip(p_row, y_row):
                overlap += a * b
                size += a * a + b * b if squared else a + b
        total += 1 - (2 * overlap + eps) / (size + eps)
    return total / len(p)


def slow_bce(logits, y, weighted):
    """Cross-entropy, pixel by pixel; weighted: each class by the other's share of the instance's pixels."""
    total = 0.0
    for x_map, y_map in zip(logits.flatten(1).tolist(), y.flatten(1).tolist()):
        share = sum(y_map) / len(y_map)
        for x, b in zip(x_map, y_map):
            p = 1 / (1 + math.exp(-x))
            term = -math.log(p) if b else -math.log(1 - p)
            total += term * (((1 - share) if b else share) if weighted else 1)
    return total / y.numel()


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator)
    targets = (torch.rand(3, 5, 6, dtype=torch.float64, generator=generator) > 0.7).double()
    targets[2] = 0  # an instance without boundary
    return logits, targets


def test_dice_matches_equation_3_on_a_hand_worked_case():
    p, y = torch.tensor([[[0.5, 1.0], [0.0, 0.5]]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    # overlap 1.5; squares 1.5 + 2: 1 - (3 + 1) / (3.5 + 1) = 1/9
    assert dice_loss(p, y).item() == pytest.approx(1 / 9)
    # as released, plain sums 2 + 2: 1 - 4 / 5
    assert dice_loss(p, y, squared=False).item() == pytest.approx(1 / 5)


def test_dice_is_zero_for_a_perfect_prediction_and_for_two_empty_maps():
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert dice_loss(y, y).item() == 0


def test_dice_is_a_mean_over_instances_not_over_all_pixels_at_once():
    p, y = torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([[[1.0]], [[1.0]]])
    # 0 for the first, 1 - 1 / 2 for the second
    assert dice_loss(p, y).item() == pytest.approx(0.25)


def test_bce_of_an_undecided_prediction_is_log_2():
    assert bce_loss(torch.zeros(2, 3, 3), torch.eye(3).repeat(2, 1, 1)).item() == pytest.approx(math.log(2))


def test_weighted_bce_matches_a_hand_worked_case():
    # One boundary pixel of four: weight 3/4 for it, 1/4 for each other, all at log 2.
    y = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert weighted_bce_loss(torch.zeros(1, 2, 2), y).item() == pytest.approx(math.log(2) * (3 / 4 + 3 / 4) / 4)


def test_losses_match_slow_reference_code(maps):
    logits, y = maps
    p = logits.sigmoid()
    assert dice_loss(p, y).item() == pytest.approx(slow_dice(p, y, True), abs=1e-12)
    assert dice_loss(p, y, squared=False).item() == pytest.approx(slow_dice(p, y, False), abs=1e-12)
    assert bce_loss(logits, y).item() == pytest.approx(slow_bce(logits, y, False), abs=1e-12)
    assert weighted_bce_loss(logits, y).item() == pytest.approx(slow_bce(logits, y, True), abs=1e-12)


def test_dice_bce_is_dice_plus_lambda_times_bce(maps):
    logits, y = maps
    expected = slow_dice(logits.sigmoid(), y, True) + 0.3 * slow_bce(logits, y, False)
    assert boundary_loss(logits, y, "dice_bce", bce_weight=0.3).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("kind", BOUNDARY_LOSSES)
def test_gradients_are_those_of_finite_differences(maps, kind, squared):
    logits, y = maps
    loss = lambda x: boundary_loss(x, y, kind, bce_weight=0.7, dice_squared=squared)  # noqa: E731
    assert gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("kind", BOUNDARY_LOSSES)
def test_without_instances_the_loss_is_a_zero_that_can_be_differentiated(kind):
    logits = torch.zeros(0, 28, 28, requires_grad=True)
    loss = boundary_loss(logits, torch.zeros(0, 28, 28), kind)
    loss.backward()
    assert loss.item() == 0


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="focal.*bce, weighted_bce, dice, dice_bce"):
        boundary_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), "focal")
