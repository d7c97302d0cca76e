"""README's numbers are those that notebook 09 measured."""

import json
import math

import pytest
import readme_numbers

CLAIM = {"what": "phases", "on": "2 scans", "unit": "share", "better": "higher", "workbook": 0.98}
RECORD = {"date": "2026-11-27", "commit": "abc1234", "full": False, "cores": 2, "claims": [CLAIM]}


def test_readme_has_the_numbers_of_the_last_record():
    readme = readme_numbers.README.read_text(encoding="utf-8")
    assert readme_numbers.with_numbers(readme, readme_numbers.records()[-1]) == readme, "make validation numbers"


def test_a_number_changed_by_hand_is_found():
    readme = readme_numbers.README.read_text(encoding="utf-8")
    first = readme_numbers.records()[-1]["claims"][0]
    told = readme_numbers.UNITS[first["unit"]](first["workbook"])
    forged = readme.replace(told, "12.3 %", 1)
    assert forged != readme and readme_numbers.with_numbers(forged, readme_numbers.records()[-1]) != forged


def test_every_record_tells_its_commit_and_claims():
    for record in readme_numbers.records():
        assert record["claims"] and record["versions"]["helpers_sha256"] and len(record["commit"]) >= 7
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


def test_a_validation_of_other_code_is_not_recorded():
    with pytest.raises(SystemExit, match=r"another helpers.py"):
        readme_numbers.record_of({"versions": {"helpers_sha256": "0" * 16}})


def test_without_a_validation_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="run make validation first"):
        readme_numbers.main(str(tmp_path))
    (tmp_path / "09_validation.json").write_text(json.dumps({"versions": {"helpers_sha256": "0" * 16}}))
    with pytest.raises(SystemExit, match=r"another helpers.py"):
        readme_numbers.main(str(tmp_path))
