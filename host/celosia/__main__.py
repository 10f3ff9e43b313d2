"""``python -m celosia`` is the command ``celosia``."""

import sys

from .cli import main

sys.exit(main())
