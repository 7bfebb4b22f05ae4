"""What is installed: floors above releases known to be bad, and locks that hold each file by its hash."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LISTED = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"], *chain(*EXTRAS.values())]
REQUIRED = {canonicalize_name(found.name): found for found in map(Requirement, LISTED) if found.name != "sftlab"}
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PINNED = {canonicalize_name(name): version for name, version in PINNED.items()}
# Package: the advisory, the releases that it is about, and the last ones that they are.
BAD = [
    ("lightning", "GHSA-w37p-236h-pfx3", "==2.6.2,==2.6.3", ("2.6.2", "2.6.3")),  # steals credentials
    ("lightning", "GHSA-qqmf-gpg7-g8gw", "<2.6.6", ("2.6.1", "2.6.5")),  # a checkpoint runs code
    ("torch", "CVE-2025-32434", "<2.6", ("2.5.1",)),  # weights_only runs code
    ("torch", "CVE-2026-24747", "<2.10", ("2.9.1",)),  # weights_only writes where it may not
    ("transformers", "CVE-2026-1839", "<5.0", ("4.57.3",)),  # a checkpoint's random state runs code
    ("transformers", "CVE-2026-4372", "<5.3", ("5.2.0",)),  # a model's config runs code without leave
    ("transformers", "CVE-2026-5241", "==5.2.0", ("5.2.0",)),  # the same, by a nested config
    ("jinja2", "CVE-2025-27516", "<3.1.6", ("3.1.5",)),  # a way out of the sandbox
    ("pyarrow", "CVE-2023-47248", "<14.0.1", ("14.0.0",)),  # a parquet file runs code
    ("pyarrow", "CVE-2026-25087", ">=15,<23.0.1", ("15.0.0", "23.0.0")),  # use after free
    ("filelock", "CVE-2025-68146", "<3.20.1", ("3.20.0",)),  # a link in the place of a lock is followed
    ("filelock", "CVE-2026-22701", "<3.20.3", ("3.20.2",)),  # the same, in its soft lock
    ("scikit-learn", "CVE-2024-5206", "<1.5", ("1.4.2",)),  # keeps words that it should have dropped
    ("ray", "CVE-2025-62593", "<2.52", ("2.51.0",)),  # a web page runs code
    ("ray", "CVE-2026-27482", "<2.54", ("2.53.0",)),  # a web page deletes jobs
    ("pytest", "CVE-2025-71176", "<9.0.3", ("9.0.2",)),  # a folder that others can name is trusted
    ("setuptools", "CVE-2025-47273", "<78.1.1", ("78.1.0",)),  # writes outside of its folder
]


@pytest.mark.parametrize(("name", "advisory", "bad", "last"), BAD, ids=[f"{row[0]} {row[1]}" for row in BAD])
def test_no_release_known_to_be_bad_can_be_installed(name, advisory, bad, last):
    anyof = [SpecifierSet(part) for part in bad.split(",")] if "==" in bad else [SpecifierSet(bad)]
    assert all(any(one.contains(version) for one in anyof) for version in last), "the row contradicts itself"
    assert not [version for version in last if REQUIRED[name].specifier.contains(version)]
    assert not any(one.contains(PINNED[name]) for one in anyof)


def test_every_requirement_has_a_floor_that_the_pinned_version_keeps():
    assert not [name for name, found in REQUIRED.items() if not re.search(r">=", str(found.specifier)) and
                name not in ("types-pyyaml",)]  # fmt: skip
    of_extras_that_nobody_pins = {"lm-eval", "umap-learn", "bitsandbytes"}
    pinned = {name: found for name, found in REQUIRED.items() if name not in of_extras_that_nobody_pins}
    assert not [name for name, found in pinned.items() if not found.specifier.contains(PINNED[name])]


def _locked(name):
    """Version by package of a lock, every line of which belongs to a package with hashes."""
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    package = r"^([A-Za-z0-9_.-]+)==(\S+)(?: ;[^\\\n]*)?(?: \\\n {4}--hash=sha256:[0-9a-f]{64})+$"
    found = {canonicalize_name(match[1]): match[2] for match in re.finditer(package, text, re.M)}
    assert not re.sub(package, "", text, flags=re.M).strip(), "a line is not a package with hashes"
    return found


@pytest.mark.parametrize("extra", ["studies", "dev"])
def test_a_lock_holds_all_that_its_command_installs_at_the_pinned_versions_by_hash(extra):
    locked = {**_locked(extra), **_locked("torch")}
    assert {name: PINNED[name] for name in locked} == locked, "run tools/lock"
    asked = [Requirement(line) for line in [*PROJECT["project"]["dependencies"], *EXTRAS[extra], "setuptools"]]
    assert not {canonicalize_name(one.name) for one in asked if one.name != "sftlab"} - set(locked), "run tools/lock"
