"""The house: pins, style, the graph's re-run rules on a tiny project, and its pages."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from executed import run_snakemake

import helpers
import pages.clean
import pages.render
import pages.share

ROOT = helpers.PROJECT_ROOT
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def env_yml() -> dict:
    return yaml.safe_load((ROOT / "env.yml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in env_yml()["dependencies"][-1]["pip"])


# --- environment ------------------------------------------------------------------------


@pytest.mark.parametrize("name", pins())
def test_what_is_installed_is_what_env_yml_says(name):
    assert version(name) == pins()[name]


def test_env_yml_is_what_conda_and_make_lock_read():
    """conda takes names and ranges for itself and hands one list to pip; `make lock` takes that list line by line."""
    listed = env_yml()
    assert set(listed) == {"name", "channels", "dependencies"}
    assert re.fullmatch(r"[a-z]+", listed["name"])
    assert listed["channels"] == ["conda-forge"]
    python, pip, from_pip = listed["dependencies"]
    assert re.fullmatch(r"python>=3\.\d+,<3\.\d+", python)
    assert (pip, list(from_pip)) == ("pip", ["pip"])
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==\d+(\.\d+)*", line) for line in from_pip["pip"])
    assert len({re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in from_pip["pip"]}) == len(from_pip["pip"]), "one pin each"
    by_line = re.search(r"sed -n '(s/.*?)/p' env\.yml", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert by_line, "make lock reads env.yml by sed"
    command = ["sed", "-n", f"{by_line[1].replace('$$', '$')}/p", "env.yml"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() == from_pip["pip"]


def test_every_place_names_the_same_pythons():
    least, below = (tuple(map(int, v.split("."))) for v in re.findall(r"\d+\.\d+", env_yml()["dependencies"][0]))
    assert least <= sys.version_info < below
    text = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile", "pyproject.toml")}
    pythons = [f"{least[0]}.{minor}" for minor in range(least[1], below[1])]
    listed = f"Python {', '.join(pythons[:-1])} or {pythons[-1]}, git and make"
    assert listed in text["README.md"]
    assert listed in text["Makefile"]
    assert f"{least} <= sys.version_info < {below}" in text["Makefile"]
    assert f"--python-version {pythons[0]} " in text["Makefile"]
    assert f'target-version = "py{pythons[0].replace(".", "")}"' in text["pyproject.toml"]
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["image"].partition(":")[2].split("-")[0] in pythons
    assert (container["postCreateCommand"], container["forwardPorts"]) == ("make setup", [8888])


def test_env_lock_holds_every_pin_with_hashes_and_names_no_index():
    text = (ROOT / "env.lock").read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)
    locked = {tuple(re.sub(r"\[.*?\]", "", entry.split()[0]).split("==")) for entry in entries}
    assert {(re.sub(r"[-_.]+", "-", name).lower(), pin) for name, pin in pins().items()} <= locked
    assert "://" not in text
    assert "--index" not in text


# --- style ------------------------------------------------------------------------------


def test_ruff_is_clean():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_without_outputs_and_keep_the_skeleton(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.cells[0].source.startswith(f"# {path.name[:2]} ")
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    known = helpers.notebook_parameters(path)
    assert {"data_dir", "results_dir", "figures_dir"} <= set(known)
    assert [known[name] for name in ("data_dir", "results_dir", "figures_dir")] == ["", "", ""]
    numbers = {n for n, default in known.items() if isinstance(default, (int, float)) and not isinstance(default, bool)} - {"seed"}
    begun = next(cell.source for cell in code if "helpers.begin(" in cell.source)
    assert set(re.findall(r"(\w+)=\(", begun.partition("helpers.begin(")[2])) == numbers, "every number has a range"
    for cell in code:
        if "parameters" in cell.metadata.get("tags", []):
            uncommented = [line for line in cell.source.splitlines() if "=" in line and "#" not in line]
            assert len(uncommented) <= 1, uncommented  # sample_id says what it is


# --- the graph, on a tiny project of notebooks that hardly compute -----------------------

ALL_STEPS = set(helpers.STEPS)


def tiny_notebook(step: str) -> nbformat.NotebookNode:
    """A notebook of a step that keeps the contract and computes nothing."""
    cell = nbformat.v4.new_code_cell
    head = "" if step == helpers.COMPARISON else 'sample_id = "A"\n'
    cells = [
        nbformat.v4.new_markdown_cell(f"# {step[:2]} {step[3:]}\n\nA question with a < b & c."),
        cell(head + 'data_dir = ""\nresults_dir = ""\nfigures_dir = ""\nknob = 1', metadata={"tags": ["parameters"]}),
        cell(f'import sys\nsys.path[:0] = ["..", "."]\nimport helpers\nrun = helpers.begin("{step}", globals())'),
    ]
    reads, needs = helpers.GRAPH[step][:2] if step in helpers.GRAPH else ("", ())
    if reads:
        cells.append(cell(f'run.acquisition("{reads}")'))
    cells += [cell(f'run.previous("{need}")') for need in needs]
    if step == "01_lamella_metadata":
        cells.append(
            cell(
                'import emphase\nemphase.frames.load_recording(run.sample.path("haadf"))\nprint("in", run.sample.folder, helpers.__file__)'
            )
        )
    if step == "03_haadf_surface":
        lines = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1, 2])\n"
        cells.append(cell(lines + 'run.figure(fig, "line", alt="A line rises from 1 to 2.")'))
    if step == helpers.COMPARISON:
        cells.append(cell("for s in helpers.list_samples(run.data_dir):\n    print(s, helpers.failed_step(run.results, s))"))
    else:
        cells.append(cell('for _ in run.progress(range(10), "counting"):\n    pass'))
    cells.append(cell('run.save({"x_nm": 1.0})'))
    names = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=names)


class Project:
    """A copy of the house with tiny notebooks and two tiny samples, in a folder with a space in its name."""

    def __init__(self, folder: Path):
        self.root, self.data, self.results = folder / "tiny project", folder / "my data", folder / "my results"
        (self.root / "notebooks").mkdir(parents=True)
        for name in ("helpers.py", "Snakefile", "Makefile", "env.lock", "pyproject.toml"):
            shutil.copy2(ROOT / name, self.root / name)
        for name in ("src", "pages", "workflow"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copytree(ROOT / "data" / "phases", self.root / "data" / "phases")
        (self.root / ".venv").symlink_to(sys.prefix)
        for step in (*helpers.STEPS, helpers.COMPARISON):
            nbformat.write(tiny_notebook(step), self.root / "notebooks" / f"{step}.ipynb")
        for sample in ("A", "B"):
            (self.data / sample).mkdir(parents=True)
            tifffile.imwrite(self.data / sample / "haadf.tif", np.ones((16, 16), np.uint16))
            haadf = {"file": "haadf.tif", "beam_energy_keV": 200, "pixel_size_nm": 0.01}
            content = {"id": sample, "label": f"{sample} <script>alert(1)</script>", "simulated": True, "acquisitions": {"haadf": haadf}}
            (self.data / sample / "sample.yaml").write_text(yaml.safe_dump(content))
        self.hidden = [folder, Path.home(), sys.prefix, "/tmp/", ROOT]
        self.path = {"PYTHONPATH": os.pathsep.join([str(self.root), str(self.root / "src")])}
        self.folders = {"DATA": str(self.data), "RESULTS": os.path.relpath(self.results, self.root), "FIGURES": str(folder / "my figures")}

    def make(self, *more: str) -> tuple[int, set[tuple[str, str]], str]:
        """`make run`: its exit status, the (sample, step) that were executed, and what it printed."""
        command = ["make", "-o", ".venv/.ready", "run", *(f"{k}={v}" for k, v in self.folders.items()), *more]
        done = subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, env=os.environ | self.path
        )
        text = done.stdout + done.stderr
        return done.returncode, set(re.findall(r"^(\S.*?)  (\d\d_\w+) …$", text, re.MULTILINE)), text

    def planned(self, stage: str) -> set[tuple[str, str]]:
        """What a stage would execute, by Snakemake's dry run."""
        arguments = ["--snakefile", "Snakefile", "--cores", "2", "--dry-run", "--nolock", "--rerun-triggers", "mtime", "params"]
        environment = os.environ | self.path | self.folders | {"RESULTS": str(self.results)}
        done = run_snakemake([*arguments, "--config", f"stage={stage}"], self.root, environment)
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        found = re.findall(r"rule (\d\d_\w+):\n(?:    .*\n)*?    wildcards: sample=(\S+)", text)
        return {(sample, step) for step, sample in found}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Project]:
    """The tiny project after its first run."""
    made = Project(tmp_path_factory.mktemp("house"))
    status, executed, text = made.make()
    assert status == 0, text
    assert executed == {(s, step) for s in "AB" for step in ALL_STEPS} | {("all samples", helpers.COMPARISON)}
    assert "pages: " in text
    yield made


COMPARED = {("all samples", helpers.COMPARISON)}


def test_a_second_run_executes_nothing_also_where_files_were_only_touched(project):
    for path in (project.data / "A" / "sample.yaml", project.root / "helpers.py", project.root / "notebooks" / "03_haadf_surface.ipynb"):
        path.touch()
    status, executed, _ = project.make()
    assert (status, executed) == (0, set())


def test_every_executed_notebook_is_kept_as_the_log(project):
    for sample in "AB":
        assert {p.stem for p in (project.results / sample / "notebooks").glob("*.ipynb")} == ALL_STEPS
        result = json.loads((project.results / sample / "04_interface_phases.json").read_text())
        assert result["status"] == "not_acquired"


def test_a_changed_sample_runs_again_and_a_lost_result_with_what_needs_it(project):
    path = project.data / "A" / "sample.yaml"
    path.write_text(path.read_text().replace("label: A", "label: sample A"))
    (project.results / "B" / "05_ped_calibration.json").unlink()
    status, executed, text = project.make()
    assert status == 0, text
    lost = {("B", step) for step in ("05_ped_calibration", "06_ped_matching", "07_rocksalt_fraction")}
    assert executed == {("A", step) for step in ALL_STEPS} | lost | COMPARED


def test_a_changed_notebook_runs_again_with_what_needs_it(project):
    path = project.root / "notebooks" / "03_haadf_surface.ipynb"
    path.write_text(path.read_text().replace("rises from", "climbs from"))
    status, executed, text = project.make()
    assert status == 0, text
    assert executed == {(s, step) for s in "AB" for step in ("03_haadf_surface", "07_rocksalt_fraction")} | COMPARED


def test_what_a_change_would_execute(project):
    """By dry runs: an edit of the gate's notebook re-runs the gate alone, one of what all steps use of helpers.py everything."""
    gate, module = project.root / "notebooks" / "01_lamella_metadata.ipynb", project.root / "helpers.py"
    before = {path: path.read_text() for path in (gate, module)}
    assert project.planned("gate") == project.planned("steps") == set()
    gate.write_text(before[gate].replace("knob = 1", "knob = 2"))
    assert project.planned("gate") == {(s, "01_lamella_metadata") for s in "AB"}
    assert project.planned("steps") == set()
    gate.write_text(before[gate])
    module.write_text(before[module].replace("def begin(step", "def begin(  step"))
    assert project.planned("steps") == {(s, step) for s in "AB" for step in ALL_STEPS - {"01_lamella_metadata"}}
    module.write_text(before[module].replace("def compare_fractions(", "def compare_fractions(  ") + "\n# changed\n")
    assert project.planned("steps") == project.planned("gate") == set()
    module.write_text(before[module])


@pytest.mark.parametrize(
    ("file", "steps"),
    [
        ("drift/cells.py", {"02_cryo_stem_drift"}),
        ("haadf/layer.py", {"03_haadf_surface", "07_rocksalt_fraction"}),
        ("interface/spectra.py", {"04_interface_phases", "07_rocksalt_fraction"}),
        ("fractions/draws.py", {"07_rocksalt_fraction"}),
        ("ped/overlap.py", {"05_ped_calibration", "06_ped_matching", "07_rocksalt_fraction"}),
        ("explore/drift.py", set()),
    ],
)
def test_an_edit_of_a_method_makes_its_steps_stale_and_no_other(project, file, steps):
    """07 runs again where a step that it reads does."""
    path = project.root / "src" / "emphase" / file
    before = path.read_text()
    path.write_text(before + "\n# changed\n")
    planned = project.planned("steps")
    path.write_text(before)
    assert planned == {(s, step) for s in "AB" for step in steps}
    assert project.planned("gate") == set()


def test_a_faulty_sample_ends_alone_with_one_message(project):
    """A misspelt key in A; a recording of B replaced by another one that is older."""
    path = project.data / "A" / "sample.yaml"
    good = path.read_text()
    path.write_text(good.replace("pixel_size_nm", "pixelsize_nm"))
    other = project.data / "B" / "haadf.tif"
    tifffile.imwrite(other, np.zeros((16, 16), np.uint16))
    os.utime(other, (1e9, 1e9))
    kept = (project.results / "A" / "07_rocksalt_fraction.json").read_text()
    status, executed, text = project.make()
    assert status != 0
    changed = {("B", step) for step in ("01_lamella_metadata", "03_haadf_surface", "07_rocksalt_fraction")}
    assert executed == {("A", "01_lamella_metadata")} | changed | COMPARED
    told = [line for line in text.splitlines() if line.startswith(("FAILED", "NOT RUN"))]
    assert len(told) == 1
    assert told[0].startswith("FAILED A 01_lamella_metadata: SampleError: A/sample.yaml: acquisitions.haadf.pixelsize_nm: unknown key")
    assert "did you mean pixel_size_nm?" in told[0]
    assert "Traceback" not in text
    assert (project.results / "A" / "07_rocksalt_fraction.json").read_text() == kept
    comparison = nbformat.read(project.results / f"{helpers.COMPARISON}.ipynb", as_version=4)
    assert "A ('01_lamella_metadata', 'SampleError: A/sample.yaml" in comparison.cells[-2].outputs[0].text
    check_pages(project.results / "html", 1 + 2 * len(helpers.STEPS), project.hidden)
    index = (project.results / "html" / "index.html").read_text()
    assert "pixelsize_nm: unknown key" in index
    assert "This step failed." in (project.results / "html" / "A" / "01_lamella_metadata.html").read_text()
    path.write_text(good)
    assert project.make()[:2] == (0, {("A", "01_lamella_metadata")} | COMPARED)


def test_a_truncated_recording_is_told_by_the_gate(project):
    path = project.data / "A" / "haadf.tif"
    good = path.read_bytes()
    path.write_bytes(good[:40])
    status, _, text = project.make()
    path.write_bytes(good)
    assert status != 0
    assert re.search(r"FAILED A 01_lamella_metadata: EmphaseError: haadf\.tif: cannot be read", text)


def test_a_folder_without_samples_and_a_folder_that_is_not_there(project, tmp_path):
    for folder, message in ((tmp_path, "holds no sample"), (tmp_path / "none", "no such folder")):
        status, executed, text = project.make(f"DATA={folder}", f"RESULTS={tmp_path / 'out'}")
        assert status != 0
        assert message in text
        assert not executed
        assert "Traceback" not in text


def test_two_runs_on_the_same_results_do_not_meet(project):
    import fcntl

    with open(project.results / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, executed, text = project.make()
    assert status != 0
    assert not executed
    assert "another run is writing to" in text


# --- pages ------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags of a page with their attributes, and its scripts as (type, text)."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.lasttag == "script" and self.cdata_elem == "script":
            assert set(self.tags[-1][1]) <= {"type", "id"}  # no src
            self.scripts.append((self.tags[-1][1].get("type", "text/javascript"), data))

    def all(self, *names: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag in names]


def check_policy(page: Page) -> None:
    """Nothing may be loaded, and only the project's own scripts may run, each named by its hash."""
    own = {path.read_text(encoding="utf-8") for path in (ROOT / "pages" / "templates").glob("*.js")}
    run = [text for kind, text in page.scripts if kind != "application/json"]
    assert run and set(run) <= own
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in run)
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    expected = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; base-uri 'none'; form-action 'none'"
    assert policy == expected


def check_pages(html: Path, count: int, hidden_paths: list) -> None:
    """Every page opens from disk with nothing from elsewhere, describes its pictures, and names no path of this machine."""
    pages = {path: Page(path) for path in html.rglob("*.html")}
    assert len(pages) == count
    for path, page in pages.items():
        text = path.read_text(encoding="utf-8")
        assert path.stat().st_size < (10e6 if path.name == "map.html" else 8e6)
        assert not page.all("iframe", "object", "embed", "link", "base")
        assert len(page.all("script")) == len(page.scripts)
        check_policy(page)
        assert not re.search(r"@import|url\(", text)
        for attributes in page.all("img", "source", "video", "audio"):
            assert attributes["src"].startswith("data:image/")
            assert attributes["alt"]
            assert "No description" not in attributes["alt"]
        assert page.all("details")[-1]["class"] == "provenance"
        for attributes in page.all("a"):
            href = attributes["href"]
            assert href.startswith("#") or (path.parent / href).is_file(), href
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        for hidden in hidden_paths:
            assert str(hidden) not in text, hidden
        assert page.all("html")[0]["lang"] == "en"
        assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
    index = {os.path.normpath(html / a["href"]) for a in pages[html / "index.html"].all("a") if not a["href"].startswith("#")}
    assert index == {str(path) for path in pages if path.name != "index.html"}


def test_pages_open_offline_and_describe_their_pictures(project):
    check_pages(project.results / "html", 1 + 2 * len(helpers.STEPS), project.hidden)
    page = Page(project.results / "html" / "B" / "03_haadf_surface.html")
    assert [a["alt"] for a in page.all("img")] == ["A line climbs from 1 to 2."]
    text = (project.results / "html" / "B" / "03_haadf_surface.html").read_text()
    assert "simulated data" in text
    assert "counting" not in re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)
    assert "a &lt; b &amp; c" in text


def test_pages_that_are_up_to_date_are_left_alone(project):
    html = project.results / "html"
    before = {path: path.stat().st_mtime_ns for path in html.rglob("*.html")}
    (html / "A" / "stale.html").touch()
    code = "import sys; sys.path[:0] = ['.', 'src']; from pages import render; render.render_pages(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, str(project.results), str(project.data)], cwd=project.root, check=True)
    assert {path: path.stat().st_mtime_ns for path in html.rglob("*.html")} == before


def test_share_gathers_the_pages(project):
    code = "import sys; sys.path[:0] = ['.', 'src']; from pages import share; print(share.share_pages(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(project.results)]  # the data folder is that of the last run
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=True)
    zipped = Path(done.stdout.strip())
    folder = zipped.with_suffix("")
    assert zipped.name == "workbook.zip"
    assert {p.relative_to(folder) for p in folder.rglob("*.html")} == {
        p.relative_to(project.results / "html") for p in (project.results / "html").rglob("*.html")
    }
    with pytest.raises(helpers.ResultError, match="run `make run` first"):
        pages.share.share_pages(project.data)


def test_html_from_outputs_cannot_run_or_load_anything():
    hostile = '<script>x()</script><img src="https://a.b/c.png" onerror="x()" alt="y"><a href="javascript:x()">z</a><b onclick="x()">ok</b>'
    safe = pages.clean._safe_html(hostile)
    assert not re.search(r"<script|onerror|onclick|javascript:|https://a\.b", safe)
    assert "x()" not in safe and "<b>ok</b>" in safe
    table = pd.DataFrame({"size": [1.5]})._repr_html_()  # with a style sheet, whose text is not to be read
    assert "only-of-type" in table and "only-of-type" not in pages.clean._safe_html(table) and "1.5" in pages.clean._safe_html(table)
    assert pages.clean._safe_html("before<style>" * 100_000) == "before"
