"""The lines of the library's README, on a scan of one's own."""

import re
import shutil
from pathlib import Path

import hyperspy.api as hs
import numpy as np

import emphase
import helpers

README = Path(emphase.__file__).with_name("README.md")


def test_the_lines_of_the_readme_run_on_a_scan_of_ones_own(tmp_path, monkeypatch, capsys):
    crystals = [helpers.phase_crystal(p) for p in ("layered", "spinel", "rocksalt", "llzo")]
    scene = emphase.simulate.PedScene(0.3, 0.0, n_grains=3)
    patterns, truth = emphase.simulate.ped_scan(np.random.default_rng(4), crystals, (9, 9), scene, electrons=12000)
    hs.signals.Signal2D(patterns).save(tmp_path / "ped.hspy")
    for name in ("layered", "rocksalt"):
        shutil.copy(helpers.phase_file(name), tmp_path)
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in lines.splitlines() if line and not line.startswith("import")]) <= 12
    names: dict = {}
    exec(compile(lines, str(README), "exec"), names)
    assert names["camera"].trusted and "rocksalt: 0." in capsys.readouterr().out
    ncm = np.isin(truth["phase"], (0, 2))
    assert (names["maps"]["phase_id"][ncm] == (truth["phase"][ncm] == 2)).mean() > 0.9
    assert (tmp_path / "ped.ctf").read_text().startswith("Channel Text File")
