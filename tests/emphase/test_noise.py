"""Gain and offset of detectors from the noise of patterns with spots and halo, against the detectors that made them."""

import numpy as np
import pytest
from scipy import ndimage
from study import SHARED

from emphase.ped.noise import detector_noise

SIDE = 144


@pytest.fixture(scope="module")
def shares():
    """Patterns (24, 144, 144) of a direct beam, 30 spots and a halo, each of one electron in all."""
    rng = np.random.default_rng(11)
    yy, xx = np.indices((SIDE, SIDE))
    patterns = []
    for _ in range(24):
        r = np.hypot(yy - 71.5, xx - 71.5)
        image = 0.5 * np.exp(-r / 22) / (2 * np.pi * 22**2) + 0.3 * np.exp(-0.5 * (r / 1.5) ** 2) / (2 * np.pi * 1.5**2)
        strength = rng.lognormal(0, 1.2, 30)
        for y, x, part in zip(*rng.uniform(4, SIDE - 4, (2, 30)), 0.2 * strength / strength.sum(), strict=True):
            image += part * np.exp(-0.5 * ((yy - y) ** 2 + (xx - x) ** 2) / 1.3**2) / (2 * np.pi * 1.3**2)
        patterns.append(image)
    return np.array(patterns)


def noise_of(patterns):
    return detector_noise(patterns, np.zeros(patterns.shape[1:], bool))


@pytest.mark.parametrize("electrons", [1e4, 1e5, 1e6, 3e6])
def test_a_counting_detector_has_a_gain_of_one(shares, electrons):
    """Spots and halo are no noise, however bright they are."""
    assert noise_of(np.random.default_rng(1).poisson(electrons * shares).astype(np.uint32)) == (1.0, 0.0, "")


@pytest.mark.parametrize("electrons", [1e4, 1e5, 1e6])
def test_the_gain_of_eight_bits_that_do_not_saturate_in_the_halo(shares, electrons):
    counts = np.random.default_rng(2).poisson(0.3 * electrons * shares)
    noise = noise_of(np.minimum(3 * counts, 255).astype(np.uint8))
    assert noise.gain == pytest.approx(3, rel=0.1) and noise.offset == 0 and not noise.doubt


@pytest.mark.parametrize("electrons", [1e5, 1e6])
def test_gain_and_offset_of_an_amplifier(shares, electrons):
    rng = np.random.default_rng(3)
    recorded = 7 * rng.poisson(electrons * shares) + 100 + rng.normal(0, 2, shares.shape)
    noise = noise_of(np.rint(recorded).astype(np.uint16))
    assert noise.gain == pytest.approx(7, rel=0.1) and noise.offset == pytest.approx(100, abs=7) and not noise.doubt


def test_multiplied_electrons_have_twice_their_variance(shares):
    """An electron-multiplying camera: mean 10 of an exponential law for each electron, so variance = 20 x (mean - offset)."""
    rng = np.random.default_rng(4)
    electrons = rng.poisson(1e5 * shares)
    recorded = np.where(electrons > 0, rng.gamma(np.maximum(electrons, 1), 10.0), 0) + 50
    noise = noise_of(np.minimum(np.rint(recorded), 65535).astype(np.uint16))
    assert noise.gain == pytest.approx(20, rel=0.1) and not noise.doubt


def test_a_camera_that_smears_its_noise_is_said_to_do_so(shares):
    smeared = ndimage.gaussian_filter(np.random.default_rng(5).poisson(1e5 * shares).astype(float), (0, 0.9, 0.9))
    noise = noise_of(np.rint(6 * smeared + 100).astype(np.uint16))
    assert "smears" in noise.doubt and 2 < noise.gain < 18


def test_noise_that_does_not_grow_and_patterns_in_the_dark_are_said_to_be_unknown(shares):
    compressed = np.rint(40 * np.log1p(np.random.default_rng(6).poisson(1e5 * shares))).astype(np.uint8)
    assert "not known" in noise_of(compressed).doubt
    assert "dark" in noise_of(np.zeros((4, SIDE, SIDE), np.uint16)).doubt


@pytest.mark.skipif(not (SHARED / "realdata" / "al_sped").is_dir(), reason="recorded SPED of an aluminium alloy is not here")
@pytest.mark.parametrize("kept", [0.003, 0.03, 0.3])
def test_recorded_patterns_of_a_counting_detector(kept):
    """Half patterns of 3.6e6 counts, thinned: each electron kept by chance, so the counts stay those of a counting detector."""
    recorded = np.load(SHARED / "realdata" / "al_sped" / "selected_patterns.npy")
    thinned = np.random.default_rng(7).binomial(recorded.astype(np.int64), kept)
    assert noise_of(thinned.astype(np.uint32)) == (1.0, 0.0, "")
