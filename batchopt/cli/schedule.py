"""`batchopt schedule`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from batchopt._codec import json_schema, read_text, write_text
from batchopt.cli.arguments import UsageError, count
from batchopt.cli.console import Console
from batchopt.cli.schedule_file import load_schedule
from batchopt.errors import RecordError
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.schedules.exporters.registry import EXPORTERS, IMPORTERS, export_schedule, import_schedule, options_of
from batchopt.schedules.schedule import Schedule
from batchopt.schedules.shapes import shape_of


def _flags(options: Iterable[str]) -> str:
    return " ".join(f"--{name.replace('_', '-')}" for name in options)


def _wants(to: str) -> str:
    """The options of an export, in words."""
    needed, more = options_of(to)
    return f"needs {_flags(needed) or 'nothing'}{'; may take ' if more else ''}{_flags(more)}"


SUMMARY = "Show a schedule, or export it for another training framework."
DETAILS = """\
  batchopt schedule schedule.json
  batchopt schedule schedule.json --to megatron --tokens-per-example 1024 --micro-batch 8 --data-parallel 2
  batchopt schedule config.yaml --from levanter -o schedule.json
  batchopt schedule --schema                                  the JSON Schema of schedule files

A schedule holds batch sizes, the learning rate, and its warm-up and decay (learning_rate_schedule: multipliers at
numbers of examples, straight lines between). Files without these, of batchopt.schedule/1, are read as well. Each export
carries them in its framework's own terms, or says that it cannot.

""" + "".join(f"  --to {to:<13} {_wants(to)}\n" for to in sorted(EXPORTERS))
OPTIONS = {
    "tokens_per_example": "sequence length",
    "micro_batch": "examples per device and pass",
    "data_parallel": "data-parallel ranks",
    "devices": "devices that share a batch",
    "examples_per_epoch": "examples in the training data",
}
"""What exporters may ask for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "schedule", type=Path, nargs="?", help="file of `batchopt plan`, schedule or plan, or of your own"
    )
    parser.add_argument(
        "--from", dest="source", choices=sorted(IMPORTERS), help="the file is a configuration of this framework"
    )
    parser.add_argument("-o", "--out", type=Path, help="write the schedule as JSON, or the export")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of schedule files and exit")
    parser.add_argument("--to", choices=sorted(EXPORTERS), help="framework to export for")
    for name, meaning in OPTIONS.items():
        parser.add_argument(_flags([name]), type=count, help=meaning)


def run(args: argparse.Namespace, console: Console) -> None:
    """Show or export."""
    if args.schema:
        print(json.dumps(json_schema(Schedule), indent=2))
        return
    if args.schedule is None:
        raise UsageError("name a schedule file, or ask for the --schema")
    schedule = load_schedule(args.schedule) if args.source is None else _imported(args.schedule, args.source)
    if args.out is not None and args.to is None:
        schedule.save(args.out)
        console.say(f"wrote {args.out}")
    if args.to is None:
        console.table(
            ("from example", "batch size", "learning-rate multiplier"),
            [(s.start_examples, s.batch_size, s.learning_rate_multiplier) for s in schedule.segments],
        )
        rate = "left to your loop" if schedule.learning_rate is None else f"{schedule.learning_rate:.3g}"
        console.say(f"  {schedule.examples:,} examples in {schedule.steps:,} steps; peak learning rate {rate}")
        console.say(f"  {_in_words(schedule.learning_rate_schedule)}")
        console.result(json.loads(schedule.to_json()) | {"steps": schedule.steps})
        return
    _export(schedule, args, console)


def _in_words(rates: LearningRateSchedule | None) -> str:
    """Warm-up and decay."""
    if rates is None:
        return "warm-up and decay left to the task or your loop"
    shape = shape_of(rates)
    if shape is None:
        return f"the learning rate follows {len(rates.examples)} points of learning_rate_schedule"
    warmup = f"rises over {shape.warmup_examples:,} examples, then " if shape.warmup_examples else ""
    after = {
        "constant": "stays",
        "linear": f"falls linearly to zero at {shape.end_examples:,}",
        "cosine": f"falls as a cosine to zero at {shape.end_examples:,}",
        "wsd": f"stays, and falls linearly to zero over the {shape.decay_examples:,} before {shape.end_examples:,}",
    }
    return f"the learning rate {warmup}{after[shape.name]}"


def _imported(file: Path, source: str) -> Schedule:
    try:
        return import_schedule(read_text(file), source)
    except (RecordError, ValueError) as error:
        raise RecordError(f"{file}: {error}") from None


def _export(schedule: Schedule, args: argparse.Namespace, console: Console) -> None:
    export = export_schedule(schedule, args.to, **_options(args))
    if args.out is not None:
        write_text(args.out, "\n".join([export.text.rstrip(), *(f"# {note}" for note in export.notes)]) + "\n")
        console.say(f"wrote {args.out}")
    console.say(export.text)
    for note in export.notes:
        console.say(f"# {note}")
    console.result({"to": args.to, "text": export.text, "notes": export.notes})


def _options(args: argparse.Namespace) -> dict[str, int]:
    """What was given for the exporter, if that is what it takes."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    needed, more = options_of(args.to)
    missing = [name for name in needed if name not in given]
    spare = [name for name in given if name not in needed + more]
    faults = [f"{fault}: {_flags(names)}" for fault, names in (("missing", missing), ("not taken", spare)) if names]
    if faults:
        raise UsageError("; ".join([f"--to {args.to} {_wants(args.to)}", *faults]))
    return given
