"""The threads of the tests wait as those of the training command do: several processes share the cores."""

import os

# Before torch loads OpenMP; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
