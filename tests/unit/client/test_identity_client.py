"""The guest's side of SPIFFE identities, against the real plugin and against one that lies."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from cloister.client.channel import Response
from cloister.client.identity import fetch_bundle, fetch_jwt_svid, fetch_x509_svid
from cloister.client.keybroker import KeyBrokerClient
from cloister.errors import KeyReleaseDenied, Refused
from cloister.protocol.initdata import BrokerAddress
from cloister.protocol.spiffe import ATTESTATION_OID
from cloister.protocol.svidextension import parse_statement
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.trust.keybroker import Credentials
from identity_world import AUDIENCE, Domain, grant, make_domain, pod_data, policy
from trust_world import Guest, World, booted_tpm, make_world, quick_directory


class Caller:
    """Carries requests to the plugin, as the broker does after it verified the token; `bend` alters answers."""

    def __init__(self, domain: Domain, guest: Guest) -> None:
        self.domain = domain
        self.guest = guest
        self.bend: Callable[[dict[str, Any]], object] = lambda answer: None

    def plugin(self, name: str, path: str, *, query: str = "", body: bytes = b"") -> bytes:
        assert name == "spiffe"
        answer = json.loads(self.domain.service.handle(path, query, body, self.domain.token(self.guest)))
        self.bend(answer)
        return json.dumps(answer).encode()


@pytest.fixture
def caller() -> Iterator[Caller]:
    made: list[World] = []
    with quick_directory() as directory:

        def new_world(**settings: object) -> World:
            made.append(make_world(directory / "world", **settings))
            return made[-1]

        domain, data = make_domain(new_world), pod_data()
        grants = [grant(data, template=f"{{level}}/{name}/{{pod}}") for name in ("web", "batch")]
        domain.world.admin.put_identity_policy(policy(*grants))
        yield Caller(domain, domain.world.guest(data).handshake())
        made[0].close()


WEB = "spiffe://prod.example.org/default/measured/web/classifier"


def fetch(caller: Caller, name: str = WEB) -> Any:
    return fetch_x509_svid(caller, init_data=caller.guest.data.text.decode(), name=name)


def test_a_guest_gets_what_a_tls_library_takes(caller: Caller, tmp_path: Path) -> None:
    svid = fetch(caller)
    assert svid.spiffe_id == WEB and "PRIVATE" not in repr(svid)
    certificate = x509.load_pem_x509_certificate(svid.certificate_pem)
    key = load_pem_private_key(svid.key_pem, None)
    assert certificate.public_key() == key.public_key() and svid.expires_at == certificate.not_valid_after_utc
    (tmp_path / "both.pem").write_bytes(svid.certificate_pem + svid.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    context.load_verify_locations(cadata=svid.bundle_pem.decode())
    assert fetch(caller).key_pem != svid.key_pem


def test_tokens_and_the_bundle_come_the_same_way(caller: Caller) -> None:
    answer = fetch_jwt_svid(caller, AUDIENCE, init_data=caller.guest.data.text.decode(), name=WEB)
    assert answer.spiffe_id == WEB and answer.svid.count(".") == 2
    assert json.loads(fetch_bundle(caller))["spiffe_sequence"]


@pytest.mark.parametrize("name", ["", WEB.replace("web", "root"), "not a name", WEB + "/.."])
def test_a_name_that_is_not_the_guests_is_refused(caller: Caller, name: str) -> None:
    with pytest.raises(Refused):
        fetch(caller, name)
    with pytest.raises(Refused):
        fetch_jwt_svid(caller, AUDIENCE, init_data=caller.guest.data.text.decode(), name=name)


def other_key(caller: Caller) -> str:
    certificate = x509.load_pem_x509_certificate(fetch(caller).certificate_pem)
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def test_an_answer_that_is_not_for_this_guest_is_refused(caller: Caller) -> None:
    foreign = other_key(caller)
    bends: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda answer: answer.update(x509_svid=foreign), "not for the key"),
        (lambda answer: answer.update(spiffe_id=WEB + "x"), "another name"),
        (lambda answer: answer.update(x509_svid=""), "none"),
        (lambda answer: answer.update(bundle="AAAA"), "one behind the other"),
        (lambda answer: answer.update(bundle=answer["bundle"] * 17), "base64|too many"),
        (lambda answer: answer.pop("bundle"), "no SVID"),
    ]
    for bend, words in bends:
        caller.bend = bend
        with pytest.raises(Refused, match=words):
            fetch(caller)
    caller.bend = lambda answer: answer.update(spiffe_id=WEB + "x")
    with pytest.raises(Refused, match="another name"):
        fetch_jwt_svid(caller, AUDIENCE, init_data=caller.guest.data.text.decode(), name=WEB)


class Wire:
    """A channel to the key broker of a world, plugins included."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: list[tuple[str, str]] = []

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        self.sent.append((method, path))
        headers = headers or {}
        credentials = Credentials(
            cookie=headers.get("Cookie", "").removeprefix("kbs-session-id="),
            bearer=headers.get("Authorization", "").removeprefix("Bearer "),
        )
        target, _, query = path.removeprefix("/kbs/v0/").partition("?")
        broker = self.world.service.broker
        if target == "auth":
            answer = broker.auth(body or b"")
        elif target == "attest":
            answer = broker.attest(body or b"", credentials)
        else:
            name, _, rest = target.partition("/")
            answer = broker.plugin(name, rest, query, body or b"", credentials, deadline=time.monotonic() + 5)
        cookies = {"set-cookie": f"kbs-session-id={answer.cookie}; Path=/kbs/v0"} if answer.cookie else {}
        return Response(status=answer.status, headers=cookies, body=answer.body)

    def close(self) -> None:
        pass


BROKER = BrokerAddress(url="https://10.0.2.2:7070", ca_pem="not used here")


@pytest.fixture
def domain() -> Iterator[Domain]:
    made: list[World] = []
    with quick_directory() as directory:

        def new_world(**settings: object) -> World:
            made.append(make_world(directory / "world", **settings))
            return made[-1]

        yield make_domain(new_world)
        made[0].close()


def test_the_key_broker_client_asks_plugins_over_the_protocol(domain: Domain) -> None:
    """The whole way: handshake, plugin request, sealed answer, as the guest's agent does it."""
    world, wire = domain.world, Wire(domain.world)
    tpm = booted_tpm(world.ca, world.data)
    client = KeyBrokerClient(BROKER, tpm, world.data.text.decode(), "tpm", channel=wire)
    svid = fetch_x509_svid(client)
    assert svid.spiffe_id.startswith("spiffe://prod.example.org/default/measured/shop/")
    with pytest.raises(KeyReleaseDenied) as denial:
        fetch_jwt_svid(client, "https://not.granted.example")
    assert denial.value.code == "trust.identity.audience_granted" and denial.value.path.startswith("d-")
    assert wire.sent == [
        ("POST", "/kbs/v0/auth"),
        ("POST", "/kbs/v0/attest"),
        ("POST", "/kbs/v0/spiffe/x509-svid"),
        ("POST", "/kbs/v0/spiffe/jwt-svid?audience=https%3A%2F%2Fnot.granted.example"),
    ]


def test_a_simulated_guest_is_seen_to_be_one_in_all_it_gets(domain: Domain, tmp_path: Path) -> None:
    world, machine = domain.world, tmp_path / "machine.key"
    world.admin.add_root(read_machine_root(machine))
    world.admin.put_appraisal_policy(
        b'{"version":1,"id":"default","tees":["cloister-simulated"],"insecure_accept_levels":["simulated"]}'
    )
    with SimulationAttester(str(machine)) as attester:
        attester.extend(8, world.data.digest)
        registers = {"launch": bytes.fromhex(attester.attest(bytes(48))["registers"]["launch"])}
        [known] = world.admin.list_reference_entries()
        world.admin.add_reference_entries([replace(known, id="agent", tee="cloister-simulated", registers=registers)])
        text = world.data.text.decode()
        client = KeyBrokerClient(BROKER, attester, text, "cloister-simulated", channel=Wire(world))
        with pytest.raises(KeyReleaseDenied) as denial:  # the grant allows `measured`
            fetch_x509_svid(client)
        assert denial.value.code == "trust.identity.level"
        world.admin.put_identity_policy(policy(grant(world.data, insecure_allow_levels=["simulated"])))
        svid = fetch_x509_svid(client)
        token = fetch_jwt_svid(client, AUDIENCE)
    assert svid.spiffe_id == token.spiffe_id
    assert svid.spiffe_id.startswith("spiffe://prod.example.org/default/simulated/")
    certificate = x509.load_pem_x509_certificate(svid.certificate_pem)
    assert "level simulated" in certificate.subject.rfc4514_string()
    value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(ATTESTATION_OID)).value
    assert isinstance(value, x509.UnrecognizedExtension) and parse_statement(value.value).level == "simulated"
    claims = json.loads(base64.urlsafe_b64decode(token.svid.split(".")[1] + "=="))
    assert claims["cloister.level"] == "simulated"
