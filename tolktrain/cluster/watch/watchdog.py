"""Ends a job of several processes everywhere when one fails, with one message that names the rank and the cause.

Every rank has a thread that tells rank 0's hub (see `hub`) what the main thread is doing, and hears from it when the
job ends. The main thread says what it does through `Watch.progress`, and how it ends through `finish` or `fail`.
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
from tolktrain.cluster.threads import failed_watchdog, guarded, log_failure
from tolktrain.cluster.watch import failures, messages
from tolktrain.cluster.watch.failures import Cause, Kind, RankState
from tolktrain.cluster.watch.hub import Hub, Limits, RunningClock, briefly
from tolktrain.cluster.watch.messages import shortened
from tolktrain.cluster.watch.rendezvous import Rendezvous
from tolktrain.cluster.watch.wire import Message, Wire, WireError
from tolktrain.files.printable import printable
from tolktrain.files.shared import leave_temporary_folder

_FLUSH_SECONDS = 2.0  # for rank 0 to read that a rank has finished, before that leaves

_PARTS = frozenset({"deputy", "first", "done", "end"})

Describe = Callable[[BaseException], tuple[str, int]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndTimeouts:
    """How long the parts of a job's end may take."""

    unwind_seconds: float = 3.0  # for a main thread to leave by itself, its files closed, once the job is over
    linger_seconds: float = 5.0  # of rank 0 for ranks that start late: else they find nobody and speak for themselves
    detection_seconds: float = 10.0  # that a failed rank waits for the others before it speaks for itself
    dump_seconds: float = 5.0  # for a rank to write where it is; a disk may hang
    forced_seconds: float = 25.0  # until a rank whose every thread is stuck is ended; more than all of them together


END_TIMEOUTS = EndTimeouts()


def collective_timeout(hang_seconds: float) -> timedelta:
    """For `init_process_group`: long enough for the watch, which knows the culprit, to speak first."""
    return timedelta(seconds=hang_seconds + 120)


class Watch:
    """One rank's part in the watch; made by `start`."""

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
        self._first = "starting"  # what rank 0 was last at
        self._code = failures.EXIT_FAILED
        self._ended = threading.Event()  # the job is over
        self._left = threading.Event()  # this rank's part is
        self._dumped = threading.Event()  # it is written down where this rank was
        self._released = threading.Event()  # all ranks have finished
        self._clock = RunningClock()
        self._seen: tuple[Mark, float] = (self.progress.mark, 0.0)
        self._thread = guarded("watch", self._run, self._fail_watching)

    @classmethod
    def start(
        cls, environment: ProcessEnvironment, describe: Describe, timeouts: EndTimeouts = END_TIMEOUTS
    ) -> "Watch":
        """Watch over this process, which is one of several.

        Args:
            environment: its place.
            describe: what the user reads about an error, and the exit code.
            timeouts: how long the end of the job may take.

        Raises:
            UserError: rank 0 cannot open its port, may not have as many connections as there are ranks, or there is no
                secret by which the ranks know each other.
        """
        raise_file_limit(environment)
        record_collectives()
        # In the main thread: two threads that import torch at once may see each other's halves of it.
        import torch.distributed

        watch = cls(environment, describe, Rendezvous(environment, torch.distributed.TCPStore), timeouts)
        if environment.rank == 0:
            watch._open_hub()
        os.register_at_fork(after_in_child=watch._close_sockets)
        watch._thread.start()
        return watch

    def limit(self, hang_seconds: float) -> None:
        """Take over the configured timeout."""
        self._limits.hang_seconds = hang_seconds

    def finish(self, code: int) -> int:
        """This rank has left training as it should, with `code`. Returns it if it is 0, unless another rank fails
        meanwhile; with another code this process ends here, together with all other ranks.

        Together, since launchers end the ranks that are left when the first one leaves with a code that is not 0, with
        another code than theirs. After code 0 rank 0 alone waits: what the others report, and the rendezvous, is there.
        """
        self._finished = True
        self._beat(Whereabouts())
        # With code 0 a rank may leave before it has joined.
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
        """This rank has failed: let one rank tell why, and end this process with the job's exit code."""
        if not self._ended.is_set():
            self._report(error)
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
        self._end(cause.message, cause.code, speak=True)

    def _leave(self) -> NoReturn:
        """End this process when all is said."""
        self._left.set()
        self._dumped.wait(2 * self._timeouts.dump_seconds)
        if self._hub is not None:
            self._hub.all_notified.wait(self._timeouts.linger_seconds)
        self._exit()

    def _exit(self) -> NoReturn:
        briefly("log-end", logging.shutdown)
        briefly("output-end", sys.stdout.flush)
        briefly("temporary-folder-end", leave_temporary_folder)
        # Not through the interpreter's shutdown: it is aborted at times by torch's threads whose peers have gone, and
        # takes longer on one rank than on another.
        os._exit(self._code)

    def _open_hub(self) -> None:
        self._hub = Hub(
            self._limits, self._rendezvous.key, lambda cause: self._end(cause.message, cause.code, speak=False)
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
        """Where this thread cannot run, for another one is stuck with Python's lock, the others take this rank for
        silent. Shortly before that it writes down where it is stuck; the launcher ends it."""
        log = self.progress.log
        if log is not None and not self._ended.is_set():
            log.arm_timeout(0.8 * self._limits.silence_seconds)

    def _join(self) -> Wire | None:
        """Find rank 0's hub. None if this rank has left before."""
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
            self._end(text, code, speak=False)

    def _lose_hub(self, text: str) -> None:
        """Rank 0 has gone, and with it the judge: one of the others speaks."""
        if self._left.is_set() or self._finished or self._ended.is_set():
            return
        if self._failure is not None and self._failure["kind"] == Kind.RAISED:
            self._end_alone()
        else:
            if self._wire is not None:
                self._wire.send({"over": text})
            cause = Cause(Kind.ENDED, 0, text)
            self._end(cause.message, cause.code, speak=self._environment.rank == self._deputy)

    def _end(self, text: str, code: int, speak: bool) -> None:
        """The job is over: let the main thread leave, and end the process if it does not."""
        if self._ended.is_set():
            return
        if speak:
            briefly("watch-print", lambda: print(printable(text), file=sys.stderr, flush=True))
        self._code = code
        self._ended.set()
        guarded("watch-end", lambda: self._expire(text), self._fail_ending).start()

    def _expire(self, text: str) -> None:
        log = self.progress.log
        if log is not None:
            log.arm_timeout(self._timeouts.forced_seconds, or_exit=True)
        # Each in a thread of its own: a disk that hangs would hold up the end. Not through `logging`: a main thread
        # that is stuck while it logs holds the lock.
        briefly("watch-dump", lambda: self._dump(text), self._timeouts.dump_seconds)
        briefly("watch-end-told", lambda: self.progress.on_end(text), self._timeouts.dump_seconds)
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
        if self._code == failures.EXIT_FAILED:  # bad input is told in full by its message
            log.write(describe_process(str(self.progress.mark), stacks=self._failure is None))

    def _fail_watching(self, error: BaseException) -> None:
        """This rank's own watch has failed: the others would find it silent, and it would not hear from them."""
        text = failed_watchdog(error)
        if self._failure is None:
            self._failure = {"kind": int(Kind.RAISED), "text": text, "code": failures.EXIT_FAILED}
        is_sent = self._wire is not None and self._wire.send({"failure": self._failure})
        cause = Cause(Kind.RAISED, self._environment.rank, text)
        self._end(cause.message, cause.code, speak=not is_sent)

    def _fail_ending(self, error: BaseException) -> None:
        """The job is over, and this process must go all the same."""
        briefly("watch-log", lambda: log_failure("watch-end", error))
        os._exit(self._code)

    def _close_sockets(self) -> None:
        """In a forked process too: its copies would keep the connections open when this process dies."""
        if self._wire is not None:
            self._wire.close()
        if self._hub is not None:
            self._hub.close_sockets()
