"""The networks and projects of these tests can be imported: test folders are no packages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
