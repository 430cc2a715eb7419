"""Where real images and checkpoints lie, outside the repository; tests that need them skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("SRR_DATA", Path(__file__).parents[2] / "shared"))
