"""TODO."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .scan import Calibration, patterns_at
from .search import predicted_spots, search_phase
from .spots import Spots, find_spots, pattern_peaks
from .templates import TemplateBank


def spread_patterns(patterns: Any, calibration: Calibration, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,) of the flattened scan (ny, nx, ky, kx) with clear spots, spread over it, and the patterns (n, ky, kx) themselves.

    Every n-th part of the scan gives its pattern with the most evidence in spots among a few.
    """
    total = patterns.shape[0] * patterns.shape[1]
    chosen, images = [], []
    for edge in np.array_split(np.arange(total), min(n, total)):
        few = edge[:: max(1, len(edge) // 4)][:4]
        blocks = patterns_at(patterns, few)
        spots = find_spots(blocks, calibration.centre_px.reshape(-1, 2)[few], calibration)
        best = int(np.argmax(spots.table[:, :, 4].clip(max=20).sum(axis=1)))
        chosen.append(int(few[best]))
        images.append(blocks[best])
    return np.array(chosen), np.array(images)


def spot_size(patterns: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> float:
    """Standard deviation in px of the mean spot of patterns (n, ky, kx) about their clearest peaks.

    Where there are none, that of the guess.
    """
    reach, windows = 5, []
    for image, centre in zip(patterns, centre_px, strict=True):
        for y, x, *_ in pattern_peaks(image, centre, calibration, most=6, least_nats=15.0):
            v, u = round(y), round(x)
            near = np.s_[v - reach : v + reach + 1, u - reach : u + reach + 1]
            window = image[near].astype(float)
            if window.shape == (2 * reach + 1,) * 2 and not calibration.mask[near].any():
                windows.append(window / max(window.sum(), 1e-9))
    if not windows:
        return calibration.spot_sigma_px
    mean = np.mean(windows, axis=0)
    yy, xx = np.indices(mean.shape) - reach
    distance = np.hypot(yy, xx)
    mean = np.maximum(mean - mean[distance > reach].mean(), 0)
    mean[distance > 0.9 * reach] = 0
    return float(np.clip(math.sqrt((mean * distance**2).sum() / mean.sum() / 2), 0.7, 4.0))


def scale_sweep(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], factors: np.ndarray, progress: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (m,) in nats of all patterns at the calibration's scale times each of m ``factors``, and the phases (m, n) that win."""
    evidence, winner = [], []
    for factor in progress(factors) if progress else factors:
        trial = replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * factor)
        of_phases = np.array([search_phase(spots, trial, bank)[1] for bank in banks])
        evidence.append(float(of_phases.max(axis=0).sum()))
        winner.append(of_phases.argmax(axis=0))
    return np.array(evidence), np.array(winner)


@dataclass(frozen=True)
class _Pairs:
    """Predicted g (m, 2) and measured positions (m, 2) from the beam, both (x, y), the weight (m,) of each, its pattern and phase (m,)."""

    predicted: np.ndarray
    measured: np.ndarray
    weight: np.ndarray
    pattern: np.ndarray
    phase: np.ndarray


def _matched_pairs(spots: Spots, calibration: Calibration, banks: list[TemplateBank], least_evidence: float = 20.0) -> _Pairs:
    """The clear spots of all patterns that their best crystal, and only one of its reflections, explains."""
    solved = [search_phase(spots, calibration, bank) for bank in banks]
    evidence = np.array([s[1] for s in solved])
    best = evidence.argmax(axis=0)
    reach = 1.5 * calibration.spot_sigma_px
    rows = []
    for i in np.flatnonzero(evidence.max(axis=0) > least_evidence):
        k, centre = int(best[i]), spots.centre_px[i]
        place, _, _ = predicted_spots(banks[k], solved[k][0][i], centre, calibration, min_relative_intensity=0.02)
        clear = spots.table[i, : spots.number[i]]
        for y, x, counts, below, _ in clear[clear[:, 4] > 8].astype(float):
            near = np.flatnonzero(np.hypot(place[:, 0] - y, place[:, 1] - x) < reach)
            if len(near) == 1:
                g = np.linalg.solve(calibration.metric, place[near[0]][::-1] - centre[::-1])
                weight = 1 / (0.15**2 + calibration.spot_sigma_px**2 * counts / max(counts - below, 1.0) ** 2)
                rows.append((*g, x - centre[1], y - centre[0], weight, i, k))
    table = np.array(rows, float).reshape(-1, 7)
    return _Pairs(table[:, :2], table[:, 2:4], table[:, 4], table[:, 5].astype(int), table[:, 6].astype(int))


def _metric_from(predicted: np.ndarray, measured: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The symmetric (2, 2) matrix that takes g to pixels best, outliers cut; a common rotation and a shift are taken out."""
    design = np.column_stack([predicted, np.ones(len(predicted))])
    use = np.ones(len(predicted), bool)
    for _ in range(5):
        root = np.sqrt(weight[use])[:, None]
        matrix = np.linalg.lstsq(design[use] * root, measured[use] * root, rcond=None)[0]
        off = np.linalg.norm(measured - design @ matrix, axis=1)
        use = off < 3 * max(1.4826 * np.median(off[use]), 0.1)
    _, s, vt = np.linalg.svd(matrix[:2].T)
    return vt.T @ np.diag(s) @ vt


def _with_metric(calibration: Calibration, metric: np.ndarray) -> Calibration:
    """The calibration with this metric: its mean radius gives the scale, the rest the strain."""
    size = math.sqrt(np.linalg.det(metric))
    return replace(calibration, scale_invA_per_px=1 / size, strain=metric / size)


def refine_calibration(
    patterns: np.ndarray,
    centres: np.ndarray,
    calibration: Calibration,
    banks: list[TemplateBank],
    *,
    search: float = 0.03,
    seed: int = 1,
    progress: Any = None,
) -> tuple[Calibration, dict[str, Any]]:
    """Scale and ellipse of a scan from the phases expected in it.

    The scales within ±``search`` of the given one are tried in steps of 0.5 % on the patterns
    (n, ky, kx) with centres (n, 2); from the one with the most evidence the 2 x 2 metric is
    fitted to the spots that its solutions explain, four times over. The uncertainty is the
    spread over resampled patterns.

    Returns the calibration and a dict: ``scan`` (list of scale, evidence), ``scale_sd_invA_per_px``,
    ``residual_px`` (robust standard deviation of one coordinate), ``n_spots``, ``n_patterns``,
    ``predicted``/``measured`` pairs for a look, and ``scale_by_phase``: for every phase the scale
    that its spots alone ask for over the common one, with its standard deviation and number of spots.
    """
    rng = np.random.default_rng(seed)
    spots = find_spots(patterns, centres, calibration)
    steps = round(search / 0.005)
    factors = 1 + 0.005 * np.arange(-steps, steps + 1)
    evidence, _ = scale_sweep(spots, replace(calibration, place_strain=0.01), banks, factors, progress)
    refined = replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * float(factors[evidence.argmax()]))
    for place_strain in (0.02, 0.01, 0.004, 0.004):
        pairs = _matched_pairs(spots, replace(refined, place_strain=place_strain), banks)
        if len(pairs.weight) < 12:
            break
        refined = _with_metric(refined, _metric_from(pairs.predicted, pairs.measured, pairs.weight))
    found: dict[str, Any] = {
        "scan": list(zip((calibration.scale_invA_per_px * factors).tolist(), evidence.tolist(), strict=True)),
        "n_spots": len(pairs.weight),
        "n_patterns": len(np.unique(pairs.pattern)),
        "predicted": pairs.predicted,
        "measured": pairs.measured,
        "scale_by_phase": {},
    }
    if len(pairs.weight) < 12:
        return calibration, found | {"scale_sd_invA_per_px": None, "residual_px": None}
    scales = _resampled_scales(pairs, refined, rng)
    off = pairs.measured - pairs.predicted @ refined.metric.T
    return refined, found | {
        "scale_sd_invA_per_px": float(np.std(scales)),
        "residual_px": 1.4826 * float(np.median(np.abs(off - np.median(off, axis=0)))),
        "scale_by_phase": _scale_by_phase(pairs, refined, [b.crystal.name for b in banks]),
    }


def _resampled_scales(pairs: _Pairs, calibration: Calibration, rng: np.random.Generator, draws: int = 100) -> list[float]:
    """Scale (1/Å per px) from patterns drawn with replacement."""
    members = [np.flatnonzero(pairs.pattern == i) for i in np.unique(pairs.pattern)]
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        metric = _metric_from(pairs.predicted[rows], pairs.measured[rows], pairs.weight[rows])
        drawn.append(_with_metric(calibration, metric).scale_invA_per_px)
    return drawn


def _scale_by_phase(pairs: _Pairs, calibration: Calibration, names: list[str]) -> dict[str, dict[str, float]]:
    """For each phase with ten spots or more, how far its own spots put the scale from the common one (ratio, sd, spots)."""
    found = {}
    for k, name in enumerate(names):
        here = pairs.phase == k
        if here.sum() < 10:
            continue
        model = pairs.predicted[here] @ calibration.metric.T
        stretch = np.sum(model * pairs.measured[here], axis=1) / np.sum(model * model, axis=1)
        weight = pairs.weight[here] * np.sum(model * model, axis=1)
        middle = float(np.median(stretch))
        use = np.abs(stretch - middle) < 4 * 1.4826 * np.median(np.abs(stretch - middle)) + 1e-6
        ratio = float(np.average(stretch[use], weights=weight[use]))
        spread = float(np.sqrt(np.average((stretch[use] - ratio) ** 2, weights=weight[use]) / use.sum()))
        found[name] = {"ratio": 1 / ratio, "sd": spread, "n_spots": int(here.sum())}
    return found
