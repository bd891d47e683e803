"""What the parts of a search log about a study, each thing once."""

from __future__ import annotations

import logging

_logger = logging.getLogger("batchopt.search")
_said: dict[str, None] = {}
MOST_SAID = 4096


def warn_once(message: str, *, about: str | None = None) -> None:
    """Log a warning, unless one about the same was logged before in this process.

    Args:
        message: the warning.
        about: what is said once, however the words differ; None for the message itself.
    """
    _say_once(logging.WARNING, message, about or message)


def tell_once(message: str) -> None:
    """Log what is worth knowing, likewise."""
    _say_once(logging.INFO, message, message)


def _say_once(level: int, message: str, about: str) -> None:
    if about not in _said:
        _said[about] = None
        if len(_said) > MOST_SAID:
            _said.pop(next(iter(_said)), None)
        _logger.log(level, "%s", message)
