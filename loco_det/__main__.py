"""``python -m loco_det`` is ``loco-det``."""

import sys

from loco_det.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
