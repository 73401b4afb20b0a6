"""Boundary-preserving Mask R-CNN (Cheng, Wang, Huang and Liu, ECCV 2020); the study of it is :mod:`bmask.study`.

``from bmask import add_bmask_config`` is all that a detectron2 project needs: it registers the mask heads and
adds their configuration keys.
"""

import warnings

with warnings.catch_warnings():
    # detectron2's imports use what is deprecated: nothing that a reader can mend.
    warnings.simplefilter("ignore")
    from . import backbones  # noqa: F401  registers them
    from .ablations import MaskScoringHead, SobelMaskHead
    from .config import add_bmask_config
    from .head import BoundaryPreservingHead
    from .predictor import Predictor

__all__ = ["BoundaryPreservingHead", "MaskScoringHead", "Predictor", "SobelMaskHead", "add_bmask_config"]
