"""Tensor ranks that continue prompts; rank 0 writes what they drew. Arguments: a file of JSON, and cases as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from small_continuations import continued, small_model

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.generate.tensor_ranks import follow, make_decoder, release_followers
from tolktrain.parallel.layout import initialize, shut_down


def main(result: Path, cases: list[tuple[dict[str, object], str, int, int]]) -> None:
    """Each case: changes of the model, direction, prompts in a batch, and window."""
    layout = initialize(tensor=ProcessEnvironment.detect().world_size)
    drawn = []
    for changes, direction, batch, window in cases:
        model, vocabulary = small_model(layout, **changes)
        if layout.rank == 0:
            drawn.append(continued(make_decoder, model, vocabulary, direction, batch, window))
            release_followers()
        else:
            follow(model)
    if layout.rank == 0:
        result.write_text(json.dumps(drawn))
    shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
