"""The agent and its key process: what crosses between them, in which order, and what happens when one of them ends.

The process itself is forked by interpreters of their own, because it must be forked before there is a thread.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cloister import errors
from cloister.client.keybroker import ReleasedResource
from cloister.errors import CloisterError, FormatRefused, KeyReleaseDenied, RequestRefused, Unavailable
from cloister.guest import keymessages as messages
from cloister.guest.keyprocess import KeyProcess, KeyProxy
from cloister.guest.keyservice import INIT_DATA_PCR, KeyService, serve
from cloister.protocol.initdata import AGENT_ENTRY, BrokerAddress, broker_entry, build_initdata
from cloister.protocol.resourceuri import ResourcePath
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.registry import Attester
from cloister.wire.limits import KEY_ANSWER_BYTES, KEY_REQUEST_BYTES, RESOURCE_BYTES

SOURCE = Path(__file__).resolve().parents[3] / "src"
PATH = ResourcePath("a", "b", "c")
BROKER = BrokerAddress(url="https://10.0.2.2:1", ca_pem="-----BEGIN CERTIFICATE-----", insecure_no_release_log=True)
DATA = build_initdata({AGENT_ENTRY: broker_entry(BROKER)})
SECONDS = 20.0
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not CloisterError]


class Client:
    """A broker client without a broker."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.token = ""
        self.wiped = threading.Event()
        self.gate: threading.Event | None = None

    def attest(self) -> str:
        if self.gate is not None:
            self.gate.wait(SECONDS)
        if self.error is not None:
            raise self.error
        self.token = "a.jwt"
        return self.token

    def release(self, path: ResourcePath) -> ReleasedResource:
        if path != PATH:
            raise KeyReleaseDenied("trust.release.denied", "no", path="d-abcdefghij")
        return ReleasedResource(content=b"k" * 32, lease_seconds=90)

    def wipe(self) -> None:
        self.wiped.set()


class World:
    """A proxy, and the service on the other end, on a thread."""

    def __init__(self, place: Path) -> None:
        self.device = SimulationAttester(str(place / "key"))
        self.client = Client()
        self.connected: list[tuple[BrokerAddress, str]] = []
        ours, self.theirs = socket.socketpair()
        self.ours = ours
        self.proxy = KeyProxy(ours)
        self.service = KeyService(self.device, self._connect)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _connect(self, broker: BrokerAddress, attester: Attester, init_data: str) -> Client:
        assert attester is self.device
        self.connected.append((broker, init_data))
        return self.client

    def _serve(self) -> None:
        with self.theirs:
            serve(self.theirs, self.service.answer)
            self.service.wipe()

    def register(self) -> bytes:
        return self.device.read_pcrs()[INIT_DATA_PCR]

    def opened(self) -> KeyProxy:
        self.proxy.extend(DATA.digest)
        self.proxy.open(DATA.text)
        return self.proxy

    def close(self) -> None:
        self.proxy.wipe()
        self.thread.join(SECONDS)
        self.ours.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value.code


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def packed(message: msgspec.Struct) -> bytes:
    return framed(msgspec.msgpack.encode(message))


# --- what crosses ---


def test_all_five_requests(world: World) -> None:
    world.proxy.extend(DATA.digest)
    assert world.register() == hashlib.sha256(bytes(32) + DATA.digest).digest()
    assert world.connected == []
    world.proxy.open(DATA.text)
    assert world.connected == [(BROKER, DATA.text.decode())]
    assert world.proxy.token == ""
    world.proxy.attest()
    assert world.proxy.token == "a.jwt"
    secret, lease = world.proxy.release(PATH)
    assert lease == 90
    assert isinstance(secret, bytearray)
    assert secret == b"k" * 32


@pytest.mark.parametrize("size", [0, 1, 300_000, RESOURCE_BYTES])
def test_resources_of_any_size_cross(world: World, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    proxy = world.opened()
    monkeypatch.setattr(world.client, "release", lambda path: ReleasedResource(content=b"x" * size, lease_seconds=0))
    assert proxy.release(PATH) == (b"x" * size, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_crosses_as_it_is(world: World, kind: type[CloisterError]) -> None:
    error = kind(
        "trust.appraisal.level",
        "level below policy; launch differs: expected 5f3a, got 0000",
        path="d-abcdefghij",
        expected="measured",
        actual="simulated",
        hint="see cloister explain",
    )
    proxy = world.opened()
    world.client.error = error
    with pytest.raises(kind) as caught:
        proxy.attest()
    assert type(caught.value) is kind
    assert caught.value.code == error.code
    assert caught.value.as_dict() == error.as_dict()
    world.client.error = None
    proxy.attest()  # and the connection is as good as before


def test_a_denied_resource_names_its_denial(world: World) -> None:
    proxy = world.opened()
    with pytest.raises(KeyReleaseDenied) as caught:
        proxy.release(ResourcePath("x", "y", "z"))
    assert (caught.value.code, caught.value.path) == ("trust.release.denied", "d-abcdefghij")


def test_a_foreign_error_crosses_without_its_text(world: World) -> None:
    proxy = world.opened()
    world.client.error = ValueError("text with a secret")
    with pytest.raises(Unavailable) as caught:
        proxy.attest()
    assert (caught.value.code, caught.value.message) == ("guest.internal", "ValueError")


def test_a_message_shows_nothing_of_itself() -> None:
    for message in (messages.Resource(value=memoryview(b"secret")), messages.Token(token="secret")):
        assert "secret" not in repr(message)


def test_threads_take_turns(world: World) -> None:
    proxy = world.opened()
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(bytes(proxy.release(PATH)[0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert got == [b"k" * 32] * 8


# --- the order ---


def test_nothing_is_asked_of_a_broker_before_init_data_names_one(world: World) -> None:
    with pytest.raises(RequestRefused):
        world.proxy.attest()
    for act in (world.proxy.attest, lambda: world.proxy.token, lambda: world.proxy.release(PATH)):
        assert code_of(act) == "guest.keys.order"
    world.proxy.extend(DATA.digest)
    assert code_of(world.proxy.attest) == "guest.keys.order"
    assert world.connected == []


def test_init_data_is_not_taken_before_it_was_measured(world: World) -> None:
    assert code_of(lambda: world.proxy.open(DATA.text)) == "guest.keys.order"
    assert world.connected == []
    assert world.register() == bytes(32)


def test_the_register_is_extended_once(world: World) -> None:
    world.proxy.extend(DATA.digest)
    before = world.register()
    assert code_of(lambda: world.proxy.extend(DATA.digest)) == "guest.keys.order"
    assert world.register() == before


def test_other_init_data_than_was_measured_is_refused(world: World) -> None:
    world.proxy.extend(DATA.digest)
    for text in (DATA.text + b"\n", b"", build_initdata({}).text):
        assert code_of(lambda text=text: world.proxy.open(text)) == "guest.keys.order"
    world.proxy.open(DATA.text)
    assert code_of(lambda: world.proxy.open(DATA.text)) == "guest.keys.order"
    assert len(world.connected) == 1


def test_init_data_without_a_broker_is_refused_by_its_own_code(world: World) -> None:
    empty = build_initdata({})
    world.proxy.extend(empty.digest)
    assert code_of(lambda: world.proxy.open(empty.text)) == "protocol.initdata.missing_entry"
    assert code_of(world.proxy.attest) == "guest.keys.order"


def test_a_register_that_cannot_be_extended_opens_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pcr: int, digest: bytes) -> None:
        raise Unavailable("tee.tpm.command_failed", "the TPM refused")

    monkeypatch.setattr(world.device, "extend", fail)
    assert code_of(lambda: world.proxy.extend(DATA.digest)) == "tee.tpm.command_failed"
    monkeypatch.undo()
    assert code_of(lambda: world.proxy.extend(DATA.digest)) == "guest.keys.order"
    assert code_of(lambda: world.proxy.open(DATA.text)) == "guest.keys.order"


# --- nonsense ---

NO_ANSWERS = {
    "length of zero": framed(b""),
    "length above the ceiling": (KEY_ANSWER_BYTES + 1).to_bytes(4, "big"),
    "longest length": b"\xff" * 4,
    "not MessagePack": framed(b"\xc1"),
    "not a map": framed(msgspec.msgpack.encode([1, 2])),
    "not text": framed(b"\x81\xa4type\xa4\xff\xff\xff\xff"),
    "no kind": framed(msgspec.msgpack.encode({})),
    "unknown kind": framed(msgspec.msgpack.encode({"type": "gift"})),
    "unknown field": framed(msgspec.msgpack.encode({"type": "done", "more": 1})),
    "bytes behind": framed(msgspec.msgpack.encode(messages.Done()) + b"\0"),
    "a request": packed(messages.Open(init_data=b"x")),
    "answer to another request": packed(messages.Token(token="x")),
    "unknown class of refusal": packed(messages.Failure(kind="SystemExit", code="a.b", message="no")),
    "refusal without its code": framed(msgspec.msgpack.encode({"type": "failure", "kind": "Refused"})),
    "field of another type": framed(
        msgspec.msgpack.encode({"type": "failure", "kind": "Refused", "code": 1, "message": "no"})
    ),
    "deep nesting": framed(b"\x91" * 2000),
}


@pytest.mark.parametrize("answer", NO_ANSWERS.values(), ids=list(NO_ANSWERS))
def test_nonsense_is_refused_and_hung_up_on(pair: tuple[socket.socket, socket.socket], answer: bytes) -> None:
    ours, theirs = pair
    proxy = KeyProxy(ours)
    theirs.sendall(answer)
    with pytest.raises(FormatRefused) as caught:
        proxy.attest()
    assert caught.value.code == "guest.keys.malformed"
    assert caught.value.hint
    assert code_of(proxy.attest) == "guest.keys.died"


def test_a_resource_longer_than_one_may_be_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    long = packed(messages.Resource(value=memoryview(bytes(RESOURCE_BYTES + 1))))
    threading.Thread(target=theirs.sendall, args=(long,), daemon=True).start()
    assert code_of(lambda: KeyProxy(ours).release(PATH)) == "guest.keys.malformed"


def test_an_answer_cut_short_at_any_place_is_a_death() -> None:
    whole = packed(messages.Failure(kind="Refused", code="a.b", message="no", path="d-abcdefghij"))
    for length in range(len(whole)):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                theirs.sendall(whole[:length])
            assert code_of(KeyProxy(ours).attest) == "guest.keys.died"


NO_REQUESTS = {
    "length of zero": framed(b""),
    "length above the ceiling": (KEY_REQUEST_BYTES + 1).to_bytes(4, "big"),
    "not MessagePack": framed(b"\xc1"),
    "unknown kind": framed(msgspec.msgpack.encode({"type": "run"})),
    "unknown field": framed(msgspec.msgpack.encode({"type": "attest", "pcr": 0})),
    "an answer": packed(messages.Failure(kind="Refused", code="a.b", message="no")),
    "short digest": framed(msgspec.msgpack.encode({"type": "extend", "digest": bytes(31)})),
    "long digest": framed(msgspec.msgpack.encode({"type": "extend", "digest": bytes(33)})),
    "long path": framed(msgspec.msgpack.encode({"type": "resource", "path": "a" * 401})),
    "path that is no text": framed(b"\x82\xa4type\xa8resource\xa4path\xa1\xff"),
}


@pytest.mark.parametrize("request_", NO_REQUESTS.values(), ids=list(NO_REQUESTS))
def test_a_request_that_is_none_ends_the_key_process(world: World, request_: bytes) -> None:
    world.opened()
    world.ours.sendall(request_)
    world.thread.join(SECONDS)
    assert not world.thread.is_alive()
    assert world.client.wiped.is_set()
    assert code_of(world.proxy.attest) == "guest.keys.died"


def test_a_request_cut_short_at_any_place_ends_it(tmp_path: Path) -> None:
    whole = packed(messages.Extend(digest=DATA.digest))
    for length in range(0, len(whole), 5):
        world = World(tmp_path)
        world.ours.sendall(whole[:length])
        world.ours.shutdown(socket.SHUT_WR)
        world.thread.join(SECONDS)
        assert not world.thread.is_alive()
        assert world.register() == bytes(32)
        world.close()


def test_a_path_that_is_none_is_refused(world: World) -> None:
    world.opened()
    world.ours.sendall(packed(messages.GetResource(path="../x")))
    failure = messages.decode_answer(messages.receive_answer(world.ours))
    assert isinstance(failure, messages.Failure)
    assert failure.code == "protocol.resource.malformed"


def test_our_own_message_above_its_ceiling_is_a_bug(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(RuntimeError):
        messages.send_request(pair[0], messages.Open(init_data=bytes(KEY_REQUEST_BYTES)))


# --- what is left behind ---


class Wire:
    """Keeps the buffers that are sent."""

    def __init__(self) -> None:
        self.buffers: list[bytearray] = []
        self.copies: list[bytes] = []

    def sendall(self, data: bytearray) -> None:
        self.buffers.append(data)
        self.copies.append(bytes(data))


def test_what_was_sent_is_overwritten() -> None:
    wire = Wire()
    answer = messages.Resource(value=memoryview(b"k" * 32))
    messages.send_answer(wire, answer)  # type: ignore[arg-type]  # only `sendall` of it is used
    assert b"k" * 32 in wire.copies[0]
    assert not any(wire.buffers[0])


@pytest.mark.parametrize("path", [PATH, ResourcePath("x", "y", "z")], ids=["given", "denied"])
def test_what_was_received_is_overwritten(world: World, monkeypatch: pytest.MonkeyPatch, path: ResourcePath) -> None:
    received: list[bytearray] = []
    receive = messages.receive_answer

    def kept(connection: socket.socket) -> bytearray:
        received.append(receive(connection))
        return received[-1]

    proxy = world.opened()
    monkeypatch.setattr(messages, "receive_answer", kept)
    if path == PATH:
        assert proxy.release(path)[0] == b"k" * 32  # a copy, which the caller overwrites
    else:
        assert code_of(lambda: proxy.release(path)) == "trust.release.denied"
    assert not any(received[0])


def test_hanging_up_wipes_the_client(world: World) -> None:
    proxy = world.opened()
    proxy.attest()
    proxy.wipe()
    assert world.client.wiped.wait(SECONDS)
    assert code_of(proxy.attest) == "guest.keys.died"
    proxy.wipe()  # once more harms nothing


def test_whoever_waits_learns_of_the_hanging_up(world: World) -> None:
    proxy = world.opened()
    world.client.gate = threading.Event()
    codes: list[str] = []
    waiting = threading.Thread(target=lambda: codes.append(code_of(proxy.attest)), daemon=True)
    waiting.start()
    while not proxy._lock.locked():
        pass
    proxy.wipe()
    waiting.join(SECONDS)
    assert codes == ["guest.keys.died"]
    world.client.gate.set()


# --- the process ---


def forked(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that forks, in a fresh interpreter like the agent's."""
    start = f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {sysconfig.get_path('purelib')!r}]\n"
    return subprocess.run(
        [sys.executable, "-ISB", "-c", start + program], capture_output=True, text=True, timeout=60, check=False
    )


FORK = """
import os
from cloister.guest.keyfork import fork_key_process
agent = os.getpid()
"""
PROCESS = """
import _socket
from cloister.guest.keyprocess import KeyProcess, KeyProxy
def process(pid, descriptor): return KeyProcess(pid, KeyProxy(_socket.socket(fileno=descriptor)))
"""


def test_child_says_nothing_whatever_happens_in_it() -> None:
    result = forked(
        f"{FORK}{PROCESS}"
        "def fail(connection): raise ValueError('secret-canary')\n"
        "keys = process(*fork_key_process(fail))\n"
        "died = []\n"
        "keys.watch(lambda err: died.append(err.code))\n"
        "keys._ended.wait(20)\n"
        "keys.end()\n"
        "print(died, keys._ended.is_set())\n"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "['guest.keys.died'] True\n"


def test_an_end_that_was_asked_for_is_no_death() -> None:
    result = forked(
        f"{FORK}{PROCESS}"
        "keys = process(*fork_key_process(lambda connection: os.read(connection, 1)))\n"
        "died = []\n"
        "with keys: keys.watch(lambda err: died.append(err.code))\n"
        "print(died, os.path.exists(f'/proc/{keys.pid}'))\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "[] False\n", "")


def test_a_child_that_does_not_hear_is_killed() -> None:
    result = forked(
        f"{FORK}{PROCESS}"
        "import time\n"
        "keys = process(*fork_key_process(lambda connection: time.sleep(600)))\n"
        "with keys: pass\n"
        "print(os.path.exists(f'/proc/{keys.pid}'))\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "False\n", "")


def test_both_ends_stay_out_of_started_programs() -> None:
    result = forked(
        f"{FORK}"
        "pid, ours = fork_key_process(lambda theirs: os.write(theirs, b'%d' % os.get_inheritable(theirs)))\n"
        "print(os.get_inheritable(ours), os.read(ours, 1), os.read(ours, 1))\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "False b'0' b''\n", "")


def test_child_is_shut_in() -> None:
    """Nobody reads its memory, it has no console, the kernel kills it with the agent, and `ps` shows what it is."""
    result = forked(
        f"{FORK}"
        "def look(connection):\n"
        "    from cloister.guest.keyservice import _shut_in\n"
        "    _shut_in(agent)\n"
        "    import ctypes\n"
        "    libc, signal = ctypes.CDLL(None), ctypes.c_int()\n"
        "    libc.prctl(2, ctypes.byref(signal), 0, 0, 0)\n"
        "    streams = {os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)}\n"
        "    name = open('/proc/self/comm').read().strip()\n"
        "    print('this goes nowhere', flush=True)\n"
        "    os.write(connection, repr((libc.prctl(3, 0, 0, 0, 0), signal.value, streams, name)).encode())\n"
        "pid, ours = fork_key_process(look)\n"
        "print(os.read(ours, 1000).decode())\n"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"(0, {int(signal.SIGKILL)}, {{'/dev/null'}}, 'cloister-keys')\n"


def test_the_kernel_ends_it_with_the_agent() -> None:
    """Also when it hears nothing, because it waits for its broker."""
    result = forked(
        f"{FORK}"
        "def be(connection):\n"
        "    from cloister.guest.keyservice import _shut_in\n"
        "    import time\n"
        "    _shut_in(agent)\n"
        "    os.write(connection, b'x')\n"
        "    time.sleep(600)\n"
        "pid, ours = fork_key_process(be)\n"
        "os.read(ours, 1)\n"
        "print(pid, flush=True)\n"
        "os.kill(agent, 9)\n"
    )
    assert (result.returncode, result.stderr) == (-signal.SIGKILL, "")
    deadline = time.monotonic() + SECONDS
    while _lives(int(result.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_an_orphan_does_not_begin() -> None:
    """A child whose agent ended before the kernel was asked to kill it ends by itself."""
    result = forked(
        f"{FORK}"
        "def look(connection):\n"
        "    from cloister.guest.keyservice import _shut_in\n"
        "    _shut_in(agent + 1)\n"
        "    os.write(connection, b'begun')\n"
        "pid, ours = fork_key_process(look)\n"
        "print(os.read(ours, 1000))\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "b''\n", "")


def test_no_device_is_told_to_whoever_asks() -> None:
    """In no pod VM there is no TPM: the child lives to say so."""
    result = forked(
        f"{FORK}{PROCESS}"
        "from cloister.errors import CloisterError\n"
        "def be(connection):\n"
        "    from cloister.guest import keyservice\n"
        "    from cloister.tee import registry\n"
        "    real = registry.attester_for\n"
        "    registry.attester_for = lambda tee: lambda: real(tee)('/nonexistent')\n"
        "    keyservice.run(connection, [], agent)\n"
        "keys = process(*fork_key_process(be))\n"
        "for act in (lambda: keys.keys.extend(bytes(32)), lambda: keys.keys.open(b''), keys.keys.attest):\n"
        "    try: act()\n"
        "    except CloisterError as err: print(err.code)\n"
        "keys.end()\n"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "tee.tpm.device\n" * 3


def test_death_is_noticed_by_whoever_waits_and_whoever_watches(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    child = subprocess.Popen(["/bin/sleep", "600"])
    process = KeyProcess(child.pid, KeyProxy(ours))
    told: list[CloisterError] = []
    heard = threading.Event()

    def died(error: CloisterError) -> None:
        told.append(error)
        heard.set()

    process.watch(died)
    os.kill(child.pid, signal.SIGKILL)
    theirs.close()
    assert heard.wait(SECONDS)
    assert code_of(process.keys.attest) == told[0].code == "guest.keys.died"
    assert told[0].hint
    process.end()
    child.returncode = -signal.SIGKILL  # it was waited for by its number
