"""Write the CIF files of this folder from published structures: ``python data/phases/make_phases.py``.

Space groups and their symmetry operations come from ase; cells (Å, degrees), sites and
occupancies are those of the cited work, or of the study where its lattice is its own.
"""

from pathlib import Path

from ase.spacegroup import Spacegroup

M = {"Ni": 0.6, "Co": 0.2, "Mn": 0.2}

PHASES = {
    "layered": dict(
        formula="LiNi0.6Co0.2Mn0.2O2",
        group=166,
        cell=(2.867, 2.867, 14.22, 90, 90, 120),
        source="NCM622, R-3m (alpha-NaFeO2 type), after Yin et al., Chem. Mater. 18 (2006) 1901",
        sites=[(M, (0, 0, 0)), ({"Li": 1}, (0, 0, 0.5)), ({"O": 1}, (0, 0, 0.2585))],
    ),
    "rocksalt": dict(
        formula="NiO",
        group=225,
        cell=(4.177, 4.177, 4.177, 90, 90, 90),
        source="NiO, Fm-3m, after Sasaki, Fujino & Takeuchi, Proc. Jpn. Acad. 55B (1979) 43",
        sites=[({"Ni": 1}, (0, 0, 0)), ({"O": 1}, (0.5, 0.5, 0.5))],
    ),
    "spinel": dict(
        formula="LiM2O4",
        group=227,
        setting=2,
        cell=(8.13, 8.13, 8.13, 90, 90, 90),
        source="LiM2O4 spinel, Fd-3m origin 2, u after Thackeray et al., Mater. Res. Bull. 18 (1983) 461",
        sites=[({"Li": 1}, (0.125, 0.125, 0.125)), (M, (0.5, 0.5, 0.5)), ({"O": 1}, (0.263, 0.263, 0.263))],
    ),
    "spinel_m3o4": dict(
        formula="M3O4",
        group=227,
        setting=2,
        cell=(8.13, 8.13, 8.13, 90, 90, 90),
        source="M3O4 spinel (Co3O4 type) on the lattice of LiM2O4, Fd-3m origin 2, after Picard et al., J. Less-Common Met. 75 (1980) 99",
        sites=[(M, (0.125, 0.125, 0.125)), (M, (0.5, 0.5, 0.5)), ({"O": 1}, (0.263, 0.263, 0.263))],
    ),
    "llzo": dict(
        formula="Li6.25Al0.25La3Zr2O12",
        group=230,
        cell=(12.97, 12.97, 12.97, 90, 90, 90),
        source="cubic LLZO garnet, Ia-3d, after Awaka et al., Chem. Lett. 40 (2011) 60",
        sites=[
            ({"La": 1}, (0.125, 0, 0.25)),
            ({"Zr": 1}, (0, 0, 0)),
            ({"O": 1}, (-0.0318, 0.0548, 0.1495)),
            ({"Li": 0.56, "Al": 0.08}, (0.375, 0, 0.25)),
            ({"Li": 0.38}, (0.097, 0.6847, 0.5785)),
        ],
    ),
    "la2zr2o7": dict(
        formula="La2Zr2O7",
        group=227,
        setting=2,
        cell=(10.80, 10.80, 10.80, 90, 90, 90),
        source="La2Zr2O7 pyrochlore, Fd-3m origin 2, after Tabira, Withers, Yamada & Ishizawa, Z. Kristallogr. 216 (2001) 92",
        sites=[({"La": 1}, (0.5, 0.5, 0.5)), ({"Zr": 1}, (0, 0, 0)), ({"O": 1}, (0.332, 0.125, 0.125)), ({"O": 1}, (0.375, 0.375, 0.375))],
    ),
    "lanio3": dict(
        formula="LaNiO3",
        group=167,
        cell=(5.4573, 5.4573, 13.1462, 90, 90, 120),
        source="LaNiO3 perovskite, R-3c, after Garcia-Munoz et al., Phys. Rev. B 46 (1992) 4414",
        sites=[({"La": 1}, (0, 0, 0.25)), ({"Ni": 1}, (0, 0, 0)), ({"O": 1}, (0.5456, 0, 0.25))],
    ),
    "li2co3": dict(
        formula="Li2CO3",
        group=15,
        cell=(8.359, 4.9767, 6.194, 90, 114.72, 90),
        source="Li2CO3 zabuyelite, C2/c, after Effenberger & Zemann, Z. Kristallogr. 150 (1979) 133",
        sites=[
            ({"Li": 1}, (0.1965, 0.4486, 0.8344)),
            ({"C": 1}, (0, 0.0657, 0.25)),
            ({"O": 1}, (0, 0.3219, 0.25)),
            ({"O": 1}, (0.1459, -0.0663, 0.3127)),
        ],
    ),
}


def cif_text(name: str, formula: str, group: int, cell: tuple, source: str, sites: list, setting: int = 1) -> str:
    """One phase as the text of a CIF file, with all symmetry operations written out; ``setting`` is ase's: 2 for origin choice 2."""
    spacegroup = Spacegroup(group, setting=setting)
    operations = [_operation(rotation, shift) for rotation, shift in spacegroup.get_symop()]
    lines = [f"# {source}", f"data_{name}", f"_chemical_formula_sum '{formula}'"]
    lines += [f"_publ_section_title '{source}'"]
    lines += [f"_cell_{key} {value}" for key, value in zip(_CELL_KEYS, cell, strict=True)]
    lines += [f"_space_group_name_H-M_alt '{_HERMANN_MAUGUIN.get(group, spacegroup.symbol)}'", f"_space_group_IT_number {group}"]
    lines += ["loop_", "_space_group_symop_operation_xyz", *(f"  '{operation}'" for operation in operations)]
    lines += [
        "loop_",
        *(f"_atom_site_{key}" for key in ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy", "U_iso_or_equiv")),
    ]
    for number, (species, position) in enumerate(sites, 1):
        xyz = " ".join(f"{x:.6g}" for x in position)
        lines += [f"  {element}{number} {element} {xyz} {occupancy:g} 0.006" for element, occupancy in species.items()]
    return "\n".join(lines) + "\n"


def _operation(rotation, shift) -> str:
    """A symmetry operation as CIF text, as in ``-y,x-y,z+1/3``."""
    parts = []
    for row, move in zip(rotation, shift, strict=True):
        text = "".join(f"{'+' if r > 0 else '-'}{axis}" for r, axis in zip(row, "xyz", strict=True) if r)
        twelfths = round(move * 12) % 12
        fraction = {3: "+1/4", 4: "+1/3", 6: "+1/2", 8: "+2/3", 9: "+3/4", 2: "+1/6", 10: "+5/6"}.get(twelfths, "")
        parts.append(text.removeprefix("+") + fraction)
    return ",".join(parts)


_CELL_KEYS = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_HERMANN_MAUGUIN = {15: "C 1 2/c 1", 166: "R -3 m :H", 167: "R -3 c :H", 227: "F d -3 m :2"}  # where ase's symbol leaves the setting open

if __name__ == "__main__":
    for phase, values in PHASES.items():
        Path(__file__).with_name(f"{phase}.cif").write_text(cif_text(phase, **values), encoding="utf-8")
