"""TODO."""

from __future__ import annotations

import re
from typing import Any

from helpers import _ended_well

from .text import _without_paths


def _joined_streams(outputs: list) -> list:
    """Outputs with consecutive prints as one, and without empty ones."""
    joined: list = []
    for output in outputs:
        if output.output_type != "stream":
            joined.append(output)
        elif joined and joined[-1].output_type == "stream" and joined[-1].name == output.name:
            joined[-1].text += output.text
        elif output.text.strip():
            joined.append(output)
    return joined


_EXPLORE_TEXT = "[Explore the map](map.html): phase, scores and orientation of every pattern, and the pattern itself, without a kernel."


def _without_widgets(cells: list, explore: str) -> list:
    """Cells without those tagged ``explore``, which live in JupyterLab only; the first becomes a link where a map page stands for them."""
    import nbformat

    kept, link = [], [nbformat.v4.new_markdown_cell(_EXPLORE_TEXT)] if explore else []
    for cell in cells:
        if "explore" in cell.metadata.get("tags", []):
            kept += link
            link = []
        else:
            kept.append(cell)
    return kept


def _presentable(notebook: Any, hidden: list[tuple[str, str]], explore: str) -> Any:
    """The notebook as readers should see it: no paths, no tracebacks, no ticks of the progress, no markers of papermill, no widgets."""
    progress = re.compile(r"^\S* ?\d\d_\w+: .* \d+ of \d+, \d+ s\n", re.MULTILINE)
    notebook.cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    notebook.cells = _without_widgets(notebook.cells, explore)
    for cell in notebook.cells:
        cell.source = _without_paths(cell.source, hidden)
        summaries = {"parameters": "Parameters: defaults", "injected-parameters": "Parameters of this run"}
        cell.metadata["summary"] = next((summaries[t] for t in cell.metadata.get("tags", []) if t in summaries), "Code")
        outputs = [o for o in cell.get("outputs", []) if not (o.output_type == "error" and _ended_well(o))]
        for output in outputs:
            if output.output_type == "error":
                output.evalue = _without_paths(output.evalue, hidden)
            elif output.output_type == "stream":
                output.text = _without_paths(progress.sub("", output.text), hidden)
            else:
                texts = {kind: _without_paths("".join(text), hidden) for kind, text in output.data.items() if kind.startswith("text/")}
                output.data.update(texts)
        if cell.cell_type == "code":
            cell.outputs = _joined_streams(outputs)
    notebook.metadata.pop("widgets", None)
    return notebook


def _safe_html(text: str) -> str:
    """HTML with nothing in it that could run or load: text, tables, links and pictures that are inside."""
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
