import torch

from bmask.boundary import boundary_targets, enclosed, sobel


def draw(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "#" for c in row] for row in rows])


def boundary_of(*rows: str, threshold: float = 0.0) -> torch.Tensor:
    return boundary_targets(draw(*rows)[None], threshold)[0].bool()


def test_the_boundary_is_the_masks_pixels_that_touch_the_outside_also_by_a_corner():
    mask = (".......", ".#####.", ".#####.", ".#####.", ".####..", ".......")
    expected = (".......", ".#####.", ".#...#.", ".#..##.", ".####..", ".......")
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


def test_sobel_matches_a_hand_worked_case():
    """A step from 0 to 1 between columns 1 and 2; beyond the map is 0."""
    step = torch.tensor([[0.0, 0, 1, 1]] * 3)[None]
    x, y = sobel(step)[0]
    assert x.tolist() == [[0, 3, 3, -3], [0, 4, 4, -4], [0, 3, 3, -3]]
    assert y.tolist() == [[0, 1, 3, 3], [0, 0, 0, 0], [0, -1, -3, -3]]


def test_sobel_y_is_sobel_x_of_the_turned_map():
    maps = torch.rand(2, 5, 7, dtype=torch.float64)
    assert torch.allclose(sobel(maps)[:, 1], sobel(maps.transpose(1, 2))[:, 0].transpose(1, 2))


def test_sobel_can_be_differentiated():
    maps = torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sobel, maps)


def test_what_a_boundary_encloses_is_its_mask():
    masks = torch.stack(
        [
            draw(".......", ".#####.", ".##.##.", ".##.##.", ".##.##.", "......."),  # an arch
            draw("###....", "#####..", "####...", "#######", "#######", "#######"),  # cut by the border
            draw(".......", "..#....", ".......", ".....#.", "#......", "......."),  # single pixels
            torch.zeros(6, 7, dtype=torch.bool),
            torch.ones(6, 7, dtype=torch.bool),
        ]
    )
    assert torch.equal(enclosed(boundary_targets(masks)), masks.float())


def test_a_ring_holds_its_inside_as_surely_as_its_weakest_pixel():
    ring = boundary_targets(torch.ones(1, 5, 5)) * 0.9
    ring[0, 2, 0] = 0.6
    expected = torch.full((5, 5), 0.6)
    expected[ring[0] > 0.6] = 0.9
    assert torch.equal(enclosed(ring)[0], expected)
    ring[0, 2, 0] = 0
    assert enclosed(ring)[0, 1:-1, 1:-1].sum() == 0  # a gap lets the outside in


def test_enclosure_is_that_of_slow_reference_code():
    """Dijkstra's algorithm from the outside, with the strongest pixel so far in place of a length."""
    import heapq

    boundary = torch.rand(9, 8)
    height, width = boundary.shape
    strength = {}
    border = {(y, x) for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)}
    queue = [(boundary[p].item(), p) for p in border]
    heapq.heapify(queue)
    while queue:
        strongest, (y, x) = heapq.heappop(queue)
        if (y, x) in strength:
            continue
        strength[y, x] = strongest
        for ny in range(max(y - 1, 0), min(y + 2, height)):
            for nx in range(max(x - 1, 0), min(x + 2, width)):
                heapq.heappush(queue, (max(strongest, boundary[ny, nx].item()), (ny, nx)))
    expected = torch.tensor([[strength[y, x] for x in range(width)] for y in range(height)])
    assert torch.equal(enclosed(boundary[None])[0], expected)
