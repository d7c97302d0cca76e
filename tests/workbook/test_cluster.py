"""The graph on a SLURM cluster that is not there, for hundreds of samples, after a clock was set back, and with kernels that die."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tifffile
import yaml
from executed import run_snakemake

import emphase
import helpers
from workflow import run_step

ROOT = helpers.PROJECT_ROOT
BEAM = {"beam_energy_keV": 200}
KINDS = {
    "haadf": {"file": "a.tif", **BEAM, "pixel_size_nm": 0.0125},
    "ped": {"file": "a.tif", **BEAM, "step_nm": 8, "scale_invA_per_px": 0.02, "precession_deg": 0.5, "phases": ["layered", "llzo"]},
}
#: Commands of SLURM that run a job at once, on this machine.
COMMANDS = {
    "sbatch": """
n=$(( $(cat "$FAKE_SLURM/n" 2>/dev/null || echo 100) + 1 )); echo $n >"$FAKE_SLURM/n"
printf '%s\\n' "$@" >>"$FAKE_SLURM/calls"
for argument in "$@"; do case "$argument" in --wrap=*) command="${argument#--wrap=}";; esac; done
SLURM_JOB_ID=$n bash -c "$command" >"$FAKE_SLURM/job.$n" 2>&1 && state=COMPLETED || state=FAILED
echo "$n|$state" >>"$FAKE_SLURM/done"
echo $n
""",
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "sacct": 'case "$*" in *JobIdRaw,State*) cat "$FAKE_SLURM/done";; esac',
    **dict.fromkeys(("sinfo", "squeue", "scontrol", "scancel", "sacctmgr"), "true"),
}


def write_samples(data: Path, names, kinds=("haadf",)) -> None:
    for name in names:
        (data / name).mkdir(parents=True)
        tifffile.imwrite(data / name / "a.tif", np.ones((64, 64), np.uint16))
        content = {"id": name, "label": name, "acquisitions": {kind: KINDS[kind] for kind in kinds}}
        (data / name / "sample.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def place(tmp_path):
    """Folders of a run, as its environment."""
    names = {name: str(tmp_path / name.lower()) for name in ("DATA", "RESULTS", "FIGURES")}
    return os.environ | names | {"SCHEDULER": "", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}


def snakemake(place, stage, *more, snakefile=ROOT / "Snakefile"):
    arguments = ["--snakefile", str(snakefile), "--cores", "2", "--keep-going", "--nolock", "--rerun-triggers", "mtime", "params"]
    arguments += ["--scheduler", "greedy", "--config", f"stage={stage}", *more]
    return run_snakemake(arguments, ROOT, place)


def planned(place, stage, *more):
    """Which steps of which samples a run would do."""
    told = snakemake(place, stage, "--dry-run", *more)
    assert told.returncode == 0, told.stdout + told.stderr
    outputs = [line.split("output: ")[1] for line in (told.stdout + told.stderr).splitlines() if "output: " in line]
    return sorted(output.replace("/.done/", " ")[: len(output) - 6 + 12].split("_")[0] for output in outputs)


# --- a cluster --------------------------------------------------------------------------------


def test_the_profile_plans_every_step_as_a_job(tmp_path, place):
    write_samples(tmp_path / "data", ["S1", "S2"], ("haadf", "ped"))
    assert planned(place, "gate", "--profile", str(ROOT / "profiles" / "slurm")) == ["S1 01", "S2 01"]


def test_a_job_on_a_node_reads_the_graph_again_beside_the_run_that_sent_it(tmp_path, place):
    write_samples(tmp_path / "data", ["S1"])
    for name, script in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\n{script}\n")
        command.chmod(0o755)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "done").touch()
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    profile |= {"latency-wait": 5, "slurm-init-seconds-before-status-checks": 1}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    place |= {"PATH": f"{tmp_path / 'bin'}:{place['PATH']}", "FAKE_SLURM": str(tmp_path / "slurm")}
    done = snakemake(place, "gate", "--profile", str(tmp_path / "profile"))
    told = "\n".join(p.read_text() for p in sorted((tmp_path / "slurm").glob("job.*")))
    assert done.returncode == 0, done.stdout + done.stderr + told
    assert (tmp_path / "results" / "S1" / ".done" / "01_lamella_metadata").is_file()
    calls = (tmp_path / "slurm" / "calls").read_text().splitlines()
    asked = dict(itertools.pairwise(calls))
    assert (asked["-p"], asked["--mem"], asked["-t"]) == ("standard", "4000", "30")


def test_two_runs_at_once_on_the_same_results_are_told(tmp_path, place):
    write_samples(tmp_path / "data", ["S1"])
    (tmp_path / "results").mkdir()
    with open(tmp_path / "results" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = snakemake(place, "gate")
    assert told.returncode == 3
    assert "another run is writing to " in told.stdout and "wait for its end, or give another RESULTS=" in told.stdout


def test_a_place_that_cannot_hold_results_is_told(tmp_path, place):
    write_samples(tmp_path / "data", ["S1"])
    (tmp_path / "results").write_text("a file")
    told = snakemake(place, "gate")
    assert told.returncode == 3 and "no place for results: File exists; give another RESULTS=" in told.stdout


# --- hundreds of samples ----------------------------------------------------------------------


def test_three_hundred_samples_are_planned_in_seconds(tmp_path, place):
    write_samples(tmp_path / "data", [f"s{k:03d}" for k in range(300)], ("haadf", "ped"))
    started = time.monotonic()
    assert len(planned(place, "gate")) == 300
    for k in range(300):
        mark = tmp_path / "results" / f"s{k:03d}" / ".done" / "01_lamella_metadata"
        mark.parent.mkdir(parents=True)
        mark.write_text("done\n")
    assert len(planned(place, "steps")) == 300 * (len(helpers.STEPS) - 1)
    assert time.monotonic() - started < 120  # some 15 s; a plan that grows with the square would take minutes


# --- what is up to date -----------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, place):
    """A sample whose gate has run, by a copy of the project that tests may change."""
    project = tmp_path / "project"
    (project / "notebooks").mkdir(parents=True)
    for name in ("Snakefile", "helpers.py"):
        (project / name).write_bytes((ROOT / name).read_bytes())
    for name in ("src", "workflow"):
        shutil.copytree(ROOT / name, project / name)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        (project / "notebooks" / path.name).write_bytes(path.read_bytes())
    (project / "data").symlink_to(ROOT / "data")
    write_samples(tmp_path / "data", ["S1"])
    place["PYTHONPATH"] = os.pathsep.join([str(project), str(project / "src")])
    run = lambda stage="gate", *more: snakemake(place, stage, *more, snakefile=project / "Snakefile")
    plan = lambda: (told := run("gate", "--dry-run"), "01_lamella_metadata" in told.stdout + told.stderr)[1]
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    return project, run, plan


def test_what_is_up_to_date_is_told_by_content_not_by_the_clock(tmp_path, finished):
    project, _, plan = finished
    notebook = project / "notebooks" / "01_lamella_metadata.ipynb"
    assert not plan()
    long_ago = (1_000_000_000, 1_000_000_000)
    changes = {
        notebook: lambda content: content + b"\n",
        project / "helpers.py": lambda content: content.replace(b"def load_sample(", b"def load_sample(  "),
        project / "src" / "emphase" / "lamella.py": lambda content: content + b"\n",
    }
    for path, change in changes.items():
        os.utime(path)  # another time, the same content
        assert not plan()
        before = path.read_bytes()
        path.write_bytes(change(before))
        os.utime(path, long_ago)  # other content, by a clock that was set back
        assert plan(), path
        path.write_bytes(before)
        assert not plan()
    sample = tmp_path / "data" / "S1" / "sample.yaml"
    sample.write_text(sample.read_text().replace("label: S1", "label: S2"))
    os.utime(sample, long_ago)
    assert plan()


def test_a_step_runs_again_after_one_that_it_needs_whatever_the_clock_said(tmp_path, place):
    write_samples(tmp_path / "data", ["S1"], ("ped",))
    done = tmp_path / "results" / "S1" / ".done"
    done.mkdir(parents=True)
    for name in ("01_lamella_metadata", "05_ped_calibration", "06_ped_matching"):
        (done / name).write_text(f"done, {name}\n")
    sha256 = emphase.files.file_sha256(done / "05_ped_calibration")
    (done / "06_ped_matching").write_text(f"done\nneeds {sha256}  S1/.done/05_ped_calibration\n")
    snakemake(place, "gate", "--dry-run")
    assert (done / "06_ped_matching").exists()
    (done / "05_ped_calibration").write_text("done again\n")
    os.utime(done / "05_ped_calibration", (1_000_000_000, 1_000_000_000))
    snakemake(place, "gate", "--dry-run")
    assert not (done / "06_ped_matching").exists() and (done / "05_ped_calibration").exists()


# --- kernels that die -------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 9])
def test_a_step_whose_kernel_dies_is_tried_once_more_and_then_names_the_cell(tmp_path, finished, times):
    project, run, _ = finished
    path = project / "notebooks" / "01_lamella_metadata.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = f"# runs out of memory\nimport os, pathlib\ncount = pathlib.Path({str(tmp_path / 'count')!r})\n"
    code += "count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))\n"
    code += f"if int(count.read_text()) <= {times}:\n    os.kill(os.getpid(), 9)\n"
    place = 1 + next(k for k, cell in enumerate(notebook.cells) if "helpers.begin" in cell.source)
    notebook.cells.insert(place, nbformat.v4.new_code_cell(code))
    nbformat.write(notebook, path)
    done = run()
    assert "the kernel died, once more" in done.stdout
    assert (tmp_path / "count").read_text() == "2"
    failure = helpers.failed_step(tmp_path / "results", "S1")
    if times == 1:
        assert done.returncode == 0 and failure is None
    else:
        cell = place + 2  # papermill puts the parameters in
        told = f"the kernel died, twice, in cell {cell} of the notebook, which begins with '# runs out of memory'; was there enough memory?"
        assert done.returncode == 1 and failure == ("01_lamella_metadata", told)


def test_a_kernel_that_died_at_its_start_has_died(tmp_path):
    executed = tmp_path / "01_lamella_metadata.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), executed)
    assert not run_step.kernel_died(executed)
    executed.with_suffix(".log").write_text("Traceback …\nRuntimeError: Kernel died before replying to kernel_info\n")
    assert run_step.kernel_died(executed)


def test_kernels_of_steps_take_no_ports(tmp_path):
    """A port that was free when Jupyter looked for one may be taken when the kernel starts."""
    code = f"import ipykernel, shutil\nshutil.copy(ipykernel.get_connection_file(), {str(tmp_path / 'told')!r})"
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=kernel), tmp_path / "asks.ipynb")
    (tmp_path / "none.yaml").write_text("{}")
    assert run_step.execute(tmp_path / "asks.ipynb", tmp_path / "none.yaml", tmp_path / "out" / "asks.ipynb", 1) == 0
    told = json.loads((tmp_path / "told").read_text())
    assert told["transport"] == "ipc"
    assert not Path(told["ip"]).parent.exists()


def test_a_mistake_in_the_input_is_not_tried_twice(tmp_path, finished):
    _, run, _ = finished
    (tmp_path / "data" / "S1" / "a.tif").write_bytes(b"II*\0 broken")
    done = run()
    assert done.returncode == 1 and "once more" not in done.stdout
    step, reason = helpers.failed_step(tmp_path / "results", "S1")
    assert step == "01_lamella_metadata" and "a.tif" in reason


# --- JupyterLab -------------------------------------------------------------------------------


def test_jupyterlab_keeps_its_token(tmp_path):
    import socket
    import urllib.error
    import urllib.request

    makefile = (ROOT / "Makefile").read_text()
    assert "jupyter lab" in makefile and not any(word in makefile for word in ("token=", "--ip", "password=", "disable_check_xsrf"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runtime = tmp_path / "runtime"
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime)}
    command = [
        str(Path(sys.executable).with_name("jupyter")),
        "lab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        f"--notebook-dir={ROOT}",
    ]
    lab = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not (told := list(runtime.glob("jpserver-*.json"))) and time.monotonic() < until:
            time.sleep(0.2)
        server = json.loads(told[0].read_text())
        address = f"http://127.0.0.1:{port}/api/contents"
        assert len(server["token"]) >= 32 and server["hostname"] in ("localhost", "127.0.0.1")
        for _ in range(50):
            try:
                urllib.request.urlopen(address, timeout=10)
            except urllib.error.HTTPError as error:
                assert error.code == 403
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        else:
            pytest.fail("the contents are given without a token")
        asked = urllib.request.Request(address, headers={"Authorization": f"token {server['token']}"})
        assert urllib.request.urlopen(asked, timeout=10).status == 200
    finally:
        lab.terminate()
        lab.wait(20)


# --- what is known of the pinned packages -------------------------------------------------------


def test_a_vulnerability_needs_a_reason():
    from audit import judged

    found = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"]}
    packages = [
        {"name": "a", "version": "2", "vulns": [found]},
        {"name": "b", "skip_reason": "not found"},
        {"name": "c", "version": "1", "vulns": []},
    ]
    assert judged({"dependencies": packages}, {}) == (["a 2: PYSEC-1: no exception; mended in 2.1"], 1, 2)
    assert judged({"dependencies": packages}, {"CVE-1": "not reached"}) == (["a 2: PYSEC-1: not reached"], 0, 2)
