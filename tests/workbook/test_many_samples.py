"""The comparison and the first page where there are more samples than stand side by side."""

import json
import subprocess

import pytest
import yaml
from many import CONDITIONS, many_samples
from test_pages import browser, needs_chromium

import helpers
import pages.render
from workflow import warm

N = 30  # more than 24 are compared by condition; a multiple of the six conditions


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Folders of data and results of more samples than 08 draws one by one, compared, with their pages."""
    folder = tmp_path_factory.mktemp("many")
    data, results = many_samples(folder, N)
    told = {"data_dir": str(data), "results_dir": str(results), "figures_dir": str(folder / "figures")}
    (folder / "told.yaml").write_text(yaml.safe_dump(told))
    command = [*warm.COMMAND, "workflow.execute", "--no-progress-bar", "--cwd", "notebooks", "-f", str(folder / "told.yaml")]
    command += ["notebooks/08_sample_comparison.ipynb", str(results / "08_sample_comparison.ipynb")]
    subprocess.run(command, cwd=helpers.PROJECT_ROOT, check=True, capture_output=True, timeout=300)
    return results, pages.render.render_pages(results, data)


def test_conditions_are_compared_and_not_each_sample_with_each(many):
    compared = json.loads((many[0] / "08_comparison.json").read_text())
    assert len(compared["samples"]) == N and compared["differences"] == []
    assert compared["differences_reason"] == "more than 24 samples: conditions are compared, not each sample with each"
    assert len(compared["by_condition"]["conditions"]) == len(CONDITIONS)
    share = {c["condition"]: c["mean"] for c in compared["by_condition"]["conditions"]}
    assert share["pressed only"] < share["550 °C"] < share["650 °C"]  # as they were made


def test_the_first_page_has_every_sample_and_folds_them_by_condition(many):
    text = many[1].read_text()
    assert text.count('<li class="card">') == N and text.count('<details class="group">') == len(CONDITIONS)
    assert len(text) < 3_000_000


@needs_chromium
def test_samples_are_found_on_the_first_page_by_typing(many):
    with browser() as chromium:
        page = chromium.new_page()
        page.goto(many[1].as_uri())
        assert page.locator(".card:visible").count() == 0
        page.get_by_label("Find samples").fill("600 lamella")
        assert page.get_by_role("status").inner_text() == f"{N // len(CONDITIONS)} of {N} samples"
        assert page.locator(".card:visible").count() == N // len(CONDITIONS)
        page.get_by_label("Find samples").fill("nothing like this")
        assert page.locator(".card:visible").count() == 0
