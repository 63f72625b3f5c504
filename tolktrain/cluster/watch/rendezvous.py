"""How a rank finds rank 0's hub, and how both authenticate each other.

The hub's port is published in torch's store, to which anybody can write who reaches it. So a rank trusts the other side
only after it has proved that it knows the job's secret.
"""

import contextlib
import errno
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.watch import messages
from tolktrain.cluster.watch.failures import OTHER_SECRET, SILENCE_SECONDS
from tolktrain.cluster.watch.secret import job_key, session_keys
from tolktrain.cluster.watch.wire import Message, Wire, WireError
from tolktrain.errors import UserError

Address = tuple[str, int]

CONNECT_SECONDS = 10.0
FIRST_LINE_SECONDS = 30.0  # of the hub; some thousand strangers may be in the queue before this rank
REFUSALS_REPORTED = 20  # in a row; a hub under attack refuses ranks now and then

logger = logging.getLogger(__name__)


class Rendezvous:
    """The rendezvous of one rank with rank 0."""

    def __init__(self, environment: ProcessEnvironment, tcp_store: Any) -> None:
        """`tcp_store` is torch's class; the main thread imports it.

        Raises:
            UserError: the job has no secret.
        """
        self.key = job_key(environment.master_port, environment.world_size)
        self._environment = environment
        self._tcp_store = tcp_store
        self._store: Any = None  # rank 0 keeps the store open until it ends
        self._refusals = 0

    @classmethod
    def refuse_taken_port(cls, environment: ProcessEnvironment) -> None:
        """Raise UserError if another process listens on the port that rank 0 is about to open. Called before torch is
        imported, which takes long on a network file system."""
        if environment.rank != 0 or _agent_serves():
            return
        try:  # as torch: if this port of IPv4 is taken, so is one of both versions
            socket.create_server(("", environment.master_port)).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _cannot_open(environment, "another process listens there") from error

    def publish(self, port: int) -> None:
        """Open the store on rank 0 and publish the hub's port. Raises UserError if the store cannot be opened."""
        self._store = self._connect()
        self._store.set(_store_key(), str(port))

    def find_hub(self) -> Address | None:
        """The hub's address according to the store; None if it is not known yet."""
        address = (self._environment.master_address, self._environment.master_port)
        try:
            if self._store is None and _listens(address):  # torch would print warnings while it waits
                self._store = self._connect()
            if self._store is None or not self._store.check([_store_key()]):
                return None
            port = bytes(self._store.get(_store_key()))
        except RuntimeError:
            self._store = None
            return None
        # Validated, because anybody may have written it.
        return (address[0], int(port)) if port.isdigit() and len(port) < 6 and 0 < int(port) < 1 << 16 else None

    def greet(self, address: Address, has_left: Callable[[], bool]) -> Wire | None:
        """A connection on which both sides are authenticated; None if there is none now."""
        with contextlib.suppress(OSError):
            wire = Wire(socket.create_connection(address, timeout=CONNECT_SECONDS))
            try:
                self._prove(wire, has_left)
            except (WireError, ValueError):
                wire.close()
                self._note_refusal(address)
            else:
                self._refusals = 0
                return wire
        return None

    @property
    def failure(self) -> str:
        """The message if rank 0 was not found in time."""
        address = f"{self._environment.master_address}:{self._environment.master_port}"
        if self._refusals:
            return f"has not proved to be of this job at the port that {address} names; {OTHER_SECRET}"
        return f"has not opened the rendezvous at {address}; it did not start"

    def _prove(self, wire: Wire, has_left: Callable[[], bool]) -> None:
        rank = self._environment.rank
        hub_nonce = messages.nonce_of(_first_message(wire, FIRST_LINE_SECONDS, has_left))
        nonce = secrets.token_hex(messages.NONCE_BYTES)
        to_rank, to_hub = session_keys(self.key, rank, hub_nonce, nonce)
        wire.send({"rank": rank, "nonce": nonce})
        wire.seal(outgoing=to_hub, incoming=to_rank)
        wire.send({})
        # Rank 0 may be busy in a library that holds the interpreter lock.
        messages.require_known(_first_message(wire, SILENCE_SECONDS, has_left), frozenset())

    def _note_refusal(self, address: Address) -> None:
        self._refusals += 1
        if self._refusals == REFUSALS_REPORTED:
            logger.warning(
                "what listens at %s:%d has refused this rank %d times, or is not rank 0's watchdog; %s",
                *(*address, self._refusals, OTHER_SECRET),
            )

    def _connect(self) -> Any:
        """The store that torch's process group will use too."""
        host, port = self._environment.master_address, self._environment.master_port
        serves = self._environment.rank == 0 and not _agent_serves()
        try:
            return self._tcp_store(
                host, port, is_master=serves, timeout=timedelta(seconds=30), wait_for_workers=False, multi_tenant=serves
            )
        except RuntimeError as error:
            if not serves:
                raise
            raise _cannot_open(self._environment, str(error).splitlines()[0]) from error


def _agent_serves() -> bool:
    """Whether torchrun has opened the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _cannot_open(environment: ProcessEnvironment, reason: str) -> UserError:
    return UserError(
        f"rank 0 cannot open the rendezvous at {environment.master_address}:{environment.master_port}: {reason}; set"
        " MASTER_PORT to a free port, and MASTER_ADDR to rank 0's machine"
    )


def _first_message(wire: Wire, seconds: float, has_left: Callable[[], bool]) -> Message:
    """The next message. Raises WireError if it does not arrive within `seconds`, even if bytes arrive slowly."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not has_left():
        if wire.wait(0.2):
            for message in wire.receive():
                return message
    raise WireError("")


def _store_key() -> str:
    """The key of the hub's port in the store. It contains the restart count, since the store survives torchrun's
    restarts."""
    return f"tolktrain/watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _listens(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=2.0).close()
    except OSError:
        return False
    return True
