"""Checks of how a task trains: model, optimizer, loss, gradients, repeatability, time and memory."""

from __future__ import annotations

import math
import time
from collections import Counter

import torch

from batchopt._wording import number
from batchopt._wording import seconds as in_words
from batchopt.cli.estimate import TIMED_SECONDS
from batchopt.cli.findings import Finding, Subject
from batchopt.errors import NonFiniteLossError
from batchopt.probing.data import available, evaluation_examples
from batchopt.probing.evaluation import HOPELESS, check_evaluation, check_untrained, evaluated
from batchopt.probing.gradients import coupling_module, gradient_coverage
from batchopt.probing.kinds.preconditioned import is_adaptive
from batchopt.probing.losses import batch_loss, is_mean
from batchopt.probing.run import TrainingRun
from batchopt.probing.state import OwnRandomness, preserved
from batchopt.probing.step_time import measure_step_cost, smallest_batch
from batchopt.probing.task import trainable_parameters

STEPS = 5
"""Steps of the two runs that are compared."""
EXAMPLES = 16
"""Examples of which gradients are taken."""
FAR = 2.0
"""A first loss this many times that of guessing is reported: a usual initialisation is within a tenth of it."""
LONG_EVALUATION = 300
"""An evaluation that takes as long as so many steps is reported: a run of a probe has hundreds."""


def check_model(subject: Subject) -> Finding:
    """Parameters and device."""
    parameters = trainable_parameters(subject.model)
    count = sum(p.numel() for p in parameters.values())
    frozen = sum(p.numel() for p in subject.model.parameters()) - count
    kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()}))
    words = f"{type(subject.model).__name__}, {count:,} trainable parameters ({kinds}) on {subject.task.torch_device}"
    return Finding("model", "ok", words + (f", {frozen:,} frozen" if frozen else ""))


def check_optimizer(subject: Subject) -> Finding:
    """Whether it takes the rate that it is given, and of which kind it is."""
    optimizer = subject.task.make_optimizer(subject.model, learning_rate=subject.learning_rate)
    kind = "divides by the size of gradients" if is_adaptive(optimizer) else "steps in proportion to gradients"
    groups = len(optimizer.param_groups)
    words = f"{type(optimizer).__name__}, which {kind}; it takes the learning rate that it is given"
    if subject.task.prior is None:
        words += "; no prior, so a probe searches all rates"
    return Finding("optimizer", "ok", words + (f"; {groups} groups of parameters" if groups > 1 else ""))


def check_loss(subject: Subject) -> Finding:
    """Finite, of one meaning in both modes, and near that of guessing before any training."""
    task = subject.task
    if not subject.acts:
        run = TrainingRun(task, learning_rate=subject.learning_rate, seed=subject.seed)
        check_untrained(run, subject.batch_size)
        with OwnRandomness(subject.seed, device=task.torch_device, host=True).active():
            check_evaluation(task, task.make_model())
    loss, metrics = evaluated(task, subject.model)
    broken = [f"metric {name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        return Finding("loss", "error", f"{broken[0]} before any training", "look for what is not finite in it")
    if not math.isfinite(loss):
        return Finding(
            "loss", "error", f"the evaluated loss is {loss} before any training", "look for NaN in the evaluation data"
        )
    words = f"{number(loss)} before any training, of one meaning in training and evaluation mode"
    if subject.acts:
        return Finding("loss", "ok", f"{number(loss)} before any training: the best score minus the score")
    losses, weights = task.losses(subject.model, subject.batch(subject.batch_size))
    form = "one number, the mean over the batch" if is_mean(losses) else "one value an example"
    words = f"{form}{'' if weights is None else ', weighted'}; {words}"
    words += "".join(f"; {name} {number(value)}" for name, value in metrics.items())
    guess = math.log(subject.classes) if subject.classes else None
    if guess is not None and loss > FAR * guess:
        return Finding(
            "loss",
            "warning",
            f"{words}; guessing one of {subject.classes} classes has {number(guess)}",
            "scale the inputs to about 1, or the last layer's initial weights down",
        )
    return Finding("loss", "ok", words)


def check_batch_norm(subject: Subject) -> Finding:
    """Whether the model normalises over the batch."""
    coupling = coupling_module(subject.model)
    if coupling is None:
        return Finding("batch norm", "ok", "no layer normalises over the batch")
    return Finding(
        "batch norm",
        "warning",
        f"{coupling} normalises over the batch, so the batch size changes what is trained, beside its noise",
        "read noise scales with care (they come from groups of 32 examples); GroupNorm or LayerNorm has no such effect",
    )


def check_gradients(subject: Subject) -> Finding:
    """Whether every parameter gets a gradient, and how those of single examples are taken."""
    task, model = subject.task, subject.model
    if subject.acts:
        return Finding("gradients", "skipped", "of episodes they are taken together")
    count = min(EXAMPLES, available(task.data))
    batch = subject.batch(count)
    with preserved(model), OwnRandomness(subject.seed, device=task.torch_device, host=True).active():
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_loss(*task.losses(model, batch)))
        none = [name for name, p in trainable_parameters(model).items() if p.grad is None]
    device = task.torch_device.type
    with torch.autocast(device, dtype=task.autocast, enabled=task.autocast is not None):
        coverage = gradient_coverage(model, task.loss, batch)
    ways = Counter(way for name, way in coverage.ways.items() if name not in none)
    words = coverage.method + (f": {', '.join(f'{way} ({n})' for way, n in ways.most_common())}" if ways else "")
    if none:
        named = ", ".join(none[:3]) + (" and others" if len(none) > 3 else "")
        return Finding(
            "gradients",
            "warning",
            f"{len(none)} parameters get no gradient ({named}); {words}",
            "set requires_grad=False on what is not trained, or use it in the loss",
        )
    return Finding("gradients", "ok", words)


def check_first_steps(subject: Subject) -> Finding:
    """Whether two runs with one seed have the same losses, and these stay near the first."""
    name, rate = "first steps", subject.learning_rate
    runs = [TrainingRun(subject.task, learning_rate=rate, seed=subject.seed) for _ in range(2)]
    size = max(subject.batch_size, smallest_batch(runs[0]))
    lower = "give the task a prior=(batch size, learning rate) that works, or look at the scale of the loss"
    try:
        first, second = ([run.step(size) for _ in range(STEPS)] for run in runs)
    except NonFiniteLossError as error:
        what = str(error).partition(": ")[0]
        return Finding(name, "error", f"within {STEPS} steps at a learning rate of {rate:g} {what}", lower)
    if first[-1] > HOPELESS * first[0]:
        rose = (
            f"within {STEPS} steps at a learning rate of {rate:g} the loss rose from {first[0]:.3g} to {first[-1]:.3g}"
        )
        return Finding(name, "warning", rose, lower)
    apart = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(first, second, strict=True))
    if apart == 0.0:
        return Finding(name, "ok", f"{STEPS} at batch size {size} gave the same losses twice with one seed")
    return Finding(
        name,
        "warning",
        f"{STEPS} at batch size {size} gave losses that differ by {apart:.2g} of their size, with one seed",
        "draw random augmentation from torch's or numpy's global generators, which are seeded; on a GPU a difference "
        "of rounding is harmless",
    )


def check_step_time(subject: Subject) -> Finding:
    """What a step takes at several batch sizes."""
    cost, spending, _ = measure_step_cost(subject.task, learning_rate=1e-6, seconds=TIMED_SECONDS, seed=subject.seed)
    subject.cost = cost
    sizes = [size for size in (1, 8, 64, 512) if size <= (cost.largest_batch_size or available(subject.task.data))]
    times = ", ".join(f"{in_words(cost(size))} at {size}" for size in sizes)
    return Finding("time of a step", "ok", f"{times} (batch size); measured over {spending.steps} steps")


def check_memory(subject: Subject) -> Finding:
    """The largest batch that fits."""
    cost, device = subject.cost, subject.task.torch_device
    if cost is None:
        return Finding("memory", "skipped", "no step was timed")
    if cost.largest_batch_size is None:
        if device.type == "cuda":
            return Finding("memory", "ok", "every batch that was tried fits, up to the size of the data")
        return Finding("memory", "ok", f"not sought on {device}: bound what is tried with --batch-sizes LOW:HIGH")
    words = f"batches of up to {cost.largest_batch_size:,} examples fit on {torch.cuda.get_device_name(device)}"
    if cost.largest_batch_size < subject.batch_size:
        return Finding("memory", "warning", words, "train with micro_batch (--micro-batch): larger ones go in parts")
    return Finding("memory", "ok", words)


def check_evaluation_cost(subject: Subject) -> Finding:
    """What an evaluation takes beside a step."""
    began = time.perf_counter()
    evaluated(subject.task, subject.model)
    taken, count = time.perf_counter() - began, evaluation_examples(subject.task)
    words = f"{in_words(taken)} for {count:,} examples"
    if subject.cost is None:
        return Finding("evaluation", "ok", words)
    steps = taken / subject.cost(subject.batch_size)
    words += f", as long as {number(max(1, round(steps)))} steps at batch size {subject.batch_size}"
    if steps > LONG_EVALUATION:
        return Finding(
            "evaluation", "warning", words, "give fewer eval_data: some thousands tell a loss to a per cent or two"
        )
    return Finding("evaluation", "ok", words)
