"""Every page of a results folder as HTML, by nbconvert and the templates beside this file.

A page carries the hash of all that it is made of, its plan, its notebook, the hidden paths and the sources of the pages: one whose hash
is the same is left as it is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from emphase.files import file_sha256, write_atomically
from helpers import NOT_INDEXED_COLOUR, phase_colours, results_root

from .assets import TEMPLATES, _content_policy, _page_scripts, _page_style
from .cards import _thumbnail
from .clean import _presentable, _safe_html
from .index import _planned_pages
from .map import _map_html
from .provenance import _dated, _Hashes
from .text import _hidden_paths, _Page, _without_paths


def _page_exporter() -> Any:
    """The exporter of all pages, with the templates of `pages/templates`."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    config = Config()
    config.NbConvertBase.display_data_priority = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/plain"]
    return HTMLExporter(
        config=config,
        template_name=TEMPLATES.name,
        extra_template_basedirs=[str(TEMPLATES.parent)],
        exclude_anchor_links=True,
        filters={"safe_html": _safe_html},
    )


def _shown_card(card: dict, results: Path, hidden: list[tuple[str, str]]) -> dict:
    """A card with its picture, and without paths."""
    rows = [row | {"detail": _without_paths(row["detail"], hidden)} for row in card["rows"]]
    image = _thumbnail(results, card["id"], card["matched"]) if card["map"] else ""
    alt = card["alt"] if image or not card["map"] else "No phase map: 06_ped.h5 cannot be read"
    return card | {"image": image, "alt": alt, "rows": rows, "fault": _without_paths(card["fault"], hidden)}


_SIDE_BY_SIDE = 12  # samples whose cards are all shown; of more they are folded by condition, with a box to find one


def _card_groups(cards: list[dict]) -> list[dict]:
    """The cards of the first page: in one group without a name, or by condition, with a summary, where there are many."""
    if len(cards) <= _SIDE_BY_SIDE:
        return [{"name": "", "cards": cards}] if cards else []
    groups: dict[str, list[dict]] = {}
    for card in cards:
        groups.setdefault(card["condition"], []).append(card)
    return [{"name": name, "cards": members, "summary": _group_summary(members)} for name, members in groups.items()]


def _group_summary(cards: list[dict]) -> str:
    """How many samples a group holds, how many failed, and how many are older than the data."""
    parts = [f"{len(cards)} samples" if len(cards) > 1 else "1 sample"]
    for key, state in (("fault", "failed"), ("stale", "older than the data")):
        count = sum(bool(card[key]) for card in cards)
        parts += [f"{count} {state}"] if count else []
    return ", ".join(parts)


def _map_legend(cards: list[dict]) -> list[dict]:
    """Name and colour of every phase in the maps of the cards, and of what was not indexed."""
    colours: dict[str, str] = {}
    for card in cards:
        colours |= phase_colours(card["matched"]["phases"]) if card["map"] else {}
    return [{"name": k, "colour": v} for k, v in {**colours, "not indexed": NOT_INDEXED_COLOUR}.items()] if colours else []


def _executed_notebook(page: _Page) -> Any:
    """The executed notebook of a page, or one cell that says why there is none."""
    import nbformat

    why = "the notebook was not executed"
    if page.notebook.is_file():
        try:
            notebook = nbformat.read(page.notebook, as_version=4)
            nbformat.validate(notebook)
            return notebook
        except (ValueError, AttributeError, KeyError, nbformat.ValidationError):
            why = "the executed notebook is broken off; run the step again"
    text = f"# {page.title}\n\nThis page could not be made: {why}."
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def _page_html(page: _Page, source: str, hidden: list[tuple[str, str]], results: Path, data_dir: str | Path, exporter: Any) -> str:
    """One page as HTML."""
    notebook = _executed_notebook(page)
    scripts = _page_scripts()
    frame = {
        "source": source,
        "policy": _content_policy(scripts),
        "scripts": scripts,
        "style": _page_style(),
        "title": f"{page.sample}: {page.title}" if page.home else page.title,
        "home": page.home,
        "sample": page.sample,
        "simulated": page.simulated,
        "navigation": page.navigation,
        "provenance": _dated(page.provenance, notebook, hidden),
        "groups": _card_groups([_shown_card(card, results, hidden) for card in page.cards]),
        "legend": _map_legend(page.cards),
        "more": page.more,
    }
    if page.maps:
        return _map_html(page, page.maps, frame, hidden, results, data_dir, exporter)
    notebook = _presentable(notebook, hidden, page.explore)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "markdown"][:1]:
        cell.metadata["opening"] = True
    return exporter.from_notebook_node(notebook, resources={"page": frame})[0]


def _is_made_of(target: Path, source: str) -> bool:
    """Whether a page is there already, made of that source."""
    if not target.is_file():
        return False
    with open(target, encoding="utf-8", errors="replace") as file:
        return source in file.read(500)


def render_pages(results_dir: str | Path = "", data_dir: str | Path = "") -> Path:
    """Render every executed notebook as ``results/html/<id>/<step>.html``, the comparison as ``index.html``.

    Each sample with a matched scan gets ``map.html`` too, where its maps and patterns are explored without a kernel. The pages
    hold their figures with alt texts and the project's scripts only, name no absolute path, and open from disk without a network. One
    that is up to date is left as it is, one of a sample that is gone is removed.

    Parameters
    ----------
    results_dir, data_dir : str or Path
        Folders of the results and of the data; empty: the project's.

    Returns
    -------
    Path
        That of ``index.html``.
    """
    results = Path(os.path.abspath(results_root(results_dir)))
    folder = results / "html"
    hashes = _Hashes(results)
    pages = _planned_pages(results, data_dir, hashes)
    hidden = _hidden_paths(results, data_dir)
    made_by = [file_sha256(p) for p in (*sorted(Path(__file__).parent.glob("*.py")), *sorted(TEMPLATES.iterdir()))]
    exporter = _page_exporter()
    for page in pages:
        source = hashlib.sha256(repr((page, hidden, made_by)).encode())
        source.update(hashes.of(page.notebook).encode() if page.notebook.is_file() else b"")
        target = folder / page.target
        if not _is_made_of(target, source.hexdigest()):
            write_atomically(target, _page_html(page, source.hexdigest(), hidden, results, data_dir, exporter))
    for path in set(folder.rglob("*.html")) - {folder / page.target for page in pages}:
        path.unlink()
    hashes.save()
    return folder / "index.html"
