"""The graph of samples x notebooks. `make run` (workflow/run_stages.py) runs its stages one after the other, `--config stage=`

    gate        01 for every sample: checks sample.yaml and every file that it names
    steps       the others of helpers.GRAPH for the samples that passed the gate
    comparison  08, with what succeeded

so that a sample that fails stops neither the others nor the comparison.

Every rule runs workflow/run_step.py. The executed notebook is its log, though no `log:`, which Snakemake deletes before it tries again. Its
output is a mark, results/<id>/.done/<step>: Snakemake deletes the outputs of a job that fails, and results written before stay.
A step runs again where its notebook, a module of the library that it depends on, its part of helpers.py, its sample.yaml, a file that it reads
or a step that it needs changed: by their content, for times alone do not tell where a clock was set back. A step whose kernel died is tried once more.

Jobs on the nodes of a cluster (`make run PROFILE=profiles/slurm`) read this file again; what is written before a run, the first process alone does.
"""

import fcntl
import functools
import hashlib
import os
import re
import shlex
import sys
from pathlib import Path

import yaml

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))
import helpers
from emphase.files import file_sha256, write_atomically

DATA, RESULTS, FIGURES = (os.path.abspath(os.environ.get(name) or ROOT / name.lower()) for name in ("DATA", "RESULTS", "FIGURES"))

GRAPH, GATE = helpers.GRAPH, helpers.GATE
STAGE = config.get("stage", "steps")

def stop(message):
    """End the run before it starts, with a status that is not that of a failed step."""
    print(message, flush=True)
    sys.exit(3)


@functools.cache
def content_of(path):
    """A file's identity: the hash of a small one, size and time of a recording, None where it is absent."""
    path = Path(path)
    if path.is_dir():  # .zspy
        return [f"{p.name}: {content_of(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
    if not path.is_file():
        return None
    state = path.stat()
    return file_sha256(path) if state.st_size < 1_000_000 else f"{state.st_size} bytes of {state.st_mtime_ns}"


def sample_files(sample):
    """What each acquisition of a sample brings, its recording and its crystal structures; and the fault of a sample.yaml that has one."""
    try:
        found = helpers.load_sample(DATA, sample)
    except helpers.EmphaseError as error:
        return {}, str(error)
    files = {}
    for kind in type(found.acquisitions).model_fields:
        acquisition = getattr(found.acquisitions, kind)
        if acquisition is not None:
            default = {"haadf": helpers.NCM_PHASES, "interface": helpers.INTERFACE_PHASES}.get(kind, ())
            phases = {*(getattr(acquisition, "phases", None) or default), getattr(acquisition, "phase", "layered")}
            files[kind] = [*found.files(kind).values(), *(helpers.phase_file(p, DATA) for p in sorted(phases))]
    return files, ""


@functools.cache
def known_parameters(step):
    return helpers.notebook_parameters(ROOT / "notebooks" / f"{step}.ipynb")


@functools.cache
def code_of(step):
    """The hash of what a step is made of: its notebook, its modules of the library, its part of helpers.py."""
    return helpers.code_sha256(step)


def step_parameters(step, sample):
    """What a notebook is told beside its own defaults."""
    given = {"sample_id": sample, "data_dir": DATA, "results_dir": RESULTS, "figures_dir": FIGURES}
    known = known_parameters(step)
    if not sample:
        del given["sample_id"]
    helpers.check_parameters(step, given, known)
    return given


def write_parameters(step, sample):
    """The YAML file for papermill, written only where its content changed."""
    path = Path(RESULTS, sample, ".params", f"{step}.yaml")
    text = yaml.safe_dump(step_parameters(step, sample), allow_unicode=True, sort_keys=False)
    if not workflow.is_main_process:
        return path
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    return path


def chosen_by_hand(folder, step):
    """What manual.yaml holds for a step, or what is wrong with it."""
    try:
        choice = helpers.hand_choice(folder, step)
    except helpers.ResultError as error:
        return str(error)
    return choice.model_dump_json() if choice else ""


def forget_lost_results(folder):
    """Remove the mark of a step where a result that it lists is gone, or was written by someone else since, or a step that it needs ran again."""
    for done in sorted(Path(folder, ".done").glob("*")):
        results, needs = [], []
        for line in done.read_text(encoding="utf-8").splitlines()[1:]:
            needs.append(line.split(maxsplit=2)[1:]) if line.startswith("needs ") else results.append(Path(folder, line))
        lost = any(not p.exists() or p.stat().st_mtime > done.stat().st_mtime for p in results)
        marks = ((sha256, Path(RESULTS, name)) for sha256, name in needs)
        if lost or any(not mark.is_file() or hashlib.sha256(mark.read_bytes()).hexdigest() != sha256 for sha256, mark in marks):
            done.unlink()


def only_one_run():
    """Hold a lock on the results for as long as this process lives."""
    try:
        Path(RESULTS).mkdir(parents=True, exist_ok=True)
        lock = open(Path(RESULTS, ".lock"), "w")
    except OSError as error:
        stop(f"{os.path.relpath(RESULTS, ROOT)}: no place for results: {error.strerror}; give another RESULTS=")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stop(f"another run is writing to {os.path.relpath(RESULTS, ROOT)}: wait for its end, or give another RESULTS=")
    return lock


LOCK = only_one_run() if workflow.is_main_process else None

workdir: RESULTS

try:
    SAMPLES = helpers.list_samples(DATA)
except helpers.SampleError as error:
    stop(str(error))
if not SAMPLES:
    none = f"{os.environ.get('DATA') or 'data'}: holds no sample, expected at least one folder with a sample.yaml"
    stop("\n".join([none, *helpers.misnamed_samples(DATA)]))
for folder in (RESULTS, *(Path(RESULTS, sample) for sample in SAMPLES)) if workflow.is_main_process else ():
    forget_lost_results(folder)

def quoted(path):
    """A path for a shell command that Snakemake formats."""
    return shlex.quote(str(path)).replace("{", "{{").replace("}", "}}")


# what runs is not what the result depends on, so it stands here and not in params: another .venv re-executes nothing
RUN = (
    f"{quoted(sys.executable)} {quoted(ROOT / 'workflow' / 'run_step.py')} --sample={{params.sample:q}} --attempt={{resources.attempt}}"
    " --threads={threads} {input.notebook:q} {input.parameters:q} {params.executed:q} {output:q} {input.needs:q}"
)
CORES = workflow.cores or 1

if STAGE == "comparison":
    FAILED = {sample: helpers.failed_step(RESULTS, sample) for sample in SAMPLES}

    rule comparison:
        input:
            notebook=ancient(ROOT / "notebooks" / f"{helpers.COMPARISON}.ipynb"),
            parameters=ancient(write_parameters(helpers.COMPARISON, "")),
            needs=[p.as_posix() for s in SAMPLES for step in GRAPH if step != GATE and (p := Path(RESULTS, s, ".done", step)).exists()],
        output:
            f".done/{helpers.COMPARISON}",
        params:
            sample="",
            executed=f"{helpers.COMPARISON}.ipynb",
            by_hand=chosen_by_hand(RESULTS, helpers.COMPARISON),
            samples=[f"{sample}: {FAILED[sample] or 'ok'}" for sample in SAMPLES],
            content=[content_of(helpers.samples_folder(DATA) / sample / "sample.yaml") for sample in SAMPLES],
            code=code_of(helpers.COMPARISON),
        threads: CORES
        retries: 1  # for a kernel that died
        resources:
            attempt=lambda wc, attempt: attempt,
            mem_mb=4000,
            runtime=60,
        shell:
            RUN

else:
    STEPS = [GATE] if STAGE == "gate" else [step for step in GRAPH if step != GATE]
    READY = [sample for sample in SAMPLES if STAGE == "gate" or Path(RESULTS, sample, ".done", GATE).exists()]
    FILES = {sample: sample_files(sample) for sample in READY}

    wildcard_constraints:
        sample="|".join(re.escape(sample) for sample in SAMPLES),

    def read_by(step, sample):
        """The files of a sample that a step reads, and the gate all of them."""
        acquisition = GRAPH[step].acquisition
        files, _ = FILES[sample]
        wanted = [p for group in files.values() for p in group] if step == GATE else files.get(acquisition, [])
        return [str(p) for p in dict.fromkeys([helpers.samples_folder(DATA) / sample / "sample.yaml", *wanted])]

    def make_rule(step):
        rule:
            name:
                step
            input:
                notebook=ancient(ROOT / "notebooks" / f"{step}.ipynb"),
                parameters=ancient(lambda wc: str(write_parameters(step, wc.sample))),
                files=ancient(lambda wc: read_by(step, wc.sample)),
                needs=[f"{{sample}}/.done/{other}" for other in GRAPH[step].needs],
            output:
                f"{{sample}}/.done/{step}",
            params:
                sample="{sample}",
                executed=f"{{sample}}/notebooks/{step}.ipynb",
                by_hand=lambda wc: chosen_by_hand(Path(RESULTS, wc.sample), step),
                code=code_of(step),
                content=lambda wc: [FILES[wc.sample][1], *(str(content_of(p)) for p in read_by(step, wc.sample))],
            priority: 1 if GRAPH[step].acquisition == "ped" else 0  # the longest chain first
            threads: max(1, CORES // len(SAMPLES)) if GRAPH[step].acquisition == "ped" else 1
            retries: 1  # for a kernel that died
            resources:
                attempt=lambda wc, attempt: attempt,
                mem_mb=4000,
                runtime=240 if GRAPH[step].acquisition in ("ped", "cryo_stem") else 30,
            shell:
                RUN

    rule all:
        input:
            expand("{sample}/.done/{step}", sample=READY, step=STEPS),
        default_target: True

    for step in STEPS:
        make_rule(step)
