"""The notebooks in JupyterLab itself, in a real browser: they open, run, and answer to the mouse and the keyboard."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
import lab as lab_harness
from executed import tiny_sample
from lab import Lab, LabServer, open_browser, prepare_notebook

import helpers
import pages.share

pytestmark = pytest.mark.skipif(pages.share.find_chromium() is None, reason="no Chromium here: none on the path, and CHROMIUM is not set")

#: What an explorer is made of, in one cell: a canvas that needs no pyplot, controls, and a line that says what happened.
EXPLORER = """
import emphase
import ipywidgets as widgets
from IPython.display import Javascript, display
from ipympl.backend_nbagg import Canvas, FigureManager
from matplotlib.figure import Figure

figure = Figure(figsize=(4, 3))
canvas = Canvas(figure)
FigureManager(canvas, 0)
canvas.header_visible = canvas.footer_visible = canvas.toolbar_visible = canvas.resizable = False
axes = figure.add_subplot()
axes.set(xlim=(0, 10), ylim=(0, 5))
(mark,) = axes.plot([5], [2], "o", markersize=12)
status, hovered = widgets.HTML("nothing yet"), widgets.HTML("no hover")
size = widgets.IntSlider(12, 1, 30, description="size")
colour = widgets.Dropdown(options=["black", "red"], description="colour")
again = widgets.Button(description="start again")


def say(text):
    status.value = text


def clicked(event):
    if event.inaxes is axes:
        mark.set_data([event.xdata], [event.ydata])
        canvas.draw_idle()
        say(f"clicked at {event.xdata:.1f}, {event.ydata:.1f}")


def moved(event):
    hovered.value = f"over {event.xdata:.1f}, {event.ydata:.1f}" if event.inaxes is axes else "outside"


def pressed(event):
    say(f"key {event.key}")


def sized(change):
    mark.set_markersize(change.new)
    canvas.draw_idle()
    say(f"size {change.new}")


def coloured(change):
    mark.set_color(change.new)
    canvas.draw_idle()
    say(f"colour {change.new}")


canvas.mpl_connect("button_press_event", clicked)
canvas.mpl_connect("motion_notify_event", moved)
canvas.mpl_connect("key_press_event", pressed)
size.observe(sized, "value")
colour.observe(coloured, "value")
again.on_click(lambda _: say("started again"))
canvas.mpl_connect("key_press_event", lambda event: again.focus() if event.key in ("tab", "escape") else None)
display(Javascript(emphase.explore.base.CONTROLS_KEEP_KEYS))
box = widgets.VBox([canvas, widgets.HBox([size, colour, again]), status, hovered])
box.add_class("explorer")
box
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with LabServer(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def browser(server):
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def explorer(server, browser):
    """The notebook with the explorer, run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(EXPLORER), nbformat.v4.new_markdown_cell("The end.")])
    notebook.cells[0].metadata["tags"] = ["explore"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, server.root / "explorer.ipynb")
    lab = Lab(browser, server)
    lab.open_notebook(server.root / "explorer.ipynb")
    lab.run_all()
    yield lab
    lab.close()


@pytest.fixture
def cell(explorer):
    [cell] = explorer.tagged("explore")
    return cell


def test_a_click_gives_the_place_in_the_data(cell):
    plot = cell.plot()
    before = plot.picture()
    plot.click(2.5, 4.0, axes=0)
    cell.wait_for_text("clicked at 2.5, 4.0")
    plot.wait_redrawn(before)


def test_keys_go_to_the_canvas_after_a_click_and_not_to_the_notebook(cell):
    plot, page = cell.plot(), cell.lab.page
    plot.click(0.5, 0.5)
    cell.wait_for_text("clicked at")
    assert plot.focused()
    cells, top = len(cell.lab.state()["cells"]), page.locator(".jp-WindowedPanel-outer").evaluate("e => e.scrollTop")
    for key, name in {"ArrowLeft": "left", "ArrowRight": "right", "ArrowUp": "up", "ArrowDown": "down", "a": "a", "b": "b"}.items():
        page.keyboard.press(key)
        cell.wait_for_text(f"key {name}")
    assert plot.focused()
    assert len(cell.lab.state()["cells"]) == cells  # "a" and "b" are JupyterLab's keys for a new cell
    assert page.locator(".jp-WindowedPanel-outer").evaluate("e => e.scrollTop") == top


def test_the_mouse_over_the_canvas(cell):
    plot = cell.plot()
    plot.hover(7.5, 1.0, axes=0)
    cell.wait_for_text("over 7.5, 1.0")
    plot.hover(0.01, 0.01)
    cell.wait_for_text("outside")


def test_slider_dropdown_and_button(cell):
    plot = cell.plot()
    before = plot.picture()
    assert cell.move_slider("size", 3) == "15"
    cell.wait_for_text("size 15")
    before = plot.wait_redrawn(before)
    cell.choose("colour", "red")
    cell.wait_for_text("colour red")
    plot.wait_redrawn(before)
    cell.press_button("start again")
    cell.wait_for_text("started again")


def test_controls_keep_their_keys_from_the_notebook(cell):
    """An arrow key would leave the dropdown for the next cell, r would make a raw cell of this one, x cut it."""
    before, keyboard = cell.lab.state()["cells"], cell.lab.page.keyboard
    cell.choose("colour", "black")
    cell.focus("colour")
    keyboard.press("ArrowDown")
    cell.wait_for_text("colour red")
    keyboard.press("ArrowUp")
    cell.wait_for_text("colour black")
    keyboard.press("r")
    cell.wait_for_text("colour red")
    cell.button("start again").focus()
    keyboard.press("x")
    keyboard.press("Enter")
    cell.wait_for_text("started again")
    cell.focus("size")
    keyboard.press("Home")
    cell.wait_for_text("size 1")
    assert [(c["type"], c["tags"]) for c in cell.lab.state()["cells"]] == [(c["type"], c["tags"]) for c in before]


def test_the_canvas_lets_the_keyboard_go(cell):
    """ipympl swallows the Tab key, so a canvas that is left by none would be a trap."""
    plot = cell.plot()
    plot.click()
    assert plot.focused()
    plot.press("Tab")
    cell.lab.wait(lambda: not plot.focused(), "the canvas to lose the focus")
    assert cell.button("start again").evaluate("e => e === document.activeElement")


def test_pictures(cell, tmp_path):
    from PIL import Image

    sizes = {}
    for name, thing in {"output": cell, "plot": cell.plot()}.items():
        with Image.open(thing.screenshot(tmp_path / f"{name}.png")) as image:
            sizes[name] = image.size
    assert sizes["plot"] == pytest.approx((400, 300), abs=1)  # an edge may lie within a pixel
    assert sizes["output"][0] > 400 and sizes["output"][1] > 300
    with Image.open(cell.lab.screenshot(tmp_path / "all.png")) as image:
        assert image.size[1] > sizes["output"][1]


def test_the_page_is_quiet_and_stays_here(explorer):
    assert explorer.console == []
    assert explorer.foreign == []
    assert explorer.stderr() == []


def test_an_error_in_a_cell_is_reported(server, browser):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in ("1 + 1", "raise ValueError('too thick')")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, server.root / "fault.ipynb")
    lab = Lab(browser, server)
    lab.open_notebook(server.root / "fault.ipynb")
    with pytest.raises(lab_harness.LabError, match=r"fault.ipynb: cell 1: ValueError: too thick"):
        lab.run_all()
    lab.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, server) -> dict:
    """A tiny sample, and the folders that the notebooks write to."""
    folder = tmp_path_factory.mktemp("lab_sample")
    shutil.copytree(helpers.PROJECT_ROOT / "figures" / "readme", server.root / "figures" / "readme")
    tiny_sample(folder / "data" / "tiny")
    return {f"{name}_dir": str(folder / name) for name in ("data", "results", "figures")}


DEMO = "00_demo_data"
SMALL = {DEMO: {"scan_patterns": 8, "cryo_frames": 4}}  # 09 takes minutes at its smallest: `make validation` runs it


def keep(cell, folders, step: str, sample: str = "tiny") -> dict:
    """Keep a choice with a reason, and forget it again; the parameters that were kept."""
    results = Path(folders["results_dir"]) / sample
    cell.press_button("Keep for batch runs")
    cell.wait_for_text("say why first")
    cell.control("Why").locator("input").fill("for a test")
    cell.lab.page.keyboard.press("Tab")
    cell.press_button("Keep for batch runs")
    cell.wait_for_text("manual.yaml")
    choice = helpers.hand_choice(results, step)
    assert choice.reason == "for a test"
    cell.press_button("Forget")
    cell.wait_for_text("Forgotten")
    assert helpers.hand_choice(results, step) is None
    return choice.parameters


def use_drift(cell, folders):
    plot = cell.plot()
    before = plot.picture()
    plot.click(2.1, 0.5, axes=3)
    cell.wait_for_text("Frame 2:")
    before = plot.wait_redrawn(before)
    plot.press("ArrowRight")
    cell.wait_for_text("Frame 3:")
    cell.move_slider("frame", 1)
    cell.wait_for_text("Frame 4: moved by")
    cell.press_button("frame is used")
    cell.wait_for_text("Frame 4: left out")
    cell.wait_for_text("left out by hand [4]", 90)
    cell.wait_for_text("resolution of the average")
    plot.wait_redrawn(before)
    assert keep(cell, folders, "02_cryo_stem_drift") == {"leave_out": [4]}
    plot.press(" ")
    cell.wait_for_text("registering")
    cell.press_button("Cancel")
    cell.wait_for_text("Cancelled; nothing has changed")
    cell.wait_for_text("Frame 4: left out")


def use_surface(cell, folders):
    plot = cell.plot()
    plot.hover(250, 200, axes=0)
    cell.wait_for_text(re.compile(r"Column [1-9]\d*, (metal|lithium) layer: .* of a full metal column"))
    before, picture = cell.text, plot.picture()
    cell.move_slider("column", 2)
    cell.lab.wait(lambda: cell.text != before, "another column")
    plot.wait_redrawn(picture)
    cell.press_button("move the surface")
    points = plot.ask("canvas.figure.axes[0].lines[2].get_xydata().tolist()")
    x, y = points[len(points) // 2]
    plot.drag((x, y), (x + 12, y), axes=0)
    cell.wait_for_text("with the surface by hand")
    plot.press("ArrowUp")  # 0.05 nm, 4 px, back along the normal
    cell.wait_for_text("As found:")
    moved = keep(cell, folders, "03_haadf_surface")["surface_px"]
    assert moved[len(points) // 2][1] == pytest.approx(x + 8, abs=2) and moved[0] == pytest.approx(points[0][::-1], abs=0.01)
    cell.press_button("as it was found")
    cell.wait_for_text("Layer as found")


def use_interface(cell, folders):
    plot = cell.plot()
    plot.click(100, 250, axes=0)
    cell.wait_for_text("Window at y")
    before, picture = cell.text, plot.picture()
    plot.drag((100, 250), (400, 250), axes=0)
    plot.wait_redrawn(picture)
    plot.press("ArrowUp")
    cell.lab.wait(lambda: cell.text != before, "another window")
    assert "posterior" in cell.text
    cell.control("candidates").locator("select").select_option(label=["layered", "llzo"])
    cell.press_button("analyse again")
    cell.wait_for_text("With layered, llzo: at the interface", 60)
    assert keep(cell, folders, "04_interface_phases") == {"candidate_phases": ["layered", "llzo"]}


def use_calibration(cell, folders):
    plot = cell.plot()
    plot.click(2, 5, axes=0)
    cell.wait_for_text("y 5, x 2")
    cell.choose("map", "direct beam y (px)")
    plot.press("ArrowUp")
    cell.wait_for_text("y 4, x 2")


def use_ped(cell, folders):
    plot = cell.plot()
    before = plot.picture()
    plot.click(2, 5, axes=0)
    cell.wait_for_text("y 5, x 2 (40, 16 nm)")
    before = plot.wait_redrawn(before)
    plot.press("ArrowRight")
    cell.wait_for_text("y 5, x 3")
    cell.move_slider("row y", -2)
    cell.wait_for_text("y 3, x 3")
    before = plot.wait_redrawn(before)
    for layer in ("score", "orientation (IPF)", "phase margin", "phase"):
        cell.choose("map", layer)
        before = plot.wait_redrawn(before)
    cell.choose("triangle", "llzo")
    before = plot.wait_redrawn(before)
    cell.press_button("draw a region")
    plot.drag((1, 1), (5, 4), axes=0)
    cell.wait_for_text("Region of 20 patterns, map:")
    cell.control("candidates").locator("select").select_option(label=["layered", "rocksalt", "llzo"])
    cell.wait_for_text("20 patterns matched again", 60)
    cell.wait_for_text("with these choices:")
    cell.move_slider("least margin (nats)", 4)
    kept = keep(cell, folders, "06_ped_matching")
    assert kept == {"candidate_phases": ["layered", "rocksalt", "llzo"], "least_margin_nats": 5.0}
    cell.press_button("no region")
    cell.lab.wait(lambda: "Region of" not in cell.text, "the region to go")


def use_comparison(cell, folders):
    plot = cell.plot()
    plot.click(0, 0.1, axes=0)
    cell.wait_for_text("tiny (tiny & quick): rocksalt")
    before = plot.picture()
    cell.press_button("spinel")
    cell.wait_for_text("tiny (tiny & quick): spinel")
    before = plot.wait_redrawn(before)
    plot.press(" ")
    plot.wait_redrawn(before)
    assert keep(cell, folders, helpers.COMPARISON, "") == {"leave_out": ["tiny"]}


USES = {
    "02_cryo_stem_drift": use_drift,
    "03_haadf_surface": use_surface,
    "04_interface_phases": use_interface,
    "05_ped_calibration": use_calibration,
    "06_ped_matching": use_ped,
    "08_sample_comparison": use_comparison,
}


@pytest.mark.parametrize("step", [*helpers.STEPS, helpers.COMPARISON, DEMO])
def test_every_notebook_runs_all_and_its_explorer_answers(server, browser, folders, step):
    """In the order in which they need each other."""
    parameters = folders | SMALL.get(step, {}) | ({"sample_id": "tiny"} if step in helpers.STEPS else {})
    path = prepare_notebook(step, server.root / "notebooks", parameters)
    lab = Lab(browser, server)
    try:
        lab.open_notebook(path)
        lab.run_all(timeout=180)
        if step in USES:
            USES[step](lab.tagged("explore")[-1], folders)
        assert lab.stderr() == []
        assert lab.console == [] and lab.foreign == []
    finally:
        lab.close()
