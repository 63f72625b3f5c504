"""What a rank leaves for torchrun, which prints a report if a rank ends with another exit code than 0."""

import contextlib
import json
import os
import time
from pathlib import Path


def report_to_torchrun(reason: str) -> None:
    """Let the last lines of torchrun's report be the reason. Without it, they refer to a page of PyTorch's manual."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):
            # The form that torch's own handler writes. For others, torchrun prints further warnings.
            details = {"py_callstack": reason, "timestamp": str(int(time.time()))}
            Path(path).write_text(json.dumps({"message": {"message": reason, "extraInfo": details}}))
