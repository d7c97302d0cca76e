"""Time and memory of matching and of drift correction, against the size of the scan, the candidates, the orientations and the frames.

Memory is measured in a process of its own kind, so this module is also a program, which `scaling`, `large_scan` and `large_stack` run:

    python -m validation.costs scaling '{"sides": [16], "steps_deg": [2.0], "frames": [8]}'
    python -m validation.costs large-scan
    python -m validation.costs large-stack stack.npy     # simulates it, apart, so that the peak of the next is that of the drift
    python -m validation.costs large-drift stack.npy

It prints lines of JSON. Memory in `scaling` is what the process holds beside the files that it maps (resident less shared), sampled
every 20 ms; in the others the largest resident set.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd

import emphase
import helpers

from .drift import llzo_scene
from .ped import GIVEN_SCALE_INVA_PER_PX, PHASES, MeasuredScan, template_bank

_SIDE = 32  # patterns along each side of the scan that is repeated
_CAMERA_PX = 144
_LARGE_SIDE = 512

#: What `scaling` varies, with its label.
AGAINST = {"scan": "patterns", "candidates": "candidate phases", "orientations": "zone axes of all banks", "frames": "frames of 256 × 256"}


class PatternCost(NamedTuple):
    """What one pattern of a large scan takes: seconds on ``cores``, bytes of finished chunks in files and of maps in memory."""

    seconds: float
    cores: int
    kept_bytes: float
    maps_bytes: float


def time_of_parts(scan: MeasuredScan, seed: int) -> dict[str, float]:
    """Seconds per pattern that the parts of the mapping of a scan take, run one after the other.

    Returns
    -------
    dict
        ``spots``, ``search <phase>``, ``chance, once a scan``, and ``neighbours, overlap``: what is left of the time of the whole mapping.
    """
    flat, centres = scan.patterns.reshape(-1, *scan.patterns.shape[2:]), scan.calibration.centre_px.reshape(-1, 2)
    parts = {}
    started = time.monotonic()
    spots = emphase.ped.find_spots(flat, centres, scan.calibration)
    parts["spots"] = time.monotonic() - started
    for bank in scan.banks:
        started = time.monotonic()
        emphase.ped.search_phase(spots, scan.calibration, bank)
        parts[f"search {bank.crystal.name}"] = time.monotonic() - started
    started = time.monotonic()
    emphase.ped.search.chance_evidence(spots, scan.calibration, scan.banks, scan.patterns.shape[2:], seed=seed)
    parts["chance, once a scan"] = time.monotonic() - started
    parts["neighbours, overlap"] = max(0.0, scan.seconds - sum(parts.values()))
    return {name: seconds / len(flat) for name, seconds in parts.items()}


def scaling(full: bool) -> pd.DataFrame:
    """Time and memory of matching against patterns, candidate phases and zone axes, and of drift correction against frames.

    Parameters
    ----------
    full
        Up to 256 × 256 patterns and 128 frames, instead of 128 × 128 and 64.

    Returns
    -------
    DataFrame
        ``against`` (a key of `AGAINST`), ``number``, ``seconds``, ``memory_GB``, ``kept_GB`` (finished chunks in files), ``maps_GB``.
    """
    plan = {
        "sides": [16, 32, 64, 128] + [256] * full,
        "steps_deg": [4.0, 2.0, 1.0],
        "frames": [8, 16, 32, 64] + [128] * full,
    }
    lines = _in_a_process("scaling", json.dumps(plan))
    return pd.DataFrame(lines, columns=["against", "number", "seconds", "memory_GB", "kept_GB", "maps_GB"])


def powers(costs: pd.DataFrame) -> dict[str, float]:
    """Exponents of the time against each number of `scaling`: slopes of straight lines through the logarithms."""
    parts = {against: costs[costs["against"] == against] for against in AGAINST}
    return {name: float(np.polyfit(np.log(part["number"]), np.log(part["seconds"]), 1)[0]) for name, part in parts.items()}


def largest_scans(costs: pd.DataFrame) -> pd.DataFrame:
    """The rows of the three largest scans of `scaling`."""
    return costs[costs["against"] == "scan"].tail(3)


def cost_of_a_pattern(costs: pd.DataFrame) -> PatternCost:
    """What one more pattern of a large scan takes, from the largest scans of `scaling`."""
    large = largest_scans(costs)
    seconds = float(np.polyfit(large["number"], large["seconds"], 1)[0])
    kept, maps = (float(1e9 * large[name].iloc[-1] / large["number"].iloc[-1]) for name in ("kept_GB", "maps_GB"))
    return PatternCost(seconds, numba.get_num_threads(), kept, maps)


def on_paper(cost: PatternCost, side: int = 4096, nodes: int = 10, cores_a_node: int = 16) -> dict[str, Any]:
    """What ``side`` × ``side`` patterns of 144 × 144 would take on a cluster where every core is as fast as here and none waits."""
    patterns = side**2
    paper: dict[str, Any] = {"shape": [side, side], "nodes": nodes, "cores_a_node": cores_a_node, "patterns": patterns}
    paper |= {
        "core_seconds_a_pattern": cost.seconds * cost.cores,
        "hours": cost.seconds * cost.cores * patterns / (nodes * cores_a_node) / 3600,
        "recording_GB": patterns * _CAMERA_PX * _CAMERA_PX / 1e9,
        "kept_GB": cost.kept_bytes * patterns / 1e9,
        "memory_of_the_notebook_GB": 2 * cost.maps_bytes * patterns / 1e9,  # the maps are once in parts and once whole
    }
    return paper | {"network_MB_per_s": 2 * paper["kept_GB"] * 1e3 / (3600 * paper["hours"])}  # chunks pass the network about twice


def large_scan() -> dict[str, Any]:
    """Speed and largest memory of indexing 512 × 512 patterns."""
    (rate, peak_GB), *_ = _in_a_process("large-scan")
    return {"shape": [_LARGE_SIDE, _LARGE_SIDE], "patterns_per_s": rate, "peak_memory_GB": peak_GB}


def large_stack() -> dict[str, Any]:
    """Time and largest memory of the drift of 100 frames of 1024 × 1024."""
    with tempfile.TemporaryDirectory() as folder:
        stack = str(Path(folder) / "stack.npy")
        _in_a_process("large-stack", stack)
        (took, peak_GB), *_ = _in_a_process("large-drift", stack)
    return {"frames": 100, "side_px": 1024, "seconds": took, "peak_memory_GB": peak_GB}


def _in_a_process(*arguments: str) -> list[list]:
    """What this module prints as a program with these arguments, line by line."""
    paths = os.pathsep.join(str(path) for path in (helpers.PROJECT_ROOT, helpers.PROJECT_ROOT / "tests"))
    command = [sys.executable, "-m", "validation.costs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths})
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- the program ----------------------------------------------------------------------------


class _Repeated:
    """A scan laid side by side up to ``side`` patterns a line, made where it is read."""

    def __init__(self, patterns: np.ndarray, side: int):
        self.patterns, self.shape, self.dtype = patterns, (side, side, *patterns.shape[2:]), patterns.dtype

    def __getitem__(self, box: Sequence) -> np.ndarray:
        return self.patterns[np.ix_(*(np.arange(n)[part] % _SIDE for n, part in zip(self.shape, box, strict=False)))]


def _measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of some work, and the most memory (GB) that this process held in the meantime, beside files that it maps."""
    import psutil

    done, most = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.02):
            info = psutil.Process().memory_info()
            most[0] = max(most[0], info.rss - info.shared)

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.monotonic()
    work()
    seconds = time.monotonic() - started
    done.set()
    thread.join()
    return seconds, most[0] / 1e9


class _Matching:
    """Matching of a simulated scan that is repeated as often as a size needs."""

    def __init__(self) -> None:
        self.crystals = [helpers.phase_crystal(phase) for phase in PHASES]
        self.patterns, self.truth = emphase.simulate.ped_scan(np.random.default_rng(1), self.crystals, (_SIDE, _SIDE), electrons=4000)

    def cost(self, side: int, phases: int = len(PHASES), step_deg: float = 2.0) -> tuple[int, float, float, float, float]:
        """Zone axes of all banks; seconds, memory, finished chunks and maps in GB."""
        banks = [template_bank(c, step_deg=step_deg) for c in self.crystals[:phases]]
        centre = self.truth["centre_px"][np.ix_(np.arange(side) % _SIDE, np.arange(side) % _SIDE)]
        calibration = _perfect_calibration(centre)
        scan, maps = _Repeated(self.patterns, side), {}
        with tempfile.TemporaryDirectory() as folder:
            work = emphase.chunks.LongWork(Path(folder), {})
            cost = _measured(lambda: maps.update(emphase.ped.map_scan(scan, calibration, banks, work=work)[0]))
            kept = sum(path.stat().st_size for path in Path(folder).rglob("*.bin")) / 1e9
        return sum(len(bank.frames) for bank in banks), *cost, kept, sum(a.nbytes for a in maps.values()) / 1e9


def _perfect_calibration(centre_px: np.ndarray) -> Any:
    """The true calibration of the repeated scan."""
    mask = np.zeros((_CAMERA_PX, _CAMERA_PX), bool)
    return emphase.ped.Calibration(GIVEN_SCALE_INVA_PER_PX, np.eye(2), centre_px, mask, 1.4)


def _print_scaling(plan: dict[str, list]) -> None:
    """A line for every number of the plan, the kernels compiled before."""
    matching = _Matching()
    frames, _ = emphase.simulate.drifting_stack(np.random.default_rng(1), max(plan["frames"]), (256, 256), 2.0, scene=llzo_scene())
    matching.cost(8)
    for side in plan["sides"]:
        _print_line("scan", side * side, *matching.cost(side)[1:])
    for phases in range(1, len(PHASES) + 1):
        _print_line("candidates", phases, *matching.cost(_SIDE, phases)[1:])
    for step_deg in plan["steps_deg"]:
        _print_line("orientations", *matching.cost(_SIDE, step_deg=step_deg))
    emphase.drift.register_stack(frames[:8])
    for n in plan["frames"]:
        _print_line("frames", n, *_measured(partial(emphase.drift.register_stack, frames[:n])), 0, 0)


def _print_large_scan() -> None:
    """Patterns per second and largest resident set (GB) of indexing a scan that is read line by line."""
    import dask.array as da

    matching, tiles = _Matching(), _LARGE_SIDE // _SIDE
    line = lambda y: np.tile(matching.patterns[y % _SIDE][None], (1, tiles, 1, 1))
    chunks = ((1,) * _LARGE_SIDE, (_LARGE_SIDE,), (_CAMERA_PX,), (_CAMERA_PX,))
    scan = da.map_blocks(lambda block_info=None: line(block_info[None]["chunk-location"][0]), chunks=chunks, dtype=np.uint8)
    banks = [template_bank(crystal) for crystal in matching.crystals]
    calibration = _perfect_calibration(np.tile(matching.truth["centre_px"], (tiles, tiles, 1)))
    started = time.monotonic()
    emphase.ped.index.index_scan(scan, calibration, banks)
    _print_line(_LARGE_SIDE**2 / (time.monotonic() - started), _peak_GB())


def _save_large_stack(path: str) -> None:
    """Simulate the large stack into a file."""
    rng = np.random.default_rng(1)
    frames, _ = emphase.simulate.drifting_stack(
        rng, 100, (1024, 1024), 1.0, scene=llzo_scene(), motion=emphase.simulate.StackMotion(jumps=3)
    )
    np.save(path, frames)


def _print_large_drift(path: str) -> None:
    """Seconds and largest resident set (GB) of the drift of the large stack."""
    frames = np.load(path)
    started = time.monotonic()
    emphase.drift.register_stack(frames)
    _print_line(time.monotonic() - started, _peak_GB())


def _peak_GB() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _print_line(*values: Any) -> None:
    print(json.dumps(values))


def main(part: str, *arguments: str) -> None:
    """Run one of the parts that the module's docstring names."""
    programs: dict[str, Callable[..., None]] = {
        "scaling": lambda plan: _print_scaling(json.loads(plan)),
        "large-scan": _print_large_scan,
        "large-stack": _save_large_stack,
        "large-drift": _print_large_drift,
    }
    programs[part](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
