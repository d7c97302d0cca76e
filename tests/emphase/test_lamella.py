"""Estimates for a lamella, against the literature."""

import numpy as np
import pytest

import emphase


def test_mean_free_path_and_extinction_distance_are_those_of_the_literature():
    # silicon at 200 keV, 10 mrad, by the formula of Malis et al. worked by hand: Em = 19.67 eV
    assert emphase.lamella.inelastic_mean_free_path_nm("Si", 200) == pytest.approx(125.1, rel=0.01)
    from ase.build import bulk

    # aluminium 111 at 100 kV: 55.6 nm (Hirsch et al. 1965); other tables of scattering factors differ by some 10 %
    metal = bulk("Al", cubic=True)
    crystal = emphase.crystals.Crystal("Al", metal.cell.array, metal.get_scaled_positions(), ("Al",) * 4, np.ones(4), 225)
    xi, hkl = emphase.lamella.extinction_distance_nm(crystal, 100)
    assert sorted(map(abs, hkl)) == [1, 1, 1]
    assert xi == pytest.approx(55.6, rel=0.1)


def test_damaged_layer_falls_with_the_voltage():
    layers = [emphase.lamella.amorphous_layer_nm(v) for v in (30, 16, 8, 5, 2)]
    assert all(low <= high for low, high in layers)
    assert all(a > b for a, b in zip([x[1] for x in layers], [x[1] for x in layers][1:], strict=False))
    assert layers[3][0] == pytest.approx(2.5, abs=0.1)


def test_a_formula_that_is_none():
    with pytest.raises(emphase.EmphaseError, match="LiQx2"):
        emphase.lamella.parse_formula("LiQx2")
