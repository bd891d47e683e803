"""Starts torchrun once for the scripts of several tests: each of its processes takes seconds to import torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def answered(folder: Path, *modules: str) -> dict[str, dict[str, Any]]:
    """What `answers(folder)` of each module returns: by module, and by process, which is "0", "1" or "alone".

    Two processes write into one folder, and the one that is alone, which is this one, into another.
    """
    found: dict[str, dict[str, Any]] = {module: {} for module in modules}
    together, alone = folder / "together", folder / "alone"
    for place in (together, alone):
        place.mkdir()
    command = [*TORCHRUN, __file__, str(together), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    for module in modules:
        for rank in ("0", "1"):
            found[module][rank] = json.loads((together / f"{module}.{rank}.json").read_text())
        # As JSON has it, too.
        found[module]["alone"] = json.loads(json.dumps(import_module(module).answers(alone)))
    return found


def main(folder: Path, modules: list[str]) -> None:
    """What each process of torchrun does."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=300))
    for module in modules:
        answers = import_module(module).answers(folder)
        (folder / f"{module}.{os.environ['RANK']}.json").write_text(json.dumps(answers))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    # A thread of torch that wants the interpreter while that ends takes the process down with SIGABRT, now and then.
    os._exit(0)
