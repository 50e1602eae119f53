"""Look up every pinned package among known vulnerabilities: what `make audit` runs, with pip-audit in .venv-audit.

Silence is no answer. pip-audit counts a package that it could not look up as fine, and a service that answers every
question with nothing looks like good news: here both fail, and a package with known advisories is asked for first.
Exit codes: 0 nothing known, 1 advisories, 2 something was not audited.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PIP_AUDIT = ROOT / ".venv-audit" / "bin" / "python"
KNOWN_BAD = "jinja2==2.4.1"
"""Published with advisories that no service may have lost."""
DROPPED = re.compile(r"Unsupported OSV schema version.*|OSV vuln entry .* is missing .*")
_CLEAN, _ADVISORIES, _NOT_AUDITED = 0, 1, 2


class NotAuditedError(Exception):
    """No answer, or not to every question."""


class Finding(NamedTuple):
    """A package and an advisory about it."""

    package: str
    advisory: str
    fixed_in: str


def ask(requirements: Path, *, service: str, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """pip-audit's answer about a file of pins.

    Raises:
        NotAuditedError: It gave none, or dropped advisories that it could not read.
    """
    options = ["--requirement", str(requirements), "--no-deps", "--disable-pip", "--vulnerability-service", service]
    options += ["--format", "json", "--progress-spinner", "off", "--timeout", "30"]
    options += [word for advisory in ignore for word in ("--ignore-vuln", advisory)]
    command = [str(PIP_AUDIT), "-m", "pip_audit", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        raise NotAuditedError(
            f"the advisory service ({service}) gave no answer; pip-audit's last line:\n  {said[-1]}"
        ) from None
    if dropped := DROPPED.search(done.stderr):
        raise NotAuditedError(f"an advisory could not be read: {dropped[0]}")
    return answer


def audit(requirements: Path, *, service: str, ignore: Sequence[str] = ()) -> tuple[int, list[Finding]]:
    """How many pins were looked up, and what is known about them.

    Raises:
        NotAuditedError: At least one was not looked up.
    """
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    pins = [line for line in lines if line]
    answer = ask(requirements, service=service, ignore=ignore)
    skipped = [f"{item['name']}: {item['skip_reason']}" for item in answer["dependencies"] if "skip_reason" in item]
    seen = {(_plain(item["name"]), item["version"]) for item in answer["dependencies"] if "version" in item}
    for pin in pins:
        name, _, version = pin.partition("==")
        reported = any(line.startswith(f"{name.partition(' ')[0]}:") for line in skipped)
        if (_plain(name), version) not in seen and not reported:
            skipped.append(f"{pin}: not in pip-audit's answer")
    if skipped:
        raise NotAuditedError(f"{len(skipped)} of {len(pins)} packages were not audited:\n  " + "\n  ".join(skipped))
    return len(pins), [
        Finding(f"{item['name']} {item['version']}", advisory["id"], ", ".join(advisory["fix_versions"]) or "none yet")
        for item in answer["dependencies"]
        for advisory in item["vulns"]
    ]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_service(service: str) -> None:
    """Ask about a package with known advisories.

    Raises:
        NotAuditedError: The service knows nothing about it.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "known-bad.txt"
        file.write_text(KNOWN_BAD + "\n")
        _, findings = audit(file, service=service)
    if not findings:
        raise NotAuditedError(
            f"the advisory service ({service}) knows nothing about {KNOWN_BAD}: its silence says nothing"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Look up pinned packages among known vulnerabilities.")
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "constraints.txt"])
    parser.add_argument("--service", choices=("osv", "pypi"), default="osv", help="PIP_AUDIT_OSV_URL names another OSV")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="ID", help="an advisory that does not concern us"
    )
    options = parser.parse_args()
    found: list[Finding] = []
    try:
        check_service(options.service)
        for file in options.files:
            count, findings = audit(file, service=options.service, ignore=options.ignore)
            found += findings
            print(f"{file.name}: {count} packages looked up, {len(findings)} advisories", flush=True)
    except (NotAuditedError, OSError) as error:
        print(
            f"not audited: {error}\nNext: run `make audit` again where the service answers; it has to before a release."
        )
        sys.exit(_NOT_AUDITED)
    for finding in found:
        print(f"  {finding.package}: {finding.advisory}, fixed in {finding.fixed_in}")
    if found:
        print('Next: raise those pins, or, where one does not concern us: make audit AUDIT="--ignore ID"')
    sys.exit(_ADVISORIES if found else _CLEAN)


if __name__ == "__main__":
    main()
