"""Files are written whole, hashed and locked; a CSV holds no formula."""

import csv
import io
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emphase
from emphase.files import is_locked, lock_file
from emphase.staging import StagedFiles

properties = settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
few = settings(properties, max_examples=60)


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = emphase.files.write_atomically(tmp_path / "deep" / "a.json", "old")
    with pytest.raises(TypeError):
        emphase.files.write_atomically(path, 3.0)
    assert path.read_text() == "old"
    emphase.files.write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@few
@given(first=st.binary(max_size=300), second=st.binary(max_size=300) | st.text(max_size=100))
def test_a_file_is_the_old_or_the_new_one(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("written")
    emphase.files.write_atomically(folder / "a", first)
    try:
        emphase.files.write_atomically(folder / "a", second)
    except UnicodeEncodeError:  # half a character
        second = first
    assert (folder / "a").read_bytes() == (second if isinstance(second, bytes) else second.encode())
    assert [path.name for path in folder.iterdir()] == ["a"]


@few
@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
def test_no_cell_of_a_csv_is_a_formula(texts):
    table = pd.DataFrame({"text": texts, "number": np.linspace(-1, 1, len(texts))})
    rows = list(csv.reader(io.StringIO(emphase.files.csv_of(table), newline="")))[1:]
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows)
    assert [float(row[1]) for row in rows] == pytest.approx(np.linspace(-1, 1, len(texts)))


def test_a_lock_is_one_process_s_until_it_is_closed(tmp_path):
    path = tmp_path / "deep" / ".lock"
    path.parent.mkdir()
    assert not is_locked(tmp_path)
    held = lock_file(path)
    assert is_locked(tmp_path)
    with pytest.raises(BlockingIOError):
        lock_file(path, wait_s=0.1)
    os.close(held)
    assert not is_locked(tmp_path)


def test_the_hash_of_a_folder_changes_with_names_and_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    first = emphase.files.file_sha256(tmp_path)
    (tmp_path / "a").write_bytes(b"2")
    second = emphase.files.file_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, emphase.files.file_sha256(tmp_path)}) == 3


def test_a_folder_takes_the_place_of_a_folder_and_comes_back_where_its_heir_was_killed(tmp_path):
    (tmp_path / "spots.zspy").mkdir()
    (tmp_path / "spots.zspy" / "old").write_text("old")
    staged = StagedFiles(tmp_path)
    staged.path("spots.zspy").mkdir()
    (staged.path("spots.zspy") / "new").write_text("new")
    staged.publish({"06.json": "1"})
    assert [p.name for p in (tmp_path / "spots.zspy").iterdir()] == ["new"]
    killed = tmp_path / ".staged-killed"  # between taking the old one away and bringing the new one
    killed.mkdir()
    (tmp_path / "spots.zspy").rename(killed / ".old-spots.zspy")
    StagedFiles(tmp_path).publish({}, ["gone.zspy"])
    assert [p.name for p in (tmp_path / "spots.zspy").iterdir()] == ["new"]
    StagedFiles(tmp_path).publish({}, ["spots.zspy"])
    assert not (tmp_path / "spots.zspy").exists() and (tmp_path / "06.json").read_text() == "1"
