"""What the notebook of the same name shows: pictures that follow its controls, and what it takes to draw them.

The notebook has the tensors and the equations, step by step. Controls are ipywidgets.
"""

from typing import Callable, Dict, List, Sequence, Tuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from fvcore.nn import FlopCountAnalysis
from IPython.display import Image, Markdown, display
from matplotlib.colors import LinearSegmentedColormap
from torch import nn
from torch.nn import functional as F

from ...boundary import boundary_targets, laplacian
from ...head import BoundaryPreservingHead
from ...losses import BOUNDARY_LOSSES, boundary_loss
from .. import cost
from ..datasets import shapes
from ..true_boxes import SIDE, compare
from .architecture import Whole, outputs
from .boundary_losses import NAMES, without_weights
from .style import COLOURS, DASHES, MARKERS, PAGE, Panel, framed, new_figure, pictures, rendered, sizes, spread, styled

# The variants of Table 7 by their losses.
VARIANTS = {loss: "bmask_rcnn" if loss == "dice_bce" else f"bmask_rcnn_{loss}" for loss in BOUNDARY_LOSSES}
# From negative to positive; in greyscale from dark to light.
SIGNED = LinearSegmentedColormap.from_list("signed", ["#00105a", "#2a4fc4", "#858585", "#e0ac1e", "#fff5a8"])
# What layers of the head make, as Fig. 4 and Eq. 1 call it.
MADE = {
    "mask_pooler": "$R_m$",
    "mask_fcn4": "$F_m$",
    "boundary_pooler": "$R_b$",
    "downsample": r"$\tilde R_b$",
    "mask_to_boundary": r"$f(F_m)$, added to $\tilde R_b$",
    "boundary_fcn2": "$F_b$",
    "boundary_to_mask": "$f(F_b)$, added to $F_m$",
    "mask_final_fusion": "the fused mask features",
    "mask_predictor": "a mask for each class",
    "boundary_predictor": "a boundary for each class",
}
PREDICTORS = "mask_deconv", "mask_predictor", "boundary_deconv", "boundary_predictor"
Sets = Dict[str, Tuple[Dict[str, torch.Tensor], List[Instances]]]  # feature maps and objects, by what a set is called
Maps = Dict[str, Tuple[torch.Tensor, torch.Tensor]]  # masks and boundaries (R, 28, 28), in [0, 1], of each set


def slider(value: float, low: float, high: float, step: float, description: str):
    """A slider that tells its value when it is let go."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(value, min=low, max=high, step=step, description=description, continuous_update=False)


def explore(draw: Callable, *controls) -> None:
    """Show what ``draw`` makes of the controls' values, and again whenever one of them changes.

    It is an output like any other, so that without a kernel the first picture stays.
    """
    shown = display(draw(*[c.value for c in controls]), display_id=True)
    for control in controls:
        control.observe(lambda _: shown.update(draw(*[c.value for c in controls])), "value")


def painter(seed: int) -> Tuple[widgets.Widget, widgets.Textarea]:
    """Controls that draw a shape of the embedded pictures, and the text of 28 x 28 # and . that they draw it into."""

    def paint(shape, size, right, down, notch):
        x, y = np.meshgrid(np.arange(SIDE) - 13.5 - right, np.arange(SIDE) - 13.5 - down)
        inside = shapes.OUTLINES[shape](np.random.default_rng(seed), size)(x / size, y / size)
        inside &= (x < 0) | (2 * abs(y) >= notch)
        return "\n".join("".join(row) for row in np.where(inside, "#", "."))

    brushes = [widgets.Dropdown(options=shapes.CLASSES, value="blob", description="shape")]
    brushes += [slider(12, 4, 20, 1, "size"), slider(0, -14, 14, 1, "right")]
    brushes += [slider(0, -14, 14, 1, "down"), slider(4, 0, 12, 1, "notch")]
    painting = widgets.Textarea(paint(*[b.value for b in brushes]), continuous_update=False)
    painting.add_class("painting")
    for brush in brushes:
        brush.observe(lambda _: setattr(painting, "value", paint(*[b.value for b in brushes])), "value")
    look = "font: bold 9px/9px monospace; letter-spacing: 3.6px; white-space: pre; width: 275px; height: 266px"
    style = widgets.HTML(f"<style>.painting textarea {{{look}}}</style>")
    return widgets.VBox([style, widgets.HBox([widgets.VBox(brushes), painting])]), painting


def mask_of(text: str) -> torch.Tensor:
    """(28, 28), float32: 1 where a text has a #."""
    lines = [line.ljust(SIDE, ".")[:SIDE] for line in text.splitlines()[:SIDE]]
    lines += ["." * SIDE] * (SIDE - len(lines))
    return torch.tensor([[character == "#" for character in line] for line in lines]).float()


@framed
def show_target(text: str) -> Image:
    """The mask of a text, the Laplacian's response to it, eight rows and columns of that in numbers, the boundary."""
    mask = mask_of(text)
    response, boundary = laplacian(mask[None])[0], boundary_targets(mask[None])[0]
    figure = new_figure(PAGE, 2.15)
    panels = figure.subplots(1, 4)
    share = f"boundary $y_b$: {boundary.mean():.1%} of pixels"
    titles = "mask $m$", "response $r$", "the dotted square", share
    for panel, title, shown in zip(panels, titles, (mask, response, response, boundary)):
        signed = dict(cmap=SIGNED, vmin=-8, vmax=8)
        panel.imshow(shown, **(signed if shown is response else dict(cmap="gray_r", vmin=0, vmax=1)))
        panel.set(title=title, xticks=[], yticks=[])
    first = boundary.nonzero()[0].tolist() if boundary.any() else (10, 10)
    top, left = (min(max(place - 1, 0), 20) for place in first)
    x0, y0 = left - 0.5, top - 0.5
    panels[1].plot([x0, x0 + 8, x0 + 8, x0, x0], [y0, y0, y0 + 8, y0 + 8, y0], ":", color="white")
    panels[2].set(xlim=(x0, x0 + 8), ylim=(y0 + 8, y0))
    for y, x in np.ndindex(8, 8):
        number = int(response[top + y, left + x])
        colour = "black" if number > 0 else "white"
        panels[2].text(left + x, top + y, number, ha="center", va="center", color=colour)
    return _picture(figure)


def wrong(truth: torch.Tensor, shift: int, thickness: int, gap: int, confidence: float) -> Dict[str, torch.Tensor]:
    """Probabilities (28, 28) of four predictions of a boundary, by what is wrong with them."""
    broken, places = truth.clone(), truth.nonzero().tolist()
    top, left = (max(place - gap // 2, 0) for place in places[len(places) // 2])
    broken[top : top + gap, left : left + gap] = 0
    drawn = {
        f"shifted by {shift} px": (F.pad(truth, (shift, -shift)), 0.9),
        f"{thickness} px thick": (F.max_pool2d(truth[None], thickness, stride=1, padding=thickness // 2)[0], 0.9),
        f"a gap of {gap} px": (broken, 0.9),
        f"unsure ({confidence:g})": (truth, confidence),
    }
    return {name: sure * on + (1 - sure) * (1 - on) for name, (on, sure) in drawn.items()}


def push(probabilities: torch.Tensor, truth: torch.Tensor, kind: str) -> Tuple[float, torch.Tensor]:
    """A boundary loss, and how a step of gradient descent on it moves each logit, times their number: (28, 28)."""
    logits = probabilities.logit()[None].requires_grad_()
    loss = boundary_loss(logits, truth[None], kind)
    loss.backward()
    return loss.item(), -logits.grad[0] * truth.numel()


@framed
def show_pushes(text: str, shift: int, thickness: int, gap: int, confidence: float):
    """What each loss wants changed in predictions of the boundary of a text's mask that are :func:`wrong`."""
    truth = boundary_targets(mask_of(text)[None])[0]
    if not truth.any():
        return Markdown("Without an object there is no boundary: paint one above.")
    rows = wrong(truth, shift, thickness, gap, confidence)
    found = {(row, loss): push(p, truth, loss) for row, p in rows.items() for loss in BOUNDARY_LOSSES}
    limit = max(float(values.abs().max()) for _, values in found.values())
    figure = new_figure(PAGE, 6.6)
    panels = figure.subplots(len(rows), 1 + len(BOUNDARY_LOSSES))
    for strip, (row, probabilities) in zip(panels, rows.items()):
        strip[0].set_ylabel(row)
        strip[0].imshow(probabilities, cmap="gray_r", vmin=0, vmax=1)
        strip[0].plot(*truth.nonzero().T.flip(0), ".", color="#E69F00", markersize=1.5)
        for panel, loss in zip(strip[1:], BOUNDARY_LOSSES):
            value, values = found[row, loss]
            scale = panel.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
            panel.set_xlabel(f"loss {value:.2f}")
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    for panel, title in zip(panels[0], ("prediction (dots: truth)", *(NAMES[v] for v in VARIANTS.values()))):
        panel.set_title(title)
    bar = figure.colorbar(scale, ax=panels, orientation="horizontal", shrink=0.6, aspect=40)
    words = f"{-limit:.1f}: lowers", "0: leaves as it is", f"{limit:.1f}: raises"
    bar.set_ticks([-limit, 0, limit], labels=words)
    return _picture(figure)


def best(kind: str, targets: torch.Tensor) -> torch.Tensor:
    """The probability of each column, (W,), for which a boundary loss on targets (R, H, W) is least."""
    logits = torch.full(targets.shape[-1:], -1.0, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def step():
        optimiser.zero_grad()
        loss = boundary_loss(logits.expand_as(targets), targets, kind)
        loss.backward()
        return loss

    optimiser.step(step)
    return logits.detach().sigmoid()


def across(deviation: float) -> Dict[str, torch.Tensor]:
    """The best probabilities for each loss across a straight boundary, one pixel thick, whose place is not sure, (28,).

    deviation: of its place, which is normally distributed, in pixels.
    """
    chances = (torch.arange(200) + 0.5) / 200
    places = SIDE // 2 + deviation * torch.special.ndtri(chances)
    targets = F.one_hot(places.round().long().clamp(0, SIDE - 1), SIDE).float()
    targets = targets[:, None].expand(-1, SIDE, -1)  # (200, 28, 28)
    return {kind: best(kind, targets) for kind in BOUNDARY_LOSSES}


@styled
def show_thickness(true: torch.Tensor, checked: Dict[float, torch.Tensor], deviation: float) -> Image:
    """The best prediction of weighted BCE over the true probability, and those of all losses :func:`across` a boundary.

    Args:
        true: probabilities, (T,).
        checked: what the loss is least at for these, (T,), by the share s of boundary pixels.
    """
    figure = new_figure(PAGE, 3.2)
    left, right = figure.subplots(1, 2)
    every = np.linspace(0, 1, 201)
    left.plot([0, 1], [0, 1], color="0.5", label="BCE")
    for k, (s, predicted) in enumerate(checked.items()):
        # The other way round, as if s were the share of the other pixels.
        left.plot(every, without_weights(every, 1 - s), **_line(k), color="black", label=f"weighted BCE, s = {s:g}")
        left.plot(true, predicted, MARKERS[k], color="black")
        left.plot([s, s], [0, 0.5], ":", color="black", linewidth=1)
    left.set(xlabel="true probability t", ylabel="best prediction p", xlim=(0, 1), ylim=(0, 1))
    left.set_title("lines: the formula; dots: the loss, minimised")
    left.legend(fontsize=7, loc="lower right")
    for k, (loss, predicted) in enumerate(across(deviation).items()):
        label = f"{NAMES[VARIANTS[loss]]}: {int((predicted > 0.5).sum())} px above 0.5"
        look = dict(color=COLOURS[VARIANTS[loss]], marker=MARKERS[k], label=label, **_line(k))
        right.plot(torch.arange(SIDE) - SIDE // 2, predicted, **look)
    right.set(xlabel="pixels from the middle", ylabel="best prediction p", xlim=(-9, 9))
    right.set(ylim=(0, 1.45), yticks=np.arange(0, 1.1, 0.2))
    right.set_title(f"across a boundary whose place is known to ±{deviation:g} px")
    right.legend(fontsize=7, loc="upper right")
    for panel in (left, right):
        panel.axhline(0.5, color="0.5", linewidth=1, linestyle=":")
    return _picture(figure)


@torch.no_grad()
def show_layers(maps: Dict[str, ShapeSpec], features: Dict, boxes: List[Boxes], m2b: bool, b2m: bool) -> Markdown:
    """A table of the head's layers in their order, with what they make of one object, and what that costs."""
    head = BoundaryPreservingHead(maps, num_classes=80, m2b_fusion=m2b, b2m_fusion=b2m)
    layers, rois = dict(head.named_children()), head.pool(features, boxes)
    made = outputs(head, rois) | {"mask_pooler": rois[0].shape, "boundary_pooler": rois[1].shape}
    count = FlopCountAnalysis(Whole(head), rois)
    count = count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_module()
    costs = {name: count[f"head.{name}"] / 1e9 for name in layers}
    words = {name: f"{value:.3f}" if value else "–" for name, value in costs.items()}
    lines = [[f"`{n}`", MADE.get(n, ""), " × ".join(map(str, made[n][1:])), words[n]] for n in layers]
    columns = ["layer", "gives", "channels × height × width", "multiply-adds, 10⁹"]
    table = pd.DataFrame(lines, columns=columns).to_markdown(index=False, disable_numparse=True)
    total = sum(costs[name] for name in layers if name not in PREDICTORS)
    return Markdown(
        f"{table}\n\nWithout the predictors, the last four layers, as in Table 8: **{total:.2f}** · 10⁹ multiply-adds "
        f"for one object. Mask R-CNN's head has {cost.multiply_adds('mask_rcnn'):.2f} · 10⁹."
    )


@torch.no_grad()
def in_true_boxes(head: nn.Module, sets: Sets) -> Maps:
    """What a head that is being trained says of all objects, in their true boxes."""
    head.eval()
    found = {}
    for name, inputs in sets.items():
        images = head(*inputs)
        fields = ("pred_masks", "pred_boundaries")
        found[name] = tuple(torch.cat([x.get(field)[:, 0] for x in images]) for field in fields)
    head.train()
    return found


def show_examples(head: BoundaryPreservingHead, sets: Sets, found: Dict[str, Maps]) -> Image:
    """A smaller and a larger object of each set, with what the head said of it at each time, and the truth."""
    rows = {}
    for name, (pixels, objects) in sets.items():
        boxes = [x.gt_boxes for x in objects]
        rois, masks = head.pool(pixels, boxes)[1] + 0.5, _truth(objects)
        truth = {"mask": masks.float(), "boundary": boundary_targets(masks)}
        size = sizes(torch.cat([b.tensor for b in boxes]).numpy())
        for words, n in zip(("smaller", "larger"), spread(size, (0.3, 0.7))):
            row = {"$R_b$": Panel(rois[n].permute(1, 2, 0).clamp(0, 1).numpy())}
            for k, (what, true) in enumerate(truth.items()):
                row |= {f"{what},\n{when}": Panel(drawn[name][k][n].numpy()) for when, drawn in found.items()}
                row[f"{what},\ntruth"] = Panel(true[n].numpy())
            rows[f"{name}, {words}"] = row
    return _picture(pictures(rows, side=0.8))


def quality(sets: Sets, found: Dict[str, Maps]) -> pd.DataFrame:
    """Means over the objects of each set, at each time, of what :func:`bmask.study.true_boxes.compare` measures."""
    lines = []
    for name, (_, objects) in sets.items():
        for when, drawn in found.items():
            measured = compare(drawn[name][0] > 0.5, _truth(objects))
            lines.append({"objects": name, "": when, **{key: np.nanmean(v) for key, v in measured.items()}})
    return pd.DataFrame(lines)


@styled
def show_losses(losses: Sequence[Dict[str, float]]) -> Image:
    """The losses of each iteration."""
    figure = new_figure(PAGE, 2.2)
    panel = figure.subplots()
    for k, name in enumerate(losses[0]):
        values = [loss[name] for loss in losses]
        panel.plot(range(1, len(losses) + 1), values, **_line(k), color="black", label=name)
    panel.set(xlabel="iteration", ylabel="loss", ylim=(0, None))
    panel.legend()
    return _picture(figure)


def _truth(objects: List[Instances]) -> torch.Tensor:
    """(R, 28, 28), bool."""
    return torch.cat([x.gt_masks.crop_and_resize(x.gt_boxes.tensor, SIDE) for x in objects])


def _line(k: int) -> Dict:
    """How the k-th line is drawn."""
    return dict(dashes=DASHES[k] or (None, None), linewidth=1.2)


def _picture(figure) -> Image:
    return Image(rendered(figure), width=750)
