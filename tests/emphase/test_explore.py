"""The explorers without a browser, made of the library's objects alone: what clicks, keys and controls show, compute and hand on."""

import itertools
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import study

import emphase

PHASES = ("layered", "spinel", "rocksalt", "llzo")
FAMILY = PHASES[:3]
OPTICS = {"beam_energy_keV": 200.0, "precession_deg": 0.5, "excitation_width_invA": 0.001}


def key(name: str) -> SimpleNamespace:
    return SimpleNamespace(key=name)


def mouse(axes, y: float, x: float, button: int = 1) -> SimpleNamespace:
    return SimpleNamespace(inaxes=axes, ydata=y, xdata=x, button=button)


class Kept:
    """Where choices by hand go: what a user's callbacks would store."""

    def __init__(self):
        self.parameters, self.reason = {}, ""
        self.hand = emphase.explore.HandChoices("a <b> lamella", self.keep, self.forget, "Chosen before: nothing.")

    def keep(self, parameters: dict, reason: str) -> str:
        self.parameters, self.reason = parameters, reason
        return f"Stored {sorted(parameters)}."

    def forget(self) -> str:
        self.parameters, self.reason = {}, ""
        return "Forgotten."


def storing(kind, *given, **more):
    """An explorer with callbacks that store its choices in ``kept``."""
    kept = Kept()
    explorer = kind(*given, hand=kept.hand, **more)
    assert explorer.figure.get_suptitle() == "a <b> lamella" or kind is emphase.explore.ComparisonExplorer
    explorer.kept = kept
    return explorer


def ended(explorer) -> None:
    """Wait for what an explorer computes."""
    explorer.work.thread.join(120)
    assert not explorer.work.thread.is_alive() and not explorer.work.running


# --- spots and the landscape of orientations --------------------------------------------


@pytest.fixture(scope="module")
def scan():
    """A small bright scan without overlap: patterns, truth, calibration, banks, and what `map_scan` found."""
    crystals = list(study.crystals(*PHASES).values())
    patterns, truth = emphase.simulate.ped_scan(
        np.random.default_rng(3), crystals, (9, 9), emphase.simulate.PedScene(0.25, 0.15, n_grains=3, overlap=0.0), electrons=12000
    )
    mean, variance, _ = emphase.ped.scan.scan_statistics(patterns)
    mask = emphase.ped.scan.hot_and_dead_pixels(mean, variance, 81, 12)
    calibration = emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], mask, 1.4)
    banks = [emphase.ped.template_bank(c, max_g_invA=1.5, **OPTICS) for c in crystals]
    return patterns, truth, calibration, banks, study.map_scan(patterns, calibration, banks, {})


def test_spots_of_the_true_crystal_are_seen_and_those_of_a_wrong_one_are_missing(scan):
    _, _, calibration, banks, (maps, found, spots) = scan
    counts = np.zeros((2, 3))
    for i in np.flatnonzero((maps["phase_id"] == 0).ravel() & maps["decided"].ravel()):
        for row, phase in enumerate((0, 3)):
            rotation = found.rotation[phase].reshape(-1, 3, 3)[i].astype(float)
            c = emphase.ped.search.compare_spots(spots[i : i + 1], calibration, banks[phase], rotation)
            assert not (c.seen & c.missing).any()
            counts[row] += c.seen.sum(), c.missing.sum(), len(c.extra_px)
    right, wrong = counts
    assert right[0] > 5 * right[1]
    assert wrong[1] / wrong[0] > 4 * right[1] / right[0]
    assert wrong[2] > right[2]


def test_a_pattern_without_spots_has_nothing_to_compare(scan):
    patterns, _, calibration, banks, _ = scan
    empty = emphase.ped.find_spots(np.zeros((1, *patterns.shape[2:]), np.uint8), calibration.centre_px[0, :1], calibration)
    c = emphase.ped.search.compare_spots(empty, calibration, banks[2], np.eye(3))
    assert not c.seen.any() and not c.missing.any() and len(c.extra_px) == 0
    directions, evidence = emphase.ped.search.zone_axis_landscape(empty, calibration, banks[2])
    assert np.allclose(np.linalg.norm(directions, axis=1), 1) and not evidence.any()


def test_the_landscape_is_highest_about_the_orientation_that_was_found(scan):
    _, _, calibration, banks, (maps, found, spots) = scan
    off = []
    for i in np.flatnonzero(maps["decided"].ravel() & (maps["phase_margin"].ravel() > 20)):
        k = int(maps["phase_id"].ravel()[i])
        directions, evidence = emphase.ped.search.zone_axis_landscape(spots[i : i + 1], calibration, banks[k])
        beam = found.rotation[k].reshape(-1, 3, 3)[i][:, 2]
        equivalent = np.einsum("oij,j->oi", banks[k].operators, directions[np.argmax(evidence)])
        off.append(np.degrees(np.arccos(np.clip(np.max(equivalent @ beam), -1, 1))))
    assert len(off) > 20 and np.median(off) < 2.0  # the step of the bank


@pytest.mark.parametrize("uvw", [(1, 0, 0), (1, 1, 0), (0, 0, 1), (2, 1, -1)])
def test_a_zone_axis_is_named_by_its_indices(uvw):
    crystal = study.crystals("layered")["layered"]
    near = np.array(uvw) @ crystal.lattice + [0.02, 0.01, 0.0]
    found, angle = emphase.ped.search.nearest_zone_axis(crystal, near)
    assert found == uvw and angle < 1.0


# --- diffraction patterns ---------------------------------------------------------------


@pytest.fixture
def ped(scan):
    patterns, _, calibration, banks, mapped = scan
    box, thresholds, options = (slice(0, 9), slice(0, 9)), {"least_support": 2.0, "least_margin": 3.0}, {"families": (FAMILY,)}
    whole = emphase.explore.Reading(*box, banks, thresholds, *mapped, options=options)
    display = emphase.explore.MapDisplay(share=emphase.explore.ShareOf("rocksalt", FAMILY, "cathode"))
    return storing(emphase.explore.PedExplorer, patterns, calibration, banks, 8.0, whole=whole, display=display)


def test_click_and_keys_choose_the_pattern(ped, scan):
    maps = scan[4][0]
    ped.on_click(mouse(ped.axes["map"], 2.2, 6.8))
    assert (ped.row.value, ped.column.value) == (2, 7)
    name = PHASES[maps["phase_id"][2, 7]] if maps["phase_id"][2, 7] >= 0 else "not indexed"
    assert f"y 2, x 7 (16, 56 nm): {name}" in ped.status.value
    for press, place in (("left", (2, 6)), ("down", (3, 6)), ("up", (2, 6)), ("right", (2, 7)), ("x", (2, 7))):
        ped.on_key(key(press))
        assert (ped.row.value, ped.column.value) == place
    ped.pick(-5, 100)
    assert (ped.row.value, ped.column.value) == (0, 8)
    assert all(phase in ped.table.value for phase in PHASES)


def test_layers_and_triangle_can_be_drawn(ped):
    for layer in ped.layer.options:
        ped.layer.value = layer
        assert ped.axes["map"].get_title() == layer
        ped.canvas.draw()
    ped.of_triangle.value = "rocksalt"
    assert ped.axes["triangle"].get_title().startswith("rocksalt")
    ped.shown.value = ("spinel",)
    assert "layered" not in [text.get_text() for text in ped.axes["pattern"].get_legend().get_texts()]


def test_a_region_shows_its_fractions_and_is_matched_again_as_batch_does(ped, scan):
    patterns, _, calibration, banks, (maps, _, _) = scan
    ped.drawing.value = True
    ped.on_click(mouse(ped.axes["map"], 1, 1))
    ped.on_move(mouse(ped.axes["map"], 4, 5))
    ped.on_release(mouse(ped.axes["map"], 6, 7))
    assert ped.region == (slice(1, 7), slice(1, 8)) and ped.rows.value == (1, 6) and ped.columns.value == (1, 7)
    part = maps["phase_id"][1:7, 1:8]
    assert f"Region of 42 patterns, map: layered {(part == 0).mean():.1%}" in ped.status.value
    ped.candidates.value = ("layered", "rocksalt", "llzo")
    ended(ped)
    some = replace(calibration, centre_px=calibration.centre_px[1:7, 1:8])
    again, _, _ = study.map_scan(patterns[1:7, 1:8], some, [banks[0], banks[2], banks[3]], {"least_support": 2.0, "least_margin": 3.0})
    assert np.array_equal(ped.reread.maps["phase_id"], again["phase_id"])
    assert np.array_equal(ped.reread.numbered(list(PHASES)), np.array([0, 2, 3, -1])[again["phase_id"]])
    assert "with these choices: layered" in ped.status.value and "42 patterns matched again" in ped.message.value
    before = ped.work.thread
    ped.least_support.value = 30.0  # a threshold alone needs no other search
    assert ped.work.thread is before and (ped.reread.maps["phase_id"] < 0).sum() > (again["phase_id"] < 0).sum()
    ped.clear_region()
    assert "Region" not in ped.status.value


def test_other_thresholds_change_what_is_read_and_nothing_that_was_found(ped, scan):
    maps, found, _ = scan[4]
    ped.least_margin.value = 6.0
    for y, x in ((0, 0), (4, 4), (8, 2)):
        ped.pick(y, x)
        assert ped.work.thread is None
        assert f"margin to the next phase {maps['phase_margin'][y, x]:.1f} nats" in ped.status.value
    ped.set_region(slice(2, 6), slice(0, 9))
    again = emphase.ped.decide.decide_phases(found, maps["correlation"], maps["explained"], least_support=2.0, least_margin=6.0)
    assert np.array_equal(ped.reread.maps["phase_id"], again["phase_id"][2:6])
    assert ped.reread.maps["decided"].sum() <= maps["decided"][2:6].sum()


@pytest.fixture
def held(ped, monkeypatch):
    """Matching that waits for an event."""
    go_on, matched = threading.Event(), ped._matched
    monkeypatch.setattr(ped, "_matched", lambda *a: go_on.wait(60) and matched(*a))
    return go_on


@pytest.mark.parametrize("meanwhile", ["clear", "smaller", "reselect", "cancel", "pick"])
def test_what_a_user_does_while_a_region_is_matched_leaves_a_consistent_map(ped, held, meanwhile):
    ped.set_region(slice(0, 6), slice(0, 6))
    ped.candidates.value = ("layered", "rocksalt")
    assert ped.work.running
    thread = ped.work.thread
    if meanwhile == "clear":
        ped.candidates.value = PHASES  # nothing waits to be matched when the region goes
        ped.clear_region()
    elif meanwhile == "smaller":
        ped.candidates.value = PHASES
        ped.set_region(slice(0, 2), slice(0, 2))
    elif meanwhile == "reselect":
        ped.candidates.value = PHASES
    elif meanwhile == "cancel":
        held.set()
        ped.work.cancel()
        assert ped.candidates.value == PHASES
    held.set()
    thread.join(60)
    ended(ped)
    if meanwhile == "pick":
        ped.pick(2, 2)
        assert ped.reread.names == ["layered", "rocksalt"] and "36 patterns, with these choices" in ped.status.value
        ped.pick(8, 8)
    else:
        assert ped.reread is None
    ped._draw_map()
    ped.canvas.draw()


def test_nothing_is_matched_without_a_candidate(ped):
    ped.candidates.value = ()
    assert "choose one candidate at least" in ped.message.value
    for act in (lambda: ped._handle("on_click", mouse(ped.axes["map"], 3, 3)), lambda: ped.guarded(ped.match_whole)):
        ped.say("")
        act()
        assert "choose one candidate at least" in ped.message.value
    ped.reason.value = "nothing"
    ped.guarded(ped.keep)
    assert not ped.kept.parameters


def test_the_whole_scan_can_be_matched_again(ped):
    ped.candidates.value = ("layered", "spinel", "llzo")
    ped.match_whole()
    ended(ped)
    assert ped.reread.maps["phase_id"].shape == (9, 9) and ped.rows.value == (0, 8)
    ped.set_region(slice(0, 2), slice(0, 3))
    ended(ped)
    assert ped.reread.maps["phase_id"].shape == (2, 3)


def test_a_choice_is_kept_with_its_reason_alone(ped):
    ped.least_margin.value = 8.0
    ped.candidates.value = ("layered", "rocksalt")
    ped.keep()
    assert "say why" in ped.message.value and not ped.kept.parameters
    ped.reason.value = "spinel is not there"
    ped.keep()
    chosen = {"candidate_phases": ["layered", "rocksalt"], "least_support_nats": 2.0, "least_margin_nats": 8.0}
    assert ped.kept.parameters == chosen and ped.kept.reason == "spinel is not there" and "Stored" in ped.message.value
    ped.candidates.value = PHASES
    ped.keep()
    assert ped.kept.parameters == {"candidate_phases": [], "least_support_nats": 2.0, "least_margin_nats": 8.0}
    ped.forget()
    assert ped.kept.parameters == {} and ped.message.value == "Forgotten."


def test_nothing_is_called_decided_where_the_map_is_not_trusted(ped):
    y, x = np.argwhere(ped.whole.maps["decided"])[0]
    ped.pick(y, x)
    assert ", decided;" in ped.status.value
    ped.whole = replace(ped.whole, trusted=False)
    ped.pick(y, x)
    assert ", not decided;" in ped.status.value


def test_a_region_reports_the_share_that_the_user_names(ped):
    ped.set_region(slice(0, 9), slice(0, 9))
    assert re.search(r"; rocksalt \d+\.\d% of \d+ cathode patterns \(counted, not corrected\)\.", ped.status.value)


def test_without_callbacks_nothing_can_be_kept(scan):
    patterns, _, calibration, banks, mapped = scan
    whole = emphase.explore.Reading(slice(0, 9), slice(0, 9), banks, {}, *mapped)
    explorer = emphase.explore.PedExplorer(patterns, calibration, banks, 8.0, whole=whole)
    assert explorer.hand_box().children == () and explorer.choice()["candidate_phases"] == []


def test_patterns_are_matched_when_picked_where_there_is_no_map(scan):
    patterns, _, calibration, banks, (maps, _, _) = scan
    layers = {"counts": patterns.sum(axis=(2, 3))}
    explorer = emphase.explore.PedExplorer(patterns, calibration, banks, 8.0, display=emphase.explore.MapDisplay(layers))
    y, x = np.argwhere(maps["decided"] & (maps["phase_margin"] > 25))[0]
    explorer.pick(y, x)
    assert PHASES[maps["phase_id"][y, x]] in explorer.status.value and explorer.layer.options == ("counts",)


@pytest.mark.parametrize("part", [np.s_[:1], np.s_[:, :1], np.s_[3:4, 3:4]])
def test_lines_and_single_patterns_and_single_phases_can_be_explored(scan, part):
    patterns, _, calibration, banks, _ = scan
    some = replace(calibration, centre_px=calibration.centre_px[part])
    mapped = study.map_scan(patterns[part], some, banks[:1], {})
    whole = emphase.explore.Reading(*(slice(0, n) for n in patterns[part].shape[:2]), banks[:1], {}, *mapped)
    explorer = emphase.explore.PedExplorer(patterns[part], some, banks[:1], 8.0, whole=whole)
    for layer in explorer.layer.options:
        explorer.layer.value = layer
        explorer.canvas.draw()
    explorer.on_key(key("right"))
    explorer.set_region(slice(0, 1), slice(0, 1))
    assert "Region of 1 patterns" in explorer.status.value


# --- the drift of a stack ---------------------------------------------------------------


@pytest.fixture
def drift():
    frames = study.cryo_stack(np.random.default_rng(5), 10, (96, 96), 4.0)[0]
    return storing(emphase.explore.DriftExplorer, frames, emphase.drift.register_stack(frames), 0.045, leave_out=[], take_in=[])


def test_frames_are_chosen_by_slider_click_and_key(drift):
    drift.frame.value = 4
    assert drift.status.value.startswith("Frame 4: moved by")
    drift.on_click(mouse(drift.axes["path"], 0.0, 6.7))
    drift.on_key(key("left"))
    assert drift.frame.value == 6


def test_a_frame_left_out_changes_the_average_as_batch_does(drift):
    drift.frame.value = 5
    drift.use.value = False
    ended(drift)
    assert drift.choice() == {"leave_out": [5], "take_in": []}
    alone = emphase.drift.register_stack(drift.frames, leave_out=[5])
    assert np.array_equal(drift.solution.shift_px, alone.shift_px) and not drift.solution.used[5]
    assert "9 frames used" in drift.status.value or "8 frames used" in drift.status.value
    drift.reason.value = "charging"
    drift.keep()
    assert drift.kept.parameters["leave_out"] == [5] and drift.kept.reason == "charging"
    drift.on_key(key(" "))
    ended(drift)
    assert drift.choice()["leave_out"] == [] and drift.solution.used[5]


def test_what_is_cancelled_changes_nothing(drift, monkeypatch):
    before = drift.solution
    go_on = threading.Event()
    register = emphase.drift.register_stack
    monkeypatch.setattr(emphase.explore.drift, "register_stack", lambda *a, **k: go_on.wait(60) and register(*a, **k))
    drift.frame.value = 5
    drift.toggle()
    assert drift.work.running and "left out" in drift.status.value
    drift.work.cancel()
    go_on.set()
    ended(drift)
    assert drift.solution is before and drift.choice()["leave_out"] == [] and "nothing has changed" in drift.message.value
    assert drift.use.value is True


def test_a_choice_that_fails_is_reported_and_undone(drift):
    drift.leave_out = set(range(9))
    drift.frame.value = 9
    drift.toggle()
    ended(drift)
    assert "frames left out by hand, expected two at least" in drift.message.value and drift.leave_out == set(range(9))


# --- the surface ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def surface_parts():
    rng = np.random.default_rng(8)
    image, _ = emphase.simulate.haadf_image(rng, (448, 448), layer_nm=1.8)
    expected = emphase.haadf.project_columns(study.crystals("layered")["layered"], (1, 0, 0))
    lattice = emphase.haadf.find_image_lattice(image, expected, 0.0125)
    cations = emphase.haadf.cation_lattice(expected)
    columns = emphase.haadf.measure_columns(image, lattice, cations)
    measure = lambda drawn=None: emphase.haadf.measure_surface_layer(np.random.default_rng(3), columns, cations, drawn_nm=drawn)
    return image, lattice, columns, measure


@pytest.fixture
def surface(surface_parts):
    image, lattice, _, measure = surface_parts
    layer = measure()
    return storing(emphase.explore.SurfaceExplorer, image, lattice, layer.columns, measure, emphase.explore.MeasuredSurface(layer))


def test_hovering_a_column_shows_its_occupancy(surface):
    k = int(np.argmax(surface.columns.brightness * (surface.layer.role == 0)))
    y, x = surface.columns.px[k]
    surface.on_move(mouse(surface.axes["image"], y + 1, x - 1, None))
    assert surface.column.value == k
    assert (
        f"Column {k}, metal layer: {surface.columns.brightness[k]:.2f}" in surface.status.value and "below the edge" in surface.status.value
    )
    surface.on_key(key("right"))
    assert surface.column.value == k + 1


def test_a_moved_surface_moves_the_thickness_and_is_kept_as_batch_uses_it(surface, surface_parts):
    found = surface.layer.thickness_nm
    surface.moving.value = True
    outside = -surface.layer.contour.inwards[len(surface.layer.contour.inwards) // 2]
    step_px = surface._to_px(outside[None] * 0.4)[0] - surface._to_px(np.zeros((1, 2)))[0]
    for k in range(len(surface.points)):
        y, x = surface.points[k]
        surface.on_click(mouse(surface.axes["image"], y, x))
        assert surface.point.value == k and np.array_equal(surface.points[k], [y, x])
        surface.on_move(mouse(surface.axes["image"], *(surface.points[k] + step_px)))
        surface.dragged = None
    surface.dragged = np.zeros(2)
    surface.on_release(mouse(None, 0, 0))
    assert surface.by_hand
    ended(surface)
    assert surface.layer.thickness_nm == pytest.approx(found + 0.4, abs=0.15)
    assert f"As found: {found:.2f} nm" in surface.status.value
    surface.reason.value = "contamination"
    surface.keep()
    image, lattice, _, measure = surface_parts
    points = np.array(surface.kept.parameters["surface_px"])
    again = measure(lattice.to_lattice(points) @ lattice.columns.basis_nm)
    assert again.thickness_nm == pytest.approx(surface.layer.thickness_nm, abs=0.005)
    drawn = emphase.explore.MeasuredSurface(again, drawn_px=points.tolist())
    later = emphase.explore.SurfaceExplorer(image, lattice, again.columns, measure, drawn)
    assert "with the surface by hand" in later.status.value and f"As found: {found:.2f} nm" in later.status.value
    assert np.array_equal(later.choice()["surface_px"], points)
    surface.reset()
    assert surface.layer.thickness_nm == found and surface.choice() == {"surface_px": []}


def test_keys_move_a_point_of_the_surface_along_its_normal(surface):
    surface.moving.value = True
    surface.point.value = 2
    before = surface._to_nm(surface.points)
    surface.on_key(key("up"))
    ended(surface)
    moved = np.linalg.norm(surface._to_nm(surface.points) - before, axis=1)
    assert moved[2] == pytest.approx(0.05, abs=0.01) and not np.delete(moved, 2).any()


def test_a_surface_can_be_drawn_where_none_was_found(surface_parts):
    image, lattice, columns, measure = surface_parts
    explorer = storing(emphase.explore.SurfaceExplorer, image, lattice, columns, measure)
    assert "No surface was found" in explorer.status.value
    edge = measure().contour.curve()
    explorer.points, explorer.by_hand = explorer._to_px(edge[np.linspace(2, len(edge) - 3, 6).astype(int)]), True
    explorer.measure()
    ended(explorer)
    assert explorer.layer.thickness_nm == pytest.approx(measure().thickness_nm, abs=0.1)


# --- the interface ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def interface_parts():
    crystals = list(study.crystals("layered", "llzo", "rocksalt").values())
    image, _ = study.interface_image(np.random.default_rng(22), (600, 600), 0.02, 3.5, "rocksalt", counts=100)
    search = emphase.interface.InterfaceSearch(stride_nm=1.3)
    analyse = lambda chosen, progress=iter: study.analyse_interface(
        image, 0.02, [c for c in crystals if c.name in chosen], np.random.default_rng(0), search=search, progress=progress
    )
    names = [c.name for c in crystals]
    return image, names, analyse, analyse(names)


@pytest.fixture
def interface(interface_parts):
    image, names, analyse, result = interface_parts
    return storing(emphase.explore.InterfaceExplorer, image, result, names, names, analyse)


def test_the_window_follows_mouse_and_keys(interface):
    shown = []
    for x in (60, 300, 540):
        interface.on_click(mouse(interface.axes["image"], 300, x))
        shown.append(re.search("lattice of \\w+", interface.status.value).group())
    assert shown == ["lattice of layered", "lattice of rocksalt", "lattice of llzo"]
    assert "llzo [" in interface.table.value
    before = interface.result.spectra.origins[interface.window]
    interface.on_move(mouse(interface.axes["image"], 0, 0, None))
    assert (interface.result.spectra.origins[interface.window] == before).all()
    interface.on_key(key("up"))
    moved = interface.result.spectra.origins[interface.window] - before
    assert moved[0] < 0 and moved[1] == 0


def test_other_candidates_are_analysed_and_kept(interface):
    interface.candidates.value = ("layered", "llzo")
    interface.measure()
    ended(interface)
    assert "With layered, llzo: at the interface" in interface.message.value
    assert {x.phase for x in interface.result.lattices} <= {"layered", "llzo", "unknown"}
    interface.reason.value = "no rocksalt here"
    interface.keep()
    assert interface.kept.parameters == {"candidate_phases": ["layered", "llzo"]}


# --- the comparison ---------------------------------------------------------------------


def sample_row(name: str, fraction: float) -> dict:
    quantiles = np.linspace(0.5 * fraction, 1.5 * fraction, 101)
    row = {"sample": name, "label": f"<i>{name}</i>", "simulated": True, "n_patterns": 700, "n_grains": 9}
    for phase in ("rocksalt", "spinel"):
        row |= {
            f"{phase}_fraction": fraction, f"{phase}_fraction_raw": fraction, f"{phase}_fraction_quantiles": quantiles,
            f"{phase}_elsewhere_quantiles": np.linspace(0, 2 * fraction, 101), f"{phase}_detected": True, f"{phase}_detection_limit": 0.01,
        }  # fmt: skip
    return row


def compare(samples: list[dict], phase: str) -> list[dict]:
    """Differences of all pairs, of quantiles that are ordered alike; twice as wide for the lamellae."""
    pairs = []
    for first, second in itertools.combinations(samples, 2):
        change = second[f"{phase}_fraction"] - first[f"{phase}_fraction"]
        pair = {"from": first["sample"], "to": second["sample"], "difference": change}
        for prefix, width in (("", 0.5), ("elsewhere_", 1.0)):
            pair |= {f"{prefix}ci95_low": change - width, f"{prefix}ci95_high": change + width, f"{prefix}probability_of_increase": 0.9}
        pairs.append(pair)
    return pairs


COLOURS = {"rocksalt": "#F0E442", "spinel": "#D55E00"}


def test_samples_are_compared_and_left_out():
    rows = [sample_row("A", 0.02), sample_row("B", 0.05), sample_row("C", 0.2)]
    explorer = storing(emphase.explore.ComparisonExplorer, rows, COLOURS, compare, area="cathode")
    explorer.on_click(mouse(explorer.axes["fractions"], 0.1, 1.2))
    assert explorer.status.value.startswith("B (&lt;i&gt;B&lt;/i&gt;): rocksalt 0.050, detected")
    assert explorer.table.value.count("<tr>") == 4
    narrow = explorer.table.value
    explorer.interval.value = "the lamellae"
    assert explorer.table.value != narrow
    explorer.on_key(key("right"))
    explorer.on_key(key(" "))
    assert explorer.compared.value == ("A", "B") and explorer.table.value.count("<tr>") == 2
    explorer.reason.value = "a bad lamella"
    explorer.keep()
    assert explorer.kept.parameters == {"leave_out": ["C"]}
    explorer = emphase.explore.ComparisonExplorer(rows, COLOURS, compare, left_out=["D"])
    assert explorer.choice() == {"leave_out": ["D"]}


def test_a_sample_without_spinel_among_its_candidates_can_be_compared():
    row = sample_row("A", 0.02)
    row |= {key: None for key in row if key.startswith("spinel")}
    explorer = emphase.explore.ComparisonExplorer([row, sample_row("B", 0.05)], COLOURS, compare, area="cathode")
    explorer.phase.value = "spinel"
    assert "no spinel fraction; 700 patterns of the cathode" in explorer.status.value
