"""The text of a task's file, from what it is to be made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchopt.errors import TaskError

LOSSES = {
    "cross-entropy": '''\
def loss(model, batch):
    """Cross-entropy of every example: batches are (inputs, labels)."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels, reduction="none")
''',
    "mse": '''\
def loss(model, batch):
    """Squared error of every example, averaged over its outputs: batches are (inputs, targets)."""
    inputs, targets = batch
    outputs = model(inputs)
    return (outputs - targets.reshape(outputs.shape)).square().reshape(len(outputs), -1).mean(dim=1)
''',
    "bce": '''\
def loss(model, batch):
    """Binary cross-entropy of every example, averaged over its outputs: batches are (inputs, targets of 0 and 1)."""
    inputs, targets = batch
    outputs = model(inputs)
    losses = nn.functional.binary_cross_entropy_with_logits(
        outputs, targets.reshape(outputs.shape).to(outputs.dtype), reduction="none"
    )
    return losses.reshape(len(outputs), -1).mean(dim=1)
''',
    "model": '''\
def loss(model, batch):
    """The model's own loss, the mean over the batch: batches are dicts, as Transformers' models take them."""
    return model(**batch).loss
''',
}
"""What a loss may be, by name."""
ACCURACY = '''\
def accuracy(model, batch):
    """Whether the class of every example is right."""
    inputs, labels = batch
    return model(inputs).argmax(1) == labels
'''
"""The metric of a task whose loss is the cross-entropy, so that a goal can be an accuracy."""
OPTIMIZERS = {
    "adamw": "torch.optim.AdamW(parameters, lr=lr)",
    "adam": "torch.optim.Adam(parameters, lr=lr)",
    "sgd": "torch.optim.SGD(parameters, lr=lr)",
    "momentum": "torch.optim.SGD(parameters, lr=lr, momentum=0.9)",
}
"""What an optimizer may be, by name."""
HEAD = '"""What batchopt trains: `batchopt doctor {file}:task` checks it."""\n'


@dataclass(frozen=True, slots=True)
class Part:
    """A name in a file, and the expression with which the task uses it.

    Attributes:
        file: where it is defined.
        name: its name there.
        alias: its name in the task's file, where every part has another one.
        form: what stands in the task, with {} for the alias: "{}" itself, "{}()" a call of it, ...
        kind: "loader" where it is a DataLoader.
    """

    file: Path
    name: str
    alias: str
    form: str = "{}"
    kind: str = "data"

    @property
    def use(self) -> str:
        """What stands in the task."""
        return self.form.format(self.alias)


@dataclass(frozen=True, slots=True)
class Choices:
    """What a task of one's own parts is made of; names are keys of `LOSSES` and `OPTIMIZERS`."""

    model: Part
    data: Part
    eval_data: Part | None
    loss: str
    optimizer: str
    prior: tuple[int, float] | None


def own_task(choices: Choices, out: Path) -> str:
    """The file of a task with a model, data, a loss and an optimizer."""
    parts = [part for part in (choices.model, choices.data, choices.eval_data) if part is not None]
    is_loaded = choices.data.kind == "loader"
    arguments = [f"model={choices.model.use},"]
    if not is_loaded:
        arguments.append(f"data={choices.data.use},")
    if choices.eval_data is not None:
        arguments.append(_evaluated(choices.eval_data, is_loaded=is_loaded))
    is_classified = choices.loss == "cross-entropy"
    arguments += ["loss=loss,", *(['metrics={"accuracy": accuracy},'] if is_classified else []), "optimizer=optimizer,"]
    if choices.prior is not None:
        size, rate = choices.prior
        arguments.append(f"prior=({size}, {rate:g}),  # a batch size and a learning rate that work")
    made = f"batchopt.TrainingTask.from_dataloader(\n    {choices.data.use}," if is_loaded else "batchopt.TrainingTask("
    needs_nn = "nn." in LOSSES[choices.loss]
    imports = ["import copy"] if "copy." in choices.model.form else []
    return "\n".join(
        [
            HEAD.format(file=out.name),
            *_system_imports(parts, out, imports),
            "import torch",
            *(["from torch import nn"] if needs_nn else []),
            "",
            "import batchopt",
            *_path_line(parts, out),
            *_part_imports(parts, out),
            "",
            "",
            LOSSES[choices.loss],
            "",
            *([ACCURACY, ""] if is_classified else []),
            "def optimizer(parameters, lr):",
            '    """A new optimizer with the learning rate that it is given."""',
            f"    return {OPTIMIZERS[choices.optimizer]}",
            "",
            "",
            f"task = {made}",
            *(f"    {argument}" for argument in arguments),
            ")",
            "",
        ]
    )


def _evaluated(part: Part, *, is_loaded: bool) -> str:
    """The argument with the evaluation data, beside training data of a DataLoader or others."""
    if part.kind != "loader":
        return f"eval_data={part.use},"
    return f"eval_loader={part.use}," if is_loaded else f"eval_data={part.use}.dataset,"


def taken_task(parts: Sequence[Part], *, function: str, module: str, out: Path) -> str:
    """The file of a task that a function of an integration makes of what is there already."""
    return "\n".join(
        [
            HEAD.format(file=out.name),
            *_system_imports(parts, out, []),
            f"from {module} import {function}",
            *_path_line(parts, out),
            *_part_imports(parts, out),
            "",
            f"task = {function}({', '.join(part.use for part in parts)})",
            "",
        ]
    )


def _folders(parts: Sequence[Part], out: Path) -> list[str]:
    """Folders of the parts, from that of the file, where they are others."""
    here = out.resolve().parent
    folders = dict.fromkeys(part.file.resolve().parent for part in parts)
    return [os.path.relpath(folder, here) for folder in folders if folder != here]


def _system_imports(parts: Sequence[Part], out: Path, imports: list[str]) -> list[str]:
    if _folders(parts, out):
        imports = [*imports, "import sys", "from pathlib import Path"]
    return [*imports, ""] if imports else []


def _path_line(parts: Sequence[Part], out: Path) -> list[str]:
    lines = [
        f'sys.path.insert(0, str(Path(__file__).resolve().parent / "{folder}"))' for folder in _folders(parts, out)
    ]
    return ["", *lines, ""] if lines else []


def _part_imports(parts: Sequence[Part], out: Path) -> list[str]:
    """One line for each file that parts are imported from.

    Raises:
        TaskError: a file's name is no name of a module, or Python would import another file by it.
    """
    names: dict[Path, list[str]] = {}
    for part in parts:
        if not part.file.stem.isidentifier():
            raise TaskError(
                f"{part.file} cannot be imported by its name: rename it, with letters, digits and underscores only"
            )
        _check_import(part.file, parts, out)
        name = part.name if part.name == part.alias else f"{part.name} as {part.alias}"
        names.setdefault(part.file.resolve(), []).append(name)
    return [f"from {file.stem} import {', '.join(found)}" for file, found in names.items()]


def _check_import(file: Path, parts: Sequence[Part], out: Path) -> None:
    """Raise unless the first file of this name on the path of the task's file is this one."""
    here, file = out.resolve().parent, file.resolve()
    # Each folder is put in front of those before it, and all of them in front of that of the task's file.
    folders = [*((here / folder).resolve() for folder in reversed(_folders(parts, out))), here]
    found = next(folder / file.name for folder in folders if (folder / file.name).exists())
    if found != file:
        raise TaskError(
            f"files that a task's file imports from must have different names, and {file} would be hidden by {found}: "
            "rename one of them"
        )
