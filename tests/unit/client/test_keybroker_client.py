"""The client of the key broker against the real broker in one process: the flow, the errors, the repetitions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cloister.client.channel import PinnedChannel, Response
from cloister.client.keybroker import FIRST_PAUSE_SECONDS, KeyBrokerClient
from cloister.errors import (
    AppraisalRefused,
    FormatRefused,
    KeyReleaseDenied,
    Refused,
    RequestRefused,
    Unavailable,
)
from cloister.protocol.initdata import BrokerAddress, ReleaseLogPins
from cloister.protocol.resourceuri import parse_resource_path
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.trust.keybroker import Answer, Credentials
from cloister.trust.keybroker.policy import encode_release_rule
from trust_world import APPRAISAL, CANARY, MODEL, World, booted_tpm, init_data, make_world, quick_directory, rule

INF = float("inf")


def broker_of(world: World) -> BrokerAddress:
    """The world's own broker, with its log pinned."""
    pins = ReleaseLogPins(key=str(world.service.log.key))
    return BrokerAddress(url="https://10.0.2.2:7070", ca_pem="not used by these tests", release_log=pins)


class Wire:
    """A channel to a broker in this process, with faults."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log: list[str] = []
        self.fail: list[Callable[[], Response | None] | None] = []
        self.lease: str | None = None  # instead of the broker's

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        headers = headers or {}
        route = path.removeprefix("/kbs/v0/")
        self.log.append(route)
        fault = self.fail.pop(0) if self.fail else None
        if fault is not None and (response := fault()) is not None:
            return response
        broker = self.world.service.broker
        credentials = Credentials(
            cookie=headers.get("Cookie", "").removeprefix("kbs-session-id="),
            bearer=headers.get("Authorization", "").removeprefix("Bearer "),
        )
        if route == "auth":
            answer = broker.auth(body or b"")
        elif route == "attest":
            answer = broker.attest(body or b"", credentials)
        else:
            path = route.removeprefix("resource/")
            answer = broker.resource(path, credentials, deadline=time.monotonic() + 5)
        response = as_response(answer)
        if self.lease is None:
            return response
        return replace(response, headers={**response.headers, "cloister-lease": self.lease})

    def close(self) -> None:
        self.log.append("close")


def as_response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    if answer.cookie:
        headers["set-cookie"] = f"kbs-session-id={answer.cookie}; Path=/kbs/v0"
    return Response(status=answer.status, headers=headers, body=answer.body)


def lost() -> Response | None:
    raise Unavailable("client.unreachable", "no connection")


def lost_after_arrival(world: World, wire: Wire) -> Callable[[], Response | None]:
    """The broker did the work, the answer did not arrive."""

    def act() -> Response | None:
        raise Unavailable("client.unreachable", "connection reset")

    return act


def answering(status: int, body: Any = None, **headers: str) -> Callable[[], Response | None]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda: Response(status=status, headers=headers, body=text)


@pytest.fixture
def world() -> Iterator[World]:
    with quick_directory() as directory:
        made = make_world(directory)
        yield made
        made.close()


@pytest.fixture
def wire(world: World) -> Wire:
    return Wire(world)


@pytest.fixture
def client(world: World, wire: Wire) -> KeyBrokerClient:
    return make_client(world, wire)


def make_client(world: World, wire: Wire, **changes: Any) -> KeyBrokerClient:
    data = changes.pop("data", world.data)
    attester = changes.pop("attester", None) or booted_tpm(
        world.ca, data, launch=changes.pop("launch", b'{"profile":"test"}')
    )
    pauses = changes.pop("pauses", [])
    return KeyBrokerClient(
        changes.pop("broker", None) or broker_of(world),
        attester,
        data.text.decode(),
        changes.pop("tee", "tpm"),
        channel=wire,
        sleep=pauses.append,
        **changes,
    )


def test_a_resource_in_three_requests(client: KeyBrokerClient, wire: Wire) -> None:
    assert client.token == ""
    assert client.get_resource(MODEL) == CANARY
    assert wire.log == ["auth", "attest", f"resource/{MODEL}"]
    assert client.get_resource(MODEL) == CANARY
    assert wire.log[3:] == [f"resource/{MODEL}"], "the token is used again"
    assert client.token.count(".") == 2


def test_the_lease_of_a_resource_is_told(world: World, client: KeyBrokerClient, wire: Wire) -> None:
    assert client.release(MODEL).lease_seconds == 0
    text = encode_release_rule(rule(world.data, lease_seconds=40))
    world.admin.put_release_rule("default/model/*", text)
    released = client.release(MODEL)
    assert 38 <= released.lease_seconds <= 40
    assert CANARY.decode() not in repr(released)
    for text, seconds in (("0", 1), ("7", 7)):
        wire.lease = text
        assert client.release(MODEL).lease_seconds == seconds
    for text in ("-1", "1.5", "soon", "9" * 9):
        wire.lease = text
        with pytest.raises(FormatRefused) as caught:
            client.release(MODEL)
        assert caught.value.code == "client.lease"


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA-OAEP-256"])
def test_every_kind_of_key(world: World, wire: Wire, kind: str) -> None:
    assert make_client(world, wire, key_kind=kind).get_resource(MODEL) == CANARY


def test_a_simulated_guest(world: World, wire: Wire, tmp_path: Path) -> None:
    """A technology without credential activation: nothing is enrolled."""
    key = tmp_path / "machine.key"
    world.admin.add_root(read_machine_root(key))
    world.admin.put_appraisal_policy(
        b'{"version":1,"id":"default","tees":["cloister-simulated"],"insecure_accept_levels":["simulated"]}'
    )
    world.admin.add_release_rule(rule(world.data, insecure_allow_levels=(Level.SIMULATED,)))
    with SimulationAttester(str(key)) as attester:
        attester.extend(8, world.data.digest)
        registers = {"launch": bytes.fromhex(attester.attest(bytes(48))["registers"]["launch"])}
        world.admin.add_reference_entries(
            [
                ReferenceEntry(
                    id="agent",
                    tee="cloister-simulated",
                    registers=registers,
                    not_after=world.admin.list_reference_entries()[0].not_after,
                    origin="t",
                )
            ]
        )
        simulated = make_client(world, wire, attester=attester, tee="cloister-simulated")
        assert simulated.get_resource(MODEL) == CANARY
        assert world.admin.list_audit()[0].level == "simulated"
        world.admin.put_appraisal_policy(APPRAISAL.replace(b"tpm", b"cloister-simulated"))
        with pytest.raises(KeyReleaseDenied):
            make_client(world, wire, attester=attester, tee="cloister-simulated").get_resource(MODEL)


class TestRefusals:
    def test_a_denied_resource(self, world: World, client: KeyBrokerClient) -> None:
        world.admin.add_release_rule(rule(world.data, init_data=()))
        with pytest.raises(KeyReleaseDenied) as caught:
            client.get_resource(MODEL)
        assert caught.value.code == "trust.release.init_data" and caught.value.hint
        record = world.admin.get_denial(caught.value.path)
        assert record.code == caught.value.code and caught.value.path in caught.value.message

    def test_unacceptable_evidence(self, world: World, wire: Wire) -> None:
        with pytest.raises(KeyReleaseDenied) as caught:
            make_client(world, wire, launch=b"other").get_resource(MODEL)
        assert caught.value.code == "appraisal.reference_values.pcr00"

    def test_refused_evidence(self, world: World, wire: Wire) -> None:
        client = make_client(world, wire, attester=booted_tpm(world.ca, init_data(x="y")))
        with pytest.raises(AppraisalRefused) as caught:
            client.attest()
        assert caught.value.code == "evidence.init_data" and caught.value.path.startswith("d-")
        assert wire.log == ["auth", "attest"], "a refusal is not tried again"

    def test_a_missing_resource(self, client: KeyBrokerClient) -> None:
        with pytest.raises(Refused) as caught:
            client.get_resource(parse_resource_path("default/model/none"))
        assert caught.value.code == "client.resource_not_found"

    def test_another_version(self, client: KeyBrokerClient, wire: Wire) -> None:
        body = {"type": "https://x/AttestationError", "detail": "KBS Client Protocol Version Mismatch: expect =9"}
        wire.fail = [answering(401, body)]
        with pytest.raises(RequestRefused) as caught:
            client.attest()
        assert caught.value.code == "client.broker_refused" and "Version Mismatch" in caught.value.message

    def test_a_broker_that_cannot_tell_now(self, client: KeyBrokerClient, wire: Wire) -> None:
        wire.fail = [answering(503, {"type": "t", "detail": "the store failed", "code": "trust.store.failed"})]
        with pytest.raises(Unavailable) as caught:
            client.attest()
        assert caught.value.code == "trust.store.failed" and wire.log == ["auth"]

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 418, 429, 500, 502, 503])
    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[]", b'{"type":"t","detail":"d","code":"../../x","denial-id":"d-1"}']
    )
    def test_any_answer_becomes_a_typed_error(
        self, client: KeyBrokerClient, wire: Wire, status: int, body: bytes
    ) -> None:
        client.attest()
        wire.fail = [answering(status, body)]
        with pytest.raises((Refused, Unavailable)) as caught:
            client.get_resource(MODEL)
        assert caught.value.code.startswith("client.") and caught.value.path == str(MODEL)

    def test_long_words_of_a_broker_are_cut(self, client: KeyBrokerClient, wire: Wire) -> None:
        wire.fail = [answering(401, {"type": "t", "detail": "x" * 9999, "hint": "y" * 9999})]
        with pytest.raises(RequestRefused) as caught:
            client.attest()
        assert len(caught.value.message) <= 400 and len(caught.value.hint) <= 400

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"nonce": "AAAA", "extra-params": ""},
            {"nonce": "A" * 43 + "=", "extra-params": ""},
            {"nonce": "A" * 43 + "=", "extra-params": {"cloister-tpm": {}}},
        ],
    )
    def test_a_broker_that_answers_something_else(self, client: KeyBrokerClient, wire: Wire, body: Any) -> None:
        cookie = "kbs-session-id=" + "0" * 32
        wire.fail = [answering(200, body, **{"set-cookie": cookie})]
        with pytest.raises(FormatRefused):
            client.attest()

    def test_a_broker_without_a_session(self, client: KeyBrokerClient, wire: Wire) -> None:
        wire.fail = [answering(200, {"nonce": "A" * 43 + "=", "extra-params": ""})]
        with pytest.raises(FormatRefused) as caught:
            client.attest()
        assert caught.value.code == "client.broker_malformed"

    @pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "x.e30.y"])
    def test_a_broker_that_sends_no_token(self, client: KeyBrokerClient, wire: Wire, token: str) -> None:
        wire.fail = [None, answering(200, {"token": token})]
        with pytest.raises(FormatRefused):
            client.attest()

    def test_an_answer_sealed_to_somebody_else(self, world: World, client: KeyBrokerClient, wire: Wire) -> None:
        other = world.guest().handshake()
        client.attest()
        wire.fail = [lambda: as_response(other.resource())]
        with pytest.raises(Refused) as caught:
            client.get_resource(MODEL)
        assert caught.value.code == "client.receipt.other"

    def test_an_answer_sealed_to_somebody_else_under_our_own_receipt(
        self, world: World, client: KeyBrokerClient, wire: Wire
    ) -> None:
        other = world.guest().handshake()
        client.attest()
        own = Credentials(bearer=client.token)
        ours = as_response(world.service.broker.resource(str(MODEL), own, deadline=INF))
        wire.fail = [lambda: Response(status=200, headers=ours.headers, body=other.resource().body)]
        with pytest.raises(Refused) as caught:
            client.get_resource(MODEL)
        assert caught.value.code == "crypto.jwe.not_authentic"


class TestRepetition:
    def test_a_lost_connection_is_tried_again(self, world: World, wire: Wire) -> None:
        pauses: list[float] = []
        client = make_client(world, wire, pauses=pauses)
        wire.fail = [lost, lost]
        assert client.get_resource(MODEL) == CANARY
        assert wire.log[:4] == ["auth", "auth", "auth", "attest"]
        assert pauses == [FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS]

    def test_a_broken_attestation_begins_anew_with_a_fresh_nonce(self, client: KeyBrokerClient, wire: Wire) -> None:
        wire.fail = [None, lost]
        assert client.get_resource(MODEL) == CANARY
        assert wire.log == ["auth", "attest", "auth", "attest", f"resource/{MODEL}"]

    def test_a_broken_resource_request_is_repeated_alone(self, client: KeyBrokerClient, wire: Wire) -> None:
        client.attest()
        wire.fail = [lost]
        assert client.get_resource(MODEL) == CANARY
        assert wire.log[2:] == [f"resource/{MODEL}"] * 2

    def test_it_ends(self, world: World, wire: Wire) -> None:
        client = make_client(world, wire, attempts=3)
        wire.fail = [lost] * 9
        with pytest.raises(Unavailable) as caught:
            client.get_resource(MODEL)
        assert caught.value.code == "client.unreachable" and wire.log == ["auth"] * 3

    def test_a_token_about_to_expire_is_renewed(self, world: World, wire: Wire) -> None:
        now = [1000.0]
        client = make_client(world, wire, monotonic=lambda: now[0])
        client.get_resource(MODEL)
        now[0] += 269
        client.get_resource(MODEL)
        assert wire.log.count("auth") == 1
        now[0] += 2
        world.clock.advance(seconds=271)
        client.get_resource(MODEL)
        assert wire.log.count("auth") == 2


class TestKey:
    def test_it_is_made_once(self, client: KeyBrokerClient) -> None:
        client.prepare()
        key = client._key
        client.prepare()
        client.attest()
        assert client._key is key

    def test_wiping(self, client: KeyBrokerClient, wire: Wire) -> None:
        client.get_resource(MODEL)
        client.wipe()
        assert client.token == "" and wire.log[-1] == "close"
        with pytest.raises(RuntimeError):
            client.attest()
        with pytest.raises(RuntimeError):
            client.prepare()

    def test_preparing_in_another_thread_costs_the_first_request_nothing(self) -> None:
        """What the guest's start depends on: nothing heavy is imported before it is needed."""
        code = (
            "import sys\n"
            "import cloister.client.keybroker as k\n"
            "from cloister.protocol.initdata import BrokerAddress\n"
            "c = k.KeyBrokerClient(BrokerAddress(url='https://x:1', ca_pem=''), None, '', 'tpm')\n"
            "heavy = {'cryptography', 'ssl', 'http.client', 'socket', 'asyncio', 'subprocess', 'urllib.request'}\n"
            "print(sorted(heavy & set(sys.modules)))\n"
            "c.prepare()\n"
            "print('cryptography' in sys.modules, 'ssl' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[:2] == ["[]", "True False"]


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "peer"),
        [
            ("https://10.0.2.2:7070", "10.0.2.2:7070"),
            ("https://trust.example", "trust.example:443"),
            ("https://[::1]:8", "::1:8"),
            ("https://[::1]", "::1:443"),
            ("https://host:1/base/", "host:1"),
        ],
    )
    def test_good(self, url: str, peer: str) -> None:
        assert PinnedChannel(url, "").peer == peer

    @pytest.mark.parametrize(
        "url",
        ["", "http://x", "https://", "https://:1", "https://a:b", "https://u@h:1", "HTTPS://x", "https://h:123456"],
    )
    def test_bad(self, url: str) -> None:
        with pytest.raises(FormatRefused) as caught:
            PinnedChannel(url, "")
        assert caught.value.code == "client.address"

    def test_a_ca_that_is_none(self) -> None:
        with pytest.raises(FormatRefused) as caught:
            PinnedChannel("https://127.0.0.1:1", "no pem").request("GET", "/")
        assert caught.value.code == "client.ca"
