"""The errors that batchopt raises on purpose.

`BatchoptError` is the common parent: the command line turns it into one line and exit code 1.
Wrong arguments of a call are plain `TypeError` and `ValueError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchopt.uncertainty import Estimate


class BatchoptError(Exception):
    """Parent of every error that batchopt raises on purpose."""


class UnresolvedError(BatchoptError):
    """A bare number was asked of a reading whose interval does not support one.

    Attributes:
        estimate: the reading, with its interval.
    """

    def __init__(self, message: str, estimate: Estimate) -> None:
        super().__init__(message)
        self.estimate = estimate


class RecordError(BatchoptError):
    """A file or a JSON text is not the record that was expected."""


class TaskError(BatchoptError):
    """A training task cannot be measured or trained as it is written."""


class NonFiniteLossError(TaskError):
    """A loss or a gradient became NaN or infinite."""


class BudgetError(BatchoptError):
    """A budget is too small for the work that was asked."""


class UnreachableGoalError(BatchoptError):
    """No batch size within the bounds reaches the goal."""


class EvidenceError(BatchoptError):
    """There is not enough evidence, or contradictory evidence, for what was asked."""


class MissingPackageError(BatchoptError, ImportError):
    """What was asked needs a package that is not installed."""
