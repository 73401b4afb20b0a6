"""Losses and AP during the training."""

import itertools
from typing import Dict, List, Sequence, Tuple

import pandas as pd
from matplotlib.figure import Figure

from .. import compare
from ..runs import Run
from .style import COLOURS, PAGE, Drawn, draw_legend, draw_lines, new_figure, styled


def draw(shown: List[Run], _) -> Drawn:
    return {"curves": curves_of(shown)}


def curves_of(shown: List[Run]) -> Tuple[Figure, str]:
    """Losses, and AP, during the training of any runs of one profile, with the caption."""
    records = compare.records(shown)
    losses, precisions = [], []
    for variant, seed, record in ((v, s, record) for v, by_seed in records.items() for s, record in by_seed.items()):
        iterations = record["losses"]["iteration"]
        for term, values in record["losses"].items():
            where = {"variant": variant, "seed": seed, "panel": term.removeprefix("loss_").replace("_", " ") + " loss"}
            if term != "iteration":
                losses += [{**where, "iteration": i, "value": value} for i, value in zip(iterations, values)]
        last = {"iteration": iterations[-1], **record["metrics"]}
        for looked in [*record.get("validation", []), last]:
            where = {"variant": variant, "seed": seed, "iteration": looked["iteration"]}
            for kind, panel in (("segm", "mask AP"), ("bbox", "box AP")):
                precisions.append({**where, "panel": panel, "value": looked[kind]["AP"]})
    caption = (
        f"Losses, each the mean over {iterations[0]} iterations, and AP "
        "on the test images. Bands go from the lowest to the highest seed."
    )
    return _plot(pd.DataFrame(losses + precisions), colours(list(records))), caption


def colours(variants: Sequence[str]) -> Dict[str, str]:
    """The colour of each system, the same in every figure; those without share what is left of the palette."""
    spare = itertools.cycle(c for c in [*COLOURS.values(), "#F0E442"] if c not in map(COLOURS.get, variants))
    return {variant: COLOURS.get(variant) or next(spare) for variant in variants}


@styled
def _plot(curves: pd.DataFrame, colours: Dict[str, str]) -> Figure:
    """A panel for each ``panel`` of the curves; they have ``variant``, ``seed``, ``iteration`` and ``value`` too."""
    titles, columns = list(curves["panel"].unique()), 4
    lines = -(-len(titles) // columns)
    figure = new_figure(PAGE, 1.6 * lines + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for title, panel in zip(titles, panels):  # in this order: none of the spare ones is taken
        draw_lines(panel, curves[curves["panel"] == title], "iteration", "value", colours)
        panel.set(title=title, xlabel="iteration", ylabel="AP (%)" if "AP" in title else "loss")
        panel.set_ylim(bottom=0)
    for panel in list(panels):
        panel.remove()
    draw_legend(figure, colours)
    return figure
