"""`python -m truth sweep NAME ...`: run sweeps; `decaying NAME ...`: sweeps of decaying rates; `table`: what they say;
`design NAME ...`: run random designs."""

from __future__ import annotations

import argparse

from truth.decaying import sweep_decaying
from truth.design import DESIGNS, make_design
from truth.problems import PROBLEMS
from truth.sweep import sweep
from truth.table import table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m truth", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweeps = commands.add_parser("sweep", help="run what the sweeps of problems lack")
    sweeps.add_argument("problems", nargs="*", help=f"of {', '.join(PROBLEMS)}; all if none is named")
    sweeps.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    decays = commands.add_parser("decaying", help="run what the sweeps of decaying rates lack, after `sweep`")
    decays.add_argument("problems", nargs="*", help=f"of {', '.join(PROBLEMS)}; all if none is named")
    decays.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    designs = commands.add_parser("design", help="run what the random designs of problems lack")
    designs.add_argument("problems", nargs="*", choices=DESIGNS, default=list(DESIGNS))
    designs.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    commands.add_parser("table", help="the trade-off of every problem that is swept")
    args = parser.parse_args()
    if args.command == "table":
        table()
        return
    if args.command == "design":
        for name in args.problems:
            make_design(name, workers=args.workers)
        return
    for name in args.problems or PROBLEMS:
        if name not in PROBLEMS:
            parser.error(f"no problem {name!r}: choose of {', '.join(PROBLEMS)}")
        run = sweep if args.command == "sweep" else sweep_decaying
        run(name, workers=args.workers)


if __name__ == "__main__":
    main()
