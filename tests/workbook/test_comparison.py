"""The comparison of samples: differences, conditions, what forbids it, and results that cannot take part."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import emphase
import helpers

PHASES = ("layered", "spinel", "rocksalt", "llzo")


def row(sample, value, sd, temperature=None, **more):
    """A sample as the comparison has it, its fraction with a uniform distribution of a standard deviation."""
    quantiles = np.clip(value + sd * np.sqrt(12) * np.linspace(-0.5, 0.5, 101), 0, 1)
    named = {"rocksalt_fraction": value, "rocksalt_fraction_quantiles": quantiles, "rocksalt_elsewhere_quantiles": quantiles}
    return {"sample": sample, "temperature_C": temperature, "has_map": True, "phases": list(PHASES), "doses": {}} | named | more


def test_differences_are_antisymmetric_and_sure_where_distributions_part():
    a, b = row("a", 0.05, 0.01), row("b", 0.20, 0.02)
    (up,), (down,) = helpers.compare_fractions([a, b]), helpers.compare_fractions([b, a])
    assert up["difference"] == pytest.approx(0.15) == -down["difference"]
    assert up["ci95_low"] == pytest.approx(-down["ci95_high"])
    assert up["probability_of_increase"] == 1 and down["probability_of_increase"] == 0
    (same,) = helpers.compare_fractions([a, a | {"sample": "c"}])
    assert same["probability_of_increase"] == pytest.approx(0.5)
    (bare,) = helpers.compare_fractions([a, b | {"rocksalt_elsewhere_quantiles": None}])
    assert "elsewhere_ci95_low" not in bare
    assert helpers.compare_fractions([a]) == []


def test_one_lamella_a_condition_cannot_tell_temperature_from_specimen():
    rows = [row("a", 0.05, 0.01), row("b", 0.2, 0.01, 600.0)]
    found = helpers.compare_conditions(rows)
    assert found["between_lamellae_sd"] is None and found["between_lamellae_sd_reason"] and found["differences"] == []
    assert all("ci95" not in c for c in found["conditions"])
    assert any("cannot tell the part of the temperature" in s for s in helpers.comparability(rows))
    nothing = helpers.compare_conditions([])
    assert nothing["conditions"] == [] and nothing["between_lamellae_sd_reason"]


def test_lamellae_of_a_condition_are_a_level_of_the_model():
    """Over simulated studies the 95 % interval of a difference of conditions covers, which one that knows no lamellae does not."""
    rng, covered, naive = np.random.default_rng(3), 0, 0
    for _ in range(60):
        rows = [
            row(f"{t}{i}", float(np.clip(mean + rng.normal(0, 0.03) + rng.normal(0, 0.01), 0.001, 1)), 0.01, t)
            for t, mean in ((500.0, 0.15), (600.0, 0.25))
            for i in range(4)
        ]
        found = helpers.compare_conditions(rows)
        (pair,) = found["differences"]
        covered += pair["ci95_low"] <= 0.1 <= pair["ci95_high"]
        naive += abs(pair["difference"] - 0.1) < 1.96 * 0.01 / np.sqrt(2)
        assert [c["n_lamellae"] for c in found["conditions"]] == [4, 4]
    assert covered >= 53 > naive


def test_what_forbids_a_comparison_is_said():
    rows = [row("a", 0.1, 0.01, 500.0), row("b", 0.1, 0.01, 500.0, phases=["layered", "rocksalt"], calibration_trusted=False)]
    rows[0]["doses"], rows[1]["doses"] = {"03_haadf_surface_dose_e_per_A2": 2000.0}, {"03_haadf_surface_dose_e_per_A2": 9000.0}
    said = " ".join(helpers.comparability(rows))
    for words in ("different candidate phases", "not trusted for b", "doses of the HAADF images differ (a 2000 e/Å², b 9000 e/Å²)"):
        assert words in said
    assert helpers.comparability(rows[:1]) == []


@pytest.fixture
def study(tmp_path):
    """A folder of samples with results of 07, made up; returns a function that adds one."""
    data, results = tmp_path / "data", tmp_path / "results"

    def add(name, value=0.1, scan="aa", identity=None, drop=(), temperature=None):
        (data / "samples" / name).mkdir(parents=True)
        (results / name).mkdir(parents=True)
        (data / "samples" / name / "ped.blo").write_bytes(b"scan")
        ped = {"file": "ped.blo", "beam_energy_keV": 200, "precession_deg": 0.5, "phases": list(PHASES)}
        content = {"id": identity or name, "label": name, "sintering": {"temperature_C": temperature}, "acquisitions": {"ped": ped}}
        (data / "samples" / name / "sample.yaml").write_text(yaml.safe_dump(content))
        result = {"status": "ok", "n_patterns_ncm": 100, "n_grains": 3, "detection_limit": 0.01, "inputs": {"ped.blo": scan}}
        for phase in ("rocksalt", "spinel"):
            result |= {f"{phase}_fraction": value, f"{phase}_fraction_ci95": [0.0, 0.2], f"{phase}_fraction_raw": value}
            result |= {f"{phase}_detected": True, f"{phase}_fraction_quantiles": [0.0, 0.2], f"{phase}_elsewhere_quantiles": [0.0, 0.2]}
        result = {k: v for k, v in result.items() if k not in drop}
        (results / name / "07_rocksalt_fraction.json").write_text(json.dumps(result))
        (results / name / "06_ped_matching.json").write_text(json.dumps({"status": "ok", "phases": list(PHASES)}))
        return SimpleNamespace(data=data, results=results)

    return add


def test_samples_come_in_order_of_sintering(study):
    study("warm", scan="a", temperature=500.0)
    study("cold", scan="b", temperature=25.0)
    here = study("pressed", scan="c")
    samples, missing = helpers.collect_samples(here.data, here.results)
    assert [s["sample"] for s in samples] == ["pressed", "cold", "warm"] and missing == {}
    assert set(helpers.COMPARISON_COLUMNS) <= set(samples[0])


def test_duplicates_older_results_and_wrong_ids_are_missing_with_a_reason(study):
    study("one", scan="aa")
    study("twin", scan="aa")
    study("older", scan="bb", drop=("rocksalt_fraction_quantiles",))
    here = study("copy", scan="cc", identity="one")
    (here.data / "samples" / "new").mkdir()
    (here.data / "samples" / "new" / "sample.yaml").write_text(yaml.safe_dump({"id": "new", "label": "new", "acquisitions": {}}))
    samples, missing = helpers.collect_samples(here.data, here.results)
    assert [s["sample"] for s in samples] == ["one"]
    assert "is that of one, byte for byte" in missing["twin"]
    assert "an older version wrote it; run 07_rocksalt_fraction again" in missing["older"]
    assert "copy" in missing["copy"] and "one" in missing["copy"]
    assert "run 07_rocksalt_fraction for new first" in missing["new"]


def test_an_older_map_is_refused_by_name(tmp_path):
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    phase_id = np.zeros((3, 4), int)
    old = emphase.orientations.to_crystal_map(phase_id, np.tile(np.eye(3), (3, 4, 1, 1)), crystals, 8.0, {"score": phase_id.astype(float)})
    (tmp_path / "x").mkdir()
    matched = {"phases": list(PHASES), "chance_nats": dict.fromkeys(PHASES, 0.0)}
    emphase.orientations.save_crystal_map(tmp_path / "x" / "06_ped.h5", old)
    with pytest.raises(emphase.EmphaseError, match=r"x/06_ped.h5: holds no 'correlation', .*run 06_ped_matching again"):
        helpers.load_maps(tmp_path / "x" / "06_ped.h5", matched)
    with pytest.raises(emphase.EmphaseError, match="run 06_ped_matching for y first"):
        helpers.load_maps(tmp_path / "y" / "06_ped.h5", matched)
