"""`python -m ctm.training` is `ctm-train`: a module, because torchrun starts modules."""

import sys

from ctm.training.cli import main

sys.exit(main())
