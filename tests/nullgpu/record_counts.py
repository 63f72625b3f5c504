"""Records the counts of the shipped step of the 150M model, which test_steps.py does not let grow:

python tools/nullgpu/run.py -- env PYTHONPATH=tools python tests/nullgpu/record_counts.py
"""

import json
from pathlib import Path

from steps import Case, Done, run

if __name__ == "__main__":
    done = Done()
    run(Case([], counts=True), done)
    lines = sorted(done.counted, key=lambda line: (line["part"], line["direction"]))
    shown = [json.dumps({name: line[name] for name in ("part", "direction", "launches", "bytes")}) for line in lines]
    Path(__file__).with_name("counted-150m.json").write_text("[\n" + ",\n".join(shown) + "\n]\n")
