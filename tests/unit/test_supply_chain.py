"""What is installed is what was tested: every version is fixed, with the digests of its files; and it can be looked up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([^\s;\\]+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", re.MULTILINE)


def pins() -> dict[str, tuple[str, int]]:
    """Version and number of digests of every package."""
    text = (ROOT / "constraints.txt").read_text()
    found = {name: (version, digests.count("--hash")) for name, version, digests in PIN.findall(text)}
    assert len(found) == len(re.findall(r"^\w", text, re.MULTILINE))
    return found


def test_every_version_has_digests() -> None:
    assert [name for name, (_, digests) in pins().items() if not digests] == []


def test_every_requirement_is_fixed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        project["build-system"]["requires"],
    ]
    fixed = pins()
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name == project["project"]["name"]:  # a group that includes another one
            assert requirement.extras <= set(project["project"]["optional-dependencies"])
            continue
        version, _ = fixed[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, but constraints.txt has {version}"


def test_installing_checks_the_digests() -> None:
    """Of all that is downloaded: also what builds the library itself comes from the constraints."""
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if "$(BIN)/python -m pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes --requirement constraints.txt" in installs[0]
    assert "--no-deps --no-build-isolation --editable ." in installs[1]


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [], **more}


BUG = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": ""}


@pytest.mark.parametrize(
    ("report", "stderr", "code", "expected"),
    [
        ([entry("a"), entry("b")], "", 0, "2 of 2 versions were looked up, 0 vulnerabilities are known"),
        ([entry("a"), entry("b", vulns=[BUG])], "", 1, "b 1.0: PYSEC-1, CVE-1 (fixed in 1.1)"),
        ([entry("a", vulns=[{**BUG, "fix_versions": []}])], "", 1, "a 1.0: PYSEC-1, CVE-1 (no version mends it yet)"),
        # Where the index is a mirror without advisories, pip-audit itself says "No known vulnerabilities found".
        ([{"name": "a", "skip_reason": "Dependency not found on PyPI"}], "", 2, "does not know 1 of the packages (a ...)"),
        ([], "", 2, "they were not audited"),
        (None, "Traceback\nConnectionError: no address", 2, "could not be asked: ConnectionError: no address"),
    ],
)
def test_an_audit_that_looked_nothing_up_does_not_pass(
    tmp_path: Path, report: list[dict[str, Any]] | None, stderr: str, code: int, expected: str
) -> None:
    (tmp_path / "constraints.txt").write_text("a==1.0\nb==1.0\n")
    tool = tmp_path / "pip-audit"
    output = "" if report is None else json.dumps({"dependencies": report, "fixes": []})
    tool.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({output!r})\nsys.stderr.write({stderr!r})\n")
    tool.chmod(0o755)
    command = [sys.executable, str(ROOT / ".ci" / "audit"), str(tool), str(tmp_path / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert expected in done.stdout + done.stderr
