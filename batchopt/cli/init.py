"""`batchopt init`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from batchopt._codec import write_text
from batchopt.cli.arguments import UsageError, check_outputs, count, positive, setting
from batchopt.cli.console import Console
from batchopt.cli.task_text import LOSSES, OPTIMIZERS, Choices, Part, own_task, taken_task
from batchopt.errors import TaskError

SUMMARY = "Write the file of a task, from a few questions or from a trainer that you have."
DETAILS = """\
Asks for what the options leave open, and writes a file with a TrainingTask that `batchopt doctor` can check at once.
The files that are named are imported, so they run: put what trains below `if __name__ == "__main__":`.

  batchopt init                                                           asks
  batchopt init --model net.py:Net --data data.py:train --loss cross-entropy --optimizer adamw --prior 64:0.001
  batchopt init --from train.py:trainer                                   a Trainer of Transformers
  batchopt init --from train.py:module --data train.py:datamodule         a LightningModule
  batchopt init --from train.py:loader --model net.py:Net                 a DataLoader

A model is a function or a class that makes one. Data are a DataLoader, a data set, a tuple of tensors, or a function
without arguments that makes one of these.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("-o", "--out", type=Path, default=Path("task.py"), help="file to write (task.py)")
    parser.add_argument(
        "--from", dest="source", metavar="FILE:NAME", help="a Trainer, a LightningModule or a DataLoader in a file"
    )
    parser.add_argument("--model", metavar="FILE:NAME", help="a function or a class that makes the model")
    parser.add_argument("--data", metavar="FILE:NAME", help="the training data, or a LightningDataModule")
    parser.add_argument("--eval-data", metavar="FILE:NAME", help="the data on which the loss is evaluated")
    parser.add_argument("--loss", choices=tuple(LOSSES), help="kind of the loss")
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), help="kind of the optimizer")
    parser.add_argument(
        "--prior", type=setting, metavar="BATCH:RATE", help="a batch size and a learning rate that work"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file if it is there")


def run(args: argparse.Namespace, console: Console) -> None:
    """Ask, write the file, and see whether it makes a task."""
    from batchopt.cli.task_file import load_task

    if args.out.suffix != ".py":
        raise UsageError(f"a task's file is Python, and ends with .py, got {args.out}")
    if args.out.exists() and not args.force:
        raise FileExistsError(f"{args.out} is there already: give another name with -o, or overwrite it with --force")
    text = _taken(args) if args.source is not None else None
    if text is None:
        text = own_task(_choices(args, console), args.out)
    named = [args.source, args.model, args.data, args.eval_data]
    check_outputs([args.out], inputs=[Path(spec.rpartition(":")[0]) for spec in named if spec])
    write_text(args.out, text)
    place = f"{args.out}:task"
    try:
        load_task(place)
    except Exception as error:
        raise TaskError(f"wrote {args.out}, but it makes no task yet: {' '.join(str(error).split())}") from error
    console.say(f"wrote {args.out}; next: batchopt doctor {place}")
    console.result({"out": str(args.out), "task": place})


def _taken(args: argparse.Namespace) -> str | None:
    """The file of a task of a Trainer or a LightningModule; None for a DataLoader, which is data only.

    Raises:
        TaskError: it is none of these.
        UsageError: there are options that have no place in it.
    """
    from torch.utils.data import DataLoader

    module, found = _load(args.source, "a Trainer, a LightningModule or a DataLoader")
    if isinstance(found, DataLoader):
        if args.data is not None:
            raise UsageError("--from names a DataLoader, which has the data: leave --data out")
        args.data = args.source
        return None
    spare = [f"--{name.replace('_', '-')}" for name in ("model", "eval_data", "loss", "optimizer", "prior")
             if getattr(args, name) is not None]  # fmt: skip
    if spare:
        raise UsageError(f"{args.source} has what {' and '.join(spare)} would say: leave it out")
    if _is_a(found, "Trainer", "transformers"):
        if args.data is not None:
            raise UsageError("--from names a Trainer, which has its data: leave --data out")
        home = "batchopt.integrations.transformers"
        return taken_task([_part(args.source, "trainer")], function="task_from_trainer", module=home, out=args.out)
    if _is_a(found, "LightningModule"):
        data = _data_of(args, module)
        own = _part(args.source, "module", "{}()" if inspect.isclass(found) else "{}")
        home = "batchopt.integrations.lightning"
        return taken_task([own, data], function="task_from_module", module=home, out=args.out)
    if _is_a(found, "TrainingTask", "batchopt"):
        raise TaskError(
            f"{args.source} is a TrainingTask already, so nothing is to be written: batchopt doctor {args.source}"
        )
    raise TaskError(
        f"--from names a Trainer of Transformers, a LightningModule or a DataLoader, and {args.source} is of type "
        f"{type(found).__name__}: give --model and --data for parts of your own"
    )


def _data_of(args: argparse.Namespace, module: ModuleType) -> Part:
    """The data of a LightningModule: what --data names, or the only one in its file."""
    from torch.utils.data import DataLoader

    if args.data is not None:
        _, found = _load(args.data, "a LightningDataModule or a DataLoader")
        return _part(args.data, "data", "{}()" if inspect.isclass(found) else "{}")
    file = args.source.rpartition(":")[0]
    names = [
        name
        for name, found in vars(module).items()
        if not inspect.isclass(found) and (isinstance(found, DataLoader) or _is_a(found, "LightningDataModule"))
    ]
    if len(names) != 1:
        some = f"{len(names)} are there ({', '.join(names)})" if names else "none is there"
        raise TaskError(f"{file} must hold one LightningDataModule or DataLoader, and {some}: say which with --data")
    return _part(f"{file}:{names[0]}", "data")


def _choices(args: argparse.Namespace, console: Console) -> Choices:
    """What the options say, and the answers to what they leave open.

    Raises:
        UsageError: something is open, and nobody can be asked.
    """
    missing = [f"--{name}" for name in ("model", "data", "loss", "optimizer") if getattr(args, name) is None]
    if missing and not sys.stdin.isatty():
        raise UsageError(
            f"standard input is no terminal, so nothing can be asked: give {', '.join(missing)} "
            "(or --from FILE:NAME, the Trainer or LightningModule that you have)"
        )
    if missing:
        console.say("A task needs a model, data, a loss and an optimizer. Ctrl-C ends without writing.\n")
    model = _asked(args.model, "model: FILE:NAME of a function or class that makes it", console, _model_part)
    data = _asked(args.data, "training data: FILE:NAME of a DataLoader or data set", console, _data_part)
    evaluated = args.eval_data
    if evaluated is None and missing:
        evaluated = console.ask("evaluation data: FILE:NAME (Enter: a sample of the training data)") or None
    loss = _chosen(args.loss, "loss", LOSSES, console)
    optimizer = _chosen(args.optimizer, "optimizer", OPTIMIZERS, console)
    prior = args.prior
    if prior is None and missing:
        prior = _asked_prior(console)
    held = None if evaluated is None else _data_part(evaluated, alias="eval_data")
    return Choices(model, data, held, loss, optimizer, prior)


def _asked(given: str | None, question: str, console: Console, read: Callable[[str], Part]) -> Part:
    """A part that an option or an answer names; asked again until it is one."""
    if given is not None:
        return read(given)
    while True:
        try:
            return read(console.ask(f"{question}:"))
        except TaskError as error:
            console.say(f"  {error}", "error")


def _chosen(given: str | None, what: str, names: dict[str, str], console: Console) -> str:
    first = next(iter(names))
    while given not in names:
        if given:
            console.say(f"  one of {', '.join(names)}, got {given!r}", "error")
        given = console.ask(f"{what}: {', '.join(names)} (Enter: {first})") or first
    return given


def _asked_prior(console: Console) -> tuple[int, float] | None:
    """A batch size and a learning rate that work, if any are known."""
    while True:
        try:
            size = console.ask("a batch size that works (Enter: none is known):")
            return (count(size), positive(console.ask("a learning rate that works with it:"))) if size else None
        except argparse.ArgumentTypeError as error:
            console.say(f"  {error}", "error")


def _model_part(spec: str) -> Part:
    from torch import nn

    _, found = _load(spec, "a function or a class that makes the model")
    if isinstance(found, nn.Module):
        return _part(spec, "first_model", "lambda: copy.deepcopy({})")
    if not callable(found):
        raise TaskError(f"{spec} must be a function or a class that makes the model, got {type(found).__name__}")
    if _needs_arguments(found):
        raise TaskError(f"{spec} needs arguments: write a function without any that makes the model, and name that")
    return _part(spec, "make_model")


def _data_part(spec: str, alias: str = "train_data") -> Part:
    from torch.utils.data import DataLoader

    _, found = _load(spec, "the data")
    is_made = callable(found) and not hasattr(found, "__getitem__") and not _needs_arguments(found)
    if is_made:
        found = found()
    return _part(spec, alias, "{}()" if is_made else "{}", "loader" if isinstance(found, DataLoader) else "data")


def _needs_arguments(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is inspect.Parameter.empty and p.kind not in kinds for p in parameters)


def _is_a(found: object, name: str, package: str = "") -> bool:
    """Whether it is of a class of this name, or that class, without importing where the class comes from."""
    kinds = found.__mro__ if inspect.isclass(found) else type(found).__mro__
    return any(kind.__name__ == name and kind.__module__.startswith(package) for kind in kinds)


def _load(spec: str, what: str) -> tuple[ModuleType, Any]:
    from batchopt.cli.task_file import load_object

    if ":" not in spec:
        raise TaskError(f"{what} is named path/to/file.py:name, got {spec!r}")
    return load_object(spec, what)


def _part(spec: str, alias: str, form: str = "{}", kind: str = "data") -> Part:
    file, _, name = spec.rpartition(":")
    return Part(Path(file), name, alias, form, kind)
