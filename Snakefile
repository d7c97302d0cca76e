"""The graph of samples x notebooks. `make run` calls it three times, `--config stage=`

    gate        01 for every sample: checks sample.yaml and every file that it names
    steps       02 to 07 for the samples that passed the gate
    comparison  08, with what succeeded

so that a sample that fails stops neither the others nor the comparison.

Every rule calls papermill, and the executed notebook is its log. Its output is a mark,
results/<id>/.done/<step>: Snakemake deletes the outputs of a job that fails, and results written before stay.
A step runs again where its notebook, helpers.py, its sample.yaml, a file that it reads or a step that it needs changed.
"""

import fcntl
import os
import re
import shlex
import sys
from pathlib import Path

import yaml

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))
import helpers

DATA, RESULTS, FIGURES = (os.path.abspath(os.environ.get(name) or ROOT / name.lower()) for name in ("DATA", "RESULTS", "FIGURES"))

#: The acquisition whose recording and crystal structures a step reads, and the steps whose results it reads.
GRAPH = {
    "01_lamella_metadata": ("", ()),
    "02_cryo_stem_drift": ("cryo_stem", ()),
    "03_haadf_surface": ("haadf", ()),
    "04_interface_phases": ("interface", ()),
    "05_ped_calibration": ("ped", ()),
    "06_ped_matching": ("ped", ("05_ped_calibration",)),
    "07_rocksalt_fraction": ("ped", ("03_haadf_surface", "04_interface_phases", "06_ped_matching")),
}
GATE = "01_lamella_metadata"
STAGE = config.get("stage", "steps")

workdir: RESULTS


def stop(message):
    """End the run before it starts, with a status that is not that of a failed step."""
    print(message, flush=True)
    sys.exit(3)


def content_of(path):
    """A file's identity: the hash of a small one, size and time of a recording, None where it is absent."""
    path = Path(path)
    if path.is_dir():  # .zspy
        return [f"{p.name}: {content_of(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
    if not path.is_file():
        return None
    state = path.stat()
    return helpers.file_sha256(path) if state.st_size < 1_000_000 else f"{state.st_size} bytes of {state.st_mtime_ns}"


def sample_files(sample):
    """What each acquisition of a sample brings, its recording and its crystal structures; and the fault of a sample.yaml that has one."""
    try:
        found = helpers.load_sample(DATA, sample)
    except helpers.WorkbookError as error:
        return {}, str(error)
    files = {}
    for kind in type(found.acquisitions).model_fields:
        acquisition = getattr(found.acquisitions, kind)
        if acquisition is not None:
            default = {"haadf": helpers.NCM_PHASES, "interface": helpers.INTERFACE_PHASES}.get(kind, ())
            phases = {*(getattr(acquisition, "phases", None) or default), getattr(acquisition, "phase", "layered")}
            files[kind] = [*found.files(kind).values(), *(helpers.phase_file(p, DATA) for p in sorted(phases))]
    return files, ""


def step_parameters(step, sample):
    """What a notebook is told beside its own defaults."""
    given = {"sample_id": sample, "data_dir": DATA, "results_dir": RESULTS, "figures_dir": FIGURES}
    known = helpers.notebook_parameters(ROOT / "notebooks" / f"{step}.ipynb")
    if not sample:
        del given["sample_id"]
    helpers.check_parameters(step, given, known)
    return given


def write_parameters(step, sample):
    """The YAML file for papermill, written only where its content changed."""
    path = Path(RESULTS, sample, ".params", f"{step}.yaml")
    text = yaml.safe_dump(step_parameters(step, sample), allow_unicode=True, sort_keys=False)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        helpers.write_atomically(path, text)
    return path


def chosen_by_hand(folder, step):
    """What manual.yaml holds for a step, or what is wrong with it."""
    try:
        choice = helpers.hand_choice(folder, step)
    except helpers.ResultError as error:
        return str(error)
    return choice.model_dump_json() if choice else ""


def forget_lost_results(folder):
    """Remove the mark of a step where a result that it lists is gone, or was written by someone else since."""
    for done in Path(folder, ".done").glob("*"):
        results = [Path(folder, name) for name in done.read_text(encoding="utf-8").splitlines()[1:]]
        if any(not p.is_file() or p.stat().st_mtime > done.stat().st_mtime for p in results):
            done.unlink()


def only_one_run():
    """Hold a lock on the results for as long as this process lives."""
    Path(RESULTS).mkdir(parents=True, exist_ok=True)
    lock = open(Path(RESULTS, ".lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stop(f"another run is writing to {os.path.relpath(RESULTS, ROOT)}: wait for its end, or give another RESULTS=")
    return lock


LOCK = only_one_run()
try:
    SAMPLES = helpers.list_samples(DATA)
except helpers.SampleError as error:
    stop(str(error))
if not SAMPLES:
    none = f"{os.environ.get('DATA') or 'data'}: holds no sample, expected at least one folder with a sample.yaml"
    stop("\n".join([none, *helpers.misnamed_samples(DATA)]))
for folder in (RESULTS, *(Path(RESULTS, sample) for sample in SAMPLES)):
    forget_lost_results(folder)

def quoted(path):
    """A path for a shell command that Snakemake formats."""
    return shlex.quote(str(path)).replace("{", "{{").replace("}", "}}")


# what runs is not what the result depends on, so it stands here and not in params: another .venv re-executes nothing
PAPERMILL = (
    f"{quoted(sys.executable)} -m papermill --no-progress-bar --log-level ERROR --stdout-file - --cwd {quoted(ROOT / 'notebooks')}"
    " -f {input.parameters:q} {input.notebook:q} {log:q} 2>{params.errors:q}"
)
ONE_POOL = " ".join(f"{p}_NUM_{'WORKERS' if p == 'DASK' else 'THREADS'}={{threads}}" for p in ("OMP", "OPENBLAS", "MKL", "NUMBA", "DASK"))
# the mark holds its time and the results that the step wrote
RUN = (
    "label={params.label:q}; started=$SECONDS; echo \"$label …\"; mkdir -p \"$(dirname {log:q})\"; "
    f"if {ONE_POOL} {PAPERMILL} && written=$(ls {{params.folder:q}} | grep '^{{params.number}}_.*[^g]$'); "
    "then echo \"done $(date), process $$\" >{output:q}; echo \"$written\" >>{output:q}; echo \"$label … $((SECONDS - started)) s\"; "
    "else echo \"$label … failed\"; exit 1; fi"
)

if STAGE == "comparison":
    FAILED = {sample: helpers.failed_step(RESULTS, sample) for sample in SAMPLES}

    rule comparison:
        input:
            notebook=ROOT / "notebooks" / f"{helpers.COMPARISON}.ipynb",
            helpers=ROOT / "helpers.py",
            parameters=write_parameters(helpers.COMPARISON, ""),
            samples=[helpers.samples_folder(DATA) / sample / "sample.yaml" for sample in SAMPLES],
            steps=sorted(p.as_posix() for sample in SAMPLES for p in Path(RESULTS, sample, ".done").glob("0[2-7]_*")),
        output:
            f".done/{helpers.COMPARISON}",
        log:
            f"{helpers.COMPARISON}.ipynb",
        params:
            errors=f"{helpers.COMPARISON}.log",
            label=f"all samples  {helpers.COMPARISON}",
            folder=".",
            number=helpers.COMPARISON[:2],
            by_hand=chosen_by_hand(RESULTS, helpers.COMPARISON),
            samples=[f"{sample}: {FAILED[sample] or 'ok'}" for sample in SAMPLES],
        threads: workflow.cores
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
        acquisition, _ = GRAPH[step]
        files, _ = FILES[sample]
        wanted = [p for group in files.values() for p in group] if step == GATE else files.get(acquisition, [])
        return [str(p) for p in dict.fromkeys([helpers.samples_folder(DATA) / sample / "sample.yaml", *wanted])]

    def make_rule(step):
        rule:
            name:
                step
            input:
                notebook=ROOT / "notebooks" / f"{step}.ipynb",
                helpers=ROOT / "helpers.py",
                parameters=lambda wc: str(write_parameters(step, wc.sample)),
                files=lambda wc: read_by(step, wc.sample),
                needs=[f"{{sample}}/.done/{other}" for other in GRAPH[step][1]],
            output:
                f"{{sample}}/.done/{step}",
            log:
                f"{{sample}}/notebooks/{step}.ipynb",
            params:
                errors=f"{{sample}}/notebooks/{step}.log",
                label=f"{{sample}}  {step}",
                folder="{sample}",
                number=step[:2],
                by_hand=lambda wc: chosen_by_hand(Path(RESULTS, wc.sample), step),
                # what times alone do not tell: a file that was replaced by an older one, or is gone
                content=lambda wc: [FILES[wc.sample][1], *(str(content_of(p)) for p in read_by(step, wc.sample))],
            priority: 1 if GRAPH[step][0] == "ped" else 0  # the longest chain first
            threads: max(1, workflow.cores // len(SAMPLES)) if GRAPH[step][0] == "ped" else 1
            shell:
                RUN

    rule all:
        input:
            expand("{sample}/.done/{step}", sample=READY, step=STEPS),
        default_target: True

    for step in STEPS:
        make_rule(step)
