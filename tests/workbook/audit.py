"""Known vulnerabilities of what env.lock pins, by pip-audit: `make audit`.

Fails for one that audit_exceptions.yaml does not give a reason for. Where the package index that is asked cannot be reached, or knows of no
vulnerabilities, it says that nothing was checked.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml

EXCEPTIONS = Path(__file__).with_name("audit_exceptions.yaml")


def judged(report: dict, exceptions: dict[str, str]) -> tuple[list[str], int, int]:
    """Sentences on the vulnerabilities of pip-audit's report, how many of them have no reason, and how many packages it could check."""
    told, open_ones = [], 0
    checked = [package for package in report["dependencies"] if "skip_reason" not in package]
    for package in checked:
        for found in package["vulns"]:
            known = [name for name in (found["id"], *found["aliases"]) if name in exceptions]
            open_ones += not known
            what = exceptions[known[0]] if known else f"no exception; mended in {', '.join(found['fix_versions']) or 'no version yet'}"
            told.append(f"{package['name']} {package['version']}: {found['id']}: {what}")
    return told, open_ones, len(checked)


def main(pip_audit: str, lock: str) -> int:
    command = [pip_audit, "-r", lock, "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--timeout", "20", "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        print("audit: NOTHING CHECKED, vulnerabilities cannot be asked for here:", done.stderr.strip().splitlines()[-1][:200])
        return 0
    told, open_ones, checked = judged(json.loads(done.stdout), yaml.safe_load(EXCEPTIONS.read_text(encoding="utf-8")) or {})
    for sentence in told:
        print(sentence)
    packages = sum(line.startswith(tuple("abcdefghijklmnopqrstuvwxyz")) for line in Path(lock).read_text(encoding="utf-8").splitlines())
    print(f"audit: {checked} of {packages} packages checked, {len(told)} vulnerabilities, {open_ones} without a reason" if checked else
          f"audit: NOTHING CHECKED, this package index knows no vulnerabilities ({packages} packages)")  # fmt: skip
    return 1 if open_ones else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
