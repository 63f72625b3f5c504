"""Runs a command on null GPUs: shapes, memory, launches and collectives are real; no kernel runs, so values are not.

    python tools/nullgpu/run.py [--gpus N] [--memory GIB] -- COMMAND

The exit code is the command's, or 1 if the null GPU has found faults, which are printed. See docs/null-gpu.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nullgpu.build import Unavailable, build, environment  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, help="that are visible (default: 1)")
    parser.add_argument("--memory", type=float, default=79.2, metavar="GIB", help="of each (default: 79.2)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given")
    try:
        folder = build()
    except Unavailable as error:
        print(f"error: there is no null GPU here: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="nullgpu-") as exchange:
        variables = environment(folder, Path(exchange), options.gpus, options.memory)
        code = subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
        faults = Path(exchange, "faults")
        if faults.exists():
            print(faults.read_text(), end="", file=sys.stderr)
            return code or 1
        return code


if __name__ == "__main__":
    sys.exit(main())
