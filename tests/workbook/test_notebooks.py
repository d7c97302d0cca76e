"""All notebooks through `make run`: on a tiny simulated sample, on recorded data where it is here, and alone by papermill."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from executed import ROOT, SHARED, Executed, alone
from test_house import check_pages
from test_pages import browser, check_every_page, check_map_page, needs_chromium

import helpers


@pytest.fixture(scope="module")
def run(executed) -> Executed:
    return executed


def test_every_notebook_succeeds(run):
    assert run.status == 0, run.text
    for step in helpers.STEPS:
        result = run.result("tiny", step)
        assert result["status"] == "ok", (step, result)
        assert result["sample"] == "tiny"
        assert result["versions"]["code_sha256"] == helpers.code_sha256(step)[:16]
        assert all(len(digest) == 64 for digest in result["inputs"].values())


CONTRACT = {
    "02_cryo_stem_drift": [],
    "03_haadf_surface": ["surface_layer_thickness_nm", "surface_layer_thickness_ci95_nm", "surface_phase", "pixel_size_corrected_nm"],
    "05_ped_calibration": ["scale_invA_per_px", "ellipticity", "centre_px"],
    "07_rocksalt_fraction": [
        *("rocksalt_fraction", "rocksalt_fraction_ci95", "rocksalt_fraction_raw", "spinel_fraction", "spinel_fraction_ci95"),
        *(
            "spinel_fraction_raw",
            "detection_limit",
            "n_patterns_ncm",
            "n_grains",
            "known_mixtures",
            "sensitivity",
            "profiles",
            "other_phases",
        ),
    ],
}


@pytest.mark.parametrize("step", CONTRACT)
def test_results_hold_what_the_contract_names(run, step):
    result = run.result("tiny", step)
    for key in CONTRACT[step]:
        assert key in result
        assert result[key] is not None or result[f"{key}_reason"]


def test_files_beside_the_json(run):
    from orix.io import load

    rows = (run.results / "tiny" / "02_drift.csv").read_text().splitlines()
    assert rows[0].startswith("frame,shift_y_px,shift_x_px,sigma_px,used")
    assert len(rows) == 9
    crystal_map = load(run.results / "tiny" / "06_ped.h5")
    assert crystal_map.shape == (8, 8)
    scores = {f"score_{p}" for p in ("layered", "spinel", "rocksalt", "llzo")}
    assert {"score", "phase_margin", "orientation_margin", "grain_id"} | scores <= set(crystal_map.prop)
    header = (run.results / "08_comparison.csv").read_text().splitlines()[0]
    assert header == "sample,temperature_C,rocksalt_fraction,ci95_low,ci95_high,n_patterns_ncm,n_grains"
    comparison = json.loads((run.results / "08_comparison.json").read_text())
    assert "tiny" in [s["sample"] for s in comparison["samples"]]
    assert comparison["differences"] == [] and comparison["by_condition"]["differences"] == []  # one sample with a fraction
    methods = (run.results / "08_methods.md").read_text()
    recording = json.loads((run.results / "tiny" / "06_ped_matching.json").read_text())["inputs"]["ped.hspy"]
    assert methods.startswith("All data are simulated." if not SHARED.is_dir() else "Patterns of precession")
    assert f"tiny/ped.hspy: {recording[:16]}" in methods and "step_deg 2.0" in methods and "statsmodels" in methods


def test_figures_for_a_paper_are_vectors_of_their_width(run):
    for width_mm in (85, 175):
        text = (run.figures / f"08_paper_{width_mm}mm.svg").read_text()
        points = float(re.search(r'width="([0-9.]+)pt"', text).group(1))
        assert points == pytest.approx(width_mm / 25.4 * 72, abs=0.1)
        assert (run.figures / f"08_paper_{width_mm}mm.pdf").read_bytes().startswith(b"%PDF")


def test_fractions_where_nothing_is_decided_or_all_is_one_grain(run, tmp_path):
    """Maps of 06 made worse: 07 says so, and what it cannot know is null with a reason."""
    import h5py

    for name, changes in (("undecided", {"decided": 0}), ("one_grain", {"lattice_id": 1}), ("no_cathode", {"phase_id": 3})):
        results = tmp_path / name
        shutil.copytree(run.results / "tiny", results / "tiny")
        with h5py.File(results / "tiny" / "06_ped.h5", "r+") as file:
            for key, value in changes.items():
                file[f"crystal_map/data/{key}"][...] = value
        given = {"sample_id": "tiny", "data_dir": str(run.data), "results_dir": str(results), "figures_dir": str(tmp_path / "f")}
        assert alone("07_rocksalt_fraction", tmp_path / name / "out", given | {"sensitivity": False, "trials": 1}) is None
        result = json.loads((results / "tiny" / "07_rocksalt_fraction.json").read_text())
        if name == "undecided":
            assert result["rocksalt_fraction_ci95"] == result["rocksalt_fraction_bounds"] == [0, 1]
        elif name == "one_grain":
            assert result["n_grains"] == 1 and result["rocksalt_elsewhere_ci95"] is None
            assert "one grain only" in result["rocksalt_elsewhere_ci95_reason"]
        else:
            assert result["rocksalt_fraction"] is None and "no pattern was indexed" in result["rocksalt_fraction_reason"]


def test_figures_are_saved_for_every_step(run):
    for step in helpers.STEPS:
        figures = list((run.figures / "tiny").glob(f"{step[:2]}_*.png"))
        assert figures, step
        assert all(path.with_suffix(".svg").is_file() for path in figures)


def test_pages_of_the_real_notebooks(run):
    each = len(helpers.STEPS) + 1  # with a map page
    check_pages(run.results / "html", 1 + each * (1 + SHARED.is_dir()), [run.root, Path.home(), ROOT, "/tmp/"])


@needs_chromium
def test_pages_of_the_real_notebooks_in_a_browser(run):
    with browser() as chromium:
        for page in ("index.html", "tiny/*.html"):
            check_every_page(chromium, run.results / "html", page)
        check_map_page(chromium, run.results / "html" / "tiny" / "map.html")


def test_logs_hold_no_warnings(run):
    for path in run.results.rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.get("name") != "stderr", (path.name, output.get("text"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/realdata is not here")
def test_recorded_steel_is_told_from_its_precipitate(run):
    result = run.result("steel", "06_ped_matching")
    assert result["status"] == "ok"
    # four patterns of the matrix along <110>: G-phase, with 30 times more reflections, has less evidence than patterns of background
    assert result["area_fraction"]["austenite"] == 1 and result["area_fraction"]["g_phase"] == 0
    assert run.result("steel", "05_ped_calibration")["scale_invA_per_px"] == pytest.approx(0.01261, rel=0.02)
    for step in ("02_cryo_stem_drift", "03_haadf_surface", "04_interface_phases"):
        assert run.result("steel", step)["status"] == "not_acquired"


def test_a_notebook_alone_says_what_it_lacks(run, tmp_path):
    there = {"sample_id": "tiny", "data_dir": str(run.data), "results_dir": str(tmp_path / "r"), "figures_dir": str(tmp_path / "f")}
    assert alone("01_lamella_metadata", tmp_path / "a", there) is None
    assert json.loads((tmp_path / "r" / "tiny" / "01_lamella_metadata.json").read_text())["findings"]
    assert "run 05_ped_calibration for tiny first" in alone("06_ped_matching", tmp_path / "b", there)
    assert "unknown parameter sampel_id" in alone("05_ped_calibration", tmp_path / "c", there | {"sampel_id": "x"})
    assert "nosuch/sample.yaml: no such file; samples here: " in alone(
        "02_cryo_stem_drift", tmp_path / "d", there | {"sample_id": "nosuch"}
    )
