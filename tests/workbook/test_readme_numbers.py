"""README's numbers are those that notebook 09 measured."""

import json
import math

import pytest
import readme_numbers

import helpers

CLAIM = {"what": "phases", "on": "2 scans", "unit": "share", "better": "higher", "workbook": 0.98}
RECORD = {"date": "2026-11-27", "commit": "abc1234", "full": False, "cores": 2, "claims": [CLAIM]}


def test_readme_has_the_numbers_of_the_last_record():
    readme = readme_numbers.README.read_text(encoding="utf-8")
    assert readme_numbers.with_numbers(readme, readme_numbers.records()[-1]) == readme, "make validation numbers"


def test_a_number_changed_by_hand_is_found():
    readme = readme_numbers.README.read_text(encoding="utf-8")
    first = readme_numbers.records()[-1]["claims"][0]
    value = readme_numbers.UNITS[first["unit"]](first["workbook"])
    forged = readme.replace(value, "12.3 %", 1)
    assert forged != readme and readme_numbers.with_numbers(forged, readme_numbers.records()[-1]) != forged


def test_every_record_holds_its_commit_its_code_and_claims():
    for record in readme_numbers.records():
        assert record["claims"] and len(readme_numbers.code_of(record["versions"])) == 16 and len(record["commit"]) >= 7
        for claim in record["claims"]:
            assert claim["unit"] in readme_numbers.UNITS and claim["better"] in ("higher", "lower")
            assert math.isfinite(claim["workbook"]) and ("peer" not in claim or math.isfinite(claim["peer_value"]))


@pytest.mark.parametrize(
    ("claim", "times"),
    [
        ({"workbook": 0.98, "peer_value": 0.6}, 20),  # 2 % wrong beside 40 %
        ({"workbook": 0.6, "peer_value": 0.98}, 0.05),
        ({"workbook": 0.02, "peer_value": 0.3, "better": "lower"}, 15),
        ({"workbook": 900.0, "peer_value": 30.0, "unit": "1/s"}, 30),
        ({"workbook": 1.0, "peer_value": 0.5}, None),
    ],
)
def test_the_ratio_is_how_many_times_better(claim, times):
    found = readme_numbers.ratio(CLAIM | {"peer": "other"} | claim)
    assert found == pytest.approx(times) if times else found is None


def test_the_table_says_where_nothing_stands_beside():
    text = readme_numbers.table(RECORD)
    assert "| phases | 2 scans | 98.0 % | – | – |" in text and "quick, 2026-11-27, at commit abc1234" in text
    with pytest.raises(SystemExit, match="has not both marks"):
        readme_numbers.with_numbers("no marks", RECORD)


@pytest.mark.parametrize("versions", [{"code_sha256": "0" * 16}, {"helpers_sha256": "0" * 16}, {}])
def test_a_validation_of_other_code_is_not_recorded(versions):
    with pytest.raises(SystemExit, match="was made with other code"):
        readme_numbers.record_of({"versions": versions})


@pytest.mark.parametrize("uncommitted", ["", " M tests/validation/ped.py"])
def test_a_record_belongs_to_the_commit_of_its_code(monkeypatch, uncommitted):
    answers = {"status": uncommitted, "rev-parse": "abc1234"}
    monkeypatch.setattr(readme_numbers, "_git", lambda command, *_: answers[command])
    versions = {"code_sha256": helpers.code_sha256("09_validation")[:16]}
    result = {"versions": versions, "parameters": {"full": False, "seed": 1, "data_dir": "x"}, "cores": 2, "claims": [CLAIM]}
    if uncommitted:
        with pytest.raises(SystemExit, match=r"not committed:\n M tests/validation/ped.py"):
            readme_numbers.record_of(result)
        return
    record = readme_numbers.record_of(result)
    assert record["versions"] == versions and record["parameters"] == {"full": False, "seed": 1} and record["commit"] == "abc1234"


def test_the_code_of_the_validation_is_all_that_measures(monkeypatch, tmp_path):
    """An edit in tests/validation, which the notebook imports, is other code; in a module of another notebook it is not."""
    for name in ("notebooks/09_validation.ipynb", "tests/validation/ped.py", "tests/workbook/audit.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(helpers, "PROJECT_ROOT", tmp_path)

    def code():
        helpers.code_sha256.cache_clear()
        return helpers.code_sha256("09_validation")

    first = code()
    (tmp_path / "tests/workbook/audit.py").write_text("x = 2")
    assert code() == first
    (tmp_path / "tests/validation/ped.py").write_text("import helpers\nx = helpers.plain")
    measured_otherwise = code()
    (tmp_path / "tests/validation/ped.py").write_text("import emphase\nx = emphase.haadf")
    assert len({first, measured_otherwise, code()}) == 3
    helpers.code_sha256.cache_clear()


def test_without_a_validation_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="run make validation first"):
        readme_numbers.main(str(tmp_path))
    (tmp_path / "09_validation.json").write_text(json.dumps({"versions": {"code_sha256": "0" * 16}}))
    with pytest.raises(SystemExit, match="was made with other code"):
        readme_numbers.main(str(tmp_path))
