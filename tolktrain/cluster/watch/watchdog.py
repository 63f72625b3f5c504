"""Ends all processes of a job when one fails, with one message that names the rank and the cause.

Every rank has a thread that sends the state of the main thread to rank 0's hub (see `hub`), and is notified by it when
the job ends. The main thread reports its state through `Watch.progress`, and its end through `finish` or `fail`.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NoReturn

from tolktrain.cluster.dump import describe_process, record_collectives
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.open_files import raise_file_limit
from tolktrain.cluster.progress import Mark, Progress, Whereabouts
from tolktrain.cluster.signals import EXIT_PREEMPTED
from tolktrain.cluster.threads import failed_watchdog, guarded, log_failure
from tolktrain.cluster.watch import failures, messages
from tolktrain.cluster.watch.failures import Cause, Kind, RankState
from tolktrain.cluster.watch.hub import Hub, Limits, RunningClock, briefly
from tolktrain.cluster.watch.messages import shortened
from tolktrain.cluster.watch.rendezvous import Rendezvous
from tolktrain.cluster.watch.torchrun import report_to_torchrun
from tolktrain.cluster.watch.wire import Message, Wire, WireError
from tolktrain.files.printable import printable
from tolktrain.files.shared import leave_temporary_folder

_FLUSH_SECONDS = 2.0  # in which rank 0 reads that a rank has finished, before the rank ends

_PARTS = frozenset({"deputy", "first", "done", "end"})

Describe = Callable[[BaseException], tuple[str, int]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndTimeouts:
    """Timeouts for the parts of a job's end."""

    unwind_seconds: float = 3.0  # for a main thread to unwind and close its files, once the job ends
    linger_seconds: float = (
        5.0  # that rank 0 waits for ranks that start late, which would otherwise report by themselves
    )
    detection_seconds: float = 10.0  # that a failed rank waits for failure detection before it reports by itself
    dump_seconds: float = 5.0  # for a rank to write its stacks; a disk may hang
    forced_seconds: float = 25.0  # until a rank whose threads are all stuck is killed; more than the sum of the others


END_TIMEOUTS = EndTimeouts()


def collective_timeout(hang_seconds: float) -> timedelta:
    """The timeout for `init_process_group`: long enough that the watchdog, which names the cause, reports first."""
    return timedelta(seconds=hang_seconds + 120)


class Watch:
    """The watchdog of one rank; created by `start`."""

    def __init__(
        self, environment: ProcessEnvironment, describe: Describe, rendezvous: Rendezvous, timeouts: EndTimeouts
    ) -> None:
        self.progress = Progress()
        self.progress.on_settled = lambda: self._beat(Whereabouts())
        self._environment = environment
        self._describe = describe
        self._limits = Limits(environment.world_size)
        self._timeouts = timeouts
        self._rendezvous = rendezvous
        self._hub: Hub | None = None
        self._wire: Wire | None = None
        self._failure: Message | None = None
        self._finished = False
        self._deputy = 1
        self._first = "starting"  # the last known state of rank 0
        self._code = failures.EXIT_FAILED
        self._reason = ""  # of an exit code other than 0
        self._ended = threading.Event()  # the job has ended
        self._left = threading.Event()  # this rank has ended training
        self._dumped = threading.Event()  # this rank's stacks are written
        self._released = threading.Event()  # all ranks have finished
        self._clock = RunningClock()
        self._seen: tuple[Mark, float] = (self.progress.mark, 0.0)
        self._thread = guarded("watch", self._run, self._fail_watching)

    @classmethod
    def start(
        cls, environment: ProcessEnvironment, describe: Describe, timeouts: EndTimeouts = END_TIMEOUTS
    ) -> "Watch":
        """Start the watchdog of this process, which is one of several.

        Args:
            environment: of this process.
            describe: returns the message of an error and the exit code.
            timeouts: for the end of the job.

        Raises:
            UserError: rank 0 cannot open its port, the limit of open files is below the number of ranks, or there is
                no job secret.
        """
        raise_file_limit(environment)
        Rendezvous.refuse_taken_port(environment)
        record_collectives()
        # In the main thread: two threads that import torch at once may see partially imported modules.
        import torch.distributed

        watch = cls(environment, describe, Rendezvous(environment, torch.distributed.TCPStore), timeouts)
        if environment.rank == 0:
            watch._open_hub()
        os.register_at_fork(after_in_child=watch._close_sockets)
        watch._thread.start()
        return watch

    def limit(self, hang_seconds: float) -> None:
        """Set the configured timeout."""
        self._limits.hang_seconds = hang_seconds

    def finish(self, code: int) -> int:
        """End this rank's training regularly. Returns `code` if it is 0, unless another rank fails meanwhile. With
        another code, this process exits here, at the same time as all other ranks.

        The ranks exit together because a launcher kills the remaining ranks, with another exit code, when the first
        one exits with a code other than 0. With code 0 only rank 0 waits, because it holds the hub and the rendezvous.
        """
        self._finished = True
        self._beat(Whereabouts())
        # With code 0, a rank may end before it has joined.
        while self._hub is not None and self._hub.is_busy(everyone=code != 0) and not self._ended.wait(0.1):
            pass
        if self._hub is not None:
            self._hub.release()
        elif code:
            while self._thread.is_alive() and not self._ended.is_set() and not self._released.wait(0.1):
                pass
        if self._ended.is_set():
            self._leave()
        if code:
            self._code = code
            self._reason = "stopped as it was asked to; the same command continues"
            self._exit()
        self._left.set()
        self._thread.join()
        if self._wire is not None:
            self._wire.flush(_FLUSH_SECONDS)
        if self._hub is not None:
            self._hub.close()
        self._close_sockets()
        return code

    def fail(self, error: Exception | KeyboardInterrupt) -> NoReturn:
        """Report the failure of this rank, and end this process with the job's exit code. One rank prints the cause."""
        if not self._ended.is_set():
            self._report(error)
            if not self._ended.wait(self._timeouts.detection_seconds):
                self._end_alone()
        self._leave()

    def stop(self, signal_name: str) -> NoReturn:
        """End the job because of a signal, at a point where the ranks cannot agree to stop. Called in any thread; ends
        this process, and, through the hub, those of all other ranks."""
        if not self._ended.is_set() and self._failure is None:
            text = (
                f"{signal_name} at {self.progress.mark}: stopped without a new checkpoint; the same command continues"
            )
            self._failure = {"kind": int(Kind.RAISED), "text": text, "code": EXIT_PREEMPTED}
            self._send_failure()
        if not self._ended.wait(self._timeouts.detection_seconds):
            self._end_alone()
        self._leave()

    def _report(self, error: BaseException) -> None:
        if self._failure is None:
            kind = Kind.CONSEQUENCE if failures.is_consequence(error) else Kind.RAISED
            text, code = self._describe(error)
            self._failure = {"kind": int(kind), "text": shortened(text, messages.LONGEST_TEXT), "code": code}
            self._send_failure()

    def _end_alone(self) -> None:
        assert self._failure is not None
        cause = Cause(Kind.RAISED, self._environment.rank, self._failure["text"], self._failure["code"])
        self._end(cause.message, cause.code, prints=True)

    def _leave(self) -> NoReturn:
        """End this process when all outputs of the end are written."""
        self._left.set()
        self._dumped.wait(2 * self._timeouts.dump_seconds)
        if self._hub is not None:
            self._hub.all_notified.wait(self._timeouts.linger_seconds)
        self._exit()

    def _exit(self) -> NoReturn:
        briefly("torchrun-report", lambda: report_to_torchrun(self._reason))
        briefly("log-end", logging.shutdown)
        briefly("output-end", sys.stdout.flush)
        briefly("temporary-folder-end", leave_temporary_folder)
        # Without the interpreter's shutdown: torch's threads whose peers have ended sometimes abort it, and it takes
        # longer on one rank than on another.
        os._exit(self._code)

    def _open_hub(self) -> None:
        self._hub = Hub(
            self._limits, self._rendezvous.key, lambda cause: self._end(cause.message, cause.code, prints=False)
        )
        self._rendezvous.publish(self._hub.port)
        self._hub.start()

    def _run(self) -> None:
        wire = self._join()
        if wire is None:
            return
        self._wire = wire
        self._send_failure()
        heard = beaten = self._clock.tick()
        self._expect_life()
        self._beat(Whereabouts())
        while not self._left.is_set():
            if wire.wait(min(0.5, self._limits.beat_seconds)):
                try:
                    for message in wire.receive():
                        self._take(message)
                        heard = self._clock.now
                except (WireError, ValueError) as error:
                    reason = str(error)
                    self._lose_hub(failures.broken(self._first, reason) if reason else failures.ended(self._first))
                    return
            now = self._clock.tick()
            if now - heard > self._limits.silence_seconds:
                self._lose_hub(failures.silent(self._first, now - heard))
                return
            if self.progress.failure is not None:
                self._report(self.progress.failure)
            if now - beaten >= self._limits.beat_seconds:
                beaten = now
                self._expect_life()
                self._beat(Whereabouts.of_main_thread())

    def _expect_life(self) -> None:
        """Arm the stack dump. If another thread is stuck while it holds the interpreter lock, this thread cannot run,
        and the hub considers this rank silent. Shortly before that, the stacks are written."""
        log = self.progress.log
        if log is not None and not self._ended.is_set():
            log.arm_timeout(0.8 * self._limits.silence_seconds)

    def _join(self) -> Wire | None:
        """Connect to rank 0's hub. None if this rank has ended before."""
        rendezvous = self._rendezvous
        pause = 0.0
        while not self._left.wait(pause):
            pause = 0.2
            if self._clock.tick() > self._limits.hang_seconds:
                self._lose_hub(rendezvous.failure)
            address = ("localhost", self._hub.port) if self._hub is not None else rendezvous.find_hub()
            wire = rendezvous.greet(address, self._left.is_set) if address is not None else None
            if wire is not None:
                return wire
        return None

    def _beat(self, whereabouts: Whereabouts) -> None:
        mark = self.progress.mark
        if mark is not self._seen[0]:
            self._seen = (mark, self._clock.now)
        state = RankState(
            rank=self._environment.rank,
            host=shortened(socket.gethostname()),
            place=shortened(self.progress.place),
            at=shortened(str(mark)),
            position=mark.position,
            idle_seconds=self._clock.now - self._seen[1],
            line=shortened(whereabouts.line),
            waiting=whereabouts.waiting,
            hint=shortened(self.progress.hint()),
            finished=self._finished,
        )
        if self._wire is not None:
            self._wire.send({"state": asdict(state)})

    def _send_failure(self) -> None:
        if self._failure is not None and self._wire is not None:
            self._wire.send({"failure": self._failure})

    def _take(self, message: Message) -> None:
        messages.require_known(message, _PARTS)
        if "deputy" in message:
            self._deputy = messages.rank_of(message["deputy"], self._environment.world_size)
        if "first" in message:
            self._first = messages.text_of(message["first"])
        if "done" in message:
            self._released.set()
        if "end" in message:
            text, code = messages.end_of(message["end"])
            self._end(text, code, prints=False)

    def _lose_hub(self, text: str) -> None:
        """End the job because rank 0's hub is lost. The deputy prints the message."""
        if self._left.is_set() or self._finished or self._ended.is_set():
            return
        if self._failure is not None and self._failure["kind"] == Kind.RAISED:
            self._end_alone()
        else:
            if self._wire is not None:
                self._wire.send({"over": text})
            cause = Cause(Kind.ENDED, 0, text)
            self._end(cause.message, cause.code, prints=self._environment.rank == self._deputy)

    def _end(self, text: str, code: int, prints: bool) -> None:
        """End the job on this rank: let the main thread unwind, and kill the process if it does not."""
        if self._ended.is_set():
            return
        if prints:
            briefly("watch-print", lambda: print(printable(text), file=sys.stderr, flush=True))
        self._code, self._reason = code, text
        self._ended.set()
        guarded("watch-end", lambda: self._expire(text), self._fail_ending).start()

    def _expire(self, text: str) -> None:
        log = self.progress.log
        if log is not None:
            log.arm_timeout(self._timeouts.forced_seconds, or_exit=True)
        # Each in its own thread, because a disk may hang. Not through `logging`, because a main thread that is stuck
        # while it logs holds the lock.
        briefly("watch-dump", lambda: self._dump(text), self._timeouts.dump_seconds)
        briefly("watch-on-end", lambda: self.progress.on_end(text, self._code), self._timeouts.dump_seconds)
        self._dumped.set()
        if not self._left.wait(self._timeouts.unwind_seconds):
            briefly("temporary-folder-end", leave_temporary_folder)
            os._exit(self._code)

    def _dump(self, text: str) -> None:
        log = self.progress.log
        if log is None:
            return
        log.write(f"the job ends: {text}\n")
        if self._hub is not None and self._hub.table:
            log.write(f"{self._hub.table}\n")
        if self._code == failures.EXIT_FAILED:  # after bad input, the message is sufficient
            log.write(describe_process(str(self.progress.mark), stacks=self._failure is None))

    def _fail_watching(self, error: BaseException) -> None:
        """End the job because this rank's watchdog thread has failed: the rank would be silent to the hub."""
        text = failed_watchdog(error)
        if self._failure is None:
            self._failure = {"kind": int(Kind.RAISED), "text": text, "code": failures.EXIT_FAILED}
        is_sent = self._wire is not None and self._wire.send({"failure": self._failure})
        cause = Cause(Kind.RAISED, self._environment.rank, text)
        self._end(cause.message, cause.code, prints=not is_sent)

    def _fail_ending(self, error: BaseException) -> None:
        """Exit even if ending the job has failed on this rank."""
        briefly("watch-log", lambda: log_failure("watch-end", error))
        os._exit(self._code)

    def _close_sockets(self) -> None:
        """Close all sockets. Also called in a forked process, whose copies would keep connections open when this
        process ends."""
        if self._wire is not None:
            self._wire.close()
        if self._hub is not None:
            self._hub.close_sockets()
