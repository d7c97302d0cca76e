"""The pictures of the explorers in README and notebooks, taken in JupyterLab from a sample that was run: `make screenshots`."""

import sys
import tempfile
from pathlib import Path

from lab import Cell, Lab, LabServer, open_browser, prepare_notebook

import helpers


def show_drift(cell: Cell) -> None:
    cell.plot().click(12, 0, axes=3)
    cell.wait_for_text("Frame 12:")


def show_surface(cell: Cell) -> None:
    cell.plot().hover(200, 256, axes=0)
    cell.wait_for_text("Column")
    before = cell.plot().picture()
    cell.press_button("move the surface")
    cell.plot().wait_redrawn(before)


def show_interface(cell: Cell) -> None:
    cell.plot().click(380, 330, axes=0)
    cell.wait_for_text("Window at")


def show_ped(cell: Cell) -> None:
    plot = cell.plot()
    cell.press_button("draw a region")
    plot.drag((4, 14), (11, 22), axes=0)
    cell.wait_for_text("Region of")
    plot.click(7, 6, axes=0)
    cell.wait_for_text("y 6, x 7")


def show_comparison(cell: Cell) -> None:
    cell.plot().click(2, 0.1, axes=0)
    cell.wait_for_text("600C")


PICTURES = {
    "02_cryo_stem_drift": ("explore_drift", show_drift),
    "03_haadf_surface": ("explore_surface", show_surface),
    "04_interface_phases": ("explore_interface", show_interface),
    "06_ped_matching": ("explore_ped", show_ped),
    "08_sample_comparison": ("explore_comparison", show_comparison),
}


def take(steps: list[str]) -> None:
    """Pictures of the explorers of these steps, for the sample that the notebooks name; their results go to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, LabServer(Path(folder) / "server") as server, open_browser() as browser:
        for step in steps:
            name, show = PICTURES[step]
            reads_results = step in (helpers.COMPARISON, "06_ped_matching")  # those of the project
            folders = {"figures_dir": str(Path(folder) / "figures")}
            folders |= {} if reads_results else {"results_dir": str(Path(folder) / "results")}
            lab = Lab(browser, server)
            lab.open_notebook(prepare_notebook(step, server.root / "notebooks", folders))
            lab.run_all(timeout=300)
            cell = lab.tagged("explore")[-1]
            show(cell)
            lab.wait_idle()
            lab.page.mouse.move(0, 0)
            print(cell.screenshot(helpers.PROJECT_ROOT / "figures" / "readme" / f"{name}.png"))
            lab.close()


if __name__ == "__main__":
    take(sys.argv[1:] or list(PICTURES))
