"""bs-scheduler, PyTorch-Ignite and plain torch: functions of the step, in Python.

Both change the loader's sampler from the loop, so with workers a switch comes late by the batches that are fetched
ahead; with `scheduled_loader` it does not. Warm-up and decay are a function for torch's LambdaLR, which follows any
curve, and the stages' multipliers with it.
"""

from __future__ import annotations

from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import rate_function, rate_points, stretches_of
from batchopt.schedules.exporters.stages import first_rate, rate_notes, stages_of
from batchopt.schedules.schedule import Schedule

_FUNCTION = """\
BATCH_SIZES = {sizes}  # (step, batch size)

def batch_size_at(step):
    return [size for start, size in BATCH_SIZES if step >= start][-1]
"""
_LATE = (
    "with workers a switch comes late by the batches that are fetched ahead: take num_workers=0, or scheduled_loader"
)


def to_bs_scheduler(schedule: Schedule) -> Export:
    """Python for a loop with bs-scheduler.

    Args:
        schedule: the schedule.
    """
    first, largest = schedule(0), max(segment.batch_size for segment in schedule.segments)
    imports = _imports(schedule, "from bs_scheduler import LambdaBS", "from torch.utils.data import DataLoader")
    text = f"{imports}\n{_function(schedule)}" + (
        f"\nloader = DataLoader(dataset, batch_size={first}, shuffle=True)\n"
        f"scheduler = LambdaBS(loader, lambda step: batch_size_at(step) / {first}, max_batch_size={largest})\n"
        f"total_steps = {schedule.steps}  # call scheduler.step() after each, whatever the epoch\n"
    )
    notes = [
        _LATE,
        "sizes above the data set's are cut silently; an epoch's last batch is smaller: its examples come earlier",
    ]
    return Export(text + _rate(schedule), (*notes, *_rates(schedule, "bs-scheduler", "call rates.step() as well")))


def to_ignite(schedule: Schedule) -> Export:
    """Python for a trainer of PyTorch-Ignite.

    Args:
        schedule: the schedule.
    """
    stepped = "trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: rates.step())\n"
    imports = _imports(
        schedule,
        "from ignite.engine import Events",
        "from ignite.handlers import BatchSizeScheduler",
        "from torch.utils.data import DataLoader",
    )
    text = f"{imports}\n{_function(schedule)}" + (
        f"\n{_rate(schedule)}{'' if schedule.learning_rate_schedule is None else stepped}"
        f"\nloader = DataLoader(dataset, batch_size={schedule(0)}, shuffle=True)\n"
        "scheduler = BatchSizeScheduler(loader, lambda event: batch_size_at(event + 1))  # for the step after\n"
        "trainer.add_event_handler(Events.ITERATION_COMPLETED, scheduler)\n"
        f"trainer.run(loader, max_epochs=1, epoch_length={schedule.steps})\n"
    )
    notes = [
        _LATE,
        "epoch_length must be given: Ignite counts it from the first batch size, and would train on",
    ]
    return Export(
        text, (*notes, *_rates(schedule, "Ignite", "the trainer's update must step `optimizer`, whose lr is above"))
    )


def to_torch(schedule: Schedule) -> Export:
    """Python for a loop with `scheduled_loader` and a LambdaLR; it needs no file, but the loop's dataset and optimizer.

    Args:
        schedule: the schedule.
    """
    sizes = "".join(f"Segment({segment.start_examples}, {segment.batch_size}), " for segment in schedule.segments)
    text = (
        f"{_imports(schedule, 'from batchopt import Schedule, Segment, scheduled_loader')}\n"
        f"schedule = Schedule(({sizes.rstrip()}), examples={schedule.examples})\n"
        "loader = scheduled_loader(dataset, schedule)  # one pass is the run\n"
        f"total_steps = {schedule.steps}\n"
    )
    remedy = "call rates.step() after every optimizer.step(); without scale_learning_rate, which would do it twice"
    lr = "" if schedule.learning_rate is None else ", made with the lr above"
    yours = f"`dataset` and `optimizer` are your loop's{lr}"
    return Export(text + _rate(schedule), (yours, *_rates(schedule, "torch", remedy)))


def _imports(schedule: Schedule, *lines: str) -> str:
    """All of the text's, sorted as usual."""
    needed = [] if schedule.learning_rate_schedule is None else ["import torch"]
    return "".join(f"{line}\n" for line in [*needed, *lines])


def _function(schedule: Schedule) -> str:
    return _FUNCTION.format(sizes=[(s.step, s.batch_size) for s in stages_of(schedule, sizes_only=True)])


def _rate(schedule: Schedule) -> str:
    """The learning rate, and where the schedule carries them, warm-up and decay."""
    rate, rates = first_rate(schedule), schedule.learning_rate_schedule
    text = "" if rate is None else f"lr = {rate!r}\n"
    if rates is None:
        return text
    function = rate_function(rate_points(rates, stretches_of(schedule)))
    return f"{text}\n{function}\nrates = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_multiplier_at)\n"


def _rates(schedule: Schedule, consumer: str, remedy: str) -> list[str]:
    if schedule.learning_rate_schedule is None:
        return rate_notes(schedule, consumer, "put them into your learning-rate schedule, by step")
    first = schedule.segments[0].learning_rate_multiplier
    own = [] if schedule.learning_rate is not None or first == 1.0 else [f"multiply your own rate by {first:.6g}"]
    return [remedy, *own]
