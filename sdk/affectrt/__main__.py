"""``python -m affectrt`` is the command ``affectrt``."""

import sys

from affectrt.cli import main

sys.exit(main())
