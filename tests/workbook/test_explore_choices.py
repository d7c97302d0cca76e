"""A choice made in an explorer goes to manual.yaml with its reason and its recording, as a parameter that runs take."""

import numpy as np
import pytest
import study

import emphase
import helpers


def begun(step: str, tmp_path) -> helpers.Step:
    """A step of a sample without recordings."""
    folder = tmp_path / "data" / "A"
    folder.mkdir(parents=True)
    (folder / "sample.yaml").write_text("id: A\nlabel: a <b> lamella\nsimulated: true\nacquisitions: {}\n")
    (folder / "recording.tif").write_bytes(b"what it was made on")
    names = helpers.notebook_parameters(helpers.PROJECT_ROOT / "notebooks" / f"{step}.ipynb")
    given = {"sample_id": "A", "data_dir": str(tmp_path / "data"), "results_dir": str(tmp_path / "results")}
    return helpers.begin(step, names | {k: v for k, v in given.items() if k in names})


def stored(run: helpers.Step) -> dict:
    return helpers.hand_choices(run.results)[run.name].parameters


@pytest.mark.parametrize(
    ("step", "choice", "expected"),
    [
        ("02_cryo_stem_drift", {"leave_out": [5], "take_in": []}, {"leave_out": [5]}),
        ("03_haadf_surface", {"surface_px": [[1.25, 2.0], [30.0, 2.5]]}, {"surface_px": [[1.25, 2.0], [30.0, 2.5]]}),
        ("04_interface_phases", {"candidate_phases": ["layered", "llzo"]}, {"candidate_phases": ["layered", "llzo"]}),
        (
            "06_ped_matching",
            {"candidate_phases": ["layered", "rocksalt"], "least_support_nats": 2.0, "least_margin_nats": 8.0},
            {"candidate_phases": ["layered", "rocksalt"], "least_margin_nats": 8.0},
        ),
    ],
)
def test_what_differs_from_the_defaults_is_kept_for_its_recording(tmp_path, step, choice, expected):
    run = begun(step, tmp_path)
    hand = run.hand_choices(run.sample.folder / "recording.tif")
    assert "a <b> lamella" in hand.title and hand.kept == ""
    assert not (run.results / "manual.yaml").exists()
    assert hand.keep(choice, "for a test").startswith("Kept in manual.yaml")
    assert stored(run) == expected
    entry = helpers.hand_choices(run.results)[step]
    assert entry.reason == "for a test" and list(entry.made_on) == ["recording.tif"]
    assert hand.forget().startswith("Forgotten")
    assert helpers.hand_choices(run.results) == {}


def test_a_parameter_that_is_back_at_its_default_leaves(tmp_path):
    run = begun("06_ped_matching", tmp_path)
    hand = run.hand_choices(run.sample.folder / "recording.tif")
    hand.keep({"candidate_phases": ["layered"], "least_margin_nats": 8.0}, "for a test")
    hand.keep({"candidate_phases": [], "least_margin_nats": 8.0}, "for a test")
    assert stored(run) == {"least_margin_nats": 8.0}


def test_an_explorer_keeps_by_its_button(tmp_path):
    run = begun("02_cryo_stem_drift", tmp_path)
    frames = study.cryo_stack(np.random.default_rng(5), 6, (64, 64), 4.0)[0]
    hand = run.hand_choices(run.sample.folder / "recording.tif")
    explorer = emphase.explore.DriftExplorer(frames, emphase.drift.register_stack(frames), 0.045, hand=hand, leave_out=[3], take_in=[])
    explorer.keep()
    assert "say why" in explorer.message.value and not (run.results / "manual.yaml").exists()
    explorer.reason.value = "charging"
    explorer.keep()
    assert stored(run) == {"leave_out": [3]} and "Kept in manual.yaml" in explorer.message.value


def test_samples_left_out_of_the_comparison_are_kept(tmp_path):
    run = begun("08_sample_comparison", tmp_path)
    row = {"label": "<i>", "simulated": True, "n_patterns": 700, "n_grains": 9, "rocksalt_detected": True, "rocksalt_detection_limit": 0.01}
    rows = [
        row
        | {"sample": name, "rocksalt_fraction": share, "rocksalt_fraction_raw": share}
        | {f"rocksalt_{kind}_quantiles": np.linspace(0, 2 * share, 101) for kind in ("fraction", "elsewhere")}
        for name, share in (("A", 0.02), ("B", 0.05), ("C", 0.2))
    ]
    explorer = emphase.explore.ComparisonExplorer(
        rows, {"rocksalt": "#F0E442"}, helpers.compare_fractions, area="NCM area", hand=run.hand_choices()
    )
    assert explorer.table.value.count("<tr>") == 4
    explorer.compared.value = ("A", "B")
    assert explorer.table.value.count("<tr>") == 2
    explorer.reason.value = "a bad lamella"
    explorer.keep()
    assert helpers.hand_choices(run.results, (helpers.COMPARISON,))[helpers.COMPARISON].parameters == {"leave_out": ["C"]}
