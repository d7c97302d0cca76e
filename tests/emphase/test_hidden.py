"""A candidate that lies under the mask of the camera: what touches patterns that show nothing is not decided, in a recorded alloy too."""

import numpy as np
import pytest
from metals import SCALE_INVA_PER_PX, SILVER
from study import SHARED, crystals

import emphase
from emphase.ped.hidden import beside_hidden, hidden_candidates
from helpers import BANK_CACHE

ALLOY = SHARED / "realdata" / "al_sped"
OPTICS = {"max_g_invA": 1.4, "beam_energy_keV": 200, "precession_deg": 0.5, "excitation_width_invA": 0.002, "cache": BANK_CACHE}


def calibration(mask: np.ndarray, scale_invA_per_px: float = SCALE_INVA_PER_PX, shape: tuple[int, int] = (1, 1)) -> emphase.ped.Calibration:
    centre_px = np.broadcast_to((np.array(mask.shape) - 1) / 2, (*shape, 2))
    return emphase.ped.Calibration(scale_invA_per_px, np.eye(2), centre_px.copy(), mask, 1.2)


def test_a_phase_without_a_reflection_on_good_pixels_is_hidden_and_no_other():
    """Only the middle of the camera is good, within 0.39 1/Å: silver's shortest reflection is at 0.42, the garnet's at 0.19."""
    banks = [emphase.ped.template_bank(crystal, **OPTICS) for crystal in (SILVER, crystals("llzo")["llzo"])]
    y, x = np.indices((144, 144)) - 71.5
    assert hidden_candidates(calibration(np.hypot(y, x) * SCALE_INVA_PER_PX > 0.39), banks).tolist() == [True, False]
    cross = (np.abs(y) < 3) | (np.abs(x) < 3)
    assert not hidden_candidates(calibration(cross), banks).any()


def test_what_touches_the_unknown_is_not_decided():
    phase = np.full((5, 6), -1)
    phase[:, 2:] = 1
    phase[4, 2] = 0
    beside = beside_hidden(phase, np.array([True, False]))
    assert beside[:4, 2].all() and beside.sum() == 4  # not the hidden phase itself, nor what lies a pattern farther in
    assert not beside_hidden(phase, np.array([False, False])).any()


@pytest.mark.skipif(not ALLOY.is_dir(), reason="the recorded aluminium alloy is not here")
def test_plates_in_a_recorded_matrix_whose_reflections_are_masked():
    """The middle third of a scan whose authors masked aluminium: what is decided is what they say, in 98 % and more."""
    rows = slice(171, 341)
    with np.load(ALLOY / "nmf_left_half.npz") as file:
        factors, loadings, y, x, truth = (file[name] for name in ("factors", "loadings", "y", "x", "ground_truth"))
    whole = lambda half: np.concatenate([half[..., ::-1, ::-1], half], axis=-1)
    mask = whole(np.isnan(factors).any(axis=0))
    number = np.full(truth.shape, -1)
    number[y, x] = np.arange(len(y))
    patterns = np.zeros((*number[rows].shape, *mask.shape), np.float32)
    here = number[rows] >= 0
    half = np.tensordot(loadings[:, number[rows][here]].T, np.nan_to_num(factors), axes=(1, 0))
    patterns[here] = np.where(mask, 0, whole(half))
    alloy = [emphase.crystals.read_crystal(ALLOY / f"{name}.cif", name) for name in ("Al", "thetaprime", "T1")]
    alloy[1] = emphase.ped.spacings.with_lattice_parameters(alloy[1], {"c": 6.0})
    optics = OPTICS | {"max_g_invA": 1.05, "precession_deg": 1.0, "excitation_width_invA": 0.004}
    banks = [emphase.ped.template_bank(crystal, **optics) for crystal in alloy]
    maps, _, _ = emphase.ped.map_scan(patterns, calibration(mask, 0.01904, here.shape), banks)
    phase = np.array([0, 1, 1, 2])[np.minimum(truth[rows], 3)]
    decided = maps["decided"]
    assert decided.sum() > 1000 and len(np.unique(phase[decided])) > 1
    assert (maps["phase_id"][decided] == phase[decided]).mean() > 0.98
    assert (np.maximum(maps["phase_id"], 0) == phase).mean() > 0.95
