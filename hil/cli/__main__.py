"""``python -m hil.cli``."""

import sys

from hil.cli import main

sys.exit(main())
