"""A run of all notebooks on a tiny sample, and a notebook alone: what several test files look at."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import hyperspy.api as hs
import numpy as np
import study
import yaml

import emphase
import helpers
from workflow import warm

ROOT = helpers.PROJECT_ROOT
SHARED = study.SHARED / "realdata"
LAMELLA = {
    "instrument": "simulated FIB-SEM",
    "frame": {"all_around": True, "material": "Pt-C", "thickness_um": 1.5},
    "steps": [{"stage": "MillRough", "milling_voltage_kV": 30}, {"stage": "MillPolishing", "milling_voltage_kV": 8}],
    "final_thickness_nm": 80,
}


def write(path: Path, frames: np.ndarray, scale: float, units: str) -> None:
    signal = hs.signals.Signal2D(frames)
    for axis in signal.axes_manager.signal_axes:
        axis.scale, axis.units = scale, units
    signal.save(path, overwrite=True)


def tiny_sample(folder: Path) -> None:
    """One small recording of every kind; the pixel sizes stand in the files alone."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    crystals = [helpers.phase_crystal(p) for p in ("layered", "spinel", "rocksalt", "llzo")]
    patterns, _ = emphase.simulate.ped_scan(rng, crystals, (8, 8), emphase.simulate.PedScene(0.2, n_grains=4))
    write(folder / "ped.hspy", patterns, 0.02178, "1/angstrom")
    write(folder / "stack.hspy", study.cryo_stack(rng, 8, (128, 128), 4.0)[0], 0.045, "nm")
    write(folder / "haadf.tif", emphase.simulate.haadf_image(rng, (384, 384), layer_nm=1.5)[0], 0.0125, "nm")
    write(folder / "interface.tif", study.interface_image(rng, (512, 512), layer_nm=3.0)[0], 0.02, "nm")
    beam = {"beam_energy_keV": 200}
    acquisitions = {
        "cryo_stem": {"file": "stack.hspy", **beam, "frame_dose_e_per_A2": 9.9},
        "haadf": {"file": "haadf.tif", **beam},
        "interface": {"file": "interface.tif", **beam},
        "ped": {"file": "ped.hspy", **beam, "step_nm": 8, "precession_deg": 0.5, "phases": ["layered", "spinel", "rocksalt", "llzo"]},
    }
    content = {"id": folder.name, "label": "tiny & quick", "simulated": True, "lamella": LAMELLA, "acquisitions": acquisitions}
    (folder / "sample.yaml").write_text(yaml.safe_dump(content))


def steel_sample(data: Path) -> None:
    """The recorded PED scan of austenite and G-phase, with its own crystal structures."""
    recorded = SHARED / "ped_steel"
    (data / "steel").mkdir(parents=True)
    (data / "phases").mkdir(exist_ok=True)
    shutil.copy(recorded / "subset_data.hspy", data / "steel" / "ped.hspy")
    shutil.copy(recorded / "austeniteLP.cif", data / "phases" / "austenite.cif")
    shutil.copy(recorded / "g-phaseLP.cif", data / "phases" / "g_phase.cif")
    ped = {"file": "ped.hspy", "beam_energy_keV": 200, "step_nm": 2, "precession_deg": 0.5, "phases": ["austenite", "g_phase"]}
    content = {"id": "steel", "label": "irradiated steel", "acquisitions": {"ped": ped}}
    (data / "steel" / "sample.yaml").write_text(yaml.safe_dump(content))


@dataclass(frozen=True)
class Executed:
    """One `make run` of the project on a data folder of its own: where it is, its exit status and what it printed."""

    root: Path
    status: int
    text: str

    @classmethod
    def make(cls, folder: Path) -> "Executed":
        """Run the tiny sample, and the recorded steel where it is here."""
        made = cls(folder, -1, "")
        tiny_sample(made.data / "tiny")
        if SHARED.is_dir():
            steel_sample(made.data)
        command = ["make", "-o", ".venv/.ready", "run", f"DATA={made.data}", f"RESULTS={made.results}", f"FIGURES={made.figures}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL)
        return cls(folder, done.returncode, done.stdout + done.stderr)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    def result(self, sample: str, step: str) -> dict:
        """What a step wrote for a sample."""
        return json.loads((self.results / sample / f"{step}.json").read_text())


def alone(step: str, folder: Path, parameters: dict) -> str | None:
    """A notebook by papermill from another working folder; why it failed, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
    command = [*warm.COMMAND, "workflow.execute", "--no-progress-bar", "--log-level", "ERROR", "-f", "params.yaml"]
    command += [str(ROOT / "notebooks" / f"{step}.ipynb"), "out.ipynb"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, env=os.environ)
    reason = helpers.run_error(folder / "out.ipynb")
    assert (done.returncode == 0) == (reason is None), done.stderr[-2000:]
    return reason


def run_snakemake(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``python -m snakemake``."""
    command = [*warm.COMMAND, "snakemake", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
