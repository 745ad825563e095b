#!/usr/bin/env python3
"""From a Stable Diffusion checkpoint to a model folder: python tools/export_model.py SOURCE OUT, see --help."""

import sys

from export.cli import main

if __name__ == "__main__":
    sys.exit(main())
