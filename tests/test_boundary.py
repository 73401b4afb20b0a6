import torch

from bmask.boundary import boundary_targets


def draw(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "#" for c in row] for row in rows])


def boundary_of(*rows: str, threshold: float = 0.0) -> torch.Tensor:
    return boundary_targets(draw(*rows)[None], threshold)[0].bool()


def test_the_boundary_is_the_masks_pixels_that_touch_the_outside_also_by_a_corner():
    mask = (
        ".......",
        ".#####.",
        ".#####.",
        ".#####.",
        ".####..",
        ".......",
    )
    expected = (
        ".......",
        ".#####.",
        ".#...#.",
        ".#..##.",
        ".####..",
        ".......",
    )
    assert torch.equal(boundary_of(*mask), draw(*expected))


def test_a_mask_cut_by_the_border_of_its_roi_has_a_boundary_along_it():
    mask = ("###..", "###..", "###..", "###..", "###..")
    expected = ("###..", "#.#..", "#.#..", "#.#..", "###..")
    assert torch.equal(boundary_of(*mask), draw(*expected))


def test_a_full_mask_has_a_frame_and_an_empty_one_nothing():
    full = boundary_targets(torch.ones(1, 28, 28))
    assert full.sum() == 4 * 27
    assert full[0, 1:-1, 1:-1].sum() == 0
    assert boundary_targets(torch.zeros(2, 28, 28)).sum() == 0


def test_a_hole_has_a_boundary():
    mask = ("#######", "#######", "#######", "###.###", "#######", "#######", "#######")
    assert boundary_of(*mask)[2:5, 2:5].sum() == 8


def test_the_released_threshold_gives_the_same_targets_on_binary_masks():
    masks = torch.rand(16, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.4
    assert torch.equal(boundary_targets(masks, 0.0), boundary_targets(masks, 0.1))


def test_no_instance_gives_no_target():
    assert boundary_targets(torch.zeros(0, 28, 28, dtype=torch.bool)).shape == (0, 28, 28)
