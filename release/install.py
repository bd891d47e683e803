"""Install the wheel and the sdist of a folder into empty environments, one for each Python, and use them there.

A Python of the version of the one that runs this sees what that one has installed, torch above all, behind the wheel.
Any other gets what batchopt requires from the index, in the versions of constraints.txt, but not torch, whose builds
take several GB: there, all that needs no torch is used.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
"""The Pythons that pyproject.toml names."""


def find_python(version: str) -> Path | None:
    """An interpreter of a version: this one, one on the path, or one of uv or pyenv."""
    if version == own_version():
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), _of_uv(version), *pyenv.glob(f"versions/{version}.*/bin/python")]
    # A name on the path may be a shim for a Python that is not there.
    runs = (Path(candidate) for candidate in candidates if candidate and _version_of(Path(candidate)) == version)
    return next(runs, None)


def _of_uv(version: str) -> str | None:
    if shutil.which("uv") is None:
        return None
    command = ["uv", "python", "find", "--no-python-downloads", version]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def own_version() -> str:
    """The version of this Python, "3.11" for example."""
    return sysconfig.get_python_version()


def _version_of(python: Path) -> str | None:
    code = "import sysconfig; print(sysconfig.get_python_version())"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def try_distributions(python: Path, wheel: Path, sdist: Path) -> None:
    """Install and use the wheel, and then the sdist, in an empty environment.

    Raises:
        subprocess.CalledProcessError: something cannot be installed, or does not work.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
        inside = Path(folder) / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(inside)]
        sees_torch = _version_of(python) == own_version()
        if not sees_torch:
            _install_requirements(pip, wheel, Path(folder) / "constraints.txt")
        subprocess.run([*pip, "install", "--quiet", "--no-deps", wheel], check=True)
        if sees_torch:
            # After the wheel: pip would take the batchopt of this Python for the one that it is to install.
            _show_installed(inside)
        _use(inside, folder, wheel)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "batchopt"], check=True)
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--ignore-installed", sdist], check=True)
        _use(inside, folder, sdist)


def _use(python: Path, folder: str, installed: Path) -> None:
    print(f"{installed.name}, ", end="", flush=True)
    smoke, schema = ROOT / "release" / "smoke.py", ROOT / "docs" / "schedule.schema.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # From another folder, so that the package of the source tree is not what is used.
    subprocess.run([python, smoke, schema], cwd=folder, env=environment, check=True)


def _show_installed(python: Path) -> None:
    """Let an environment see, behind its own packages, those of this Python; editable installs are not seen."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(own) / "of_another_python.pth").write_text("\n".join(seen) + "\n")


def _install_requirements(pip: list[str], wheel: Path, constraints: Path) -> None:
    """What the wheel requires, without torch."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    constraints.write_text("\n".join(pin for pin in pins if not re.match(r"torch==", pin)) + "\n")
    wanted = [str(requirement) for requirement in requirements_of(wheel) if requirement.name != "torch"]
    subprocess.run([*pip, "install", "--quiet", "--constraint", constraints, *wanted], check=True)


def requirements_of(wheel: Path) -> list[Requirement]:
    """What a wheel needs, its extras left out."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(name), validate=True)
    wanted = metadata.requires_dist or []
    return [needed for needed in wanted if needed.marker is None or needed.marker.evaluate({"extra": ""})]


def main() -> None:
    """Try every Python that was asked for and is found; fail where one fails, or none was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds one wheel and one sdist")
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help='Pythons to try, "own" for this one (all)')
    args = parser.parse_args()
    wheel, sdist = next(args.folder.resolve().glob("*.whl")), next(args.folder.resolve().glob("*.tar.gz"))
    tried = 0
    for version in (own_version() if version == "own" else version for version in args.versions):
        python = find_python(version)
        if python is None:
            print(f"Python {version}: skipped, because none is on the path nor known to uv or pyenv.")
            continue
        try:
            try_distributions(python, wheel, sdist)
        except subprocess.CalledProcessError as error:
            sys.exit(f"Python {version} ({python}): failed: {' '.join(map(str, error.cmd))}")
        tried += 1
    if not tried:
        sys.exit(f"none of the Pythons {', '.join(args.versions)} was found")


if __name__ == "__main__":
    main()
