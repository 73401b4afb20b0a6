"""``python -m bmask``: the commands of the study."""

import logging
import sys
import warnings

from .study.cli import main

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore")
    sys.exit(main())
