"""Check what the wheel and the sdist in a folder hold: nothing that is missing, and nothing that does not belong there.

The wheel holds the package and its metadata. The sdist holds what is under version control, so that the tests, which
read curves, studies and documents, run from it; only what runs them on the project's own servers is left out.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".ci", ".github")
MADE = "PKG-INFO"
"""The one file that the build adds to the sdist."""


def problems(folder: Path, held: set[str]) -> list[str]:
    """What is wrong with the distributions in a folder, in sentences; empty where nothing is.

    Args:
        folder: holds one wheel and one sdist.
        held: the files under version control.

    Raises:
        FileNotFoundError: the folder does not hold exactly one wheel and one sdist.
    """
    wheel, sdist = _only(folder, "*.whl"), _only(folder, "*.tar.gz")
    return [*_wheel_problems(wheel, held), *_sdist_problems(sdist, held)]


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"expected one {pattern} in {folder}, got {len(found)}: run make dist")
    return found[0]


def tracked() -> set[str]:
    """The files under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name}


def _wheel_problems(wheel: Path, held: set[str]) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(about).decode()
    info = str(PurePosixPath(about).parent)
    package = {name for name in names if not name.startswith(f"{info}/")}
    expected = {name for name in held if name.startswith("batchopt/")}
    lacking = {f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} - names
    stray = [
        f"{wheel.name} holds {name}, which is no file of the package under version control"
        for name in sorted(package - expected)
    ]
    return [*stray, *_lacks(wheel.name, (expected - package) | lacking), *_metadata_problems(metadata)]


def _sdist_problems(sdist: Path, held: set[str]) -> list[str]:
    with tarfile.open(sdist) as archive:
        paths = [PurePosixPath(member.name) for member in archive if not member.isdir()]
        tops = {path.parts[0] for path in paths}
        about = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/{MADE}")
        metadata = "" if about is None else about.read().decode()
    names = {str(PurePosixPath(*path.parts[1:])) for path in paths} - {MADE}
    expected = {name for name in held if not name.startswith(tuple(f"{folder}/" for folder in LEFT_OUT))}
    found = [
        f"{sdist.name} holds {name}, which is not under version control, or belongs to it alone"
        for name in sorted(names - expected)
    ]
    if tops != {sdist.name.removesuffix(".tar.gz")}:
        found.append(f"{sdist.name} unpacks into {sorted(tops)}, expected one folder of its own name")
    return [*found, *_lacks(sdist.name, expected - names), *_metadata_problems(metadata)]


def _lacks(archive: str, names: set[str]) -> list[str]:
    return [f"{archive} lacks {name}" for name in sorted(names)]


def _metadata_problems(text: str) -> list[str]:
    """What an index would refuse, and what it would show without a description."""
    try:
        metadata = Metadata.from_email(text, validate=True)
    except ExceptionGroup as group:
        return [f"metadata: {error}" for error in group.exceptions]
    if metadata.description_content_type != "text/markdown" or not metadata.description:
        return ["metadata: the README is not the description"]
    return []


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]), tracked())
    if found:
        sys.exit("\n".join(found))
    print("The wheel holds the package, the sdist what is under version control, and their metadata are valid.")
