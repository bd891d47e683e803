"""The version is written once, in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import batchopt

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_installed_package() -> None:
    assert batchopt.__version__ == version("batchopt")


def test_the_command_tells_it() -> None:
    done = subprocess.run([sys.executable, "-m", "batchopt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"batchopt {batchopt.__version__}\n"


def test_the_citation_is_of_the_version_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_source_tree_that_was_not_installed_says_so(tmp_path: Path) -> None:
    shutil.copy(ROOT / "batchopt" / "__init__.py", tmp_path / "batchopt.py")
    code = "import batchopt; print(batchopt.__version__)"
    # -S leaves out site-packages, where the installed package would be found; -I the folder of the shell.
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", path], capture_output=True, text=True, check=True)
    assert done.stdout == "0+unknown\n"
