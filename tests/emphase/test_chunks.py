"""Long work chunk by chunk: kept when a process is killed, done by a cluster, and refused where it cannot be right."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import hyperspy.api as hs
import numpy as np
import pytest
import study
from disks import mounted

import emphase
import helpers

ROOT = helpers.PROJECT_ROOT
PHASES = ("layered", "spinel", "rocksalt", "llzo")
OPTICS = {"beam_energy_keV": 200, "precession_deg": 0.5, "excitation_width_invA": 0.001}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A scan of 20 x 18 patterns in a file with chunks, and its direct beams."""
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    patterns, truth = emphase.simulate.ped_scan(
        np.random.default_rng(3), crystals, (20, 18), emphase.simulate.PedScene(n_grains=4), electrons=5000
    )
    path = tmp_path_factory.mktemp("scan") / "ped.hspy"
    hs.signals.Signal2D(patterns).save(path, chunks=(4, 8, 144, 144))
    np.save(path.with_name("centre.npy"), truth["centre_px"])
    return path


SIZES = ((emphase.ped.scan, "_BOX_BYTES"), (emphase.ped.tiles, "OPTIONS"))


def small_chunks():
    """Chunks of a few patterns, so that a small scan has many; in this process."""
    emphase.ped.scan._BOX_BYTES, emphase.ped.tiles.OPTIONS = 16 * 144 * 144, emphase.ped.tiles.TileOptions(side=7, margin=2)


@pytest.fixture
def chunks_of_few(monkeypatch):
    for module, name in SIZES:
        monkeypatch.setattr(module, name, getattr(module, name))
    small_chunks()


def match(recording, **options):
    """What matching gives for the scan, by name."""
    patterns, centre = emphase.frames.RecordedFrames(recording, 2), np.load(recording.with_name("centre.npy"))
    calibration = emphase.ped.Calibration(0.02178, np.eye(2), centre, np.zeros((144, 144), bool), 1.4)
    banks = [emphase.ped.template_bank(helpers.phase_crystal(p), max_g_invA=1.2, cache=helpers.BANK_CACHE, **OPTICS) for p in PHASES]
    maps, found, spots = study.map_scan(patterns, calibration, banks, **options)
    return {**maps, **{k: v for k, v in vars(found).items() if k != "names"}, "table": spots.table, "background": spots.background}


def digest(result):
    """One hash of all arrays, to the bit."""
    return hashlib.sha256(b"".join(name.encode() + np.ascontiguousarray(result[name]).tobytes() for name in sorted(result))).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(recording):
    with pytest.MonkeyPatch.context() as patch:
        for module, name in SIZES:
            patch.setattr(module, name, getattr(module, name))
        small_chunks()
        return digest(match(recording))


def work_in(folder, scheduler=""):
    return emphase.chunks.LongWork(folder, {"ped.hspy": "0" * 64}, scheduler)


# --- boxes and stores --------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "chunks", "most"), [((20, 18), (4, 8), 2048), ((5, 3000), (1, 1), 2048), ((64, 64), (64, 64), 100)])
def test_boxes_cover_a_scan_once_and_follow_its_chunks(shape, chunks, most):
    import dask.array as da

    scan = da.zeros((*shape, 4, 4), chunks=(*chunks, 4, 4), dtype=np.uint8)
    seen = np.zeros(shape, int)
    for box in emphase.ped.scan.scan_boxes(scan, most):
        seen[box] += 1
        assert seen[box].size <= most
    assert (seen == 1).all()
    if np.prod(chunks) <= most:
        assert all(box[k].start % chunks[k] == 0 for box in emphase.ped.scan.scan_boxes(scan, most) for k in (0, 1))


def store_in(folder):
    layout = {"a": ((6, 4), np.float64, 0), "b": ((2, 6, 4), np.int16, 1)}
    return emphase.chunks.ChunkStore(layout, {f"rows_{k}": (slice(k, k + 2), slice(0, 4)) for k in (0, 2, 4)}, folder)


def fill(store, chunk):
    k = int(chunk[-1])
    store.put(chunk, {"a": np.full((2, 4), k + 0.5), "b": np.full((2, 2, 4), k)})


def test_finished_chunks_are_taken_over_and_damaged_ones_are_not(tmp_path):
    store = store_in(tmp_path / "work")
    for chunk in ("rows_0", "rows_4"):
        fill(store, chunk)
    store.close()
    with open(tmp_path / "work" / "journal", "a") as journal:
        journal.write("rows_2 12")  # broken off
    again = store_in(tmp_path / "work")
    assert again.todo() == ["rows_2"] and again.arrays["a"][4, 0] == 4.5 and again.arrays["b"][1, 5, 3] == 4
    again.close()
    with open(tmp_path / "work" / "b.bin", "r+b") as damaged:
        damaged.seek(2)
        damaged.write(b"\x77")  # in rows_0
    third = store_in(tmp_path / "work")
    assert third.todo() == ["rows_0", "rows_2"]
    fill(third, "rows_2")
    third.close()
    assert store_in(tmp_path / "work").todo() == ["rows_0"]


def test_two_processes_on_the_same_chunks_are_told(tmp_path):
    first = store_in(tmp_path / "work")
    with pytest.raises(emphase.EmphaseError, match="another process is at work on this, expected one at a time"):
        store_in(tmp_path / "work")
    first.close()
    store_in(tmp_path / "work").close()


def test_other_content_has_another_folder_and_the_old_one_goes(tmp_path):
    first = work_in(tmp_path).chunk_folder(emphase.ped.map_scan, np.arange(3), {"seed": 1})
    store = store_in(first / "alone")
    assert first == work_in(tmp_path).chunk_folder(emphase.ped.map_scan, np.arange(3), {"seed": 1})
    second = work_in(tmp_path).chunk_folder(emphase.ped.map_scan, np.arange(3), {"seed": 2})
    assert second != first and first.is_dir()  # in use
    store.close()
    for other in (np.arange(3.0), np.arange(4), np.array([0, 2, 1])):
        assert work_in(tmp_path).chunk_folder(emphase.ped.map_scan, other, {"seed": 1}) != first
    assert not first.is_dir()
    assert emphase.chunks.LongWork(tmp_path, {"ped.hspy": "1" * 64}).chunk_folder(emphase.ped.map_scan, np.arange(3), {"seed": 1}) != first
    with pytest.raises(TypeError, match="expected arrays, dataclasses"):
        emphase.chunks.content_key(object())


def test_a_disk_without_room_is_told_before_the_work(tmp_path, recording, chunks_of_few):
    with (
        mounted(tmp_path / "full", "size=200k") as disk,
        pytest.raises(emphase.EmphaseError, match=r"no place to keep .* MB: No space left"),
    ):
        match(recording, work=work_in(disk))


def test_a_read_only_folder_is_told_before_the_work(tmp_path, recording, chunks_of_few):
    with (
        mounted(tmp_path / "fixed", "ro") as disk,
        pytest.raises(emphase.EmphaseError, match=r"no place to keep .*: Read-only file system"),
    ):
        match(recording, work=work_in(disk))


# --- kill -9 -----------------------------------------------------------------------------------


def attempt(recording, folder, out):
    """In a process of its own: match, and write the hash of what came out."""
    small_chunks()
    out.write_text(digest(match(recording, work=work_in(folder))))


def test_killed_at_random_moments_the_result_is_the_same_to_the_bit(tmp_path, recording, uninterrupted):
    """20 times kill -9, each at another moment of the work; what is finished at last is what an undisturbed run gives.

    The children are forked from a process that has loaded everything and run nothing, so that a kill meets the work and not the imports.
    """
    script = (
        "import sys, os, signal, time, random; from pathlib import Path\n"
        "sys.path[:0] = [sys.argv[1] + part for part in ('', '/src', '/tests', '/tests/emphase')]\n"
        "import test_chunks as t, pyxem, orix.crystal_map\n"
        "recording, base = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "rng, kills, finished, longest = random.Random(8), 0, 0, 2.0\n"
        "while kills < 20 or not finished:\n"
        "    out = base / f'out_{finished}'\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        t.attempt(recording, base / f'work_{finished}', out); os._exit(0)\n"
        "    end = time.monotonic() + rng.uniform(0.3, longest)\n"
        "    status = (0, 0)\n"
        "    while time.monotonic() < end and not status[0]:\n"
        "        status = os.waitpid(pid, os.WNOHANG); time.sleep(0.005)\n"
        "    if not status[0]:\n"
        "        os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); kills += 1; longest += 0.3\n"
        "    elif status[1]:\n"
        "        sys.exit(f'a child failed: {status[1]}')\n"
        "    else:\n"
        "        finished += 1; longest = 2.0\n"
        "print(kills, *sorted({p.read_text() for p in base.glob('out_*')}))\n"
    )
    command = [sys.executable, "-c", script, str(ROOT), str(recording), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kills, *digests = done.stdout.split()
    assert int(kills) >= 20 and digests == [uninterrupted]


# --- a cluster ---------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(tmp_path, workers=2):
    """A scheduler and worker processes on this machine; gives the address and the workers' processes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "NUMBA_NUM_THREADS": "1"}
    file = tmp_path / "scheduler.json"
    start = lambda *command: subprocess.Popen(
        [sys.executable, "-m", "dask", *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    running = [start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))]
    try:
        until = time.monotonic() + 60
        while not (file.is_file() and file.stat().st_size) and time.monotonic() < until:
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path))
        running += [start("worker", address, *options) for _ in range(workers)]
        yield address, running[1:]
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_cluster_gives_the_same_bits_and_a_killed_worker_costs_time_only(tmp_path, recording, uninterrupted, chunks_of_few):
    with cluster(tmp_path) as (address, workers):
        killed = []

        def progress(chunks):
            for k, chunk in enumerate(chunks):
                if k == len(chunks) // 3 and not killed:
                    workers[0].send_signal(signal.SIGKILL)
                    killed.append(chunk)
                yield chunk

        result = match(recording, work=work_in(tmp_path / "work", address), progress=progress)
        assert killed and workers[0].wait() == -signal.SIGKILL and workers[1].poll() is None
        assert digest(result) == uninterrupted


def test_an_address_without_a_scheduler_is_told(tmp_path, recording, chunks_of_few, monkeypatch):
    monkeypatch.setattr(emphase.chunks, "OPTIONS", replace(emphase.chunks.OPTIONS, answer_s=2))
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(emphase.EmphaseError, match=r"scheduler: got .* where no dask scheduler answers .* expected .* tcp://host:8786"):
            match(recording, work=work_in(tmp_path, address))
