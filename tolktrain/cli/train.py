"""`tolktrain train`, and what follows it: evaluation, samples and report."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tolktrain.cli.evaluate import evaluate_run
from tolktrain.cli.failures import EXIT_BAD_INPUT, EXIT_DONE, EXIT_MACHINE, complain, described_at
from tolktrain.cli.generate import generate_samples
from tolktrain.cli.report import write_report
from tolktrain.cli.verb import Verb, load
from tolktrain.cluster.environment import ProcessEnvironment, alone, refuse_shell_of_job
from tolktrain.cluster.signals import EXIT_PREEMPTED, StopRaised, StopRequest
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument
from tolktrain.files.reading import TABLE_BYTES, read_json
from tolktrain.runs.paths import RunPaths

if TYPE_CHECKING:
    from tolktrain.cluster.watch.alone import LoneWatch
    from tolktrain.cluster.watch.watchdog import Watch


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=input_argument, help="configuration, a YAML file")
    parser.add_argument("--skip-health-check", action="store_true", help="start without checking the machines")


def _run(parsed: argparse.Namespace) -> int:
    stop: StopRequest = parsed.stop_request or StopRequest.installed()
    refuse_shell_of_job()
    environment = ProcessEnvironment.detect()
    if environment.world_size == 1:
        config, code = _train_alone(parsed, stop)
    else:
        config, code = _train_watched(parsed, stop, environment)
    if config is None or code != EXIT_DONE:
        stop.ignore()
        return code
    stop.release()
    if config.evaluation.after_training and environment.rank == 0:
        return _follow_up(config, environment)
    return code


def _train_alone(parsed: argparse.Namespace, stop: StopRequest) -> tuple[Config | None, int]:
    """Train as the only process. No configuration is returned if it was stopped."""
    from tolktrain.cluster.watch.alone import LoneWatch

    watch = LoneWatch()
    watch.start()
    try:
        with stop.raised():
            config, code = _train_rank(parsed, stop, watch)
            if code == EXIT_PREEMPTED:
                raise StopRaised
    except StopRaised:
        return None, EXIT_PREEMPTED
    finally:
        watch.finish()
    return config, code


def _train_watched(
    parsed: argparse.Namespace, stop: StopRequest, environment: ProcessEnvironment
) -> tuple[Config, int]:
    """Train as one of several ranks. If any of them fails, one reports the error. If a signal reaches one of them while
    it starts, or waits for data that does not come, all ranks end."""
    from tolktrain.cluster.watch.watchdog import Watch

    def describe(error: BaseException) -> tuple[str, int]:
        return described_at(error, watch.progress.mark, parsed)

    watch = Watch.start(environment, describe)
    try:
        with stop.raised(expire=lambda: watch.stop(stop.reason)):
            config, code = _train_rank(parsed, stop, watch)
    except StopRaised:
        watch.stop(stop.reason)
    except (Exception, KeyboardInterrupt) as error:
        watch.fail(error)
    return config, watch.finish(code)


def _train_rank(parsed: argparse.Namespace, stop: StopRequest, watch: "Watch | LoneWatch") -> tuple[Config, int]:
    if parsed.skip_health_check:
        parsed.overrides.append("health.enabled=false")
    config = load(parsed)
    watch.limit(config.parallel.hang_timeout_seconds)
    parsed.run_directory = RunPaths.of(config).root
    if config.evaluation.after_training:
        from tolktrain.generate.inputs import check_inputs

        check_inputs(config)  # what is missing would end the run hours later
    from tolktrain.train.run import train

    return config, train(config, stop, watch.progress)


def _follow_up(config: Config, environment: ProcessEnvironment) -> int:
    """Evaluate, generate and report. Results of the last checkpoint with the same settings are kept.

    Bad input of one verb does not keep the next ones from being run.
    """
    paths = RunPaths.of(config)
    steps: tuple[tuple[str, Callable[[Path], None], Path | None], ...] = (
        ("evaluate", evaluate_run, paths.evaluation),
        ("generate", generate_samples, paths.sample_index),
        ("report", write_report, None),
    )
    worst = EXIT_DONE
    for verb, act, product in steps:
        if product is not None and _is_current(product, config):
            continue
        code = _run_follow_up(verb, act, paths.root, environment)
        if code not in (EXIT_DONE, EXIT_BAD_INPUT):
            return code
        worst = max(worst, code)
    return worst


def _run_follow_up(verb: str, act: Callable[[Path], None], run_directory: Path, environment: ProcessEnvironment) -> int:
    if environment.world_size > 1:
        # This process belongs to a group whose other ranks have left; a fresh one has no group.
        command = [sys.executable, "-m", "tolktrain", verb, str(run_directory)]
        return subprocess.run(command, env=alone(), check=False).returncode
    try:
        act(run_directory)
    except UserError as error:
        complain(f"{verb}: {error}")
        return EXIT_MACHINE if error.by_machine else EXIT_BAD_INPUT
    return EXIT_DONE


def _is_current(product: Path, config: Config) -> bool:
    """Whether a product is newer than the last checkpoint and was made with the settings of `config`."""
    from tolktrain.checkpoint.store import LATEST

    latest = RunPaths.of(config).checkpoints / LATEST
    if not (product.exists() and latest.exists() and product.stat().st_mtime_ns >= latest.stat().st_mtime_ns):
        return False
    try:
        content = read_json(product, TABLE_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("settings") == config.follow_up_settings()


VERB = Verb("train, or continue from the last checkpoint", _add_arguments, _run)
