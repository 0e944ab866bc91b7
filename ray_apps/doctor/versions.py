"""Versions of what the job is built on, held against what the package declares and what it was tested with."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ray_apps.doctor.check import Check

PACKAGE = "vicuna-ray"
SHOWN = ("torch", "transformers", "ray", "deepspeed", "bitsandbytes", "peft", "pyarrow", "flash-attn")
MUST_AGREE = ("python", "torch", "transformers", "ray", "pyarrow")
"""What processes on different nodes exchange objects and tensors with."""
CHECKOUT = Path(__file__).parents[2]
LOCK = CHECKOUT / "requirements.lock"


def installed(names: Sequence[str] = SHOWN) -> dict[str, str]:
    """Python and those of the packages that are installed here, each with its version."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def check_versions() -> list[Check]:
    """What is installed in this process's environment."""
    here = installed()
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    absent = [name for name in SHOWN if name not in here]
    told = f"{found}; without {', '.join(absent)}" if absent else found
    return [Check("versions", "packages", "ok", told), *_check_declared(), *_check_locked(), _check_code()]


def _check_declared() -> list[Check]:
    try:
        declared = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        advice = "install it: pip install -e ."
        return [Check("versions", "requirements", "warning", f"{PACKAGE} itself is not installed", advice)]
    wrong = unmet(declared, installed([Requirement(line).name for line in declared]))
    if not wrong:
        return [Check("versions", "requirements", "ok", "all as declared")]
    return [Check("versions", "requirements", "problem", "; ".join(wrong), "install the tested set: make install")]


def unmet(declared: Sequence[str], versions: Mapping[str, str]) -> list[str]:
    """Requirements, those of extras aside, that `versions` do not meet, each with what there is instead."""
    wrong = []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = versions.get(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} instead of {requirement.specifier}")
    return wrong


def _check_locked() -> list[Check]:
    """Against the tested set, where this runs from a checkout that holds it."""
    if not LOCK.is_file():
        return []
    locked = read_lock(LOCK.read_text())
    here: dict[str, str] = {canonicalize_name(part.metadata["Name"]): part.version for part in metadata.distributions()}
    if not (differing := differences(locked, here)):
        return [Check("versions", LOCK.name, "ok", f"all {len(locked)} as tested")]
    told = f"{len(differing)} of {len(locked)} differ: {', '.join(differing[:5])}{', …' if differing[5:] else ''}"
    return [Check("versions", LOCK.name, "warning", told, "install the tested set: make install")]


def read_lock(text: str) -> dict[str, str]:
    """Package → version of the lines `package==version`."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pairs = [line.partition("==") for line in lines if "==" in line]
    return {canonicalize_name(name): version for name, _, version in pairs}


def differences(locked: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Packages of the tested set that are missing or of another version; the build, as in `+cpu`, does not count."""
    return [
        f"{name} {here.get(name, 'missing')} instead of {version}"
        for name, version in sorted(locked.items())
        if name not in here or Version(here[name]).public != Version(version).public
    ]


def _check_code() -> Check:
    version = installed([PACKAGE]).get(PACKAGE, "not installed")
    commit = _git("rev-parse", "--short=12", "HEAD") if (CHECKOUT / ".git").exists() else ""
    if not commit:
        return Check("versions", "code", "ok", f"{PACKAGE} {version}")
    changed = len(_git("status", "--porcelain").splitlines())
    told = f"{PACKAGE} {version}, commit {commit}"
    if changed:
        advice = "commit them before a run that must be repeatable"
        return Check("versions", "code", "warning", f"{told} and {changed} files changed since", advice)
    return Check("versions", "code", "ok", told)


def _git(*arguments: str) -> str:
    """What git prints; nothing where it is missing or refuses."""
    try:
        command = ["git", "-C", str(CHECKOUT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_nodes_agree(by_node: Mapping[str, Mapping[str, str]]) -> list[Check]:
    """Whether every node, this one included, has the same versions of what they exchange objects with."""
    if len(by_node) < 2:
        return []
    differing = []
    for name in MUST_AGREE:
        found = {node: versions.get(name, "missing") for node, versions in by_node.items()}
        if len({version.partition("+")[0] for version in found.values()}) > 1:
            differing.append(f"{name}: {', '.join(f'{version} on {node}' for node, version in found.items())}")
    if not differing:
        return [Check("versions", "nodes", "ok", f"{len(by_node)} nodes agree on {', '.join(MUST_AGREE)}")]
    advice = "install the same requirements.lock on every node"
    return [Check("versions", "nodes", "problem", "; ".join(differing), advice)]
