"""Boundary-preserving Mask R-CNN (Cheng, Wang, Huang and Liu, ECCV 2020); the study of it is :mod:`bmask.study`.

``from bmask import add_bmask_config`` is all that a detectron2 project needs: it registers the mask heads and
adds their configuration keys.
"""

import importlib
import warnings

# Of detectron2's imports: nothing that a reader can mend.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)

_HOMES = {
    "BoundaryPreservingHead": "head",
    "MaskScoringHead": "ablations",
    "Predictor": "predictor",
    "SobelMaskHead": "ablations",
    "add_bmask_config": "config",
}
__all__ = list(_HOMES)


def __getattr__(name):
    # detectron2 takes seconds to import, which `python -m bmask --help` has no use for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(".released", __name__)  # registers every head and backbone
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
