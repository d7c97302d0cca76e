"""The plan of the pages of a results folder: which there are, what stands around each, and what makes it older than the data.

Every executed notebook of a sample is a page; the comparison is the first page, with a card for each sample. A page holds all that it is
made of (`_Page`), so that one that has not changed is not rendered again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from helpers import (
    COMPARISON,
    STEPS,
    Sample,
    SampleError,
    condition_name,
    failed_step,
    list_samples,
    listed,
    load_sample,
    run_error,
    samples_folder,
)

from .cards import _HEADLINES, _headline, _map_in_words, _result_or_nothing
from .provenance import _chosen_since, _file_state, _Hashes, _inputs_now, _provenance, _with_stale
from .text import _MAP_STEP, _Page, _step_title


def _step_link(results: Path, sample_id: str, step: str, result: dict) -> dict:
    """The link to one page of a sample, with a note where the step failed, was not run, or has no acquisition."""
    notebook, note = results / sample_id / "notebooks" / f"{step}.ipynb", ""
    if not (results / sample_id / ".done" / step).exists():
        note = "failed" if run_error(notebook) else "not run" if not notebook.is_file() else "from an earlier run"
    elif result.get("status") == "not_acquired":
        note = "not acquired"
    return {"step": step, "text": _step_title(step), "href": f"{step}.html" if notebook.is_file() else "", "note": note}


def _sample_pages(results: Path, data_dir: str | Path, sample_id: str, hashes: _Hashes) -> tuple[list[_Page], dict]:
    """The pages of one sample, and its card on the index."""
    try:
        sample = load_sample(data_dir, sample_id)
        title, simulated = sample.label, sample.simulated
    except SampleError:
        sample, title, simulated = None, sample_id, False
    step_results = {step: _result_or_nothing(results, sample_id, step) for step in STEPS}
    links = [_step_link(results, sample_id, step, result) for step, result in step_results.items()]
    matched, h5 = step_results[_MAP_STEP], results / sample_id / "06_ped.h5"
    has_map = sample is not None and {"shape", "step_nm", "phases", "area_fraction"} <= set(matched) and h5.is_file()
    explore = [{"step": "map", "text": "Explore the map", "href": "map.html", "note": ""}] if has_map else []
    pages: list[_Page] = []
    changed: dict[str, None] = {}
    who = sample_id if title == sample_id else f"{sample_id}, {title}"
    for step, result in step_results.items():
        inputs = _inputs_now(result, results / sample_id, data_dir, step, hashes)
        changed |= dict.fromkeys(file["name"] for file in inputs if file["state"] == "changed since")
        page = _Page(
            notebook=results / sample_id / "notebooks" / f"{step}.ipynb",
            target=f"{sample_id}/{step}.html",
            title=_step_title(step),
            sample=title,
            simulated=simulated,
            provenance=_with_stale(_provenance(who, simulated, step, result, inputs), _chosen_since(results / sample_id, step, result)),
            navigation=[link | {"current": link["step"] == step} for link in (*links, *explore)],
            home="../index.html",
            explore="map.html" if has_map and step in ("05_ped_calibration", _MAP_STEP) else "",
        )
        if page.notebook.is_file():
            pages.append(page)
        if sample is not None and has_map and step == _MAP_STEP:
            pages.append(_map_page(page, sample, (hashes.of(h5), matched, _recording_state(sample))))
    card = _card(results, sample_id, title, simulated, step_results, [*links, *explore])
    condition = condition_name(sample.sintering.temperature_C) if sample and sample.sintering else "no sintering named"
    return pages, card | {"stale": ", ".join(changed), "h5": hashes.of(h5) if has_map else "", "condition": condition}


def _map_page(page: _Page, sample: Sample, depends: tuple) -> _Page:
    """The page of a sample's map, from that of its matching."""
    navigation = [link | {"current": link["step"] == "map"} for link in page.navigation]
    target = f"{sample.id}/map.html"
    return replace(page, target=target, title="Explore the map", navigation=navigation, maps=sample, depends=depends)


def _recording_state(sample: Sample) -> tuple:
    """Size and time of the recording of a map page, by which a change is seen; empty where there is none."""
    path = sample.path("ped") if sample.acquisitions.ped else None
    return _file_state(path) if path is not None and path.exists() else ()


def _card(results: Path, sample_id: str, title: str, simulated: bool, step_results: dict[str, dict], links: list[dict]) -> dict:
    """The card of a sample on the first page; its links start from there."""
    links = [link | {"href": link["href"] and f"{sample_id}/{link['href']}"} for link in links]
    by_step = {link["step"]: link for link in links}
    failure = failed_step(results, sample_id)
    missing = by_step[_MAP_STEP]["note"] or "no map"
    return {
        "id": sample_id,
        "label": title,
        "simulated": simulated,
        "map": by_step["map"]["href"] if "map" in by_step else "",
        "alt": _map_in_words(title, step_results[_MAP_STEP]) if "map" in by_step else f"No phase map: {missing}",
        "matched": step_results[_MAP_STEP],
        "rows": [_headline(name, by_step[step], step_results[step], words) for name, step, words in _HEADLINES],
        "links": links,
        "fault": f"{failure[0]}: {failure[1]}" if failure else "",
    }


def _planned_pages(results: Path, data_dir: str | Path, hashes: _Hashes) -> list[_Page]:
    """All pages of a results folder, the index last."""
    pages, cards = [], []
    for sample_id in list_samples(data_dir):
        of_sample, card = _sample_pages(results, data_dir, sample_id, hashes)
        pages += of_sample
        cards.append(card)
    more = []
    demo_data = samples_folder(data_dir) == samples_folder("")
    for step, who, link in (
        ("00_demo_data", "Demo data", "How the demo data were simulated"),
        ("09_validation", "Validation", "How well all this works, on data with known truth"),
    ):
        notebook = results / f"{step}.ipynb"
        if notebook.is_file() and (demo_data or step != "00_demo_data"):
            more.append({"text": link, "href": f"{step}.html"})
            about = _provenance(who.lower(), True, step, {}, [])
            pages.append(_Page(notebook, f"{step}.html", _step_title(step), who, True, about, home="index.html"))
    return [*pages, _index_page(results, data_dir, cards, more)]


def _index_page(results: Path, data_dir: str | Path, cards: list[dict], more: list[dict]) -> _Page:
    """The comparison, with a card for each sample in the order of sintering."""
    try:
        compared = json.loads((results / "08_comparison.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        compared = {}
    order = {s["sample"]: k for k, s in enumerate(compared.get("samples", []))}
    cards = sorted(cards, key=lambda c: (order.get(c["id"], len(order)), c["id"]))
    simulated = {card["simulated"] for card in cards}
    scans = [
        {"name": f"{s['sample']}: PED scan", "sha256": s["scan_sha256"], "state": ""}
        for s in compared.get("samples", [])
        if s.get("scan_sha256")
    ]
    provenance = _provenance("all samples", next(iter(simulated)) if len(simulated) == 1 else None, COMPARISON, compared, scans)
    older = [f"{card['label']} ({card['stale']})" for card in cards if card["stale"]]
    newer = _compared_before(results, compared)
    provenance["stale"] = [f"changed since: {listed(older)}. Run `make run` to bring them up to date."] if older else []
    provenance["stale"] += [f"new results since the samples were compared: {listed(newer)}."] if newer else []
    provenance = _with_stale(provenance, _chosen_since(results, COMPARISON, compared))
    comparison = results / f"{COMPARISON}.ipynb"
    return _Page(comparison, "index.html", _step_title(COMPARISON), "All samples", simulated == {True}, provenance, cards=cards, more=more)


def _compared_before(results: Path, compared: dict) -> list[str]:
    """Samples whose fraction is not the one that was compared."""
    keys = ("rocksalt_fraction", "rocksalt_fraction_ci95", "n_patterns_ncm")
    now = {s["sample"]: _result_or_nothing(results, s["sample"], "07_rocksalt_fraction") for s in compared.get("samples", [])}
    return [s["sample"] for s in compared.get("samples", []) if any(s.get(key) != now[s["sample"]].get(key) for key in keys)]
