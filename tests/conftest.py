"""What all tests share: one thread a pool, no windows."""

import os

for pool in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{pool}_NUM_THREADS", "2" if pool == "NUMBA" else "1")
os.environ.setdefault("MPLBACKEND", "Agg")
