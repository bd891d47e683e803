"""What squared per-example gradient norms cost for architectures of Transformers, against a plain forward and backward.

Random weights, four layers of width 256, batches with padding where a model takes a mask, dropout as in fine-tuning.
Norms and mean gradient are taken in one go, as the noise scale is measured, in alternation with the plain pass. Results
are kept after every row: a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, SMALL, TINY, Batch, Size
from gradient_norm_table import digest
from machine import machine, save
from pairs import alternate, quartiles
from torch import nn
from torch.utils import _pytree as pytree

from batchopt.probing.gradients import Reading, make_reader

RESULTS = Path(__file__).parent / "results"
TARGET = 1.6
"""Time of a measured step over that of a plain one."""
EXAMPLES = {"bert": 32}
FEWER = 8
"""Examples of a batch, where `EXAMPLES` has no number."""
CHECKED = 3
"""Examples that are compared with one backward pass each, without dropout."""


@dataclass(frozen=True, slots=True)
class Row:
    """An architecture.

    Attributes:
        version: digest of our measuring code.
        method: how gradients are taken, in words.
        copies: parameters of which every example has a copy, as no rule is made for how they are used.
        parameters: all of them, in millions.
        error: worst relative error of a squared norm, float32.
        plain_seconds: median of a plain step.
        ratio: quartiles of our time over that of the plain step beside it: low, median, high.
    """

    model: str
    version: str
    examples: int
    method: str
    copies: int
    tensors: int
    parameters: float
    error: float
    pairs: int
    plain_seconds: float
    ratio: tuple[float, float, float]


def measured(name: str, size: Size, device: torch.device, *, quick: bool) -> Row:
    """Error and time of an architecture."""
    torch.manual_seed(0)
    architecture, examples = ARCHITECTURES[name], EXAMPLES.get(name, FEWER)
    model = architecture.model(size).to(device)
    batch = pytree.tree_map(lambda leaf: leaf.to(device), architecture.batch(size, examples, 1))
    reader = make_reader(Reading(model, architecture.loss, device), group_size=None)

    def plain(batch: Batch) -> None:
        model.zero_grad(set_to_none=True)
        architecture.loss(model, batch).mean().backward()

    error = _error(model.eval(), name, batch)
    model.train()
    seconds = alternate(
        plain,
        lambda batch: reader.read(batch, examples),
        batch,
        seconds=0.1 if quick else 8.0,
        pairs=(2, 2) if quick else (7, 101),
    )
    ratio = quartiles([ours / before for before, ours in seconds])
    return Row(
        model=name,
        version=digest(),
        examples=examples,
        method=reader.method,
        copies=sum("used by" in way for way in reader.ways.values()),
        tensors=len(reader.ways),
        parameters=round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1),
        error=error,
        pairs=len(seconds),
        plain_seconds=quartiles([before for before, _ in seconds])[1],
        ratio=ratio,
    )


def _error(model: nn.Module, name: str, batch: Batch) -> float:
    few = {key: tensor[:CHECKED] for key, tensor in batch.items()}
    loss = ARCHITECTURES[name].loss
    reader = make_reader(Reading(model, loss, next(iter(few.values())).device), group_size=None)
    got, worst = reader.squared_norms(few, CHECKED), 0.0
    for i in range(CHECKED):
        model.zero_grad(set_to_none=True)
        loss(model, {key: tensor[i : i + 1] for key, tensor in few.items()}).sum().backward()
        exact = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
        worst = max(worst, abs(float(got[i]) / exact - 1.0))
    return worst


def text(rows: Sequence[Row]) -> str:
    """Table."""
    lines = [f"{'model':<12} {'examples':>8}  {'time / plain (quartiles)':<26} {'plain, ms':>9}  {'error':>7}  way"]
    for row in rows:
        low, middle, high = row.ratio
        verdict = "" if middle <= TARGET else f"  MISSED: at most {TARGET}"
        lines.append(
            f"{row.model:<12} {row.examples:>8}  {f'{middle:.2f} ({low:.2f} - {high:.2f})':<26} "
            f"{row.plain_seconds * 1e3:9.0f}  {row.error:7.0e}  {_shortened(row)}{verdict}"
        )
    return "\n".join(lines)


def _shortened(row: Row) -> str:
    way = row.method.removeprefix("per-example gradients, ")
    copies = f"; copies of {row.copies} of {row.tensors} tensors" if row.copies else ""
    return f"{way}{copies}"


def _kept(path: Path, settings: dict[str, Any]) -> dict[str, Row]:
    result = json.loads(path.read_text()) if path.exists() else {}
    if result.get("settings") != settings:
        return {}
    return {row["model"]: Row(**{**row, "ratio": tuple(row["ratio"])}) for row in result["rows"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that all works")
    parser.add_argument("--out", type=Path, help="of the result; what it holds already is not measured again")
    options = parser.parse_args(arguments)
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    size = TINY if options.quick else SMALL
    suffix = ("_cuda" if options.device == "cuda" else "") + ("_quick" if options.quick else "")
    path = options.out or RESULTS / f"transformer_gradients{suffix}.json"
    settings = {
        **{"device": options.device, "threads": options.threads, "quick": options.quick},
        "transformers": transformers.__version__,
        "size": size._asdict(),
    }
    rows = _kept(path, settings)
    for name in options.models:
        if name in rows and rows[name].version == digest():
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows[name] = measured(name, size, torch.device(options.device), quick=options.quick)
        ordered = [rows[model] for model in ARCHITECTURES if model in rows]
        result = {"benchmark": "transformer_gradients", "machine": machine(), "settings": settings}
        save(path, {**result, "target": TARGET, "rows": [asdict(row) for row in ordered]})
    print(text([rows[model] for model in ARCHITECTURES if model in rows]))


if __name__ == "__main__":
    main()
