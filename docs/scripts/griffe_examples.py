"""An extension of griffe: a docstring's `Example:` holds doctests, as griffe expects them of `Examples:`."""

from __future__ import annotations

import re
from typing import Any

import griffe


class DoctestExamples(griffe.Extension):
    """Renames the section, so that its code is shown as code."""

    def on_object(self, *, obj: griffe.Object, **more: Any) -> None:
        """Rename it in the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
