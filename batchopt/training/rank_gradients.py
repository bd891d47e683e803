"""A training step read by what each rank of a data-parallel training holds, before the mean over ranks is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from batchopt.errors import TaskError
from batchopt.probing.distributed import DefaultGroup
from batchopt.probing.losses import Batch
from batchopt.training.running_noise import StepMoments
from batchopt.training.unit_gradients import Part, Pending, Step, add_gradients, flatten, square, unflatten


def read_ranks(step: Step, batch: Batch, group: DefaultGroup) -> tuple[Tensor, Pending]:
    """Add the mean of the ranks' gradients to `.grad`; this rank's loss, and what the ranks' gradients say.

    Raises:
        TaskError: another rank failed; where it is this one, what it raised.
    """
    part: Part | None = None
    failure: Exception | None = None
    numbers = [1.0, 0.0, 0.0, 0.0]
    try:
        part = step.part(batch)
        numbers = [0.0, float(square(part.gradients)), part.examples, 1.0 / part.examples]
    except Exception as error:  # held back until the others know
        failure = error
    failures, unit_squares, examples, shares = group.add_up(torch.tensor(numbers, dtype=torch.float64)).tolist()
    if failure is not None:
        raise failure
    if failures or part is None:
        raise TaskError("the ranks' gradients could not be read, since another rank failed")
    parameters = step.parameters()
    # Which parameters have a gradient on any rank goes along: elsewhere `.grad` is left alone, as the wrapper does.
    used = torch.tensor([gradient is not None for gradient in part.gradients], device=step.device)
    flat = flatten(part.gradients, parameters)
    together = group.add_up(torch.cat([flat / group.count, used.to(flat.dtype)]))
    mean, used = together[: len(flat)], together[len(flat) :]
    gradients = unflatten(mean, parameters, (used > 0).tolist())
    scale, count = float(step.scale()), group.count
    # Each rank counts alike, whatever its number of examples; in units of examples, for steps of another size.
    factor = examples / count
    moments = StepMoments.of_units(
        square=float(square(gradients)) * (examples / scale) ** 2,
        unit_squares=unit_squares * (factor / scale) ** 2,
        coefficients=examples,
        coefficients_squared=count * factor**2,
        freedom=factor**2 * shares,
        examples=round(examples),
        group_size=round(factor),
    )
    add_gradients(parameters, gradients)
    return part.value, Pending.known(moments)
