"""Runs cases of a script, each in a process that is forked when the script is imported: forked.py SCRIPT CASES

The script must not touch the GPU while it is imported. CASES is JSON: by name, the variables of the case. Output and
exit code of a case are in files of the folder NULLGPU_EXCHANGE of the case.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path


def run_case(main: Callable[[str], None], name: str, variables: Mapping[str, str]) -> int:
    """Fork, and wait for the end of the case; returns its exit code."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        os.environ.update(variables)
        for number, stream in ((1, "out"), (2, "err")):
            path = Path(variables["NULLGPU_EXCHANGE"], f"{stream}-{os.environ['RANK']}")
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        main(name)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    script = importlib.import_module(Path(sys.argv[1]).stem)
    for case, given in json.loads(sys.argv[2]).items():
        exit_code = run_case(script.main, case, given)
        Path(given["NULLGPU_EXCHANGE"], f"code-{os.environ['RANK']}").write_text(str(exit_code))
