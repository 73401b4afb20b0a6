"""The interactive part of Fig. 6: choose an object, and see what each loss makes of its boundary. Needs Jupyter."""

from contextlib import nullcontext

import ipywidgets as widgets
import numpy as np

from ..errors import InputError
from . import draw, figures, runs, tables


def boundary_losses(profile: str) -> widgets.Widget:
    """Controls for image, object and confidence, above the object under each loss and the surfaces of its losses.

    Raises:
        InputError: Fig. 6 has not been made; says which command makes it.
    """
    folder = tables.made_in("figure-6", profile)
    if not folder:
        raise InputError(f"Figure 6 has not been made; `make reproduce-figure-6 PROFILE={profile}` makes it")
    seed = tables.made(profile, folder)["figure-6"][0]
    # Of runs that were made here for a table alone no predictions have been kept: those of the figure count.
    with runs.as_shipped() if folder == runs.shipped(profile) else nullcontext():
        images, kept = figures.kept_predictions("6", profile, [seed])
    image = widgets.IntSlider(0, 0, len(images.pictures) - 1, description="image")
    place = widgets.IntSlider(0, 0, 0, description="object")
    confidence = widgets.FloatSlider(0.9, min=0.55, max=0.95, step=0.05, description="confidence")
    context, row, surface = (widgets.Image(format="png", width=width) for width in (260, 780, 780))

    def redraw(_=None):
        inside = np.flatnonzero(images.image_of == image.value)
        place.max = max(len(inside) - 1, 0)
        if not len(inside):
            return
        n = int(inside[place.value])
        shown = draw.Panel(images.pictures[image.value], [(images.masks[n], draw.TRUTH)])
        context.value = draw.rendered(draw.pictures({"": {"": shown}}, side=2.0))
        maps = figures.loss_panels(images, {variant: found for (variant, _), found in kept.items()}, n)
        row.value = draw.rendered(draw.pictures({"": maps}, side=1.2))
        surface.value = draw.rendered(draw.loss_surface(images.roi_boundaries[n], confidence.value))

    for control in (image, place, confidence):
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([widgets.HBox([widgets.VBox([image, place, confidence]), context]), row, surface])
