"""Crystals: spacings, extinctions and intensities of published structures, the frame of orix, and files that are none."""

import numpy as np
import pytest
import study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emphase
import helpers

SHARED = study.SHARED / "realdata"

needs_recordings = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/realdata is not here")

properties = settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
few = settings(properties, max_examples=60)


def phase(name: str) -> emphase.crystals.Crystal:
    return helpers.phase_crystal(name)


def d_and_intensity(crystal: emphase.crystals.Crystal, *hkl: int) -> tuple[float, float]:
    """d (Å) and |F/V|² relative to the strongest reflection."""
    strongest = emphase.crystals.reflections(crystal, 1.0).intensity.max()
    g = np.linalg.norm(np.array(hkl) @ crystal.reciprocal)
    factor = emphase.crystals.structure_factors(crystal, np.array([hkl]))[0]
    return 1 / g, abs(factor / crystal.volume) ** 2 / strongest


# d from the published cells: d = a / sqrt(h²+k²+l²), hexagonal 1/d² = 4/3 (h²+hk+k²)/a² + l²/c²
SPACINGS = [
    ("rocksalt", (1, 1, 1), 2.412),
    ("rocksalt", (2, 0, 0), 2.089),
    ("rocksalt", (2, 2, 0), 1.477),
    ("layered", (0, 0, 3), 4.740),
    ("layered", (1, 0, 1), 2.445),
    ("layered", (1, 0, 4), 2.0356),
    ("layered", (1, 1, 0), 1.4335),
    ("spinel", (1, 1, 1), 4.694),
    ("spinel", (3, 1, 1), 2.451),
    ("spinel", (4, 0, 0), 2.0325),
    ("llzo", (2, 1, 1), 5.295),
    ("llzo", (4, 2, 0), 2.900),
    ("la2zr2o7", (2, 2, 2), 3.118),
]


@pytest.mark.parametrize(("name", "hkl", "d"), SPACINGS)
def test_d_spacings_are_those_published(name, hkl, d):
    found, intensity = d_and_intensity(phase(name), *hkl)
    assert found == pytest.approx(d, rel=1.5e-3)
    assert intensity > 1e-3


@pytest.mark.parametrize(
    ("name", "extinct", "why"),
    [
        ("rocksalt", lambda h, k, l: len({h % 2, k % 2, l % 2}) > 1, "F: all even or all odd"),
        ("layered", lambda h, k, l: (-h + k + l) % 3 != 0, "R, obverse: -h + k + l = 3n"),
        ("spinel", lambda h, k, l: len({h % 2, k % 2, l % 2}) > 1, "F"),
        ("spinel", lambda h, k, l: h == 0 and (k + l) % 4 != 0, "d glide of Fd-3m: 0kl with k + l = 4n"),
        ("la2zr2o7", lambda h, k, l: h == 0 and (k + l) % 4 != 0, "d glide of Fd-3m"),
        ("llzo", lambda h, k, l: (h + k + l) % 2 != 0, "I: h + k + l even"),
        ("llzo", lambda h, k, l: h == 0 and (k % 2 or l % 2), "a glide of Ia-3d: 0kl with k, l even"),
        ("llzo", lambda h, k, l: h == k and (2 * h + l) % 4 != 0, "d glide of Ia-3d: hhl with 2h + l = 4n"),
        ("li2co3", lambda h, k, l: (h + k) % 2 != 0, "C: h + k even"),
        ("li2co3", lambda h, k, l: k == 0 and (h % 2 or l % 2), "c glide of C2/c: h0l with h, l even"),
    ],
)
def test_extinctions_of_the_space_groups(name, extinct, why):
    found = emphase.crystals.reflections(phase(name), 0.8, 1e-9)
    assert len(found.hkl) > 20
    assert not [tuple(hkl) for hkl in found.hkl if extinct(*hkl)], why


def test_odd_l_of_the_layered_phase_is_what_rocksalt_lacks():
    """003 and 101 are seen in layered; spinel-only and layered-only spots have no match in rocksalt within 3 %."""
    layered, rocksalt = phase("layered"), phase("rocksalt")
    spacings = emphase.crystals.reflections(rocksalt, 1.0).d_A
    assert d_and_intensity(layered, 0, 0, 3)[1] > 0.05
    for hkl in [(0, 0, 3), (1, 0, 5), (1, 0, 7)]:
        assert np.abs(spacings / d_and_intensity(layered, *hkl)[0] - 1).min() > 0.03
    for hkl in [(0, 0, 6), (1, 0, 2), (1, 0, 4), (1, 1, 0)]:
        assert np.abs(spacings / d_and_intensity(layered, *hkl)[0] - 1).min() < 0.035


@needs_recordings
@pytest.mark.parametrize(("own", "file"), [("rocksalt", "NiO-Bunsenite.cif"), ("li2co3", "Li2CO3-Zabuyelite.cif")])
def test_own_structures_agree_with_the_open_databases(own, file):
    ours, theirs = phase(own), emphase.crystals.read_crystal(SHARED / "cifs" / file)
    a, b = emphase.crystals.reflections(ours, 0.7, 1e-3), emphase.crystals.reflections(theirs, 0.7, 1e-3)
    assert ours.volume == pytest.approx(theirs.volume, rel=0.01)
    assert sorted(ours.elements) == sorted(theirs.elements)
    strong = np.argsort(b.intensity)[::-1][:12]
    for d, intensity in zip(b.d_A[strong], b.intensity[strong], strict=True):
        same = np.abs(a.d_A / d - 1) < 0.01
        assert np.any(np.abs(a.intensity[same] / intensity - 1) < 0.15), (d, intensity)


@needs_recordings
def test_the_layered_structure_is_that_of_licoo2():
    crystals = phase("layered"), emphase.crystals.read_crystal(SHARED / "cifs" / "LiCoO2_R-3m_dans-diffraction.cif")
    near = [{tuple(hkl) for hkl in emphase.crystals.reflections(c, 0.6, 1e-4).hkl} for c in crystals]
    far = [{tuple(hkl) for hkl in emphase.crystals.reflections(c, 0.7, 1e-5).hkl} for c in crystals]
    assert near[0] <= far[1]
    assert near[1] <= far[0]


@pytest.mark.parametrize("name", ["layered", "llzo", "li2co3", "lanio3"])
def test_lattice_frame_is_that_of_orix(name):
    """e1 along a, e3 along c*: reciprocal vectors agree with orix, for cells that are not orthogonal too."""
    from orix.vector import Miller

    crystal = phase(name)
    hkl = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 2], [1, 0, -4]])
    theirs = Miller(hkl=hkl, phase=crystal.orix_phase()).data
    np.testing.assert_allclose(hkl @ crystal.reciprocal, theirs, atol=1e-9)


@pytest.mark.parametrize(
    ("content", "reason"), [("", "cannot be read|holds no atoms"), ("data_x\n_cell_length_a 3\n", "cannot be read|holds no atoms")]
)
def test_a_broken_cif_says_so(tmp_path, content, reason):
    (tmp_path / "bad.cif").write_text(content)
    with pytest.raises(emphase.EmphaseError, match=rf"bad\.cif: .*({reason})"):
        emphase.crystals.read_crystal(tmp_path / "bad.cif")


@few
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_crystal_structure_is_one_or_an_error_of_its_own(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("cif") / "odd.cif"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(emphase.EmphaseError, match=r"odd\.cif"):
        emphase.crystals.read_crystal(path)


@pytest.mark.parametrize(
    ("content", "why"), [(None, "no such file"), ("", "expected a CIF with cell and atoms"), ("no cif", "expected a CIF")]
)
def test_what_is_no_cif_is_refused_with_a_reason(tmp_path, content, why):
    path = tmp_path / "x.cif"
    if content is not None:
        path.write_text(content)
    with pytest.raises(emphase.EmphaseError, match=why) as refused:
        emphase.crystals.read_crystal(path)
    assert ": ;" not in str(refused.value)
