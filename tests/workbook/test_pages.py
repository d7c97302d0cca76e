"""The pages: cards, provenance, maps within their budget, and all of it in a browser without a network."""

import json
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hyperspy.api as hs
import nbformat
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation
from test_house import Page, check_pages

import emphase
import helpers
import pages.cards
import pages.columns
import pages.map
import pages.provenance
import pages.render
import pages.share
import pages.sprites
import pages.text

PHASES = ["layered", "rocksalt"]
LABEL = 'quick </script><script>alert("x")</script> & <b>bold</b>'
STEP_NUMBERS = {
    "03_haadf_surface": {"surface_layer_thickness_nm": 2.5, "surface_layer_thickness_ci95_nm": [2.4, 2.6], "surface_phase": "spinel"},
    "04_interface_phases": {"interface_phase": None, "interface_phase_reason": "the lattices meet"},
    "07_rocksalt_fraction": {
        **{"rocksalt_fraction": 0.146, "rocksalt_fraction_ci95": [0.136, 0.157], "rocksalt_detected": True},
        **{"spinel_fraction": 0.001, "spinel_detected": False, "spinel_detection_limit": 0.0042, "n_patterns_ncm": 99, "n_grains": 3},
    },
}


class Results:
    """A data folder and a results folder as a run would leave them, made without one: sample A has all, B nothing but a label."""

    def __init__(self, folder: Path, shape: tuple[int, int] = (10, 12), side: int = 64):
        self.data, self.results, self.html = folder / "data", folder / "results", folder / "results" / "html"
        self.recording = self.data / "A" / "ped.hspy"
        ped = {"file": "ped.hspy", "beam_energy_keV": 200, "step_nm": 5, "precession_deg": 0.5, "phases": PHASES}
        self._sample("A", {"label": LABEL, "simulated": True, "acquisitions": {"ped": ped}}, shape, side)
        self._sample("B", {"label": "nothing here", "acquisitions": {}}, shape, side)
        self._map(shape, side)
        for step in helpers.STEPS:
            self._step("A", step, {"status": "ok", **STEP_NUMBERS.get(step, {})})
            self._step("B", step, {"status": "not_acquired", "reason": "none"})
        self._notebook(self.results / f"{helpers.COMPARISON}.ipynb", "08 Sample comparison")

    def _sample(self, name: str, content: dict, shape: tuple[int, int], side: int) -> None:
        (self.data / name).mkdir(parents=True)
        if content["acquisitions"]:
            patterns = np.random.default_rng(1).poisson(2, (*shape, side, side)).astype(np.uint8)
            patterns[..., side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1] = 200
            hs.signals.Signal2D(patterns).save(self.recording)
        (self.data / name / "sample.yaml").write_text(yaml.safe_dump({"id": name, **content}))

    def _map(self, shape: tuple[int, int], side: int) -> None:
        rng = np.random.default_rng(2)
        crystals = [helpers.phase_crystal(p) for p in PHASES]
        phase_id = rng.integers(-1, 2, shape)
        turns = rng.uniform(0, [360, 1, 360], (*shape, 3))  # near the zone axis along c, which has many spots
        rotation = Rotation.from_euler("zxz", turns.reshape(-1, 3), degrees=True).as_matrix().reshape(*shape, 3, 3)
        whole = {"decided", "grain_id", "crystal_id", "lattice_id", "second_phase_id", "second_crystal_id"}
        names = [*helpers.MAP_PROPERTIES, *(f"{kind}_{p}" for kind in ("score", "probability") for p in PHASES)]
        values = {name: rng.integers(0, 2, shape) if name in whole else rng.gamma(2.0, 20.0, shape) for name in names}
        values |= {name: rng.uniform(0, 1, shape) for name in ("correlation", "share", "second_share")}
        self.matched = {
            **{"status": "ok", "shape": list(shape), "step_nm": 5.0, "phases": PHASES, "chance_nats": dict.fromkeys(PHASES, 0.0)},
            "area_fraction": {p: float((phase_id == k).mean()) for k, p in enumerate([*PHASES])} | {"not_indexed": 0.3},
        }
        folder = self.results / "A"
        folder.mkdir(parents=True)
        emphase.orientations.save_crystal_map(
            folder / "06_ped.h5", emphase.orientations.to_crystal_map(phase_id, rotation, crystals, 5.0, values)
        )
        centre = np.full((*shape, 2), side / 2 - 0.5)
        np.savez(folder / "05_ped_calibration.npz", centre_px=centre, mask=np.zeros((side, side), bool), strain=np.eye(2))

    def _step(self, name: str, step: str, numbers: dict) -> None:
        calibrated = {"scale_invA_per_px": 0.04, "spot_sigma_px": 1.3, "detector_gain": 1.0, "detector_offset": 0.0, "place_strain": 0.004}
        numbers |= calibrated | {"max_g_invA": 1.0, "excitation_width_invA": 0.001} if step == "05_ped_calibration" else {}
        numbers |= self.matched if step == "06_ped_matching" and name == "A" else {}
        inputs = {"sample.yaml": emphase.files.file_sha256(self.data / name / "sample.yaml")}
        inputs |= {"ped.hspy": emphase.files.file_sha256(self.recording)} if step == "06_ped_matching" and name == "A" else {}
        more = {"inputs": inputs, "parameters": {"sample_id": name, "step_deg": 6.0}, "versions": helpers.software_versions(step)}
        emphase.files.write_atomically(self.results / name / f"{step}.json", json.dumps(numbers | more))
        emphase.files.write_atomically(self.results / name / ".done" / step, "done")
        self._notebook(self.results / name / "notebooks" / f"{step}.ipynb", pages.text._step_title(step))

    def _notebook(self, path: Path, title: str) -> None:
        code = nbformat.v4.new_code_cell
        table = "<table><tr><th></th><th>a long header</th></tr><tr><td>" + "wide" * 40 + "</td><td>2</td></tr></table>"
        shown = nbformat.v4.new_output("display_data", {"text/html": table, "text/plain": str(path)})
        cells = [
            nbformat.v4.new_markdown_cell(f"# {title}\n\nA question."),
            code("x = 1  # " + "long " * 60, outputs=[nbformat.v4.new_output("stream", name="stdout", text=f"read {path}\n"), shown]),
            nbformat.v4.new_markdown_cell("## Explore", metadata={"tags": ["explore"]}),
            code("widget()", metadata={"tags": ["explore"]}, outputs=[nbformat.v4.new_output("stream", text="a widget\n")]),
            nbformat.v4.new_markdown_cell("## The end"),
        ]
        papermill = {"end_time": "2026-11-24T12:33:41.622343+00:00", "parameters": {"data_dir": str(self.data)}}
        emphase.files.write_atomically(path, nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata={"papermill": papermill})))

    def render(self) -> None:
        pages.render.render_pages(self.results, self.data)

    def text(self, page: str) -> str:
        return (self.html / page).read_text(encoding="utf-8")

    def map_data(self) -> dict:
        (data,) = (text for kind, text in Page(self.html / "A" / "map.html").scripts if kind == "application/json")
        return json.loads(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Results:
    results = Results(tmp_path_factory.mktemp("pages"))
    results.render()
    return results


@pytest.fixture
def changed(made, tmp_path) -> Results:
    """A copy to change."""
    copy = object.__new__(Results)
    copy.data, copy.results, copy.html = tmp_path / "data", tmp_path / "results", tmp_path / "results" / "html"
    copy.recording = copy.data / "A" / "ped.hspy"
    shutil.copytree(made.data, copy.data)
    shutil.copytree(made.results, copy.results)
    return copy


# --- what stands on them ------------------------------------------------------------------


def test_pages_are_complete_and_name_nothing_of_this_machine(made):
    hidden = [made.data.parent, made.data.parents[1], Path.home(), helpers.PROJECT_ROOT, "/tmp/"]
    check_pages(made.html, 16, hidden)
    host = socket.gethostname()
    assert len(host) < 4 or not any(host in path.read_text(encoding="utf-8") for path in made.html.rglob("*.html"))


def test_labels_are_text_everywhere(made):
    for path in made.html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "alert(" not in text.replace("&lt;script&gt;alert(", "")
        assert "<b>bold" not in text
    assert "quick &lt;/script&gt;" in made.text("A/map.html")


def test_cards_hold_the_numbers_with_their_pages_and_why_one_is_missing(made):
    a, b = re.findall(r'<li class="card">(.*?)\n</li>', made.text("index.html"), re.DOTALL)
    for href, value, note in (
        ("A/07_rocksalt_fraction.html", "14.6 %", "95 % interval 13.6–15.7 %"),
        ("A/07_rocksalt_fraction.html", "not detected, &lt; 0.42 %", ""),
        ("A/03_haadf_surface.html", "2.50 nm, spinel", "95 % interval 2.40–2.60 nm"),
        ("A/04_interface_phases.html", "—", "the lattices meet"),
        ("A/07_rocksalt_fraction.html", "99 patterns", "in 3 grains"),
    ):
        assert f'<a href="{href}">{value}</a>' + (f' <span class="note">{note}</span>' if note else "") in a
    (image,) = Page(made.html / "index.html").all("img")
    assert image["alt"].startswith("Phase map of quick </script>") and image["src"].startswith("data:image/png;base64,")
    assert 'class="badge">simulated data' in a
    assert "No phase map: not acquired" in b and "simulated" not in b
    assert b.count("—</a>") == len(pages.cards._HEADLINES)


def test_provenance_stands_on_every_page(made):
    for path in made.html.rglob("*.html"):
        assert "executed 2026-11-24 12:33 UTC" in path.read_text(encoding="utf-8")
    text = made.text("A/map.html")
    for fact in ("Provenance: A, quick", "simulated data", "step_deg = 6.0", "orix 0.15.0", emphase.files.file_sha256(made.recording)):
        assert fact in text
    assert "recorded data" in made.text("B/01_lamella_metadata.html")
    assert "made with another version" not in text
    assert not any("older than the data" in path.read_text(encoding="utf-8") for path in made.html.rglob("*.html"))


def test_explore_cells_become_a_link_where_there_is_a_map(made):
    for page, linked in (("A/06_ped_matching.html", True), ("A/05_ped_calibration.html", True), ("A/03_haadf_surface.html", False)):
        text = made.text(page)
        assert ("without a kernel" in text) == linked
        assert "widget" not in text and "The end" in text and text.count('href="map.html"') == 1 + linked
    assert "map.html" not in made.text("B/06_ped_matching.html")


def test_results_older_than_the_data_say_so(changed):
    with open(changed.data / "A" / "sample.yaml", "a") as file:
        file.write("# changed\n")
    os.remove(changed.recording)
    shutil.copy(changed.data / "A" / "sample.yaml", changed.recording)
    changed.render()
    stale = "Results are older than the data:</strong> sample.yaml and ped.hspy have changed since this step was run."
    assert stale in changed.text("A/06_ped_matching.html") and stale in changed.text("A/map.html")
    assert "</strong> sample.yaml has changed since" in changed.text("A/03_haadf_surface.html")
    assert "older than the data" not in changed.text("B/03_haadf_surface.html")
    (changed.data / "B" / "sample.yaml").write_text("id: [")
    changed.render()
    assert "</strong> sample.yaml has changed since" in changed.text("B/03_haadf_surface.html")
    assert "Older than the data: sample.yaml, ped.hspy" in changed.text("index.html")
    assert "Results are older than the data:</strong> changed since: " in changed.text("index.html")
    assert "The patterns are not on this page: ped.hspy: cannot be read" in changed.text("A/map.html")
    assert changed.map_data()["patterns"] is None


def test_a_choice_made_by_hand_since_is_shown(changed):
    choice = helpers.HandChoice(parameters={"seed": 3}, reason="a try", date="2026-11-24")
    helpers.save_hand_choice(changed.results / "A", "06_ped_matching", choice)
    changed.render()
    assert "What is chosen by hand for 06 PED matching has changed since." in changed.text("A/06_ped_matching.html")
    assert "by hand" not in changed.text("A/03_haadf_surface.html")
    helpers.save_hand_choice(changed.results / "A", "06_ped_matching", None)
    changed.render()
    assert "by hand" not in changed.text("A/06_ped_matching.html")


def test_a_large_input_is_compared_by_its_time(changed, monkeypatch):
    monkeypatch.setattr(pages.provenance, "_HASHED_UP_TO", 10)
    changed.render()
    assert "older than the data" not in changed.text("A/06_ped_matching.html")
    os.utime(changed.recording, (2e9, 2e9))
    changed.render()
    assert "</strong> ped.hspy has changed since" in changed.text("A/06_ped_matching.html")


def test_another_version_of_the_workbook_is_named_at_the_foot(changed):
    path = changed.results / "A" / "03_haadf_surface.json"
    path.write_text(path.read_text().replace(helpers.software_versions("03_haadf_surface")["code_sha256"], "0" * 16))
    changed.render()
    assert "code 0000000000000000; this page was made with another version" in changed.text("A/03_haadf_surface.html")


def test_results_of_the_first_release_name_no_code(changed):
    path = changed.results / "A" / "03_haadf_surface.json"
    path.write_text(path.read_text().replace("code_sha256", "helpers_sha256"))
    changed.render()
    text = changed.text("A/03_haadf_surface.html")
    assert "<dt>Workbook" not in text and "sha256 " not in text and "orix 0.15.0" in text and "made with another version" not in text


def test_prints_are_joined_and_progress_is_left_out(changed):
    path = changed.results / "A" / "notebooks" / "03_haadf_surface.ipynb"
    notebook = nbformat.read(path, as_version=4)
    texts = ("first\n", "A 03_haadf: columns 1 of 9, 2 s\n", "second\n")
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in texts]
    nbformat.write(notebook, path)
    changed.render()
    assert '<pre class="output">first\nsecond\n</pre>' in changed.text("A/03_haadf_surface.html")


def test_only_what_changed_is_rendered_again(changed):
    changed.render()
    before = {path: path.stat().st_mtime_ns for path in changed.html.rglob("*.html")}
    changed.render()
    assert {path: path.stat().st_mtime_ns for path in changed.html.rglob("*.html")} == before
    os.utime(changed.recording)
    changed.render()
    assert {path.name for path, then in before.items() if path.stat().st_mtime_ns != then} == {"map.html"}


def test_a_map_that_cannot_be_read_says_so(changed):
    (changed.results / "A" / "06_ped.h5").write_bytes(b"not HDF5")
    with pytest.raises(helpers.ResultError, match=r"A/06_ped.h5: cannot be read .* run 06_ped_matching for A again"):
        helpers.load_maps(changed.results / "A" / "06_ped.h5", {"phases": PHASES})
    changed.render()
    assert "The map cannot be shown." in changed.text("A/map.html")


@pytest.mark.parametrize("left", ["", '{"cells": [', "{}", '{"cells": [{}], "nbformat": 4, "nbformat_minor": 5}'])
def test_an_executed_notebook_that_is_broken_off_says_so(changed, left):
    (changed.results / "B" / "notebooks" / "03_haadf_surface.ipynb").write_text(left)
    changed.render()
    assert "could not be made: the executed notebook is broken off; run the step again" in changed.text("B/03_haadf_surface.html")


# --- the map within its budget ------------------------------------------------------------


def lazy_scan(shape: tuple[int, ...], chunk: int = 8) -> object:
    """A scan of noise with spots that is made as it is read."""
    import dask.array as da

    noise = da.random.default_rng(1).poisson(3, shape, chunks=(chunk, chunk, *shape[2:]))
    return noise.astype(np.uint16)


@pytest.mark.parametrize(
    ("shape", "most"), [((200, 200, 64, 64), 2e6), ((1, 300, 96, 80), 2e6), ((6, 5, 300, 300), 2e6), ((40, 40, 64, 64), 1e5)]
)
def test_patterns_keep_to_their_budget(shape, most):
    calibration = emphase.ped.Calibration(0.02, np.eye(2), np.zeros((*shape[:2], 2)), np.zeros(shape[2:], bool), 1.3)
    packed, every, _ = pages.sprites._packed_patterns(lazy_scan(shape), calibration, most)
    assert sum(map(len, packed["sprites"])) <= most
    kept = -(-shape[0] // every) * -(-shape[1] // every)
    assert len(packed["sprites"]) == -(-kept // 64)
    assert max(packed["side"]) <= 160
    assert (every == 1) == (shape[:2] in ((1, 300), (6, 5))), "no pattern is left out without need"


def test_sprites_hold_the_patterns_in_order():
    """Each pattern has one bright pixel, at its place."""
    import base64
    import io

    from PIL import Image

    patterns = np.zeros((3, 50, 64, 64), np.uint8)
    numbers = np.arange(150).reshape(3, 50)
    for y, x in np.ndindex(3, 50):
        patterns[
            y,
            x,
            8 + 4 * (numbers[y, x] // 12) : 11 + 4 * (numbers[y, x] // 12),
            8 + 4 * (numbers[y, x] % 12) : 11 + 4 * (numbers[y, x] % 12),
        ] = 100
    sprites = pages.sprites._sprites(patterns, 1, lambda block: pages.sprites._shown_patterns(block, 1, np.zeros((64, 64), bool), 0), 1e9)
    for n in (0, 63, 64, 149):
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprites[n // 64]))).convert("L"))
        row, column = n % 64 // 8, n % 8
        tile = sheet[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
        assert np.abs(np.array(np.unravel_index(tile.argmax(), tile.shape)) - [9 + 4 * (n // 12), 9 + 4 * (n % 12)]).max() <= 1


def test_large_scans_make_small_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(pages.map, "OPTIONS", replace(pages.map.OPTIONS, most_bytes=2_600_000, most_patterns=3_000))
    large = Results(tmp_path, (70, 90), 48)
    large.render()
    data = large.map_data()
    assert (large.html / "A" / "map.html").stat().st_size < 2_700_000
    assert data["stride"] == 2 and data["shape"] == [35, 45] and data["step_nm"] == 10
    assert "The map shows every 2nd pattern in both directions. Patterns of every" in large.text("A/map.html")


def test_columns_come_back_as_they_went_in():
    import base64
    import zlib

    values = np.array([0.0, 1.25, 7000.5, np.nan, -3.0])
    packed = pages.columns._pack({"a": pages.columns._whole(np.array([1, -1, 3]), np.uint8), "b": pages.columns._column(values)})
    stream = zlib.decompress(base64.b64decode(packed["packed"]))
    a, b = packed["columns"]
    assert np.frombuffer(stream, np.uint8, 3, a["start"]).tolist() == [1, 255, 3]
    raw = np.frombuffer(stream, "<u2", 5, b["start"])
    assert raw[3] == 65535
    np.testing.assert_allclose(b["offset"] + b["scale"] * raw[[0, 1, 2, 4]], values[[0, 1, 2, 4]], atol=b["scale"])


def test_zone_axes_are_named_by_their_family():
    nickel = helpers.phase_crystal("rocksalt")
    layered = helpers.phase_crystal("layered")
    for crystal, along, name in (
        (nickel, [0, -1, 1], "[1 1 0]"),
        (nickel, [-2, 1, 1], "[2 1 1]"),
        (layered, [1, 1, 0], "[1 0 0]"),
        (layered, [0, 0, -1], "[0 0 1]"),
    ):
        direction = np.array(along) @ crystal.lattice
        turned = np.zeros((1, 3, 3))
        turned[0, :, 2] = direction / np.linalg.norm(direction)
        zone, off, names = pages.columns._zone_columns(turned, np.array([0]), [crystal])
        assert names[0][zone[0]] == name
        assert off[0] < 1e-4
        assert len(set(names[0])) == len(names[0]) < 60


def test_corners_of_the_colour_key_have_their_names():
    for phase, corners in (("rocksalt", {"[0 0 1]", "[1 0 1]", "[1 1 1]"}), ("layered", {"[0 0 1]", "[2 1 0]", "[1 −1 0]"})):
        key = pages.columns._colour_key(helpers.phase_crystal(phase))
        assert {corner["direction"] for corner in key} == corners
        assert len({corner["colour"] for corner in key}) == 3


def test_edges_differ_by_what_changes():
    grains = np.array([[0, 0, 1], [0, 2, 1]])
    bits = pages.columns._edge_bits(grains, np.array([[0.0, 1.5], [0.5, 1.0]]))
    assert bits.tolist() == [[0, 2 + 8, 0], [1, 1, 0]]


# --- in a browser -------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(pages.share.find_chromium() is None, reason="no Chromium is installed")


@contextmanager
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        yield play.chromium.launch(executable_path=pages.share.find_chromium(), args=["--no-sandbox", "--disable-background-networking"])


class Visit:
    """A page open in a browser without a network, with the addresses that it requested and its complaints."""

    def __init__(self, chromium, path: Path, **options):
        self.requested: list[str] = []
        self.complaints: list[str] = []
        context = chromium.new_context(offline=True, **options)
        context.route(
            lambda url: not url.startswith(("file:", "data:")), lambda route: (self.requested.append(route.request.url), route.abort())
        )
        self.page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def quiet(self) -> bool:
        return not self.requested and not self.complaints

    def shown(self, canvas: str) -> str:
        """The pixels of a canvas."""
        return self.page.evaluate(f"document.getElementById('{canvas}').toDataURL()")


def check_map_page(chromium, path: Path) -> None:
    """Hover, keys, click and layers of a map page do what they say."""
    from playwright.sync_api import expect

    visit = Visit(chromium, path, viewport={"width": 1280, "height": 1000})
    page = visit.page
    reading, text = page.locator("#reading"), page.locator("#pattern-text")
    expect(text).to_contain_text("Pattern of")
    first, pattern, picture = reading.inner_text(), visit.shown("pattern"), visit.shown("map")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    assert "x 0 nm, y 0 nm (column 0, row 0)" in reading.inner_text()
    assert visit.shown("pattern") == pattern
    page.mouse.move(5, 5)
    assert reading.inner_text() == first
    page.mouse.click(box["x"] + 3, box["y"] + 3)
    expect(text).to_contain_text("column 0, row 0")
    assert visit.shown("pattern") != pattern
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert "(column 1, row 1)" in reading.inner_text()
    page.keyboard.press("Escape")
    assert "(column 0, row 0)" in reading.inner_text()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Enter")
    expect(text).not_to_contain_text("column 0,")
    pictures = {picture}
    for layer in page.locator("input[name=layer]").all():
        layer.check()
        pictures.add(visit.shown("map"))
        assert page.locator("#legend").inner_text().strip()
    assert len(pictures) == 8
    shown = reading.inner_text()
    assert "Phase" in shown and "Correlation" in shown
    assert text.inner_text()
    assert visit.quiet(), (visit.requested, visit.complaints)


def check_every_page(chromium, html: Path, which: str = "**/*.html") -> None:
    """No page is wider than a phone or a desk, asks for anything, or is one that axe has something to say about, light and dark.

    Highlighted code is nine tenths of a page's elements and has one style sheet: it is read on the first page that has some, and is
    plain text on the others.
    """
    from axe_playwright_python.sync_playwright import Axe

    axe, code_was_read = Axe(), False
    for path in sorted(html.glob(which)):
        plain, code_was_read = code_was_read, code_was_read or 'class="highlight' in path.read_text(encoding="utf-8")
        for width, scheme in ((390, "light"), (1280, "dark")):
            visit = Visit(chromium, path, viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
            visit.page.wait_for_load_state()
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, path.name
            visit.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            if plain:
                visit.page.evaluate("document.querySelectorAll('.highlight pre').forEach((e) => { e.textContent = e.textContent; })")
            violations = axe.run(visit.page, options={"resultTypes": ["violations"]}).response["violations"]
            found = [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in violations]
            assert not found, (path.name, width, scheme)
            assert visit.quiet(), (path.name, visit.requested, visit.complaints)
            visit.page.context.close()


@needs_chromium
def test_the_map_is_explored_without_a_kernel(made):
    with browser() as chromium:
        check_map_page(chromium, made.html / "A" / "map.html")
        visit = Visit(chromium, made.html / "A" / "map.html")
        visit.page.wait_for_selector("#spots-choice:visible")
        visit.page.wait_for_timeout(500)
        circled = visit.shown("pattern")
        visit.page.locator("#spots").uncheck()
        visit.page.wait_for_timeout(200)
        assert visit.shown("pattern") != circled


@needs_chromium
def test_code_is_folded_until_a_button_shows_it(made):
    with browser() as chromium:
        page = Visit(chromium, made.html / "A" / "03_haadf_surface.html").page
        code = page.locator("details.code pre").first
        assert not code.is_visible()
        page.get_by_role("button", name="Show code").click()
        assert code.is_visible()
        page.get_by_role("button", name="Hide code").click()
        assert not code.is_visible()
        without = Visit(chromium, made.html / "A" / "03_haadf_surface.html", java_script_enabled=False).page
        assert without.get_by_role("button").count() == 0
        without.locator("details.code summary").first.click()
        assert without.locator("details.code pre").first.is_visible()


@needs_chromium
def test_nothing_leaves_and_everybody_can_read(made):
    with browser() as chromium:
        check_every_page(chromium, made.html)


@needs_chromium
def test_a_scan_of_one_line_and_a_map_without_patterns(tmp_path):
    line = Results(tmp_path, (1, 30))
    os.remove(line.recording)
    sample = line.data / "A" / "sample.yaml"
    line.recording.write_bytes(b"cut short")
    assert sample.is_file()
    line.render()
    with browser() as chromium:
        visit = Visit(chromium, line.html / "A" / "map.html")
        visit.page.locator("#map").focus()
        visit.page.keyboard.press("ArrowLeft")
        assert "row 0)" in visit.page.locator("#reading").inner_text()
        assert not visit.page.locator("#pattern").is_visible()
        assert "The patterns are not on this page" in visit.page.locator("#pattern-text").inner_text()
        assert visit.page.locator("#map").bounding_box()["height"] > 20
        assert visit.quiet()


# --- to share -----------------------------------------------------------------------------


def test_share_says_what_is_older_than_the_data(changed, capsys):
    with open(changed.data / "B" / "sample.yaml", "a") as file:
        file.write("# changed\n")
    assert pages.share.report(pages.share.share_pages, changed.results, changed.data) == 0
    assert re.fullmatch(r"\S*share/workbook\.zip \(\d+\.\d MB\)\n", capsys.readouterr().out)
    with zipfile.ZipFile(changed.results / "share" / "workbook.zip") as zipped:
        assert len(zipped.namelist()) >= 16 and not any(".hashes" in name for name in zipped.namelist())
        assert "older than the data" in zipped.read("workbook/B/03_haadf_surface.html").decode()


def test_results_without_their_data_are_shared_as_they_are(changed):
    before = {path.relative_to(changed.html) for path in changed.html.rglob("*.html")}
    for path in changed.results.glob("*.ipynb"):
        path.write_text(path.read_text().replace(str(changed.data), "/gone"))
        path.write_text(re.sub(r'"data_dir": "[^"]*"', '"data_dir": "/gone"', path.read_text()))
    shutil.rmtree(changed.data)
    folder = pages.share.share_pages(changed.results).with_suffix("")
    assert {path.relative_to(folder) for path in folder.rglob("*.html")} == before


@needs_chromium
def test_the_comparison_as_pdf(changed):
    content = pages.share.print_comparison(changed.results).read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/StructTreeRoot" in content and b"/Outlines" in content
    assert b"file:" not in content and str(changed.results).encode() not in content


def test_without_chromium_there_is_one_line(changed, monkeypatch, capsys):
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    assert pages.share.find_chromium() is None
    assert pages.share.report(pages.share.print_comparison, changed.results) == 1
    assert capsys.readouterr().out == "a PDF needs Chromium or Chrome: install one, or name its program in CHROMIUM\n"
    with pytest.raises(helpers.ResultError, match="run `make run` first"):
        pages.share.share_pages(changed.data)
