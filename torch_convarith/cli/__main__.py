"""``python -m torch_convarith.cli``."""

import sys

from . import main

sys.exit(main())
