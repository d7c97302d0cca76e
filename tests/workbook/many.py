"""Hundreds of samples as a run would leave them, made in seconds: metadata, tiny recordings, results that keep the contract."""

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import tifffile
import yaml
from scipy.spatial.transform import Rotation

import emphase
import helpers

CONDITIONS = {None: 0.01, 400: 0.02, 500: 0.05, 550: 0.08, 600: 0.15, 650: 0.24}  # °C: rocksalt share
PHASES = ["layered", "spinel", "rocksalt", "llzo"]
SHAPE = (12, 16)
#: What tells an image of one sample from another's: none is the twin of the one before it
TEMPERATURES = list(CONDITIONS)


def describe(folder: Path, k: int) -> str:
    """The k-th sample: sample.yaml, an image and a scan, both far too small to measure anything on."""
    temperature = TEMPERATURES[k % len(TEMPERATURES)]
    name = f"lamella_{k:03d}"
    (folder / name).mkdir(parents=True)
    tifffile.imwrite(folder / name / "haadf.tif", np.full((16, 16), k, np.uint16))
    tifffile.imwrite(folder / name / "ped.tif", np.full((4, 8, 8), k, np.uint16), photometric="minisblack")
    beam = {"beam_energy_keV": 200}
    acquisitions = {
        "haadf": {"file": "haadf.tif", **beam, "pixel_size_nm": 0.0125, "dose_e_per_A2": 2000 + 10 * k},
        "ped": {"file": "ped.tif", **beam, "step_nm": 8.0, "scale_invA_per_px": 0.02, "precession_deg": 0.5, "phases": PHASES},
    }
    words = helpers.condition_name(temperature)
    content = {"id": name, "label": f"{words}, lamella {k}", "simulated": True, "sintering": {"temperature_C": temperature}}
    (folder / name / "sample.yaml").write_text(yaml.safe_dump(content | {"acquisitions": acquisitions}, allow_unicode=True))
    return name


def quantiles(rng: np.random.Generator, mean: float, spread: float) -> list[float]:
    return np.clip(np.quantile(rng.normal(mean, spread, 2000), np.linspace(0, 1, 101)), 0, 1).tolist()


def numbers(rng: np.random.Generator, temperature: float | None, fractions: dict[str, float]) -> dict[str, dict]:
    """Results of the steps that the comparison reads."""
    share = {"rocksalt": float(np.clip(rng.normal(CONDITIONS[temperature], 0.02), 0.001, 1)), "spinel": float(rng.uniform(0, 0.05))}
    fraction: dict = {"n_patterns_ncm": int(rng.integers(80, 150)), "n_grains": int(rng.integers(3, 20)), "detection_limit": 0.01}
    for phase, mean in share.items():
        narrow, wide = quantiles(rng, mean, 0.01), quantiles(rng, mean, 0.03)
        fraction |= {f"{phase}_fraction": mean, f"{phase}_fraction_raw": mean + 0.01, f"{phase}_detected": mean > 0.01}
        fraction |= {f"{phase}_fraction_ci95": [narrow[3], narrow[97]], f"{phase}_detection_limit": 0.01}
        fraction |= {f"{phase}_fraction_quantiles": narrow, f"{phase}_elsewhere_quantiles": wide, f"{phase}_elsewhere_ci95": wide[3::94]}
    thickness = float(rng.uniform(0.5, 3))
    layer = {"surface_layer_thickness_nm": thickness, "surface_layer_thickness_ci95_nm": [thickness - 0.2, thickness + 0.2]}
    layer |= {"surface_phase": "rocksalt" if thickness > 2 else "spinel", "dose_e_per_A2": float(rng.uniform(1500, 2500))}
    matched = {"shape": list(SHAPE), "step_nm": 8.0, "phases": PHASES, "chance_nats": dict.fromkeys(PHASES, 0.0)}
    return {"07_rocksalt_fraction": fraction, "03_haadf_surface": layer, "06_ped_matching": matched | {"area_fraction": fractions}}


def make_maps(path: Path, rng: np.random.Generator, rocksalt: float) -> dict[str, float]:
    """A map as 06 writes it; the area of each phase."""
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    phase_id = np.zeros(SHAPE, int)
    phase_id[:, 11:] = 3
    phase_id[rng.uniform(size=SHAPE) < rocksalt] = 2
    phase_id[-1, -4:] = -1
    rotation = Rotation.random(phase_id.size, rng=rng).as_matrix().reshape(*SHAPE, 3, 3)
    whole = {"decided", "grain_id", "crystal_id", "lattice_id", "second_phase_id", "second_crystal_id"}
    names = [*helpers.MAP_PROPERTIES, *(f"{kind}_{p}" for kind in ("score", "probability") for p in PHASES)]
    values = {name: rng.integers(0, 2, SHAPE) if name in whole else rng.gamma(2.0, 20.0, SHAPE) for name in names}
    values |= {name: rng.uniform(0, 1, SHAPE) for name in ("correlation", "share", "second_share")}
    emphase.orientations.save_crystal_map(path, emphase.orientations.to_crystal_map(phase_id, rotation, crystals, 8.0, values))
    return {p: float((phase_id == k).mean()) for k, p in enumerate(PHASES)} | {"not_indexed": float((phase_id < 0).mean())}


def leave_results(data: Path, results: Path, names: list[str], maps: bool = True) -> None:
    """Results of every step of the samples, with executed notebooks that say nothing."""
    page = nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A step")]))
    rng = np.random.default_rng(3)
    versions = {step: helpers.software_versions(step) for step in helpers.STEPS}
    drawn: dict[float | None, dict[str, float]] = {}
    for k, name in enumerate(names):
        temperature = TEMPERATURES[k % len(TEMPERATURES)]
        folder = results / name
        (folder / "notebooks").mkdir(parents=True)
        if maps and temperature not in drawn:  # one of each condition is enough to look at
            drawn[temperature] = make_maps(folder / "06_ped.h5", rng, CONDITIONS[temperature])
        elif maps:
            shutil.copy(results / names[k % len(TEMPERATURES)] / "06_ped.h5", folder / "06_ped.h5")
        found = numbers(rng, temperature, drawn.get(temperature, dict.fromkeys([*PHASES, "not_indexed"], 0.2)))
        recordings = {"03_haadf_surface": "haadf.tif", "05_ped_calibration": "ped.tif"}
        recordings |= dict.fromkeys(("06_ped_matching", "07_rocksalt_fraction"), "ped.tif")
        for step in helpers.STEPS:
            inputs = {f: emphase.files.file_sha256(data / name / f) for f in ("sample.yaml", recordings.get(step, "sample.yaml"))}
            content = {"status": "ok", "sample": name, **found.get(step, {}), "inputs": inputs}
            if step in ("02_cryo_stem_drift", "04_interface_phases"):
                content |= {"status": "not_acquired", "reason": "not in its sample.yaml"}
            content |= {"parameters": {"sample_id": name, "step_deg": 2.0}, "versions": versions[step]}
            (folder / f"{step}.json").write_text(json.dumps(content))
            (folder / "notebooks" / f"{step}.ipynb").write_text(page)


def many_samples(folder: Path, n: int = 300, maps: bool = True) -> tuple[Path, Path]:
    """Folders of data and results of n samples."""
    data, results = folder / "data", folder / "results"
    leave_results(data, results, [describe(data, k) for k in range(n)], maps)
    return data, results
