"""Executed notebooks made fit to be read: no widgets, no progress, no paths, and no HTML that could load or run anything.

Cells are removed by their tags and streams joined by nbconvert's preprocessors. HTML of outputs and of Markdown passes bleach's list of
allowed tags (https://bleach.readthedocs.io): recordings and labels come from elsewhere, and so may the HTML that they end up in.
"""

from __future__ import annotations

import re
from typing import Any

from helpers import ended_well

from .text import _without_paths

_EXPLORE_TEXT = "[Explore the map](map.html): phase, scores and orientation of every pattern, and the pattern itself, without a kernel."
_PROGRESS = re.compile(r"^\S* ?\d\d_\w+: .* \d+ of \d+, \d+ s\n", re.MULTILINE)
_SUMMARIES = {"parameters": "Parameters: defaults", "injected-parameters": "Parameters of this run"}


def _tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def _without_tagged(notebook: Any, explore: str) -> Any:
    """The notebook without papermill's markers of errors and without explorers, which need JupyterLab.

    Where a map page stands for them (``explore``), the first explorer becomes a link to it.
    """
    import nbformat
    from nbconvert.preprocessors import TagRemovePreprocessor

    first = next((k for k, cell in enumerate(notebook.cells) if "explore" in _tags(cell)), None)
    if explore and first is not None:
        notebook.cells.insert(first, nbformat.v4.new_markdown_cell(_EXPLORE_TEXT))
    return TagRemovePreprocessor(remove_cell_tags={"explore", "papermill-error-cell-tag"}).preprocess(notebook, {})[0]


def _clean_output(output: Any, hidden: list[tuple[str, str]]) -> None:
    """Take paths and lines of progress from an output."""
    if output.output_type == "error":
        output.evalue = _without_paths(output.evalue, hidden)
    elif output.output_type == "stream":
        output.text = _without_paths(_PROGRESS.sub("", output.text), hidden)
    else:
        texts = {kind: _without_paths("".join(text), hidden) for kind, text in output.data.items() if kind.startswith("text/")}
        output.data.update(texts)


def _is_shown(output: Any) -> bool:
    """Whether an output says something: no ``sys.exit(0)`` of a step that has nothing to do, no stream that is blank."""
    if output.output_type == "error":
        return not ended_well(output)
    return output.output_type != "stream" or bool(output.text.strip())


def _presentable(notebook: Any, hidden: list[tuple[str, str]], explore: str) -> Any:
    """The notebook for readers: no paths, tracebacks, progress, markers of papermill or widgets; each cell with a summary for its code."""
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook = _without_tagged(notebook, explore)
    notebook = CoalesceStreamsPreprocessor().preprocess(notebook, {})[0]
    for cell in notebook.cells:
        cell.source = _without_paths(cell.source, hidden)
        cell.metadata["summary"] = next((_SUMMARIES[tag] for tag in _tags(cell) if tag in _SUMMARIES), "Code")
        if cell.cell_type == "code":
            for output in cell.outputs:
                _clean_output(output, hidden)
            cell.outputs = [output for output in cell.outputs if _is_shown(output)]
    notebook.metadata.pop("widgets", None)
    return notebook


def _safe_html(text: str) -> str:
    """HTML without anything that could run or load: text, tables, links, and pictures as data."""
    import bleach

    def allowed(tag: str, name: str, value: str) -> bool:
        if name in ("href", "src"):
            return value.startswith("data:image/") if tag == "img" else value.startswith(("#", "http:", "https:")) or ":" not in value
        return name in ("id", "alt", "title", "class", "scope", "colspan", "rowspan", "lang")

    tags = "h1 h2 h3 h4 h5 h6 p br hr div span section ul ol li dl dt dd table caption thead tbody tfoot tr th td"
    tags += " a abbr b blockquote code del em figure i img kbd pre small strong sub summary sup details"
    protocols = ["http", "https", "data"]
    text = re.sub(r"(?is)<(style|script)\b.*?(?:</\1\s*>|\Z)", "", text)  # bleach takes the tags alone, and their text would be read
    safe = bleach.clean(text, tags=tags.split(), attributes=allowed, protocols=protocols, strip=True, strip_comments=True)
    return re.sub(r"<th\b[^>]*>(?:\s|&nbsp;)*</th>", "<td></td>", safe)  # a header that says nothing is none
