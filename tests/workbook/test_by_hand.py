"""Choices made by hand: kept, used in place of defaults, said, and refused where they do not fit."""

import numpy as np
import pytest
import study
import yaml

import emphase
import helpers
from helpers import HandChoice, ParameterError, ResultError

STEP = "06_ped_matching"


@pytest.fixture
def place(tmp_path):
    """A sample without recordings, and what a notebook's names are after its parameters cell."""
    folder = tmp_path / "data" / "A"
    folder.mkdir(parents=True)
    (folder / "sample.yaml").write_text("id: A\nlabel: a lamella\nacquisitions: {}\n")
    defaults = helpers.notebook_parameters(helpers.PROJECT_ROOT / "notebooks" / f"{STEP}.ipynb")
    return {**defaults, "sample_id": "A", "data_dir": str(tmp_path / "data"), "results_dir": str(tmp_path / "results")}


def test_a_choice_is_used_printed_and_kept_in_the_result(place, tmp_path, capsys):
    helpers.begin(STEP, dict(place)).choose_by_hand({"least_margin_nats": 5.0, "candidate_phases": ["layered"]}, "too many doubtful ones")
    run = helpers.begin(STEP, place)
    assert run.params.least_margin_nats == 5.0 and run.params.candidate_phases == ["layered"]
    assert place["least_margin_nats"] == 3.0 and place["candidate_phases"] == [], "what is given stays as it is"
    assert "Chosen by hand: least_margin_nats = 5.0, candidate_phases = ['layered']. Reason: too many" in capsys.readouterr().out
    run.save({})
    result = helpers.read_result(tmp_path / "results", "A", STEP)
    assert result["parameters"]["least_margin_nats"] == 5.0
    assert result["by_hand"]["reason"] == "too many doubtful ones" and "least_margin_nats = 5.0" in result["by_hand"]["statement"]


def test_what_a_run_is_told_goes_before_what_was_chosen(place, capsys):
    helpers.begin(STEP, dict(place)).choose_by_hand({"least_margin_nats": 5.0, "seed": 7}, "a try")
    run = helpers.begin(STEP, {**place, "In": ["# Parameters\nleast_margin_nats = 3.0\n"]})
    assert run.params.least_margin_nats == 3.0 and run.params.seed == 7
    assert "not used, because the run was told otherwise: least_margin_nats" in capsys.readouterr().out


def test_steps_do_not_touch_each_other_and_a_choice_can_be_taken_back(tmp_path):
    first, second = (HandChoice(parameters={"seed": k}, reason="because", date="2026-11-24") for k in (1, 2))
    helpers.save_hand_choice(tmp_path, "02_cryo_stem_drift", first)
    helpers.save_hand_choice(tmp_path, STEP, second)
    assert helpers.hand_choices(tmp_path) == {"02_cryo_stem_drift": first, STEP: second}
    helpers.save_hand_choice(tmp_path, "02_cryo_stem_drift", None)
    assert helpers.hand_choices(tmp_path) == {STEP: second}


def test_a_choice_joins_those_of_its_step_and_defaults_leave_it(place):
    run = helpers.begin(STEP, dict(place))
    run.choose_by_hand({"seed": 7, "grain_misorientation_deg": 3.0}, "by pen")
    run.choose_by_hand({"least_margin_nats": 4.0, "seed": place["seed"]}, "by mouse")
    entry = helpers.hand_choices(run.results)[STEP]
    assert entry.parameters == {"grain_misorientation_deg": 3.0, "least_margin_nats": 4.0} and entry.reason == "by mouse"
    assert run.choose_by_hand({"grain_misorientation_deg": 5.0, "least_margin_nats": 3.0}, "back again") is None
    assert helpers.hand_choices(run.results) == {}


def test_what_a_run_used_is_told_even_if_it_was_changed_since(place):
    helpers.begin(STEP, dict(place)).choose_by_hand({"least_margin_nats": 4.0}, "a try")
    run = helpers.begin(STEP, place)
    helpers.save_hand_choice(run.results, STEP, None)
    assert run.provenance()["by_hand"]["parameters"] == {"least_margin_nats": 4.0}
    again = helpers.begin(STEP, place)
    assert again.params.least_margin_nats == 3.0 and "by_hand" not in again.provenance()


def test_a_choice_in_another_folder_is_refused(place, tmp_path):
    choice = HandChoice(parameters={"leave_out": ["A"]}, reason="because", date="2026-11-24")
    helpers.save_hand_choice(tmp_path, helpers.COMPARISON, choice)
    with pytest.raises(ResultError, match="unknown step 08_sample_comparison, expected one of 01_"):
        helpers.hand_choices(tmp_path)


def test_a_recording_in_a_linked_folder(place, tmp_path):
    (tmp_path / "disk").mkdir()
    image = tmp_path / "disk" / "haadf.tif"
    image.write_bytes(b"one")
    (tmp_path / "data" / "A" / "raw").symlink_to(tmp_path / "disk")
    linked = tmp_path / "data" / "A" / "raw" / "haadf.tif"
    helpers.begin(STEP, dict(place)).choose_by_hand({"seed": 3}, "drawn on it", made_on=[linked])
    assert helpers.begin(STEP, dict(place)).by_hand.made_on == {"raw/haadf.tif": emphase.files.file_sha256(image)}


def test_a_choice_made_on_another_file_is_refused(place, tmp_path):
    image = tmp_path / "data" / "A" / "haadf.tif"
    image.write_bytes(b"one")
    helpers.begin(STEP, dict(place)).choose_by_hand({"seed": 3}, "drawn on it", made_on=[image])
    helpers.begin(STEP, dict(place))
    image.write_bytes(b"two")
    with pytest.raises(ResultError, match=r"A/manual.yaml: 06_ped_matching: made on haadf.tif with sha256 .* choose again"):
        helpers.begin(STEP, dict(place))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- 1", "got list, expected steps"),
        ("a: [", "not YAML"),
        ("06_matching: {}", "unknown step 06_matching, expected one of 01_lamella_metadata"),
        (f"{STEP}: {{parameters: {{}}, date: 2026-11-24}}", f"{STEP}: reason: Field required"),
        (f"{STEP}: {{parameters: {{}}, reason: '', date: 2026-11-24}}", f"{STEP}: reason: String should have at least 3"),
        (f"{STEP}: {{parameters: {{}}, reason: abc, date: 2026-11-24, who: me}}", f"{STEP}: who: Extra inputs"),
        (f"{STEP}: {{parameters: {{seeed: 1}}, reason: abc, date: 2026-11-24}}", "unknown parameter seeed.*did you mean seed"),
        (f"{STEP}: {{parameters: {{results_dir: elsewhere}}, reason: abc, date: 2026-11-24}}", "unknown parameter results_dir"),
        (f"{STEP}: {{parameters: {{candidate_phases: layered}}, reason: abc, date: 2026-11-24}}", "got 'layered', expected list"),
    ],
)
def test_a_faulty_file_ends_with_its_name_and_key(place, tmp_path, text, told):
    (tmp_path / "results" / "A").mkdir(parents=True)
    (tmp_path / "results" / "A" / "manual.yaml").write_text(text)
    with pytest.raises((ResultError, ParameterError), match=told):
        helpers.begin(STEP, dict(place))


def test_a_choice_needs_a_reason_and_a_parameter_that_exists(place):
    run = helpers.begin(STEP, dict(place))
    with pytest.raises(ValueError, match="reason"):
        run.choose_by_hand({"seed": 3}, "")
    with pytest.raises(ParameterError, match="unknown parameter sed"):
        run.choose_by_hand({"sed": 3}, "because")
    assert not (run.results / "manual.yaml").exists()


def test_the_file_is_plain_yaml(place):
    run = helpers.begin(STEP, dict(place))
    run.choose_by_hand({"least_margin_nats": np.float64(4.5)}, "größer: besser")
    path = run.results / "manual.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content[STEP]["parameters"] == {"least_margin_nats": 4.5} and content[STEP]["reason"] == "größer: besser"


# --- the frames of a stack --------------------------------------------------------------


@pytest.fixture(scope="module")
def stack():
    return study.cryo_stack(np.random.default_rng(5), 12, (128, 128), 4.0)[0]


def test_frames_left_out_by_hand_are_as_if_they_were_not_there(stack):
    solution = emphase.drift.register_stack(stack, leave_out=[0, 7])
    assert not solution.used[[0, 7]].any() and solution.left_out[7] == "by hand"
    without = emphase.drift.register_stack(np.delete(stack, [0, 7], axis=0))
    assert np.abs(np.delete(solution.shift_px, [0, 7], axis=0) - without.shift_px).max() < 0.1


def test_a_foreign_frame_can_be_taken_in_by_hand(stack):
    frames = stack.copy()
    frames[6] = np.random.default_rng(1).permutation(frames[6].ravel()).reshape(frames[6].shape)
    assert "foreign" in emphase.drift.register_stack(frames).left_out[6]
    assert emphase.drift.register_stack(frames, take_in=[6]).used[6]


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"leave_out": [12]}, "frame 12 by hand: expected whole numbers from 0 to 11"),
        ({"take_in": ["a"]}, "frame a by hand"),
        ({"leave_out": [[1]]}, r"frame \[1\] by hand"),
        ({"leave_out": [1.5]}, r"frame 1.5 by hand"),
        ({"leave_out": list(range(11))}, "11 of 12 frames left out by hand, expected two"),
        ({"leave_out": [1], "take_in": [1]}, "frame 1 is both"),
        ({"take_in": [3]}, "frame 3 taken in by hand holds no counts"),
    ],
)
def test_frames_that_cannot_be(stack, choice, told):
    frames = stack.copy()
    frames[3] = 0
    with pytest.raises(emphase.EmphaseError, match=told):
        emphase.drift.register_stack(frames, **choice)


# --- the surface ------------------------------------------------------------------------


def test_a_surface_drawn_on_the_edge_that_was_found_gives_its_thickness():
    rng = np.random.default_rng(8)
    image, truth = emphase.simulate.haadf_image(rng, (512, 512), layer_nm=1.8)
    crystal = helpers.phase_crystal("layered")
    expected = emphase.haadf.project_columns(crystal, (1, 0, 0))
    lattice = emphase.haadf.find_image_lattice(image, expected, 0.0125)
    cations = emphase.haadf.cation_lattice(expected)
    columns = emphase.haadf.measure_columns(image, lattice, cations)
    found = emphase.haadf.measure_surface_layer(rng, columns, cations)
    edge = found.contour.curve()
    points = edge[np.linspace(2, len(edge) - 3, 9).astype(int)]
    drawn = emphase.haadf.measure_surface_layer(rng, columns, cations, drawn_nm=points)
    assert drawn.thickness_nm == pytest.approx(found.thickness_nm, abs=0.08)
    assert drawn.kind == found.kind and drawn.ci95_nm[0] < truth["thickness_nm"] < drawn.ci95_nm[1]
    backwards = emphase.haadf.measure_surface_layer(rng, columns, cations, drawn_nm=points[::-1])
    assert backwards.thickness_nm == pytest.approx(drawn.thickness_nm, abs=0.02)
    outwards = points - 0.4 * found.contour.inwards[:1]
    assert emphase.haadf.measure_surface_layer(rng, columns, cations, drawn_nm=outwards).thickness_nm == pytest.approx(
        drawn.thickness_nm + 0.4, abs=0.12
    )
    inside = points + 3.0 * found.contour.inwards[:1]
    for wrong, told in ((points[:2], "three or more"), (inside[[0, 2, 1, 3]], "turns back"), (np.full((3, 2), 5.0), "no point twice")):
        with pytest.raises(emphase.EmphaseError, match=told):
            emphase.haadf.measure_surface_layer(rng, columns, cations, drawn_nm=wrong)


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ("drawn", "got drawn, expected three or more points"),
        ([[1, 2], [3]], "expected three or more points"),
        ([[1, 2], [3, float("nan")], [5, 6]], "expected three or more points"),
        ([[1, 2], [3, 4], [50, 600]], "outside the image of 500 x 500 px"),
    ],
)
def test_points_that_are_no_surface(points, told):
    with pytest.raises(emphase.EmphaseError, match=told):
        emphase.haadf.contour.drawn_points(points, (500, 500))
