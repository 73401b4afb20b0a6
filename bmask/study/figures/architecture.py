"""Fig. 4: the head, drawn from the model into ``docs/head.png`` by ``python -m bmask.study.figures.architecture``."""

from typing import Dict, Sequence, Tuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn
from torch.nn import functional as F

from ...head import BoundaryPreservingHead
from .. import cost
from ..config import REPOSITORY
from .style import COLOURS, OURS, PAGE, framed, new_figure, save

PATH = REPOSITORY / "docs" / "head.png"
BOUNDARY, MASK = 1.6, 0.0  # heights of the two branches
WIDTH, HEIGHT = 0.84, 0.72  # of a block
# Where each layer stands, from left to right: its place, and the branch. Several are one block.
BLOCKS = {
    "mask_fcn1..4": (1, MASK),
    "downsample": (1, BOUNDARY),
    "mask_to_boundary": (2, 0.8),
    "boundary_fcn1..2": (3.2, BOUNDARY),
    "boundary_to_mask": (4.2, 0.8),
    "mask_final_fusion": (5.2, MASK),
    "mask_deconv": (6.3, MASK),
    "boundary_deconv": (6.3, BOUNDARY),
    "mask_predictor": (7.3, MASK),
    "boundary_predictor": (7.3, BOUNDARY),
}


class Whole(nn.Module):
    """All layers of the head after RoIAlign: from R_m and R_b to the logits of masks and boundaries of all classes."""

    def __init__(self, head: BoundaryPreservingHead):
        super().__init__()
        self.head = head

    def forward(self, r_m: torch.Tensor, r_b: torch.Tensor):
        f_m, f_b = self.head.layers(r_m, r_b)
        masks = self.head.mask_predictor(F.relu(self.head.mask_deconv(f_m)))
        return masks, self.head.boundary_predictor(F.relu(self.head.boundary_deconv(f_b)))


@torch.no_grad()
def outputs(head: BoundaryPreservingHead, rois: Sequence[torch.Tensor]) -> Dict[str, torch.Size]:
    """The shape of what each layer makes of R_m and R_b."""
    shapes = {}
    hooks = [
        layer.register_forward_hook(lambda *run, name=name: shapes.update({name: run[-1].shape}))
        for name, layer in head.named_children()
    ]
    Whole(head)(*rois)
    for hook in hooks:
        hook.remove()
    return shapes


def described() -> Tuple[Dict[str, str], Dict[str, int]]:
    """What each layer of :data:`BLOCKS` is, and the sides of what goes in and out, at the paper's sizes."""
    head, rois = cost.mask_head("bmask_rcnn", rois=1)
    sides = {name: shape[-1] for name, shape in outputs(head, rois).items()}
    sides |= {name: features.shape[-1] for name, features in zip(("R_m", "R_b"), rois)}
    words = {}
    for block in BLOCKS:
        stem, _, last = block.partition("1..")
        layer = getattr(head, f"{stem}1" if last else stem)
        kernel = "x".join(map(str, layer.kernel_size))
        stride = f", stride {layer.stride[0]}" if layer.stride[0] > 1 else ""
        words[block] = f"{last + ' times ' if last else ''}{kernel}{stride}"
        sides[block] = sides[f"{stem}{last}" if last else stem]
    return words, sides


@framed
def draw() -> Figure:
    """Boxes are layers by the names of the released weights, with their kernels and the side of what they give."""
    words, sides = described()
    figure = new_figure(PAGE, 2.9)
    panel = figure.subplots()
    colours = {MASK: COLOURS["mask_rcnn"], BOUNDARY: OURS, 0.8: "0.35"}
    for block, (x, y) in BLOCKS.items():
        name = block.replace("_", "_\n", 1)
        _box(panel, x, y, f"{name}\n{words[block]}\n→ {sides[block]}x{sides[block]}", colours[y])
    for name, text, y in (("R_b", "from P2", BOUNDARY), ("R_m", "from P2 to\nP5, by size", MASK)):
        panel.text(0.05, y, f"${name}$\n{sides[name]}x{sides[name]}\n{text}", ha="center", va="center", fontsize=7)
    for x, y, text in ((2, BOUNDARY, "+"), (4.2, MASK, "+")):
        panel.text(x, y, text, ha="center", va="center", fontsize=10, bbox=dict(boxstyle="circle,pad=0.15", fc="white"))
    for x, y, text in ((8.3, MASK, "masks,\none a class"), (8.3, BOUNDARY, "boundaries,\none a class")):
        panel.text(x, y, text, ha="center", va="center", fontsize=7)
    half, plus = WIDTH / 2 + 0.04, 0.14
    arrows = [((0.42, y), (1 - half, y)) for y in (MASK, BOUNDARY)]
    arrows += [((1 + half, BOUNDARY), (2 - plus, BOUNDARY)), ((2 + plus, BOUNDARY), (3.2 - half, BOUNDARY))]
    arrows += [((3.2 + half, BOUNDARY), (6.3 - half, BOUNDARY)), ((1 + half, MASK), (4.2 - plus, MASK))]
    arrows += [((4.2 + plus, MASK), (5.2 - half, MASK)), ((5.2 + half, MASK), (6.3 - half, MASK))]
    arrows += [((6.3 + half, y), (7.3 - half, y)) for y in (MASK, BOUNDARY)]
    arrows += [((7.3 + half, y), (7.95, y)) for y in (MASK, BOUNDARY)]
    arrows += [((2, MASK), (2, 0.8 - HEIGHT / 2)), ((2, 0.8 + HEIGHT / 2), (2, BOUNDARY - plus))]
    arrows += [((4.2, BOUNDARY), (4.2, 0.8 + HEIGHT / 2)), ((4.2, 0.8 - HEIGHT / 2), (4.2, MASK + plus))]
    for start, end in arrows:
        panel.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0, color="0.2")
        )
    for x, y, name in ((1.72, -0.17, "F_m"), (4.75, BOUNDARY + 0.14, "F_b")):
        panel.text(x, y, f"${name}$", ha="center", va="center", fontsize=8)
    for x, text in ((2.5, "M2B"), (4.7, "B2M")):
        panel.text(x, 0.8, text, va="center", fontsize=8, weight="bold")
    total = f"one RoI: {cost.multiply_adds('bmask_rcnn'):.2f} G multiply-adds\nwithout deconvolutions and predictors"
    panel.text(7, 0.8, total, ha="center", va="center", fontsize=7)
    panel.set(xlim=(-0.4, 8.75), ylim=(-0.42, 2.02))
    panel.axis("off")
    return figure


def _box(panel, x: float, y: float, text: str, colour: str) -> None:
    corner = x - WIDTH / 2, y - HEIGHT / 2
    panel.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.02", fc="white", ec=colour, lw=1.5))
    panel.text(x, y, text, ha="center", va="center", fontsize=6.5)


if __name__ == "__main__":
    save(draw(), PATH)
    print(PATH)
