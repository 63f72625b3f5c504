"""`python -m tolktrain.benchmark.ablations.worker CONFIG ITEMS key=value ...`: train one run, and measure its items."""

import signal
import sys
from pathlib import Path

from tolktrain.cluster.signals import StopRequest, be_killed_with_parent


def main(arguments: list[str]) -> int:
    """Exit code 0: done, 2: bad input, 75: stopped after a checkpoint."""
    stop = StopRequest.installed()  # before torch is imported
    be_killed_with_parent(None, signal.SIGTERM)  # as if the sweep had passed a signal on
    from tolktrain.benchmark.ablations.items import measure_run, write_items
    from tolktrain.config.load import load_config
    from tolktrain.errors import UserError
    from tolktrain.runs.paths import RunPaths
    from tolktrain.train.run import train

    config_file, items, *overrides = arguments
    try:
        config = load_config(config_file, overrides)
        code = train(config, stop)
        if code == 0:
            stop.release()  # a signal now ends the process, which measures again the next time
            write_items(Path(items), measure_run(RunPaths.of(config).root))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
