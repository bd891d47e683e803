"""What was measured of per-example gradient norms, as a table, and whether it is what was aimed at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from gradient_norm_methods import OURS, Method

WRONG = 1e-3
"""Relative error beyond which a method is wrong and counts as no rival."""
TIME_TARGETS = {"autoencoder": 1.15, "gpt": 1.15, "cnn": 1.5, "resnet18": 1.5, "lstm": 2.5}
MEMORY_TARGETS = {"autoencoder": 1.3, "gpt": 1.3, "cnn": 1.8, "resnet18": 1.8, "lstm": 1.3}
LEADS = {"autoencoder": 1.5, "gpt": 1.0, "cnn": 1.5, "resnet18": 1.5, "lstm": 1.0}
"""Least time of the fastest right peer, in ours."""
LEAST_PLAIN_BYTES = 500_000_000
"""Memory that plain must need for a ratio to mean anything."""


@dataclass(frozen=True, slots=True)
class Row:
    """A method on a model.

    Attributes:
        version: of the method's package, ours with a digest of the source.
        batch: examples of the timed batch.
        chunk: examples at a time, where the method was given a choice.
        error: worst relative error.
        pairs: timed pairs of steps.
        plain_seconds: median of a plain step.
        seconds: median of the method's step.
        ratio: quartiles of the method's time over that of the plain step beside it: low, median, high.
        large_ratio: the same at the batch that memory is measured with; of our methods only.
        memory_batch: examples of the batch that memory was measured with.
        memory_bytes: peak above the imports.
        failure: why the method gives no norms.
        memory_failure: why there is no peak.
    """

    model: str
    method: str
    version: str
    batch: int | None = None
    chunk: int | None = None
    error: float | None = None
    pairs: int | None = None
    plain_seconds: float | None = None
    seconds: float | None = None
    ratio: tuple[float, float, float] | None = None
    large_ratio: tuple[float, float, float] | None = None
    memory_batch: int | None = None
    memory_bytes: int | None = None
    failure: str | None = None
    memory_failure: str | None = None

    @classmethod
    def of(cls, model: str, name: str, method: Method) -> Self:
        """Still to be measured."""
        try:
            stated = version(method.package)
        except PackageNotFoundError:
            stated = "absent"
        return cls(model, name, f"{stated}+{digest()}" if name in OURS else stated)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        ratios = {name: values[name] and tuple(values[name]) for name in ("ratio", "large_ratio")}
        return cls(**{**values, **ratios})

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.method

    @property
    def right(self) -> bool:
        return self.failure is None and self.error is not None and self.error <= WRONG


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured.

    Attributes:
        target: in words.
        value: None where it was not measured.
        limit: what the value is held against.
        holds: None where it was not measured.
    """

    target: str
    value: float | None
    limit: float
    holds: bool | None


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """What holds of the targets, model by model."""
    found: list[Verdict] = []
    for model in dict.fromkeys(row.model for row in rows):
        of = {row.method: row for row in rows if row.model == model}
        ours = of.get("batchopt")
        if ours is None:
            continue
        ratio = ours.ratio[1] if ours.ratio is not None and ours.right else None
        found.append(_at_most(f"{model}: time over plain", ratio, TIME_TARGETS[model]))
        memory = memory_ratio(ours, of.get("plain"))
        plain = of.get("plain")
        large = plain is not None and (plain.memory_bytes or 0) >= LEAST_PLAIN_BYTES
        found.append(_at_most(f"{model}: memory over plain", memory if large else None, MEMORY_TARGETS[model]))
        for peer in of.values():
            if peer.method not in (*OURS, "plain") and peer.right and peer.ratio is not None:
                lead = None if ratio is None else peer.ratio[1] / ratio
                held = None if lead is None else lead >= LEADS[model]
                found.append(Verdict(f"{model}: time of {peer.method} over ours", lead, LEADS[model], held))
    return found


def memory_ratio(row: Row, plain: Row | None) -> float | None:
    """Peak memory over that of the plain step."""
    if row.memory_bytes is None or plain is None or not plain.memory_bytes or row.memory_batch != plain.memory_batch:
        return None
    return row.memory_bytes / plain.memory_bytes


def text(rows: Sequence[Row]) -> str:
    """Table and targets."""
    plain = {row.model: row for row in rows if row.method == "plain"}
    versions = ", ".join(dict.fromkeys(f"{row.method} {row.version}" for row in rows))
    lines = [_HEAD, *(_line(row, plain.get(row.model)) for row in rows), "", versions, ""]
    for verdict in verdicts(rows):
        value = "not measured" if verdict.value is None else f"{verdict.value:.2f}"
        holds = {True: "holds", False: "MISSED", None: ""}[verdict.holds]
        bound = "at least" if "over ours" in verdict.target else "at most"
        lines.append(f"{verdict.target:<48} {value:>12}  {bound} {verdict.limit:<5} {holds}".rstrip())
    return "\n".join(lines)


def shortened(error: Exception) -> str:
    """Type and beginning of an error."""
    message = " ".join(str(error).split())
    message = message if len(message) <= 100 else f"{message[:97]}..."
    return f"{type(error).__name__}: {message}"


_HEAD = (
    f"{'model':<12} {'method':<15} {'batch':>6}  {'time / plain (quartiles)':<26} {'ms':>8}  "
    f"{'memory / plain':>14} {'MB':>6} {'at':>6}  {'error':>8}  remarks"
)


def _line(row: Row, plain: Row | None) -> str:
    ratio = memory_ratio(row, plain)
    spread = "" if row.ratio is None else f"{row.ratio[1]:6.2f} ({row.ratio[0]:.2f} - {row.ratio[2]:.2f})"
    remarks = [row.failure or "", (row.memory_failure and f"memory: {row.memory_failure}") or ""]
    if row.failure is None and row.error is not None and not row.right:
        remarks.append("WRONG")
    if row.large_ratio is not None:
        remarks.append(f"time {row.large_ratio[1]:.2f} of plain at {row.memory_batch}")
    if row.chunk is not None:
        remarks.append(f"{row.chunk} at a time")
    cells = [
        f"{row.model:<12} {row.method:<15} {_cell(row.batch, '6d')}  {spread:<26} ",
        f"{_cell(row.seconds and row.seconds * 1e3, '8.1f')}  {_cell(ratio, '14.2f')} ",
        f"{_cell(row.memory_bytes and row.memory_bytes / 1e6, '6.0f')} {_cell(row.memory_batch, '6d')}  ",
        f"{_cell(row.error, '8.1e')}  {'; '.join(remark for remark in remarks if remark)}",
    ]
    return "".join(cells).rstrip()


def _cell(value: float | None, form: str) -> str:
    return " " * int(form.split(".")[0].rstrip("defg")) if value is None else format(value, form)


def _at_most(target: str, value: float | None, limit: float) -> Verdict:
    return Verdict(target, value, limit, None if value is None else value <= limit)


def digest() -> str:
    """Of our measuring code: what it was measured with is measured again once it has changed."""
    import batchopt

    folder = Path(batchopt.__file__).parent / "probing"
    names = ("gradients.py", "moments.py", "per_example.py", "reading.py")
    sources = [*(folder / name for name in names), *sorted((folder / "gradient_norms").glob("*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]
