"""What all tests share: the project on the path, one thread a pool, no windows."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
for pool in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{pool}_NUM_THREADS", "2" if pool == "NUMBA" else "1")
os.environ.setdefault("MPLBACKEND", "Agg")
