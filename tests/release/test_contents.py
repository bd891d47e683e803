"""What `make dist` would find in a wheel and an sdist."""

from __future__ import annotations

import io
import runpy
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTENTS = runpy.run_path(str(ROOT / "release" / "contents.py"))
TRACKED = {"batchopt/__init__.py", "batchopt/py.typed", "README.md", "tests/test_it.py", ".ci/run"}
INFO = "batchopt-0.1.0.dist-info"
METADATA = (
    "Metadata-Version: 2.4\nName: batchopt\nVersion: 0.1.0\nDescription-Content-Type: text/markdown\n\n# batchopt\n"
)
WHEEL = {
    "batchopt/__init__.py",
    "batchopt/py.typed",
    f"{INFO}/METADATA",
    f"{INFO}/licenses/LICENSE",
    f"{INFO}/entry_points.txt",
}
SDIST = {"batchopt/__init__.py", "batchopt/py.typed", "README.md", "tests/test_it.py", "PKG-INFO"}


def found(
    folder: Path, wheel: Iterable[str] = WHEEL, sdist: Iterable[str] = SDIST, metadata: str = METADATA
) -> list[str]:
    """The problems of a wheel and an sdist that hold these files."""
    with zipfile.ZipFile(folder / "batchopt-0.1.0-py3-none-any.whl", "w") as archive:
        for name in wheel:
            archive.writestr(name, metadata if name.endswith("METADATA") else "")
    with tarfile.open(folder / "batchopt-0.1.0.tar.gz", "w:gz") as archive:
        for name in sdist:
            text = METADATA.encode() if name == "PKG-INFO" else b""
            member = tarfile.TarInfo(f"batchopt-0.1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    problems: list[str] = CONTENTS["problems"](folder, TRACKED)
    return problems


def test_nothing_is_wrong_where_each_holds_what_it_should(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize("name", ["batchopt/notes.txt", "tests/test_it.py"])
def test_a_wheel_holds_the_package_only(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, wheel=WHEEL | {name}) == [
        f"batchopt-0.1.0-py3-none-any.whl holds {name}, which is no file of the package under version control"
    ]


@pytest.mark.parametrize("name", ["batchopt/py.typed", f"{INFO}/licenses/LICENSE", f"{INFO}/entry_points.txt"])
def test_a_wheel_lacks_nothing(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, wheel=WHEEL - {name}) == [f"batchopt-0.1.0-py3-none-any.whl lacks {name}"]


@pytest.mark.parametrize("name", ["out/report.html", ".venv/bin/python", ".ci/run"])
def test_an_sdist_holds_nothing_else(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, sdist=SDIST | {name}) == [
        f"batchopt-0.1.0.tar.gz holds {name}, which is not under version control, or belongs to it alone"
    ]


def test_an_sdist_holds_the_tests(tmp_path: Path) -> None:
    assert found(tmp_path, sdist=SDIST - {"tests/test_it.py"}) == ["batchopt-0.1.0.tar.gz lacks tests/test_it.py"]


def test_metadata_that_an_index_refuses(tmp_path: Path) -> None:
    problems = found(tmp_path, metadata=METADATA.replace("0.1.0", "one"))
    assert len(problems) == 1
    assert "'one' is invalid for 'version'" in problems[0]


def test_metadata_without_the_readme(tmp_path: Path) -> None:
    assert found(tmp_path, metadata=METADATA.replace("# batchopt\n", "")) == [
        "metadata: the README is not the description"
    ]


def test_a_folder_without_distributions(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected one \*\.whl in .*, got 0: run make dist"):
        CONTENTS["problems"](tmp_path, TRACKED)
