"""What the parts of a search log about a study, each thing once."""

from __future__ import annotations

import logging
from functools import lru_cache

_logger = logging.getLogger("batchopt.search")


def warn_once(message: str) -> None:
    """Log a warning that was not logged before in this process."""
    _say_once(logging.WARNING, message)


def tell_once(message: str) -> None:
    """Log what is worth knowing, likewise."""
    _say_once(logging.INFO, message)


@lru_cache(maxsize=4096)
def _say_once(level: int, message: str) -> None:
    _logger.log(level, message)
