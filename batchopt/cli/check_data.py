"""Checks of a task's data: form, values, labels, evaluation data, loading."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from batchopt._wording import seconds as in_words
from batchopt.cli.findings import LOOKED_AT, Finding, Subject
from batchopt.probing.data import EVALUATION_SAMPLE, available, gather, order_of, population
from batchopt.probing.finite_data import not_finite_examples, without_finite_loss
from batchopt.probing.losses import rows_of
from batchopt.probing.run import TrainingRun
from batchopt.probing.streams import SeededStream
from batchopt.probing.task import TrainingTask

FEW_EXAMPLES = 128
"""A probe runs two batch sizes a factor of 8 apart, the larger at most half of the data."""
SLOW_LOADING = 0.5
"""Share of a step's time from which loading is worth a word."""
TIMED_BATCHES = 5
TIMED_RATE = 1e-6
"""Learning rate of the steps that are timed: it moves nothing."""
MOST_CLASSES = 10_000
"""Whole numbers with more values than that are no labels."""


def check_data(subject: Subject) -> Finding:
    """Form and values of the training data."""
    task = subject.task
    if task.is_stream:
        return Finding(
            "data",
            "error",
            "a stream of batches, which cannot be run twice from one point",
            "give data a function that opens a stream of examples by a seed: lambda seed: iter(...)",
        )
    if subject.acts:
        return Finding("data", "ok", "episodes that the model makes by acting")
    count = min(LOOKED_AT, available(task.data))
    batch = subject.batch(count)
    what = f"{_form(task)}; of an example {_shapes(batch)}"
    bad = not_finite_examples(task.data) or _not_finite_rows(task.data, task, count)
    if bad:
        return _not_finite("data", "data", bad, subject)
    if not isinstance(task.data, SeededStream) and available(task.data) < FEW_EXAMPLES:
        return Finding("data", "warning", what, f"with fewer than {FEW_EXAMPLES} examples batch sizes hardly differ")
    return Finding("data", "ok", f"{what}; finite{'' if isinstance(task.data, tuple) else f' in {count} examples'}")


def _not_finite(check: str, held: str, bad: list[int], subject: Subject) -> Finding:
    """Of examples with values that are not finite: an error where a probe refuses them, which is by their losses.

    Args:
        check: that found them.
        held: the task's argument that holds them.
        bad: their indices.
        subject: whose they are.
    """
    task = subject.task
    fatal = without_finite_loss(task, subject.model, getattr(task, held), bad)
    told = fatal or bad
    which = ", ".join(f"{held}[{index}]" for index in told[:3]) + (" and others" if len(told) > 3 else "")
    words = f"{which} {'holds' if len(told) == 1 else 'hold'} NaN or infinite values"
    its_loss = "its loss" if len(told) == 1 else "their losses"
    if fatal:
        words += f" that make {its_loss} nan or infinite"
        return Finding(check, "error", words, "leave such examples out, or fill them in")
    words += f", with which {its_loss} {'is' if len(told) == 1 else 'are'} finite"
    return Finding(check, "warning", words, "check that the loss leaves such values out on purpose")


def _form(task: TrainingTask) -> str:
    if isinstance(task.data, SeededStream):
        return "a stream that a seed opens"
    form = "tensors" if isinstance(task.data, tuple) else type(task.data).__name__
    return f"{available(task.data):,} examples ({form})"


def _shapes(batch: Any) -> str:
    """Kinds and shapes of one example's parts."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    kinds = [f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape[1:]) or 'scalar'}" for leaf in leaves]
    return " and ".join(kinds) or "no tensors"


def _not_finite_rows(data: Any, task: TrainingTask, count: int) -> list[int]:
    indices = order_of(data, seed=0, start=0, count=count)
    batch = gather(data, indices, collate_fn=task.collate_fn, device=torch.device("cpu"))
    rows = rows_of(batch)
    parts = tuple(leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0)
    bad = not_finite_examples(tuple(part for part in parts if len(part) == rows))
    return [int(indices[index]) for index in bad] if rows == count else bad


def check_labels(subject: Subject) -> Finding:
    """Whole numbers, one for each example: how many different ones, and how often."""
    task = subject.task
    if subject.acts:
        return Finding("labels", "skipped", "episodes have none")
    leaves = task.data if isinstance(task.data, tuple) else pytree.tree_leaves(subject.batch(_looked_at(task)))
    found = [
        leaf
        for leaf in leaves
        if isinstance(leaf, Tensor) and leaf.ndim == 1 and not leaf.is_floating_point() and not leaf.is_complex()
    ]
    if not found:
        return Finding("labels", "ok", "no part is one whole number an example: not looked at as classes")
    values, counts = torch.unique(found[-1], return_counts=True)
    looked = int(counts.sum())
    where = "" if isinstance(task.data, tuple) else f" in {looked} examples"
    if len(values) == 1:
        return Finding(
            "labels",
            "warning",
            f"all are {int(values[0])}{where}",
            "if these are the labels, check where they are read: there is nothing to tell apart",
        )
    if len(values) > min(MOST_CLASSES, looked // 2):
        return Finding("labels", "ok", f"whole numbers from {int(values.min())} to {int(values.max())}{where}")
    subject.classes = len(values)
    least, most = counts.min().item() / looked, counts.max().item() / looked
    words = f"{len(values)} classes, {int(values.min())} to {int(values.max())}{where}; from {least:.1%} to {most:.1%}"
    if int(values.min()) < 0:
        return Finding("labels", "warning", words, "a negative label counts only where the loss ignores it on purpose")
    return Finding("labels", "ok", words)


def _looked_at(task: TrainingTask) -> int:
    return min(LOOKED_AT, available(task.data))


def check_evaluation_data(subject: Subject) -> Finding:
    """On what the loss is evaluated."""
    task, name = subject.task, "evaluation data"
    if subject.acts:
        return Finding(name, "ok", "episodes that are played for it")
    if task.eval_data is None:
        return Finding(
            name,
            "ok",
            f"{min(EVALUATION_SAMPLE, available(task.data)):,} of the training examples, since none were given: a loss "
            "on held-out data needs eval_data",
        )
    count = population(task.eval_data) or 0
    bad = not_finite_examples(task.eval_data) or _not_finite_rows(task.eval_data, task, min(LOOKED_AT, count))
    if bad:
        return _not_finite(name, "eval_data", bad, subject)
    return Finding(name, "ok", f"{count:,} examples of their own")


def check_loading(subject: Subject) -> Finding:
    """What part of a step is spent on putting its batch together."""
    name = "loading"
    if subject.acts or subject.cost is None:
        return Finding(name, "skipped", "no time of a step to compare with")
    size = subject.batch_size
    pairs = list(_loading_and_step(subject, size))
    taken = statistics.median(loading for loading, _ in pairs)
    share = min(1.0, statistics.median(loading / step for loading, step in pairs))
    words = f"a batch of {size} is put together in {in_words(taken)}, {share:.0%} of a step"
    if share > SLOW_LOADING:
        return Finding(
            name,
            "warning",
            words,
            "keep the decoded examples in memory, as tensors if they fit: batchopt reads in the training process",
        )
    return Finding(name, "ok", words)


def _loading_and_step(subject: Subject, size: int) -> Iterator[tuple[float, float]]:
    """Seconds of putting a batch together and of a whole step, one right after the other: a busy moment slows both."""
    task = subject.task
    run = TrainingRun(task, learning_rate=TIMED_RATE, seed=subject.seed)
    run.step(size)  # the first step loads what torch loads late
    for start in range(TIMED_BATCHES):
        indices: np.ndarray[Any, Any] = order_of(task.data, seed=1 + subject.seed, start=start * size, count=size)
        began = time.perf_counter()
        gather(task.data, indices, collate_fn=task.collate_fn, device=task.torch_device)
        loaded = time.perf_counter()
        run.step(size)
        yield loaded - began, time.perf_counter() - loaded
