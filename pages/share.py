"""The pages gathered to hand on: a folder and a zip, the comparison as a PDF, and the messages at the end of a run.

The PDF is printed by Chromium without a network, so that it looks as the page does; links to other pages are taken out, since Chromium
would write them with the paths of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emphase.errors import EmphaseError, one_line
from emphase.files import write_atomically
from helpers import (
    COMPARISON,
    PROJECT_ROOT,
    STEPS,
    ResultError,
    WorkbookError,
    failed_step,
    list_samples,
    misnamed_samples,
    results_root,
    run_error,
)

from .render import render_pages


def _data_of_run(results: Path) -> str:
    """The data folder that the comparison was executed on, from its notebook; "" for the project's data, or where it names none."""
    try:
        notebook = json.loads((results / f"{COMPARISON}.ipynb").read_text(encoding="utf-8"))
        data_dir = notebook["metadata"]["papermill"]["parameters"]["data_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if Path(data_dir or "data").resolve() == (PROJECT_ROOT / "data").resolve() else data_dir


def _refreshed_pages(results: Path, data_dir: str | Path) -> Path:
    """The folder of the pages, rendered again where the data that they were made of exist; `ResultError` where there are no pages."""
    if not (results / "html" / "index.html").is_file():
        raise ResultError("there are no pages yet: run `make run` first")
    data_dir = str(data_dir) or _data_of_run(results)
    if not data_dir or Path(data_dir).is_dir():
        render_pages(results, data_dir)
    return results / "html"


def share_pages(results_dir: str | Path = "", data_dir: str | Path = "") -> Path:
    """Gather the pages as ``results/share/workbook``, and as ``workbook.zip`` beside it.

    They are rendered again first, so that they say which results are older than the data. Results that came without their data are
    shared as they are.

    Parameters
    ----------
    results_dir : str or Path
        Empty: that of the project.
    data_dir : str or Path
        Empty: that of the last run.

    Returns
    -------
    Path
        That of the zip.

    Raises
    ------
    ResultError
        Where there are no pages.
    """
    results = results_root(results_dir)
    pages = _refreshed_pages(results, data_dir)
    folder = results / "share" / "workbook"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pages, folder)
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def find_chromium() -> str | None:
    """The Chromium or Chrome that prints pages: the one that CHROMIUM names, else the first on PATH.

    Returns
    -------
    str or None
        Its path; None where there is none.
    """
    named = os.environ.get("CHROMIUM", "")
    candidates = [named] if named else ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    return next((found for found in map(shutil.which, candidates) if found), None)


_PAGE_NUMBERS = (
    '<div style="width: 100%; margin: 0 16mm; font: 8px sans-serif; color: #555; display: flex; justify-content: space-between">'
    '<span>{}</span><span><span class="pageNumber"></span> of <span class="totalPages"></span></span></div>'
)
#: Chromium writes a link to another page with the path of this machine
_UNLINKED = "document.querySelectorAll('a:not([href^=http])').forEach((a) => a.removeAttribute('href'))"


def print_comparison(results_dir: str | Path = "", data_dir: str | Path = "") -> Path:
    """The comparison as ``results/share/comparison.pdf`` (A4, tagged, with bookmarks), printed by Chromium without a network.

    Parameters
    ----------
    results_dir : str or Path
        Empty: that of the project.
    data_dir : str or Path
        Empty: that of the last run.

    Returns
    -------
    Path

    Raises
    ------
    WorkbookError
        Where no Chromium is installed, or it does not print.
    ResultError
        Where there are no pages.
    """
    from playwright.sync_api import Error, sync_playwright

    chromium = find_chromium()
    if chromium is None:
        raise WorkbookError("a PDF needs Chromium or Chrome: install one, or name its program in CHROMIUM")
    results = results_root(results_dir)
    index = _refreshed_pages(results, data_dir) / "index.html"
    target = results / "share" / "comparison.pdf"
    footer = _PAGE_NUMBERS.format("Sample comparison")
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
            page = browser.new_context(offline=True).new_page()
            page.goto(index.resolve().as_uri())
            page.evaluate(_UNLINKED)
            printed = page.pdf(
                format="A4", print_background=True, tagged=True, outline=True, display_header_footer=True,
                header_template="<span></span>", footer_template=footer,
                margin={"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
            )  # fmt: skip
            browser.close()
    except Error as error:
        raise WorkbookError(f"{chromium} did not print the comparison: {one_line(error)}") from error
    return write_atomically(target, printed)


def report(make: Callable[..., Path], *arguments: Any) -> int:
    """Make a file and print its path and size, or in one line why there is none.

    Parameters
    ----------
    make : callable
        `share_pages` or `print_comparison`.
    *arguments
        Of ``make``.

    Returns
    -------
    int
        The exit status, 0 or 1.
    """
    try:
        made = make(*arguments)
    except EmphaseError as error:
        print(error)
        return 1
    print(f"{os.path.relpath(made)} ({made.stat().st_size / 1e6:.1f} MB)")
    return 0


def finish_run(data_dir: str | Path = "", results_dir: str | Path = "") -> int:
    """Render the pages of a run, and print all its failures in one message.

    Parameters
    ----------
    data_dir, results_dir : str or Path
        Empty: those of the project.

    Returns
    -------
    int
        The exit status, 0 or 1.
    """
    results, faults = results_root(results_dir), []
    try:
        pages = f"pages: {os.path.relpath(render_pages(results, data_dir))}"
    except OSError as error:
        pages = f"pages: those of before, {error.filename or 'they'} could not be written: {error.strerror}"
        faults.append("FAILED to write the pages")
    for sample_id in list_samples(data_dir):
        failure = failed_step(results, sample_id)
        missing = [step for step in STEPS if not (results / sample_id / ".done" / step).exists()]
        if failure:
            faults.append(f"FAILED {sample_id} {failure[0]}: {failure[1]}")
        elif missing:
            faults.append(f"NOT RUN {sample_id} {missing[0]}: see run.log in the results")
    if not (results / ".done" / COMPARISON).exists():
        reason = run_error(results / f"{COMPARISON}.ipynb") or "see run.log in the results"
        faults.append(f"FAILED {COMPARISON}: {reason}")
    faults += [f"NOT RUN {why}" for why in misnamed_samples(data_dir)]
    print("\n".join(["", *faults, pages]))
    return 1 if faults else 0
