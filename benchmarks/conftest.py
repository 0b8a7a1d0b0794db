"""Makes `benchmarks` importable under a bare `pytest`; its threads wait as those of the training command do."""

import os
import sys
from pathlib import Path

# Before torch loads OpenMP; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)
