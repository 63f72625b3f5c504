"""Whoever reaches the watchdog's port, or pretends to be it, changes nothing: not for the job, nor for its ranks."""

import contextlib
import hashlib
import hmac
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from played_ranks import KEY, Crowd, need_files
from test_wire import GARBAGE

from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.watch import failures, listener, rendezvous
from tolktrain.cluster.watch.hub import Hub, Limits
from tolktrain.cluster.watch.rendezvous import Rendezvous
from tolktrain.cluster.watch.wire import Wire, WireError

NUM_RANKS = 3
ZEROS = "0" * 32


@pytest.fixture
def new_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One that waits for its ranks, and judges as soon as one of them fails."""
    monkeypatch.setattr(failures, "SETTLE_SECONDS", 0.0)
    hub = Hub(Limits(NUM_RANKS), KEY)
    hub.start()
    yield hub
    hub.close()


@pytest.fixture
def hub(new_hub: Hub) -> Iterator[Hub]:
    """The same; after the test it works as ever."""
    yield new_hub
    check_that_it_works(new_hub, Crowd(new_hub.port, range(NUM_RANKS)))


def check_that_it_works(hub: Hub, *crowds: Crowd) -> None:
    """All ranks come in, one fails, and all hear of it."""
    for crowd in crowds:
        crowd.join()
    crowds[0].say(lambda rank: {"failure": {"kind": 1, "text": "a defect", "code": 7}}, list(crowds[0].ranks)[-1:])
    for crowd in crowds:
        crowd.play(lambda: all(rank.end for rank in crowd.ranks.values()))  # noqa: B023
        assert all("error: a defect" in str(rank.end) for rank in crowd.ranks.values())
    for crowd in crowds:
        crowd.hang_up()


def connect(hub: Hub) -> socket.socket:
    return socket.create_connection(("127.0.0.1", hub.port), timeout=300)


def is_closed(stranger: socket.socket) -> bool:
    """Whether the hub hangs up before a timeout."""
    try:
        while stranger.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def nonce_from(stranger: socket.socket) -> str:
    """What the hub says first."""
    line = b""
    while not line.endswith(b"\n"):
        line += stranger.recv(1)
    return str(json.loads(line)["nonce"])


def proof(key: bytes, content: bytes, number: int = 1) -> bytes:
    return hmac.new(key, number.to_bytes(8, "big") + content, hashlib.sha256).hexdigest().encode() + content + b"\n"


def greeting(rank: object, hub_nonce: str, key: bytes = KEY, nonce: str = ZEROS) -> tuple[bytes, bytes, bytes]:
    """What a rank sends first, as the protocol defines it, and the keys of both directions."""
    session = f"{rank} {hub_nonce} {nonce}".encode()
    to_hub, to_rank = (hmac.new(key, side + session, hashlib.sha256).digest() for side in (b"rank ", b"hub "))
    return json.dumps({"rank": rank, "nonce": nonce}).encode() + b"\n", to_hub, to_rank


@pytest.mark.parametrize("line", GARBAGE)
def test_garbage_ends_its_own_connection_alone(hub: Hub, line: bytes) -> None:
    other = connect(hub)
    with connect(hub) as stranger:
        stranger.sendall(line + b"\r\n")
        assert is_closed(stranger)
    hello, to_hub, to_rank = greeting(1, nonce_from(other))
    other.sendall(hello + proof(to_hub, b"{}"))
    assert other.recv(100) == proof(to_rank, b"{}")
    other.close()


FORGED: dict[str, Any] = {
    **{
        f"the rank {rank!r:.20}": {"rank": rank, "nonce": ZEROS}
        for rank in (-1, 3, 10**40, 1.0, "1", None, True, [], {})
    },
    **{
        f"the nonce {nonce!r:.20}": {"rank": 1, "nonce": nonce} for nonce in ("", "0" * 31, "ü" * 32, 0, None, [], True)
    },
    "too little": {"rank": 1},
    "too much": {"rank": 1, "nonce": ZEROS, "token": "x"},
    "a token": {"rank": 1, "token": None},
    "a failure": {"failure": {"kind": 0, "text": "x", "code": 1}},
    "the end": {"over": "x"},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_greeting(hub: Hub, name: str) -> None:
    with connect(hub) as stranger:
        stranger.sendall(json.dumps(FORGED[name]).encode() + b"\n")
        assert is_closed(stranger)


@pytest.mark.parametrize("proved", ["nothing", "another key", "another rank", "another session", "the other direction"])
def test_a_greeting_without_the_secret(hub: Hub, proved: str) -> None:
    with connect(hub) as stranger:
        nonce = nonce_from(stranger)
        hello, to_hub, to_rank = greeting(1, nonce)
        keys = {
            "another key": greeting(1, nonce, b"guessed")[1],
            "another rank": greeting(2, nonce)[1],
            "another session": greeting(1, "f" * 32)[1],
            "the other direction": to_rank,
        }
        over = b'{"over": "rank 0 is silent"}'
        stranger.sendall(hello + (over + b"\n" if proved == "nothing" else proof(keys[proved], over)))
        assert is_closed(stranger)


def test_one_who_proves_it_is_answered_with_a_proof(hub: Hub) -> None:
    with connect(hub) as rank:
        hello, to_hub, to_rank = greeting(1, nonce_from(rank))
        rank.sendall(hello + proof(to_hub, b"{}"))
        assert rank.recv(100) == proof(to_rank, b"{}")


def test_a_rank_that_leaves_before_it_has_joined_is_not_lost(hub: Hub) -> None:
    """It was stopped while it greeted, and greets again. The fixture's ranks come in afterwards."""
    for _ in range(3):
        with connect(hub) as rank:
            hello, to_hub, _ = greeting(1, nonce_from(rank))
            rank.sendall(hello + proof(to_hub, b"{}"))
            rank.recv(100)


def test_a_rank_is_not_greeted_twice_while_it_lives(new_hub: Hub) -> None:
    first = Crowd(new_hub.port, [1])
    first.join()
    with connect(new_hub) as second:
        hello, to_hub, _ = greeting(1, nonce_from(second))
        second.sendall(hello + proof(to_hub, b"{}") + proof(to_hub, b'{"over": "x"}', 2))
        assert is_closed(second)
    check_that_it_works(new_hub, first, Crowd(new_hub.port, [0, 2]))


def test_a_line_without_end(hub: Hub) -> None:
    with connect(hub) as stranger, contextlib.suppress(ConnectionError):
        stranger.settimeout(20)
        sent = 0
        while sent < 1 << 28:
            sent += stranger.send(b"x" * (1 << 16))
        raise AssertionError("it takes all of it")


def test_one_that_says_nothing_has_ten_seconds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listener.GREETING_SECONDS == 10
    monkeypatch.setattr(listener, "GREETING_SECONDS", 0.5)
    silent, slow = connect(hub), connect(hub)

    def drip() -> None:
        with contextlib.suppress(OSError):
            while True:
                slow.sendall(b"x")
                time.sleep(0.05)

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    assert is_closed(silent) and is_closed(slow)
    silent.close()
    slow.close()
    dripping.join()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_thousand_idle_connections_keep_no_rank_out(new_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of them a few dozen are open at a time, and the ranks come in meanwhile."""
    monkeypatch.setattr(listener, "ACCEPTED_PER_SECOND", 10 * listener.ACCEPTED_PER_SECOND)
    need_files(2500)
    before = open_files()
    strangers = []
    for _ in range(2000):
        stranger = socket.socket()
        stranger.setblocking(False)
        stranger.connect_ex(("127.0.0.1", new_hub.port))
        strangers.append(stranger)
    crowd = Crowd(new_hub.port, [0, 2])
    crowd.join()
    most = NUM_RANKS + listener.SPARE_CONNECTIONS + 2 + 10
    assert open_files() - before - len(strangers) <= most
    check_that_it_works(new_hub, crowd, Crowd(new_hub.port, [1]))
    for stranger in strangers:
        stranger.close()


def test_strangers_from_one_address_push_out_each_other() -> None:
    """A rank that is on its way is from another one."""
    hub = Hub(Limits(1), KEY)
    hub.start()
    with socket.create_connection(("127.0.0.1", hub.port), 5, source_address=("127.0.0.2", 0)) as rank:
        nonce = nonce_from(rank)
        strangers = [connect(hub) for _ in range(300)]
        hello, to_hub, to_rank = greeting(0, nonce)
        rank.sendall(hello + proof(to_hub, b"{}"))
        assert rank.recv(100) == proof(to_rank, b"{}")
        for stranger in strangers:
            stranger.close()
    hub.close()


def test_many_greetings_a_second_cost_little(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """After as many as there are ranks and a few more, so many a second are accepted: no more than work is done for."""
    accepted = 0
    admit = listener.Listener._admit

    def counted(self: listener.Listener, peer: listener.Peer) -> None:
        nonlocal accepted
        accepted += 1
        admit(self, peer)

    monkeypatch.setattr(listener.Listener, "_admit", counted)
    begun = time.monotonic()
    for _ in range(1500):
        with socket.socket() as stranger:
            stranger.setblocking(False)
            stranger.connect_ex(("127.0.0.1", hub.port))
            with contextlib.suppress(OSError):
                stranger.send(b"1\n")
    budget = NUM_RANKS + listener.SPARE_CONNECTIONS + listener.ACCEPTED_PER_SECOND * (time.monotonic() - begun + 0.2)
    assert accepted <= budget
    monkeypatch.setattr(
        listener, "ACCEPTED_PER_SECOND", 10 * listener.ACCEPTED_PER_SECOND
    )  # for the ranks, which come last


def test_ten_thousand_random_messages(hub: Hub) -> None:
    draw = random.Random(0)
    good = [json.dumps(content).encode() for content in FORGED.values()]
    for _ in range(200):
        with connect(hub) as stranger, contextlib.suppress(ConnectionError):
            lines = []
            for _ in range(50):
                line = bytearray(draw.choice(good) if draw.random() < 0.7 else draw.randbytes(draw.randrange(200)))
                for _ in range(draw.randrange(3) if line else 0):
                    line[draw.randrange(len(line))] = draw.randrange(256)
                lines.append(bytes(line))
            stranger.sendall(b"\n".join(lines) + b"\n")
            assert is_closed(stranger)


def test_a_rank_waits_longer_than_a_full_queue_lasts() -> None:
    assert listener._BACKLOG / listener.ACCEPTED_PER_SECOND < rendezvous.FIRST_LINE_SECONDS


def test_without_free_descriptors_the_hub_waits_and_works_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 0
    accept = socket.socket.accept

    def refused(self: socket.socket) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 5:
            raise OSError(24, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", refused)
    with connect(hub) as rank:
        assert len(nonce_from(rank)) == 32
    assert 5 < failures < 20, "it does not try again and again"


def test_when_all_ranks_have_come_the_port_is_closed() -> None:
    hub = Hub(Limits(2), KEY)
    hub.start()
    stranger = connect(hub)
    crowd = Crowd(hub.port, range(2))
    crowd.join()
    assert is_closed(stranger)
    deadline = time.monotonic() + 300
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:  # the port is closed after the connections
            with contextlib.suppress(ConnectionResetError):  # closed meanwhile
                connect(hub).close()
    crowd.say(lambda rank: rank.state(finished=True))
    crowd.play(lambda: not hub.is_busy(everyone=True))
    crowd.hang_up()
    hub.close()


BROKEN_MESSAGES: list[dict[str, Any]] = [
    {"state": None},
    {"state": {"rank": 2}},
    {"failure": {"kind": 9, "text": "x", "code": 1}},
    {"failure": {"kind": 0, "text": 1, "code": 1}},
    {"over": 3},
    {"unknown": 1},
]


@pytest.mark.parametrize("message", BROKEN_MESSAGES)
def test_a_rank_of_another_version_is_named(message: dict[str, Any], capfd: Any) -> None:
    hub = Hub(Limits(3), KEY)
    hub.start()
    crowd = Crowd(hub.port, range(3))
    crowd.join()
    crowd.say(lambda rank: message, [1])
    others = [crowd.ranks[0], crowd.ranks[2]]
    crowd.play(lambda: all(rank.end for rank in others))
    assert all(
        "rank 1: error: its connection to rank 0 was closed for ValueError: " in str(rank.end) for rank in others
    )
    crowd.hang_up()
    hub.close()
    assert capfd.readouterr().err.count("\n") == 1


def make_rendezvous(rank: int, num_ranks: int = 2) -> Rendezvous:
    found = Rendezvous(ProcessEnvironment("torchrun", rank, num_ranks, rank, num_ranks, "127.0.0.1", 29_999), None)
    found.key = KEY
    return found


class Impostor:
    """Listens where the store, to which anybody can write, says that the hub does."""

    def __init__(self, serve: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        self._serve = serve
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            self._serve(connection)


END = b'{"end": {"text": "rank 0: error: forged", "code": 1}}\n'


def answer_at_once(connection: socket.socket) -> None:
    connection.sendall(END + b'{"done": true}\n')


def answer_the_greeting(connection: socket.socket) -> None:
    connection.sendall(json.dumps({"nonce": ZEROS}).encode() + b"\n")
    connection.recv(1000)
    connection.sendall(END)


def send_back_the_greeting(connection: socket.socket) -> None:
    connection.sendall(json.dumps({"nonce": ZEROS}).encode() + b"\n")
    while data := connection.recv(1000):
        connection.sendall(data.split(b"\n")[-2] + b"\n")


def never_stop(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 1000)


@pytest.mark.parametrize("serve", [answer_at_once, answer_the_greeting, send_back_the_greeting, never_stop])
def test_a_rank_obeys_no_impostor(serve: Any) -> None:
    assert make_rendezvous(1).greet(Impostor(serve).address, lambda: False) is None


def test_nor_waits_for_one_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_LINE_SECONDS", 0.5)
    assert make_rendezvous(1).greet(Impostor(lambda connection: time.sleep(60)).address, lambda: False) is None
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()[:2]
    assert make_rendezvous(1).greet(address, lambda: False) is None


def test_who_passes_on_what_both_ends_say_can_add_nothing(hub: Hub) -> None:
    """It may cut the connection; it had been between them anyway."""
    added, read = threading.Event(), threading.Event()

    def relay(connection: socket.socket) -> None:
        with connect(hub) as real:
            connection.sendall(real.recv(1000))
            for _ in range(2):  # the greeting, in one piece or in two
                if not connection.recv(1, socket.MSG_PEEK):
                    break
                real.sendall(connection.recv(1000))
                real.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    connection.sendall(real.recv(1000))
                    break
            connection.sendall(END)
            added.set()
            read.wait(300)

    wire = make_rendezvous(1, NUM_RANKS).greet(Impostor(relay).address, lambda: False)
    assert isinstance(wire, Wire) and added.wait(300)
    with pytest.raises(WireError, match="without a valid proof"):
        while True:
            wire.wait(5)
            assert list(wire.receive()) == []
    read.set()
    wire.close()


def test_a_store_that_lies() -> None:
    class Store:
        said = b""

        def check(self, keys: list[str]) -> bool:
            return True

        def get(self, key: str) -> bytes:
            return self.said

    found = make_rendezvous(1)
    found._store = Store()
    for lie in (b"", b"x", b"0", b"65536", b"-1", b"1 2", b"9" * 5000, b"\xff", "٣".encode(), b"12 token"):
        Store.said = lie
        assert found.find_hub() is None
    Store.said = b"1234"
    assert found.find_hub() == ("127.0.0.1", 1234)


def test_ranks_with_different_secrets_are_told_what_to_set(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    hub = Hub(Limits(2, hang_seconds=2.0), KEY)
    hub.start()
    other = make_rendezvous(1)
    other.key = b"of another file"
    for _ in range(rendezvous.REFUSALS_REPORTED):
        assert other.greet(("127.0.0.1", hub.port), lambda: False) is None
    assert "TOLKTRAIN_JOB_SECRET" in other.failure and caplog.text.count("TOLKTRAIN_JOB_SECRET") == 1
    crowd = Crowd(hub.port, [0])
    crowd.join()

    def beaten() -> bool:
        crowd.say(lambda rank: rank.state())
        return crowd.ranks[0].end is not None

    crowd.play(beaten)
    assert "rank 1: error: has not joined the others within 2 s" in str(crowd.ranks[0].end)
    assert f"{rendezvous.REFUSALS_REPORTED} greetings with another secret were refused: set" in str(crowd.ranks[0].end)
    crowd.hang_up()
    hub.close()
