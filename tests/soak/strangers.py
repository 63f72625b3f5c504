"""Attacks the watchdog's port of a training of two ranks, and proves that it loses no step, and how little speed.

Usage, from the root of the repository:
    python tests/soak/strangers.py [--seconds 60] [--attacks idle endless random forged] [--closes] [--output FOLDER]

A training of two ranks runs on. Each attack lasts for so many seconds; before it and after it the training is left in
peace as long. Steps a second are compared, and processor seconds a step of rank 0, which other programs of the machine
disturb less. The attackers run at the lowest priority: what they themselves need is not what is measured.

The port is kept open, though the watchdog closes it when all ranks have come; with --closes it does.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "train"))  # for `small_runs`, which attackers do not need: importing it takes long
sys.path.insert(0, str(HERE.parent / "processes"))  # for `warm`
if TYPE_CHECKING:
    from warm import Warm, WarmProcess

ATTACKS = ("idle", "endless", "random", "forged")
IDLE_CONNECTIONS = 2000
RANDOM_MESSAGES = 10_000
TIMEOUT = 600.0
TICKS = os.sysconf("SC_CLK_TCK")


def attack(kind: str, port: int, seconds: float) -> int:
    """Attack the port of this machine; returns how often."""
    attacker = {"idle": _idle, "endless": _endless, "random": _random, "forged": _forged}[kind]
    deadline = time.monotonic() + seconds
    return attacker(port, lambda: time.monotonic() < deadline)


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=1.0)


def _idle(port: int, goes_on: Callable[[], bool]) -> int:
    """As many open connections as can be had, none of which says anything; those that are closed are opened again."""
    number, held = 0, []
    while goes_on():
        for _ in range(IDLE_CONNECTIONS - len(held)):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", port))
            held.append(connection)
            number += 1
        time.sleep(0.5)
        held = [connection for connection in held if not _is_closed(connection)]
    return number


def _is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    connection.close()
    return True


def _endless(port: int, goes_on: Callable[[], bool]) -> int:
    number = 0
    while goes_on():
        with contextlib.suppress(OSError), _connected(port) as connection:
            number += 1
            while goes_on():
                connection.sendall(b"x" * (1 << 16))
        time.sleep(0.002)
    return number


def _random(port: int, goes_on: Callable[[], bool]) -> int:
    draw, number = random.Random(0), 0
    while goes_on():
        with contextlib.suppress(OSError), _connected(port) as connection:
            for _ in range(RANDOM_MESSAGES // 200):
                connection.sendall(random_message(draw) + b"\n")
                number += 1
        time.sleep(0.002)
    return number


def random_message(draw: random.Random) -> bytes:
    """Bytes, JSON of any kind, or nearly what a rank sends."""
    nearly = {"rank": draw.choice([0, 1, -1, True, "0", 10**30]), "nonce": draw.choice(["0" * 32, "", None, 7])}
    return draw.choice(
        [
            draw.randbytes(draw.randrange(300)),
            json.dumps(draw.choice([1, None, [1], "GET", {"token": None}, {"state": {}}, {"over": "x"}])).encode(),
            json.dumps(nearly).encode(),
            b"[" * draw.randrange(4000),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r",
        ]
    )


def _forged(port: int, goes_on: Callable[[], bool]) -> int:
    """Greetings as a rank sends them, with a proof that is none."""
    number = 0
    while goes_on():
        with contextlib.suppress(OSError), _connected(port) as connection:
            connection.recv(100)
            hello = json.dumps({"rank": number % 2, "nonce": "0" * 32}).encode()
            connection.sendall(hello + b"\n" + b"0" * 64 + b'{"over": "rank 0 is gone"}\n')
            number += 1
            connection.recv(100)
        time.sleep(0.002)
    return number


class Attacker:
    """A process that attacks, at the lowest priority."""

    def __init__(self, kind: str, port: int, seconds: float) -> None:
        command = [sys.executable, __file__, "--attack", kind, str(port), str(seconds)]
        self._process = subprocess.Popen(["nice", "-n", "19", *command], stdout=subprocess.PIPE, text=True)

    def wait(self) -> int:
        """How often it has attacked."""
        return int(self._process.communicate()[0])

    def stop(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()


@dataclass
class Training:
    """Two ranks, started as srun does."""

    warm: "Warm"
    folder: Path
    stays_open: bool = True
    ranks: list["WarmProcess"] = field(default_factory=list)

    def start(self, steps: Sequence[int], sets: Path, *overrides: str) -> None:
        """Start rank 0 of a training of so many steps in each of its three stages."""
        from ports import free_port
        from small_runs import TOKENS_PER_STEP, write_config

        port = str(free_port())
        stages = [f"train.stages.{i}.tokens={count * TOKENS_PER_STEP}" for i, count in enumerate(steps)]
        self._environ = {
            **os.environ,
            **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port},
        }
        self._command = [
            *(str(HERE / "attacked_rank.py"), str(self._port_file)),
            *("stays-open" if self.stays_open else "closes", str(write_config(self.folder, sets))),
            *("--skip-health-check", "train.micro_batch_size=2", "train.validation.sets=[]", *stages, *overrides),
        ]
        self.start_rank(0)

    def start_rank(self, rank: int) -> None:
        """Start one rank."""
        environ = {**self._environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        self.ranks.append(self.warm.start(*self._command, environ=environ, folder=self.folder))

    @property
    def port(self) -> int:
        """Where the watchdog listens, once it does."""
        self._wait_for(self._port_file.exists)
        return int(self._port_file.read_text())

    @property
    def steps(self) -> int:
        """That are done."""
        with contextlib.suppress(OSError):
            return (self.run_dir / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    @property
    def run_dir(self) -> Path:
        """Of the training."""
        return self.folder / "runs" / "small"

    @property
    def cpu_seconds(self) -> float:
        """Of rank 0."""
        numbers = Path(f"/proc/{self.ranks[0].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / TICKS

    def wait_for_steps(self, number: int) -> None:
        """Until so many are done."""
        self._wait_for(lambda: self.steps >= number)

    def wait(self) -> list[int]:
        """Exit codes when both have ended."""
        return [rank.wait(TIMEOUT) for rank in self.ranks]

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal those that live."""
        for rank in self.ranks:
            rank.send_signal(number)

    def errors(self) -> str:
        """What both have written to stderr."""
        return "".join(rank.errors for rank in self.ranks)

    @property
    def _port_file(self) -> Path:
        return self.folder / "port"

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline or any(rank.poll() for rank in self.ranks):
                raise RuntimeError(f"the training has ended or hangs:\n{self.errors()}")
            time.sleep(0.02)


@dataclass
class Speed:
    """Of a while."""

    steps_per_second: float
    cpu_seconds_per_step: float


def measured(training: Training, seconds: float) -> Speed:
    """The speed of the next `seconds`."""
    begun, steps, cpu = time.monotonic(), training.steps, training.cpu_seconds
    time.sleep(seconds)
    done = training.steps - steps
    return Speed(done / (time.monotonic() - begun), (training.cpu_seconds - cpu) / max(done, 1))


def _report(kind: str, number: int, quiet: Sequence[Speed], under: Speed) -> None:
    steps = statistics.mean(speed.steps_per_second for speed in quiet)
    cpu = statistics.mean(speed.cpu_seconds_per_step for speed in quiet)
    before, after = (speed.steps_per_second for speed in quiet)
    print(
        f"| {kind} | {number:,} | {before:.2f}, {after:.2f} | {under.steps_per_second:.2f}"
        f" ({under.steps_per_second / steps - 1:+.1%}) | {1000 * cpu:.1f} | {1000 * under.cpu_seconds_per_step:.1f}"
        f" ({under.cpu_seconds_per_step / cpu - 1:+.1%}) |",
        flush=True,
    )


def run(folder: Path, seconds: float, attacks: Sequence[str], stays_open: bool) -> int:
    """One training, one attack after the other; returns an exit code."""
    from small_runs import write_sets
    from warm import Warm

    write_sets(folder / "sets")
    os.environ["OMP_NUM_THREADS"] = "1"
    with Warm() as warm:
        return _attacked(Training(warm, folder, stays_open), folder, seconds, attacks)


def _attacked(training: Training, folder: Path, seconds: float, attacks: Sequence[str]) -> int:
    try:
        training.start((1_000_000, 1, 1), folder / "sets", "checkpoint.every_steps=1000000")
        training.start_rank(1)
        training.wait_for_steps(20)
        print("| attack | times | steps/s before, after | during | rank 0: CPU ms a step | during |")
        print("|---|---|---|---|---|---|", flush=True)
        quiet = measured(training, seconds)
        for kind in attacks:
            attacker = Attacker(kind, training.port, seconds)
            under = measured(training, seconds)
            number = attacker.wait()
            before, quiet = quiet, measured(training, seconds)
            _report(kind, number, (before, quiet), under)
        done = training.steps
        training.stop(signal.SIGTERM)
        codes = training.wait()
        lines = [json.loads(line)["step"] for line in (training.run_dir / "metrics.jsonl").read_text().splitlines()]
        is_whole = codes == [75, 75] and lines == list(range(1, len(lines) + 1)) and len(lines) >= done
        print(f"exit codes {codes}, {len(lines)} steps, {'none lost' if is_whole else 'NOT WHOLE'}")
        print(training.errors(), end="")
        return 0 if is_whole else 1
    finally:
        training.stop()


def main() -> int:
    """The program."""
    if sys.argv[1:2] == ["--attack"]:
        kind, port, seconds = sys.argv[2:]
        print(attack(kind, int(port), float(seconds)))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--closes", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="strangers-"))
    return run(folder, options.seconds, options.attacks, not options.closes)


if __name__ == "__main__":
    sys.exit(main())
