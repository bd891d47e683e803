"""`batchopt schedule`."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path

from batchopt._codec import json_schema, read_text, write_text
from batchopt.cli.arguments import UsageError, count
from batchopt.cli.console import Console
from batchopt.cli.schedule_file import load_schedule
from batchopt.errors import RecordError
from batchopt.schedules.exporters.registry import EXPORTERS, IMPORTERS, export_schedule, import_schedule
from batchopt.schedules.schedule import Schedule

SUMMARY = "Show a schedule, or export it for another training framework."
DETAILS = """\
  batchopt schedule schedule.json
  batchopt schedule schedule.json --to megatron --tokens-per-example 1024 --micro-batch 8 --data-parallel 2
  batchopt schedule config.yaml --from levanter -o schedule.json
  batchopt schedule --schema                                  the JSON Schema of schedule files
"""


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
    parser.add_argument("--tokens-per-example", type=count, help="sequence length")
    parser.add_argument("--micro-batch", type=count, help="examples per device and pass")
    parser.add_argument("--data-parallel", type=count, help="data-parallel ranks")
    parser.add_argument("--devices", type=count, help="devices that share a batch")
    parser.add_argument("--examples-per-epoch", type=count, help="examples in the training data")


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
        console.say(f"  {schedule.examples:,} examples in {schedule.steps:,} steps; base learning rate {rate}")
        console.result(json.loads(schedule.to_json()) | {"steps": schedule.steps})
        return
    _export(schedule, args, console)


def _imported(file: Path, source: str) -> Schedule:
    try:
        return import_schedule(read_text(file), source)
    except (RecordError, ValueError) as error:
        raise RecordError(f"{file}: {error}") from None


def _export(schedule: Schedule, args: argparse.Namespace, console: Console) -> None:
    options = ("tokens_per_example", "micro_batch", "data_parallel", "devices", "examples_per_epoch")
    given = {name: getattr(args, name) for name in options}
    takes = inspect.signature(EXPORTERS[args.to]).parameters
    missing = [name for name in options if name in takes and takes[name].default is inspect.Parameter.empty]
    missing = [f"--{name.replace('_', '-')}" for name in missing if given[name] is None]
    if missing:
        raise UsageError(f"--to {args.to} needs {' and '.join(missing)}")
    spare = [f"--{name.replace('_', '-')}" for name in options if given[name] is not None and name not in takes]
    if spare:
        raise UsageError(f"--to {args.to} does not take {' or '.join(spare)}")
    export = export_schedule(schedule, args.to, **{name: value for name, value in given.items() if value is not None})
    if args.out is not None:
        write_text(args.out, "\n".join([export.text.rstrip(), *(f"# {note}" for note in export.notes)]) + "\n")
        console.say(f"wrote {args.out}")
    console.say(export.text)
    for note in export.notes:
        console.say(f"# {note}")
    console.result({"to": args.to, "text": export.text, "notes": export.notes})
