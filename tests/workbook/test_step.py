"""What a step writes appears together, or not at all; and pages that cannot be written."""

import errno
import os

import pytest
import yaml
from disks import mounted

import emphase
import helpers
import pages.share


@pytest.fixture
def step(tmp_path):
    """A step at work on a sample with one image."""
    folder = tmp_path / "data" / "S1"
    folder.mkdir(parents=True)
    (folder / "haadf.tif").write_bytes(b"an image")
    content = {"id": "S1", "label": "a sample", "acquisitions": {"haadf": {"file": "haadf.tif", "beam_energy_keV": 200}}}
    (folder / "sample.yaml").write_text(yaml.safe_dump(content))
    sample = helpers.load_sample(tmp_path / "data", "S1")
    return helpers.Step("03_haadf_surface", "S1", {}, tmp_path / "results" / "S1", tmp_path / "figures", "", sample=sample)


def test_results_appear_together_and_only_at_the_end(step):
    emphase.files.write_atomically(step.staged("03_columns.csv"), "x\n1\n")
    assert not list(step.results.glob("[!.]*"))
    step.save({"thickness_nm": 1.5})
    assert {p.name for p in step.results.iterdir()} == {"03_columns.csv", "03_haadf_surface.json", ".publish.lock"}
    step.withdraw("03_columns.csv")
    step.save({"thickness_nm": 1.6})
    assert not (step.results / "03_columns.csv").exists()


def test_what_a_killed_run_left_behind_is_cleared_and_no_one_takes_it_for_a_result(step):
    left = step.results / ".staged-killed"
    left.mkdir(parents=True)
    (left / "03_columns.csv").write_text("half a li")
    emphase.files.write_atomically(step.staged("03_columns.csv"), "x\n1\n")
    step.save({})
    assert not left.exists() and (step.results / "03_columns.csv").read_text() == "x\n1\n"


@pytest.mark.parametrize("change", ["another content", "gone"])
def test_a_recording_that_changes_while_it_is_read_is_refused(step, change):
    step.acquisition("haadf")
    step.save({"thickness_nm": 1.5}, inputs=[step.sample.path("haadf")])
    before = (step.results / "03_haadf_surface.json").read_bytes()
    path = step.sample.path("haadf")
    state = path.stat()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(b"an IMAGE")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # times alone do not tell
    emphase.files.write_atomically(step.staged("03_columns.csv"), "x\n1\n")
    with pytest.raises(helpers.RecordingError, match=r"S1/haadf.tif: changed while 03_haadf_surface ran: sha256 .* run the step again"):
        step.save({"thickness_nm": 2.5}, inputs=[path])
    assert (step.results / "03_haadf_surface.json").read_bytes() == before and not (step.results / "03_columns.csv").exists()


def test_a_full_disk_leaves_the_earlier_result(tmp_path, step):
    with mounted(tmp_path / "disk", "size=300k") as disk:
        step.results = disk / "S1"
        step.save({"thickness_nm": 1.5})
        before = (step.results / "03_haadf_surface.json").read_bytes()
        with pytest.raises(OSError) as error:
            emphase.files.write_atomically(step.staged("03_columns.csv"), "x" * 1_000_000)
        assert error.value.errno == errno.ENOSPC
        assert (step.results / "03_haadf_surface.json").read_bytes() == before and not (step.results / "03_columns.csv").exists()


def test_pages_that_cannot_be_written_are_told(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "data").mkdir()
    monkeypatch.setattr(pages.share, "render_pages", full)
    assert pages.share.finish_run(tmp_path / "data", tmp_path / "results") == 1
    told = capsys.readouterr().out
    assert "FAILED to write the pages" in told and "pages: those of before, they could not be written: No space left on device" in told
