"""Properties that hold for any input: the schema, choices by hand, results, and labels. Examples are drawn alike in every run."""

import html
import json
import re
import string
from pathlib import Path
from typing import Any

import hyperspy.api as hs
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_contracts import GOOD

import helpers
import pages.clean

properties = settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
few = settings(properties, max_examples=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data folder with a sample of one small image, whose sample.yaml the tests write."""
    made = tmp_path_factory.mktemp("properties")
    (made / "S1").mkdir()
    hs.signals.Signal2D(np.ones((8, 8), np.uint16)).save(made / "S1" / "haadf.tif")
    return made


def load(folder: Path, content: bytes | str) -> helpers.Sample | str:
    """The sample that a sample.yaml gives, or the text of its `SampleError`; any other exception is the test's failure."""
    (folder / "S1" / "sample.yaml").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        return helpers.load_sample(folder, "S1")
    except helpers.SampleError as error:
        told = str(error)
    assert told and all(line.startswith("S1/sample.yaml") for line in told.splitlines())
    assert str(folder) not in told
    return told


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)
KEYS = ["id", "label", "simulated", "composition", "sintering", "lamella", "acquisitions", "haadf", "ped", "interface", "cryo_stem", "file",
        "beam_energy_keV", "phases", "series", "zone_axis", "steps", "stage", "frame", "temperature_C", "folder"]  # fmt: skip
keyed = st.recursive(anything, lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=6), max_leaves=20)


@properties
@given(keyed | anything)
def test_any_content_is_a_sample_or_an_error_of_its_own(folder, content):
    load(folder, yaml.safe_dump(content, allow_unicode=True))


@properties
@given(
    st.binary(max_size=200) | st.text(alphabet=st.characters(), max_size=200) | st.text(alphabet="&*[]{}:-?!|>'\"%@` \n\tab1.", max_size=60)
)
def test_any_text_is_a_sample_or_an_error_of_its_own(folder, content):
    load(folder, content)


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Every place in nested values."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path] * bool(path) + [place for key, part in parts for place in places(part, (*path, key))]


def with_value(content: Any, path: tuple, value: Any) -> Any:
    changed = json.loads(json.dumps(content))
    part = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return changed


@properties
@given(st.sampled_from(places(GOOD)), anything)
def test_a_good_sample_with_any_value_somewhere(folder, path, value):
    found = load(folder, yaml.safe_dump(with_value(GOOD, path, value), allow_unicode=True))
    if isinstance(found, str) and "not YAML" not in found and "holds" not in found:
        assert str(path[0]) in found  # the fault is told where it is


@properties
@given(st.sampled_from([(), ("sintering",), ("lamella",), ("acquisitions",), ("acquisitions", "haadf"), ("lamella", "steps", 0)]),
       st.text(alphabet=string.ascii_letters + "_", min_size=1, max_size=12), anything)  # fmt: skip
def test_an_unknown_key_is_named(folder, path, key, value):
    owner = GOOD
    for part in path:
        owner = owner[part]
    models = {(): helpers.Sample, ("sintering",): helpers.Sintering, ("lamella",): helpers.Lamella, ("acquisitions",): helpers.Acquisitions}
    known = models.get(path, helpers.Haadf if "haadf" in path else helpers.MillingStep).model_fields
    if key in known or key in ("y", "n", "Y", "N"):
        return
    found = load(folder, yaml.safe_dump(with_value(GOOD, (*path, key), value), allow_unicode=True))
    assert isinstance(found, str)
    assert key in found or "cannot be shown" in found


plain_text = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=30)


def numbers(low: float, high: float) -> st.SearchStrategy:
    return st.floats(low, high, allow_nan=False)


@properties
@given(
    label=plain_text,
    temperature=st.none() | numbers(20, 2000),
    pixel=numbers(1e-4, 100),
    energy=numbers(20, 1500),
    zone=st.lists(st.integers(-20, 20), min_size=3, max_size=3).filter(any),
    steps=st.lists(
        st.fixed_dictionaries({"stage": plain_text}, optional={"milling_voltage_kV": numbers(0.1, 50), "angle_deg": numbers(-90, 90)}),
        max_size=4,
    ),
)
def test_a_valid_sample_comes_back_as_it_was_written(folder, label, temperature, pixel, energy, zone, steps):
    haadf = {"file": "haadf.tif", "beam_energy_keV": energy, "pixel_size_nm": pixel, "zone_axis": zone}
    content = {"id": "S1", "label": label, "sintering": {"temperature_C": temperature}, "lamella": {"steps": steps}}
    content["acquisitions"] = {"haadf": haadf}
    found = load(folder, yaml.safe_dump(content, allow_unicode=True))
    assert not isinstance(found, str), found
    kept = found.model_dump()
    assert (kept["label"], kept["sintering"]["temperature_C"]) == (label, temperature)
    assert {k: kept["acquisitions"]["haadf"][k] for k in haadf} == haadf
    assert [{k: v for k, v in step.items() if v is not None} for step in kept["lamella"]["steps"]] == steps
    again = load(folder, yaml.safe_dump(kept, allow_unicode=True))
    assert again == found


@few
@given(anything, st.text(max_size=10))
def test_any_choice_by_hand_is_one_or_an_error_of_its_own(tmp_path_factory, entry, name):
    results = tmp_path_factory.mktemp("hand")
    for content in (entry, {helpers.STEPS[2]: entry}, {helpers.STEPS[2]: {"parameters": {name: entry}, "reason": "because", "date": "x"}}):
        (results / helpers.MANUAL).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
        try:
            helpers.hand_choices(results)
        except helpers.ResultError as error:
            assert helpers.MANUAL in str(error)


# --- results -----------------------------------------------------------------------------------


@properties
@given(anything)
def test_what_a_result_holds_is_json_without_nan_or_an_error_of_its_own(value):
    try:
        kept = helpers.plain({"parameters": value})
    except helpers.ResultError:
        return
    assert json.loads(json.dumps(kept, allow_nan=False), parse_constant=lambda text: pytest.fail(text)) == json.loads(json.dumps(kept))
    assert helpers.plain(kept) == kept


@few
@given(anything | st.text(max_size=80).map(lambda text: text))
def test_any_result_is_read_or_an_error_of_its_own(tmp_path_factory, value):
    results = tmp_path_factory.mktemp("results")
    (results / "S1").mkdir()
    content = value if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)
    (results / "S1" / "x.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(helpers.ResultError, match=r"S1/x\.json"):
        helpers.read_result(results, "S1", "x")["a key that is not there"]


@few
@given(plain_text | st.text("<>&[]()*_`$\\!:/javscript#-+.1\n ", max_size=40))
def test_a_label_is_shown_letter_by_letter(label):
    """As Markdown and in a page: no tag and no link comes of it, and what is read is what was written."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    shown = pages.clean._safe_html(markdown2html_mistune(f"A {helpers.in_markdown(label)} Z"))
    assert set(re.findall(r"<\s*/?\s*(\w+)", shown)) <= {"p"}
    read = html.unescape(re.sub(r"</?p>", "", shown)).split()
    assert "".join(read) == "".join(f"A {label} Z".split())
