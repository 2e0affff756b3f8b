"""The key process: the one that makes the ephemeral key, holds it and the token, talks to the broker, owns the TPM.

It is forked before the agent has a thread, a port to the host or anything of the pod. It never sees a byte from the
host but through the agent's five requests (`cloister.guest.keymessages`), answers them one after the other, and ends
with the agent. While the agent loads its own code and talks to the host, this one loads the broker's client and has the
device make its key, on another processor.

The order is enforced here too, so that an agent led astray gains little: register 8 is extended once and first, or
where the platform was launched with the digest in a field of its own (HOST_DATA, MRCONFIGID), that is compared; only
init data of exactly that digest is taken, and it alone names the broker; the device signs nothing before.

Its standard streams are closed, it says nothing on the console, nobody may read its memory or trace it (prctl(2),
`PR_SET_DUMPABLE`), and the kernel kills it when the agent ends (`PR_SET_PDEATHSIG`).
"""

from __future__ import annotations

import _socket
import gc
import hashlib
import hmac
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from cloister.errors import CloisterError, EvidenceError, RequestRefused, Unavailable
from cloister.guest import keymessages as messages

if TYPE_CHECKING:
    from cloister.client.keybroker import ReleasedResource
    from cloister.protocol.initdata import BrokerAddress
    from cloister.protocol.resourceuri import ResourcePath
    from cloister.tee.registry import Attester

INIT_DATA_PCR: Final = 8
LIBRARIES: Final = (
    "cloister.crypto.jwe",
    "cloister.client.keybroker",
    "ssl",
    "cloister.protocol.initdata",
    "cloister.tlog.receipt",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
)
_SHOWN_HEX: Final = 16
_NAME: Final = b"cloister-keys"  # what `ps` shows


class BrokerClient(Protocol):
    """What is used of `cloister.client.keybroker.KeyBrokerClient`."""

    @property
    def token(self) -> str:
        """The Attestation Result, a JWT."""
        ...

    def attest(self) -> str:
        """Do the handshake."""
        ...

    def release(self, path: ResourcePath) -> ReleasedResource:
        """Return a resource and its lease."""
        ...

    def wipe(self) -> None:
        """Forget the keys."""
        ...


class Connect(Protocol):
    """Makes the broker's client."""

    def __call__(self, broker: BrokerAddress, attester: Attester, init_data: str) -> BrokerClient:
        """Return a client for `broker`; connects to nobody yet."""
        ...


class KeyService:
    """Answers requests in the one order there is.

    Args:
        attester: the device.
        connect: makes the broker's client.
    """

    def __init__(self, attester: Attester, connect: Connect) -> None:
        self._attester = attester
        self._connect = connect
        self._extended = False
        self._measured = b""
        self._client: BrokerClient | None = None

    def answer(self, request: messages.Request) -> messages.Answer:
        """Return the answer to `request`.

        Raises:
            CloisterError: the broker's or the device's word, or a request out of order (`guest.keys.order`).
        """
        if isinstance(request, messages.Extend):
            return self._extend(request.digest)
        if isinstance(request, messages.Open):
            return self._open(request.init_data)
        client = self._opened()
        if isinstance(request, messages.Attest):
            client.attest()
            return messages.Done()
        if isinstance(request, messages.GetToken):
            return messages.Token(token=client.token)
        from cloister.protocol.resourceuri import parse_resource_path

        released = client.release(parse_resource_path(request.path))
        return messages.Resource(value=memoryview(released.content), lease=released.lease_seconds)

    def wipe(self) -> None:
        """Forget key and token."""
        if self._client is not None:
            self._client.wipe()

    def _extend(self, digest: bytes) -> messages.Answer:
        if self._extended:
            raise _out_of_order("init data was measured before")
        self._extended = True  # also after a failure: a half-extended register is not repaired
        field = self._attester.init_data_field()
        if field is None:
            self._attester.extend(INIT_DATA_PCR, digest)
        else:
            _require_held(*field, digest)
        self._measured = digest
        return messages.Done()

    def _open(self, text: bytes) -> messages.Answer:
        if not self._measured or self._client is not None:
            raise _out_of_order("init data is taken once, after it was measured")
        if not hmac.compare_digest(hashlib.sha256(text).digest(), self._measured):
            raise _out_of_order("other init data than was measured")
        from cloister.protocol.initdata import parse_broker_entry, parse_initdata

        init_data = parse_initdata(text)
        self._client = self._connect(parse_broker_entry(init_data), self._attester, text.decode())
        return messages.Done()

    def _opened(self) -> BrokerClient:
        if self._client is None:
            raise _out_of_order("nothing is asked of a broker before init data names one")
        return self._client


def serve(connection: _socket.socket, answer: Callable[[messages.Request], messages.Answer]) -> None:
    """Answer requests until the agent is gone, or says something that is no request."""
    while True:
        try:
            messages.send_answer(connection, _answer(answer, messages.receive_request(connection)))
        except (messages.PeerGone, CloisterError):
            return


def run(connection: int, arguments: list[str], agent: int) -> None:
    """Be the key process; return when the agent is gone.

    Args:
        connection: descriptor that leads to the agent.
        arguments: the agent's own.
        agent: its process id.
    """
    _shut_in(agent)
    from cloister.guest.background import Background
    from cloister.guest.platform import choose_platform

    libraries = Background(_load, "libraries")
    stream = _socket.socket(fileno=connection)

    def connect(broker: BrokerAddress, attester: Attester, init_data: str) -> BrokerClient:
        libraries.wait()
        from cloister.client.keybroker import KeyBrokerClient

        gc.freeze()  # what was loaded stays; from here on the collector works
        gc.enable()
        client = KeyBrokerClient(broker, attester, init_data, platform.tee)
        client.prepare()
        return client

    try:
        platform = choose_platform(arguments)
        with platform.open_attester() as attester:
            attester.enrol()  # the device makes its key while libraries load
            service = KeyService(attester, connect)
            serve(stream, service.answer)
            service.wipe()
    except CloisterError as err:
        failure = messages.failure_of(err)
        serve(stream, lambda _: failure)  # the device is of no use: told to whoever asks


def _shut_in(agent: int) -> None:
    """Tie this process to the agent, and close it to everybody else.

    Raises:
        OSError: the kernel does not do it.
    """
    from cloister.guest import children

    with open("/proc/self/comm", "wb") as file:
        file.write(_NAME)
    children.die_with(agent)
    children.forbid_inspection()
    nowhere = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _load() -> None:
    from importlib import import_module

    for name in LIBRARIES:
        import_module(name)


def _answer(answer: Callable[[messages.Request], messages.Answer], request: messages.Request) -> messages.Answer:
    try:
        return answer(request)
    except CloisterError as err:
        return messages.failure_of(err)
    except Exception as err:  # noqa: BLE001  # process edge: the text of a foreign error may hold a secret
        return messages.failure_of(Unavailable("guest.internal", type(err).__name__))


def _require_held(name: str, value: bytes, digest: bytes) -> None:
    """Refuse init data that the guest was not launched with: the field was set before the first instruction."""
    if len(digest) > len(value) or not hmac.compare_digest(value, digest.ljust(len(value), b"\0")):
        raise EvidenceError(
            "guest.keys.other_init_data",
            "the pod VM was launched for other init data than it was given",
            path=name,
            expected=value.hex()[:_SHOWN_HEX],
            actual=digest.hex()[:_SHOWN_HEX],
            hint="the host exchanged the init data device, or launched the VM without its digest",
        )


def _out_of_order(message: str) -> RequestRefused:
    return RequestRefused("guest.keys.order", message, hint="start a new pod")
