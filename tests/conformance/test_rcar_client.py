"""A client that knows nothing of Cloister gets a secret from the service, and is refused where it must be.

The client is `rcar.py`, plain sockets written from the protocol's description. The service is a real process, except
where a test needs another time than now: then it is the same server in this process with an injected clock, and the
test says so. Evidence is made by the fakes that sign real structures; recorded evidence is from the shared vectors.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloister.protocol.resourceuri import parse_resource_path
from cloister.testing.tpm import FakeTPM
from cloister.trust import app
from cloister.trust.admin import TrustAdmin
from cloister.trust.service import TrustService
from cloister.trust.settings import TrustSettings
from conformance import rcar
from conformance.rcar import Client, Denied, GuestKey, Violation, ec_key, rsa_key
from evidence_world import Site, snp_machine
from trust_process import Owner, Running, make_owner, running
from trust_world import CANARY, MODEL, Clock, quick_directory

PATH = str(MODEL)
WITHOUT_RULE = "other/model/one"
KEYS = {"P-256": ec_key, "P-521": partial(ec_key, "P-521"), "RSA-OAEP-256": rsa_key}
SAMPLE_RULE = b'insecure_allow_levels = ["simulated"]'
RECORDED_AT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def owner() -> Iterator[Owner]:
    with quick_directory() as directory:
        made = make_owner(directory)
        with made.admin() as admin:
            admin.put_resource(parse_resource_path(WITHOUT_RULE), b"nobody may have this")
        yield made


@pytest.fixture(scope="module")
def service(owner: Owner) -> Iterator[Running]:
    with running(owner.state) as service:
        yield service


def client_of(service: Running, key: GuestKey | None = None, **options: Any) -> Client:
    return Client(service.report["url"], service.ca_pem, key or ec_key(), **options)


class TPMGuest:
    """Makes TPM evidence for a client: enrols its key, opens the credential, quotes."""

    def __init__(self, client: Client, owner: Owner) -> None:
        self.client, self.init_data = client, owner.data.text.decode()
        self.tpm: FakeTPM = owner.tpm()

    def auth(self) -> bytes:
        certificate, public = self.tpm.enrol()
        enrolment = {"ek_certificate": b64(certificate), "ak_public": b64(public)}
        credential = self.client.auth("tpm", {"cloister-tpm": enrolment})["cloister-tpm"]
        return self.tpm.activate(*(base64.b64decode(credential[n]) for n in ("credential_blob", "encrypted_secret")))

    def attest(self) -> Client:
        secret = self.auth()
        self.client.attest(self.tpm.attest(self.client.report_data(), secret), self.init_data)
        return self.client


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def denied(run: Any, status: int) -> Denied:
    with pytest.raises(Denied) as caught:
        run()
    assert caught.value.status == status, caught.value
    return caught.value


# -- what the client itself is worth


def test_the_canonical_form_is_that_of_published_hashes() -> None:
    client = Client("", "", GuestKey(ec_key().private, {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW"}))
    client.key.jwk.update(x="AAAA", y="BBBB")
    client.nonce = "bm9uY2U="
    primary = "d20490d30e5f16cba693abc1ca3c31ed977d2722d0adf01a980972d16913dc38f103c1f12abf477df0523af2b12e4b43"
    older = "84311321a3f9248c2457e978ea553b35b2b6e99f0d949e55b9fc7fc1040807571644e7e47c90a2a673e49a46f265ec7a"
    assert client.report_data().hex() == primary
    assert replace(client, version="0.2.0").report_data().hex() == older


def test_it_imports_nothing_of_cloister(repository: Path) -> None:
    text = (repository / "tests" / "conformance" / "rcar.py").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith(("import ", "from "))]
    allowed = {"__future__", "cryptography", *sys.stdlib_module_names}
    assert {line[1].partition(".")[0] for line in lines} <= allowed and "import_module" not in text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        b'{"detail":"why"}',
        b'{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny"}',
        b'{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":""}',
        b'{"type":"https://github.com/confidential-containers/kbs/errors/","detail":"why"}',
        b'{"type":"PolicyDeny","detail":"why"}',
    ],
)
def test_a_refusal_that_clients_do_not_understand_is_a_fault_of_the_broker(body: bytes) -> None:
    with pytest.raises(Violation):
        rcar.refusal(rcar.Answer(403, {}, body))
    good = b'{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":"why"}'
    assert rcar.refusal(rcar.Answer(403, {}, good)).variant == "PolicyDeny"


@pytest.mark.parametrize("kind", KEYS)
def test_the_aad_is_the_header_as_clients_write_it(service: Running, owner: Owner, kind: str) -> None:
    """The same text in another order opens for a reader of RFC 7516, and not for CoCo's; ours is in CoCo's order."""
    client = TPMGuest(client_of(service, KEYS[kind]()), owner).attest()
    sealed = json.loads(client.sealed(PATH))
    header = json.loads(rcar.unpadded(sealed["protected"]))
    assert sealed["protected"] == rcar.written_again(header) and list(header)[:2] == ["alg", "enc"]
    assert client.key.open(sealed) == CANARY
    for other in (dict(reversed(header.items())), {**header, "typ": "JOSE"}, {**header, "enc": "A128GCM"}):
        changed = {**sealed, "protected": rcar.b64url(json.dumps(other, separators=(",", ":")).encode())}
        if other == header:
            assert changed["protected"] != sealed["protected"] and rcar.written_again(other) == sealed["protected"]
        else:
            with pytest.raises(Violation):
                client.key.open(changed)
    with pytest.raises(Violation):
        client.key.open({**sealed, "aad": ""})


# -- the service, with TPM evidence


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("by", ["cookie", "bearer"])
def test_a_secret_arrives(service: Running, owner: Owner, kind: str, by: str) -> None:
    client = TPMGuest(client_of(service, KEYS[kind]()), owner).attest()
    assert client.resource(PATH, by=by) == CANARY


def test_a_token_works_without_the_session(service: Running, owner: Owner) -> None:
    client = TPMGuest(client_of(service), owner).attest()
    other = replace(client, cookies={})
    assert other.resource(PATH, by="bearer") == CANARY
    stranger = replace(other, key=ec_key())
    with pytest.raises(Violation, match="not this guest's"):  # a stolen token gives ciphertext
        stranger.resource(PATH, by="bearer")


def test_a_nonce_is_used_once(service: Running, owner: Owner) -> None:
    guest = TPMGuest(client_of(service), owner)
    secret = guest.auth()
    evidence = guest.tpm.attest(guest.client.report_data(), secret)
    guest.client.attest(evidence, guest.init_data)
    assert (
        denied(lambda: guest.client.attest(evidence, guest.init_data), 401).body["code"] == "trust.session.nonce_used"
    )
    fresh = TPMGuest(client_of(service), owner)
    fresh.auth()
    fresh.client.nonce = guest.client.nonce
    refused = denied(lambda: fresh.client.attest(evidence, guest.init_data), 401)
    assert refused.body["code"] == "trust.session.nonce_mismatch"


@pytest.mark.parametrize("kind", KEYS)
def test_another_key_than_the_attested_one_is_refused(service: Running, owner: Owner, kind: str) -> None:
    guest = TPMGuest(client_of(service, KEYS[kind]()), owner)
    secret = guest.auth()
    evidence = guest.tpm.attest(guest.client.report_data(), secret)
    guest.client.key = KEYS[kind]()
    assert denied(lambda: guest.client.attest(evidence, guest.init_data), 403).body["code"] == "evidence.freshness"
    denied(lambda: guest.client.resource(PATH), 401)


def test_a_wrong_cookie_is_no_session(service: Running, owner: Owner) -> None:
    client = TPMGuest(client_of(service), owner).attest()
    good = client.cookies[rcar.COOKIE]
    for wrong in ("0" * 32, good[:-1] + ("0" if good[-1] != "0" else "1"), "x", ""):
        client.cookies[rcar.COOKIE] = wrong
        denied(lambda: client.resource(PATH), 401)
    client.cookies[rcar.COOKIE] = good
    assert client.resource(PATH) == CANARY
    late = TPMGuest(client_of(service), owner)
    late.auth()
    late.client.cookies[rcar.COOKIE] = "0" * 32
    denied(lambda: late.client.attest({}, late.init_data), 401)


def test_a_token_is_verified(service: Running, owner: Owner) -> None:
    client = TPMGuest(client_of(service), owner).attest()
    head, claims, signature = client.token.split(".")
    value = json.loads(rcar.unpadded(claims))
    longer = rcar.b64url(json.dumps({**value, "exp": value["exp"] + 1}).encode())
    for token in (f"{head}.{longer}.{signature}", f"{head}.{claims}.", "", "a.b.c"):
        denied(partial(by_bearer, client, token), 401)
    assert client.resource(PATH, by="bearer") == CANARY


def by_bearer(client: Client, token: str) -> bytes:
    return replace(client, token=token, cookies={}).resource(PATH, by="bearer")


def test_a_version_in_no_release_is_refused_in_the_words_that_clients_look_for(service: Running) -> None:
    for version in ("0.3.0", "0.4.1", "1.0.0", ""):
        refused = denied(partial(client_of(service, version=version).auth, "tpm"), 401)
        assert refused.detail.startswith("KBS Client Protocol Version Mismatch: expect ")


def test_a_missing_secret_is_404_and_a_denied_one_403(service: Running, owner: Owner) -> None:
    client = TPMGuest(client_of(service), owner).attest()
    assert denied(lambda: client.resource("default/model/none"), 404).detail
    assert denied(lambda: client.resource(WITHOUT_RULE), 403).variant == "PolicyDeny"
    assert denied(lambda: client.resource("default/model"), 400).detail


def test_every_refusal_has_type_and_detail(service: Running) -> None:
    """`exchange` sees to the form; here are the statuses of what is malformed."""
    client = client_of(service)
    for method, path, body, status in (
        ("POST", "/auth", b"{", 400),
        ("POST", "/auth", b'{"version":"0.4.0"}', 400),
        ("POST", "/auth", b'{"version":"0.4.0","tee":"none","extra-params":""}', 403),
        ("POST", "/attest", b"{}", 401),
        ("GET", "/resource/a/b/c", None, 401),
        ("GET", "/nothing", None, 404),
        ("PUT", "/resource/a/b/c", None, 405),
        ("DELETE", "/resource/a/b/c", None, 401),
    ):
        denied(partial(client.exchange, method, path, body, {}), status)


# -- hardware evidence, under an injected clock


@contextmanager
def serving(state: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Serve `state` in this process at the clock's time: real server, real TLS. Give its address and CA.

    Injected: the clock, and nothing else. The program has no setting for its time, and must not have one.
    """
    monkeypatch.setattr(app, "TrustService", partial(TrustService, clock=clock))
    interval, ready = sys.getswitchinterval(), threading.Event()
    told: list[app.Ready] = []

    async def serve() -> None:
        stop = asyncio.Event()
        ends.append(partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set))
        await app.serve_until(TrustSettings(state=state), stop, on_ready=lambda one: (told.append(one), ready.set())[0])

    ends: list[partial[Any]] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    try:
        assert ready.wait(30), "the service does not start"
        yield told[0].url, Path(told[0].ca_file).read_text()
    finally:
        for end in ends:
            end()
        thread.join(30)
        sys.setswitchinterval(interval)


def test_snp_evidence_under_a_test_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that binds what the client computed, in the form CoCo's guests send; the clock is the fake's."""
    site = Site(tmp_path, snp_machine()).fetch()
    text, digest = site.data.text.decode(), site.data.digest
    try:
        with serving(site.state, site.clock, monkeypatch) as (url, ca_pem):
            for by in ("cookie", "bearer"):
                client = Client(url, ca_pem, ec_key())
                client.auth("snp")
                client.attest(dict(site.machine.evidence(client.report_data(), digest)), text)
                assert client.resource(PATH, by=by) == CANARY
            client.auth("snp")
            evidence = dict(site.machine.evidence(client.report_data("other"), digest))
            assert denied(partial(client.attest, evidence, text), 403).body["code"] == "evidence.freshness"
            client.auth("snp")
            evidence = dict(site.machine.evidence(client.report_data(), bytes(32)))
            assert denied(partial(client.attest, evidence, text), 403).body["code"] == "evidence.init_data"
            client.auth("snp")
            evidence = dict(site.machine.evidence(client.report_data(), digest, debug=True))
            client.attest(evidence, text)
            assert denied(partial(client.resource, PATH), 403).body["code"] == "appraisal.debug"
    finally:
        site.close()


def test_recorded_snp_evidence_is_authentic_and_not_this_sessions(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real report of a Milan. What it binds is a hash of a nonce and a key that nobody published, and its host data
    is zero: it can release nothing, whatever nonce the service would be made to issue. With the clock of its time
    injected and revocation waived by the policy it is authentic, and refused as not of this session alone; with a bit
    changed, or at another time than its certificates', it is not authentic."""
    state, evidence = tmp_path / "state", vectors / "evidence"
    clock = Clock(RECORDED_AT)
    policy = {"version": 1, "id": "default", "tees": ["snp"], "insecure_no_revocation": True}
    with TrustAdmin(state, clock=clock) as admin:
        admin.put_appraisal_policy(json.dumps(policy).encode())
    chain = (evidence / "roots/amd/milan_ask_ark_asvk.pem").read_bytes()

    def code(report: Path, status: int = 403) -> str:
        client = Client(url, ca_pem, ec_key())
        client.auth("snp")
        certificates = [("VCEK", (report.parent / "vcek.der").read_bytes()), *pem_certificates(chain)]
        body = {
            "attestation_report": b64(report.read_bytes()),
            "cert_chain": [{"cert_type": kind, "data": list(der)} for kind, der in certificates],
        }
        text = 'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n'
        found = denied(partial(client.attest, body, text), status)
        denied(partial(client.resource, PATH), 401)
        return str(found.body["code"])

    with serving(state, clock, monkeypatch) as (url, ca_pem):
        good = evidence / "snp/milan-v2-vcek/report.bin"
        assert code(good) == "evidence.freshness"
        for name, status in (("byte42", 403), ("reported-tcb", 403), ("sig", 403), ("short", 400), ("long", 400)):
            found = code(evidence / f"snp/neg-tampered/report-{name}.bin", status)
            assert found.startswith("tee.sev_snp.")
        clock.now = datetime(2060, 1, 1, tzinfo=UTC)
        assert code(good, 503) == "tee.sev_snp.vek.expired"


def pem_certificates(text: bytes) -> list[tuple[str, bytes]]:
    blocks = [block.split(b"-----END")[0] for block in text.split(b"-----BEGIN CERTIFICATE-----")[1:]]
    return list(zip(("ASK", "ARK"), map(base64.b64decode, blocks), strict=False))


# -- CoCo's sample TEE and older versions


@pytest.fixture(scope="module")
def sample_service() -> Iterator[Running]:
    """A service whose owner allows the sample TEE for one prefix, and RSA1_5 for guests of 0.1.1."""
    with quick_directory() as directory:
        state = directory / "state"
        with TrustAdmin(state) as admin:
            admin.put_resource(MODEL, CANARY)
            admin.put_resource(parse_resource_path(WITHOUT_RULE), b"nobody may have this")
            admin.put_release_rule("default/model/*", SAMPLE_RULE)
        with running(state, "--insecure-rsa1-5") as service:
            yield service


def sample(client: Client, data: bytes | None = None) -> dict[str, str]:
    return {"svn": "1", "report_data": b64(client.report_data() if data is None else data)}


VERSIONS = [("0.4.0", kind) for kind in KEYS] + [("0.2.0", kind) for kind in KEYS] + [("0.1.1", "RSA1_5")]


@pytest.mark.parametrize(("version", "kind"), VERSIONS)
@pytest.mark.parametrize("by", ["cookie", "bearer"])
def test_every_version_with_the_sample_tee(sample_service: Running, version: str, kind: str, by: str) -> None:
    key = rsa_key("RSA1_5") if kind == "RSA1_5" else KEYS[kind]()
    client = client_of(sample_service, key, version=version)
    assert client.auth("sample") == ""
    client.attest(sample(client))
    assert client.resource(PATH, by=by) == CANARY
    denied(partial(client.resource, WITHOUT_RULE, by=by), 403)


@pytest.mark.parametrize("version", ["0.4.0", "0.2.0", "0.1.1"])
def test_sample_evidence_is_bound_in_every_version(sample_service: Running, version: str) -> None:
    client = client_of(sample_service, rsa_key("RSA1_5" if version == "0.1.1" else "RSA-OAEP-256"), version=version)
    client.auth("sample")
    denied(partial(client.attest, sample(client, bytes(48))), 403)
    client.auth("sample")
    evidence = sample(client)
    client.attest(evidence)
    denied(partial(client.attest, evidence), 401)
    client.auth("sample")
    evidence = sample(client)
    client.key = rsa_key(client.key.jwk["alg"])
    denied(partial(client.attest, evidence), 403)
    client.cookies[rcar.COOKIE] = "0" * 32
    denied(partial(client.resource, PATH), 401)


def test_a_session_keeps_the_version_it_began_with(sample_service: Running) -> None:
    for began, goes_on in (("0.2.0", "0.4.0"), ("0.4.0", "0.2.0")):
        client = client_of(sample_service, version=began)
        client.auth("sample")
        client.version = goes_on
        with pytest.raises(Denied):
            client.attest(sample(client))


def test_no_version_between(sample_service: Running) -> None:
    refused = denied(partial(client_of(sample_service, version="0.3.0").auth, "sample"), 401)
    assert refused.detail.startswith("KBS Client Protocol Version Mismatch: expect ")
