"""README's numbers, from the record of notebook 09: `make numbers` after `make validation`.

docs/validation.jsonl has a line for every commit at which the validation was recorded: date, commit, parameters, versions, and the
claims. ``versions`` holds the hash of the code that 09's results depend on, ``code_sha256``; in older records ``helpers_sha256``, that of
the one module there was. A claim is a thing that 09 measured: ``what`` it is, ``on`` which data, its ``unit``, whether higher or lower is
``better``, the ``workbook``'s value, and where there is one its ``peer`` (name) with ``peer_value``.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import emphase
import helpers

RECORDS = helpers.PROJECT_ROOT / "docs" / "validation.jsonl"
README = helpers.PROJECT_ROOT / "README.md"
BEGIN, END = "<!-- the numbers: `make numbers` writes them, from docs/validation.jsonl -->", "<!-- end of the numbers -->"
STEP = "09_validation"
CODE = ("helpers.py", f"notebooks/{STEP}.ipynb", "tests/validation", "src/emphase")  # what a record of a commit belongs to
UNITS = {
    "share": lambda value: f"{100 * value:.1f} %",
    "absolute": lambda value: f"{value:.3f}",
    "deg": lambda value: f"{value:.2f}°",
    "px": lambda value: f"{value:.3f} px",
    "nm": lambda value: f"{value:.3f} nm",
    "times": lambda value: f"{value:.2f}",
    "1/s": lambda value: f"{value:,.0f} a second",
    "percent": lambda value: f"{value:.3f} %",
    "GB": lambda value: f"{value:.1f} GB",
}


def records() -> list[dict]:
    """All records, the newest last."""
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.is_file() else []


def code_of(versions: dict[str, str]) -> str:
    """The hash of the code that made a validation, under the key of today or of older records; empty where there is none."""
    return versions.get("code_sha256") or versions.get("helpers_sha256", "")


def ratio(claim: dict) -> float | None:
    """How many times better the workbook is, of shares that should be 1 by what lacks; None without a peer or where nothing is wrong."""
    if "peer" not in claim:
        return None
    ours, peer = claim["workbook"], claim["peer_value"]
    if claim["unit"] == "share" and claim["better"] == "higher":
        ours, peer = 1 - ours, 1 - peer
    elif claim["better"] == "higher":
        ours, peer = peer, ours
    return peer / ours if ours > 0 else None


def table(record: dict) -> str:
    """The record as README shows it."""
    extent = "in full" if record["full"] else "quick"
    lines = [
        f"Measured by notebook 09 ({extent}, {record['date']}, at commit {record['commit']}, on {record['cores']} cores). The ratio is",
        "how many times better the workbook is, below 1 where it loses; of shares that should be 100 % it is how many times less is wrong.",
        "",
        "| what | on | workbook | beside it | ratio |",
        "|---|---|---|---|---|",
    ]
    for claim in record["claims"]:
        formatted, times = UNITS[claim["unit"]], ratio(claim)
        peer = "–" if "peer" not in claim else f"{claim['peer']}: {formatted(claim['peer_value'])}"
        lines.append(
            f"| {claim['what']} | {claim['on']} | {formatted(claim['workbook'])} | {peer} | {'–' if times is None else f'{times:.1f}'} |"
        )
    return "\n".join(lines)


def with_numbers(readme: str, record: dict) -> str:
    """README with the numbers of a record between its two marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md: has not both marks, expected {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(record)}\n{END}{after}"


def record_of(result: dict) -> dict:
    """The record of a validation that was run on this very commit."""
    now = helpers.code_sha256(STEP)[:16]
    if code_of(result["versions"]) != now:
        came = code_of(result["versions"]) or "none"
        raise SystemExit(f"{STEP}.json: was made with other code (hash {came}, expected {now}); run make validation again")
    changed = _git("status", "--porcelain", "--", *CODE)
    if changed:
        raise SystemExit(f"a record belongs to a commit, and this is not committed:\n{changed}")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "full": result["parameters"]["full"],
        "parameters": {k: v for k, v in result["parameters"].items() if not k.endswith("_dir")},
        "cores": result["cores"],
        "versions": result["versions"],
        "claims": result["claims"],
    }


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=helpers.PROJECT_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(results_dir: str) -> None:
    """Add the record of ``results_dir``'s validation, in place of one of the same commit, and write README's numbers."""
    path = Path(results_dir or helpers.PROJECT_ROOT / "results") / f"{STEP}.json"
    if not path.is_file():
        raise SystemExit(f"{path.name} is not there: run make validation first")
    record = record_of(json.loads(path.read_text(encoding="utf-8")))
    kept = [r for r in records() if (r["commit"], r["full"]) != (record["commit"], record["full"])]
    RECORDS.parent.mkdir(exist_ok=True)
    emphase.files.write_atomically(RECORDS, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in [*kept, record]))
    emphase.files.write_atomically(README, with_numbers(README.read_text(encoding="utf-8"), record))
    print(f"README.md has the numbers of {record['commit']}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
