"""A phase on the lattice of the candidates that is none of them: its patterns are not decided, it is named, and right ones stay."""

import metals
import numpy as np
import pytest

import emphase
import helpers
from emphase.ped.outsiders import find_outsiders, possible_outsiders

OPTICS = emphase.ped.Optics(metals.SCALE_INVA_PER_PX, 200.0, 0.5, max_g_invA=1.5)
CRYSTALS = {name: helpers.phase_crystal(name) for name in ("layered", "spinel", "rocksalt", "llzo", "spinel_m3o4")}
PHASES = ("layered", "spinel", "rocksalt", "llzo")


def without(phase: str, scene: emphase.simulate.PedScene, seed: int):
    """The truth of a scan, its maps with all candidates but one, and what that one explains better."""
    crystals = [CRYSTALS[p] for p in PHASES]
    patterns, truth = emphase.simulate.ped_scan(np.random.default_rng(seed), crystals, (16, 16), scene, electrons=6000)
    candidates = [CRYSTALS[p] for p in PHASES if p != phase]
    scan = emphase.ped.calibrate(patterns, candidates, OPTICS, n_patterns=48)
    others = emphase.ped.calibration.phase_banks(possible_outsiders(candidates, CRYSTALS.values(), helpers.FAMILIES), scan.optics)
    assert [bank.crystal.name for bank in others] == [phase]
    maps, _, _ = emphase.ped.map_scan(patterns, scan.calibration, scan.banks, families=helpers.FAMILIES)
    found = find_outsiders(patterns, scan.calibration, scan.banks, others, maps, families=helpers.FAMILIES)
    named = np.array([*(c.name for c in candidates), "none"])[maps["phase_id"]]
    return np.array([*PHASES, "none"])[truth["phase"]], named, maps["decided"], found


@pytest.mark.parametrize("phase, scene", [
    ("spinel", emphase.simulate.PedScene(0.1, 0.15, n_grains=5)), ("rocksalt", emphase.simulate.PedScene(0.2, 0.0, n_grains=5)),
])  # fmt: skip
def test_patterns_of_a_phase_that_was_left_out_are_not_decided_and_it_is_named(phase, scene):
    truth, named, decided, found = without(phase, scene, seed=8)
    of_it, others = truth == phase, (truth != phase) & (named == truth)
    assert decided[of_it].mean() > 0.1  # as other phases: they share its lattice
    assert (decided & ~found.better)[of_it].sum() <= max(1, 0.02 * of_it.sum())
    assert set(found.share) == {phase} and found.share[phase] == pytest.approx(of_it.mean(), abs=0.03)
    assert (decided & ~found.better)[others].sum() > 0.8 * decided[others].sum()


def test_what_is_not_there_is_not_named():
    truth, _, _, found = without("spinel", emphase.simulate.PedScene(0.15, 0.0, n_grains=5), seed=9)
    assert not (truth == "spinel").any()
    assert found.share == {} and not found.better.any()


def test_only_phases_that_share_a_lattice_and_differ_in_more_than_strengths_are_tried():
    names = lambda candidates: [c.name for c in possible_outsiders([CRYSTALS[p] for p in candidates], CRYSTALS.values(), helpers.FAMILIES)]
    assert names(["layered"]) == ["spinel", "rocksalt"]
    assert names(["layered", "spinel", "rocksalt"]) == []  # spinel_m3o4 differs from spinel in strengths alone
    assert names(["llzo"]) == []
    assert possible_outsiders([CRYSTALS["layered"]], CRYSTALS.values(), ()) == []
