"""Finding a task by `path/to/file.py:name`."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from batchopt.errors import TaskError
from batchopt.probing.task import TrainingTask


def task_place(spec: str, *, what: str = "a task") -> tuple[Path, str]:
    """The file of `path/to/file.py:name`, and the name in it ("task" where it is left out).

    Raises:
        TaskError: there is no such file.
    """
    path, _, name = spec.rpartition(":") if ":" in spec else (spec, "", "task")
    if not Path(path).is_file():
        raise TaskError(f"{what} is named path/to/file.py:name, and there is no file {path!r}")
    return Path(path), name


def load_task(spec: str) -> TrainingTask:
    """The task that `path/to/file.py:name` names (`name` is "task" where it is left out).

    The file is imported, so it runs: name only files that you trust.

    Raises:
        TaskError: there is no such file, it does not import, it has no such name, or the name is not a TrainingTask.
    """
    path, name = task_place(spec)
    task = _named(load_module(path), path, name, "a TrainingTask")
    if not isinstance(task, TrainingTask):
        raise TaskError(f"{name!r} in {path} must be a TrainingTask, got {type(task).__name__}")
    return task


def load_object(spec: str, what: str) -> tuple[ModuleType, Any]:
    """The module and what `path/to/file.py:name` names in it, which is called `what` in errors.

    Raises:
        TaskError: there is no such file, it does not import, or it has no such name.
    """
    path, name = task_place(spec, what=what)
    module = load_module(path)
    return module, _named(module, path, name, what)


def load_module(path: Path) -> ModuleType:
    """A file as a module, under a name of its own.

    Raises:
        TaskError: it does not import.
    """
    module_name = f"_batchopt_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise TaskError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise TaskError(f"{path} does not import: {type(error).__name__}: {error}") from error
    finally:
        # What lies beside the file is imported by functions that run later, and by worker processes, as well.
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
    # Worker processes cannot import the file by its made-up name: what it defines travels by value.
    cloudpickle.register_pickle_by_value(module)
    return module


def _named(module: ModuleType, path: Path, name: str, what: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        raise TaskError(f"{path} has no name {name!r}: write {path}:NAME with the name of {what} in it")
    return found


def other_task(task: TrainingTask, *, parameters: int | None, population: int | None) -> str | None:
    """How a task differs from the one that a record was made of; None where it does not, or the record does not say."""
    own = sum(p.numel() for p in task.make_model().parameters() if p.requires_grad)
    for what, held, now in (
        ("trainable parameters", parameters, own),
        ("examples in the data", population, task.population),
    ):
        if held is not None and held != now:
            return f"it was of {held:,} {what}, and this task has {'no such number' if now is None else f'{now:,}'}"
    return None
