"""Boundary-preserving Mask R-CNN (Cheng, Wang, Huang and Liu, ECCV 2020), and the study of it.

``from bmask import add_bmask_config`` is all that a detectron2 project needs: it registers the mask heads and
adds their configuration keys.
"""

import warnings

with warnings.catch_warnings():
    # detectron2's imports use what is deprecated: nothing that a reader can mend.
    warnings.simplefilter("ignore")
    from . import hrnet  # noqa: F401  registers the backbone
    from .config import add_bmask_config
    from .heads import BoundaryPreservingHead, MaskScoringHead, SobelMaskHead

__all__ = ["BoundaryPreservingHead", "MaskScoringHead", "Predictor", "SobelMaskHead", "add_bmask_config"]


def __getattr__(name):
    # What it draws with is slow to import, and of no use to a training.
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
