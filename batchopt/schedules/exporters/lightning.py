"""Lightning: `GradientAccumulationScheduler`, which changes the accumulation at the beginning of an epoch.

Thresholds between two epochs are moved to the nearest one. A batch sampler (`scheduled_loader`) is exact. Warm-up and
decay are a function for torch's LambdaLR over Lightning's own steps: any curve, and the stages' multipliers with it.
"""

from __future__ import annotations

import math

from batchopt._checks import check_count
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import Stretch, rate_function, rate_points
from batchopt.schedules.exporters.stages import first_rate, rate_notes, share_of, stages_of
from batchopt.schedules.schedule import Schedule


def to_lightning(schedule: Schedule, *, examples_per_epoch: int, micro_batch: int, data_parallel: int = 1) -> Export:
    """Python for a Lightning trainer.

    Args:
        schedule: the schedule.
        examples_per_epoch: examples in the training data.
        micro_batch: batch size of the data loader, on each device.
        data_parallel: number of devices.

    Raises:
        ValueError: a batch size is not divisible by micro_batch x data_parallel.
    """
    check_count("examples_per_epoch", examples_per_epoch)
    share = share_of(schedule, micro_batch, data_parallel)
    factors = {
        round(stage.start_examples / examples_per_epoch): stage.batch_size // share
        for stage in stages_of(schedule, sizes_only=True)
    }
    epochs = math.ceil(schedule.examples / examples_per_epoch)
    factors = {epoch: factor for epoch, factor in factors.items() if epoch < epochs}
    steps = _steps(factors, epochs, math.ceil(examples_per_epoch / share))
    lines = [f"callbacks = [GradientAccumulationScheduler(scheduling={factors})]", f"max_epochs = {epochs}"]
    rate = first_rate(schedule)
    if rate is not None:
        lines.append(f"lr = {rate!r}")
    lines.append(f"total_steps = {steps}  # of the optimizer: the horizon of a learning-rate schedule")
    notes = ["give no accumulate_grad_batches beside it; not with the DeepSpeed strategy"]
    moved = [
        f"{stage.start_examples:,} to {round(stage.start_examples / examples_per_epoch) * examples_per_epoch:,}"
        for stage in stages_of(schedule, sizes_only=True)
        if stage.start_examples % examples_per_epoch
    ]
    if moved:
        notes.append(f"switches come at epochs only: moved from {', '.join(moved)} examples; scheduled_loader is exact")
    if epochs * examples_per_epoch != schedule.examples:
        notes.append(f"whole epochs: {epochs * examples_per_epoch:,} examples instead of {schedule.examples:,}")
    if any(math.ceil(examples_per_epoch / share) % factor for factor in factors.values()):
        notes.append("the last window of an epoch is cut short, and Lightning divides its gradient by the whole factor")
    if schedule.learning_rate_schedule is None:
        notes += rate_notes(schedule, "Lightning", "put them into your learning-rate schedule")
        return Export("\n".join(lines), tuple(notes))
    stretches = _stretches(schedule, factors, epochs, examples_per_epoch, share)
    lines += ["", rate_function(rate_points(schedule.learning_rate_schedule, stretches))]
    lines.append("rates = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_multiplier_at)")
    notes.append('configure_optimizers gives {"scheduler": rates, "interval": "step"} as its lr_scheduler')
    return Export("\n".join(lines), tuple(notes))


def _stretches(schedule: Schedule, factors: dict[int, int], epochs: int, each: int, share: int) -> list[Stretch]:
    """Epoch by epoch, what Lightning takes of the run."""
    found, step, factor = [], 0, factors[0]
    for epoch in range(epochs):
        factor = factors.get(epoch, factor)
        steps = math.ceil(math.ceil(each / share) / factor)
        seen = min(epoch * each, schedule.examples - 1)
        multiplier = schedule.segment_at(min(seen + each // 2, schedule.examples - 1)).learning_rate_multiplier
        found.append(Stretch((epoch * each, (epoch + 1) * each), (step, step + steps), multiplier))
        step += steps
    return found


def _steps(factors: dict[int, int], epochs: int, batches: int) -> int:
    """Optimizer steps of the run: Lightning steps at the end of an epoch whatever has gathered."""
    total, factor = 0, factors[0]
    for epoch in range(epochs):
        factor = factors.get(epoch, factor)
        total += math.ceil(batches / factor)
    return total
