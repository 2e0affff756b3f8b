"""The list a key broker for CoCo's guests is accepted by, item by item, end to end.

Each class is one item. What needs more than a class here stands elsewhere; such tests are named, and a test checks that
they exist, so that none can go without being missed.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.crypto.pem import split_pem
from cloister.rats.claims import Claims
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.rats.result import VerifiedEvidence
from cloister.tee.registry import authenticator_for, pins_for, reader_for
from cloister.tee.regopolicy import policy_input
from cloister.trust.access import TOKEN_FILE
from cloister.trust.admin import TrustAdmin
from cloister.trust.rego.engine import RegoEngine
from cloister.wire.limits import CERTIFICATE_BYTES
from conformance import rcar, trustee_token
from conformance.rcar import Client, Denied, ec_key, rsa_key
from evidence_world import Site, refusal, snp_machine
from foreign_tokens import BAD, GOOD, b64url, claims, scenario
from trust_process import Running, running
from trust_world import CANARY, MODEL, quick_directory

TESTS = Path(__file__).resolve().parents[1]
PATH = str(MODEL)
KEYS = {"P-256": ec_key, "P-521": partial(ec_key, "P-521"), "RSA-OAEP-256": rsa_key}
ALLOW_SIMULATED = b'insecure_allow_levels = ["simulated"]\n'
ITEM_7 = (
    "nonce_reuse_in_another_session",
    "second_attest_on_the_session",
    "swapped_additional_evidence",
    "expired_reference_value",
    "a_key_that_is_not_the_leafs",
    "another_algorithm",
    "oversize_evidence",
    "deep_json",
)
FLOOR = 10.0  # attestations a second that any machine must reach; the target is 100 on four cores
LONGEST = 2.0  # seconds that the slowest of a hundred may take in a test; the target is 0.2


class Elsewhere:
    """Names tests of other files that belong to the item."""

    ELSEWHERE: tuple[tuple[str, str], ...] = ()

    def test_what_is_tested_elsewhere_is(self) -> None:
        for file, name in self.ELSEWHERE:
            assert f"def {name}(" in (TESTS / file).read_text("utf-8"), (file, name)


class Owner:
    """Who administers as CoCo's tool does: by HTTP, with an access token as Bearer."""

    def __init__(self, service: Running) -> None:
        self.service = service
        self.token = (Path(service.report["ca_file"]).parent / TOKEN_FILE).read_text().strip()

    def ask(self, method: str, path: str, body: bytes | None = None, token: str | None = None) -> rcar.Answer:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return rcar.request(self.service.report["url"], self.service.ca_pem, method, f"/kbs/v0/{path}", body, headers)

    def do(self, method: str, path: str, body: bytes | None = None) -> bytes:
        answer = self.ask(method, path, body)
        assert answer.status == 200, answer.body
        return answer.body

    def policy(self, path: str, text: bytes, **more: str) -> None:
        self.do("POST", path, json.dumps({"policy": b64url(text), **more}).encode())

    def values(self, **values: Any) -> rcar.Answer:
        payload = base64.b64encode(json.dumps(values).encode()).decode()
        message = {"version": "0.1.0", "type": "sample", "payload": payload}
        return self.ask("POST", "reference-value", json.dumps(message).encode())


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """A service that allows the sample TEE for one prefix and takes unsigned reference values."""
    with quick_directory() as directory:
        with TrustAdmin(directory / "state") as admin:
            admin.put_release_rule("default/model/*", ALLOW_SIMULATED)
        with running(directory / "state", "--insecure-unsigned-reference-values") as made:
            Owner(made).do("POST", f"resource/{PATH}", CANARY)
            yield made


@pytest.fixture(scope="module")
def owner(service: Running) -> Owner:
    return Owner(service)


def client_of(service: Running, kind: str = "P-256") -> Client:
    return Client(service.report["url"], service.ca_pem, KEYS[kind]())


def attested(client: Client, **evidence: Any) -> Client:
    """Do the handshake of the sample TEE."""
    client.auth("sample")
    bound = base64.b64encode(client.report_data()).decode()
    client.attest({"svn": "1", "report_data": bound, **evidence})
    return client


def cpu(client: Client) -> dict[str, Any]:
    submodule: dict[str, Any] = json.loads(rcar.unpadded(client.token.split(".")[1]))["submods"]["cpu0"]
    return submodule


def certificates_in(data: bytes) -> list[bytes]:
    """Return the certificates in a file of PEM or one of DER."""
    return split_pem(data, code="x.y", ceiling=CERTIFICATE_BYTES) if data.startswith(b"-----") else [data]


def recorded(vectors: Path, identity: str) -> Claims:
    """Return the claims of recorded evidence, authenticated with nothing but the files beside it."""
    directory = vectors / "evidence"
    cases = json.loads((directory / "cases.json").read_text())
    case = next(item for item in cases if item["id"] == identity)
    tee = case["platform"]
    certificates = tuple(
        der for name in case["endorsements"] for der in certificates_in((directory / name).read_bytes())
    )
    body = reader_for(tee)((directory / case["file"]).read_bytes(), tee=tee).body
    endorsements = Endorsements(roots=(), pins=pins_for(tee), certificates=certificates)
    at = datetime.fromisoformat(case["at"])
    return authenticator_for(tee)(Evidence(tee=tee, body=body), endorsements, at=at, session_secret=b"").claims


class TestItem1Clients(Elsewhere):
    """A client of the protocol gets a secret with the sample TEE, by cookie and by Bearer, with each kind of key.

    The client is `rcar.py`. CoCo's own `kbs-client` is not to be had by an ordinary client of a package registry:
    neither crates.io (`kbs-client`, `kbs_protocol`), PyPI, npm nor Debian has it. It is built from its repository.
    """

    ELSEWHERE = (
        ("conformance/test_rcar_client.py", "test_every_version_with_the_sample_tee"),
        ("conformance/test_rcar_client.py", "test_a_secret_arrives"),
        ("conformance/test_rcar_client.py", "test_the_aad_is_the_header_as_clients_write_it"),
    )

    @pytest.mark.parametrize("kind", KEYS)
    @pytest.mark.parametrize("by", ["cookie", "bearer"])
    def test_the_secret_that_cocos_tool_stored_arrives(self, service: Running, kind: str, by: str) -> None:
        assert attested(client_of(service, kind)).resource(PATH, by=by) == CANARY

    def test_nothing_arrives_without_a_session_or_token(self, service: Running) -> None:
        with pytest.raises(Denied) as caught:
            client_of(service).resource(PATH)
        assert caught.value.status == 401

    def test_administration_takes_a_token(self, owner: Owner) -> None:
        for token in ("", "x", attested(client_of(owner.service)).token):
            assert owner.ask("POST", "resource/a/b/c", b"x", token=token).status == 401


class TestItem2Claims(Elsewhere):
    """Recorded evidence verifies without a network, and its claims have CoCo's names and values."""

    ELSEWHERE = (
        ("vectors/test_azure_vectors.py", "test_hardware_vouches_for_the_json_in_every_sample"),
        ("conformance/test_rcar_client.py", "test_recorded_snp_evidence_is_authentic_and_not_this_sessions"),
    )
    # trustee, attestation-service/docs/tcb_claims.md
    SNP = frozenset(
        {
            *("measurement", "report_data", "init_data", "chip_id", "platform_tsme_enabled", "platform_smt_enabled"),
            *(f"policy_{name}" for name in ("abi_major", "abi_minor", "smt_allowed", "migrate_ma", "debug_allowed")),
            *(f"reported_tcb_{name}" for name in ("bootloader", "tee", "snp", "microcode")),
            "policy_single_socket",
        }
    )

    def test_snp(self, vectors: Path) -> None:
        directory = vectors / "evidence" / "snp" / "milan-v2-vcek"
        raw = recorded(vectors, "snp/milan-v2-vcek").raw
        assert set(raw) >= self.SNP
        report = (directory / "report.bin").read_bytes()
        policy, tcb = (int.from_bytes(report[at : at + 8], "little") for at in (8, 0x180))
        expected = {
            "measurement": report[0x90:0xC0].hex(),
            "report_data": report[0x50:0x90].hex(),
            "init_data": report[0xC0:0xE0].hex(),
            "chip_id": report[0x1A0:0x1E0].hex(),
            "policy_abi_major": policy >> 8 & 0xFF,
            "policy_abi_minor": policy & 0xFF,
            "policy_smt_allowed": bool(policy >> 16 & 1),
            "policy_migrate_ma": bool(policy >> 18 & 1),
            "policy_debug_allowed": bool(policy >> 19 & 1),
            "policy_single_socket": bool(policy >> 20 & 1),
            "reported_tcb_bootloader": tcb & 0xFF,
            "reported_tcb_tee": tcb >> 8 & 0xFF,
            "reported_tcb_snp": tcb >> 48 & 0xFF,
            "reported_tcb_microcode": tcb >> 56,
        }
        assert {name: raw[name] for name in expected} == expected

    def test_azure(self, vectors: Path) -> None:
        raw = recorded(vectors, "az-snp-vtpm/milan-v1").raw
        assert raw["tpm"]["pcr00"].startswith("e15c4479")
        assert {type(value) for name, value in raw.items() if name != "tpm"} == {str}
        assert base64.b64decode(raw["measurement"]).hex().startswith("6a063be9dd79")


REGO = b"""package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {"executables": executables, "hardware": hardware, "configuration": configuration}

executables := 3 if {
	input.sample.launch_digest in query_reference_value("launch_digest")
}

hardware := 2 if {
	input.sample.svn in query_reference_value("svn")
}

configuration := 2 if {
	input.sample.debug == false
}

executables := 3 if {
	input.snp.measurement in query_reference_value("snp_launch_measurement")
}

hardware := 2 if {
	input.snp.evidence.reported_tcb.snp >= 0
}

configuration := 2 if {
	input.snp
}
"""


class TestItem3Policies(Elsewhere):
    """Rego appraisal and release policies in CoCo's form give the status that CoCo's service gives.

    The policies here are our own, of the constructs that CoCo's have. Our floors stay: the sample TEE is a warning
    where CoCo's service affirms it, and a debug guest is refused where a policy forgets to ask.
    """

    ELSEWHERE = (
        ("unit/trust/test_trust_rego_appraisal.py", "test_every_value_is_compared"),
        ("unit/trust/test_trust_rego_appraisal.py", "test_entries_are_shown_under_cocos_names"),
        ("unit/trust/test_trust_rego.py", "test_policies_over_real_claims"),
        ("unit/tee/test_regopolicy.py", "test_a_policy_written_for_coco_accepts"),
    )

    @pytest.fixture(autouse=True)
    def _rego(self) -> None:
        pytest.importorskip("regopy", reason="the extra `rego` is not installed")

    def test_over_the_wire(self, service: Running, owner: Owner) -> None:
        owner.policy("attestation-policy", REGO, type="rego", policy_id="default_cpu")
        try:
            client = attested(client_of(service))
            assert cpu(client)["ear.status"] == "contraindicated"
            with pytest.raises(Denied) as caught:
                client.resource(PATH)
            assert (caught.value.status, caught.value.body["code"]) == (403, "appraisal.rego.hardware")
            assert owner.values(launch_digest=["abcde"], svn=["1"]).status == 200
            client = attested(client_of(service))
            assert cpu(client)["ear.status"] == "warning" and client.resource(PATH) == CANARY
            assert json.loads(owner.do("GET", "reference-value/svn")) == ["1"]
        finally:
            typed = b'{"version":1,"id":"default","tees":["sample"]}'
            owner.policy("attestation-policy", typed, policy_id="default")

    def test_a_release_policy_is_asked_and_lowers_no_floor(self, service: Running, owner: Owner) -> None:
        owner.do("POST", "resource/coco/rego/one", b"x")
        owner.policy("resource-policy", b"package policy\n\ndefault allow = true\n")
        assert "resource-policy" in json.loads(owner.do("GET", "resource-policy"))
        with pytest.raises(Denied) as caught:
            attested(client_of(service)).resource("coco/rego/one")
        assert caught.value.body["code"] == "trust.release.level"

    def test_hardware_is_affirmed_by_it_and_debug_is_not(self, tmp_path: Path) -> None:
        site = Site(tmp_path, snp_machine()).fetch()
        try:
            site.admin.put_appraisal_policy(REGO, name="default")
            guest = site.guest()
            assert guest.attest().status == 200 and guest.open(guest.resource()) == CANARY
            guest = site.guest(debug=True)
            assert guest.attest().status == 200
            assert refusal(guest.resource(), 403) == "appraisal.debug"
            site.trust_measurement(bytes(48))
            guest = site.guest()
            assert guest.attest().status == 200
            assert refusal(guest.resource(), 403) == "trust.release.tier"
        finally:
            site.close()

    @pytest.mark.parametrize("case", ["snp/milan-v2-vcek", "snp/milan-v2-debug"])
    def test_recorded_claims_come_to_the_vector_they_should(self, vectors: Path, case: str) -> None:
        claims = recorded(vectors, case)
        seen = policy_input(VerifiedEvidence(claims=claims, findings=()), init_data_digest="", input_claims={})
        with RegoEngine() as engine:
            without = engine.appraise(REGO.decode(), {}, seen)
            values = {"snp_launch_measurement": [claims.registers["measurement"].hex()]}
            good = engine.appraise(REGO.decode(), values, seen)
        assert (without.claims["executables"], without.claims["hardware"]) == (33, 2)
        assert (good.claims["executables"], good.claims["configuration"]) == (3, 2)


class TestItem4Tokens(Elsewhere):
    """CoCo's broker would accept our tokens, and ours accepts those of CoCo's attestation service."""

    ELSEWHERE = (
        ("unit/trust/test_trust_foreign.py", "test_a_rule_that_names_it_releases"),
        ("unit/trust/test_trust_foreign.py", "test_off_by_default"),
        ("unit/trust/test_trust_foreign.py", "test_another_tenant_takes_none"),
    )

    def test_ours_hold_by_cocos_check(self, service: Running) -> None:
        client = attested(client_of(service))
        anchors = x509.load_pem_x509_certificates(service.ca_pem.encode())
        found = trustee_token.verify(client.token, anchors, datetime.now(UTC))
        assert trustee_token.guest_key(found) == client.key.jwk
        assert found["submods"]["cpu0"]["ear.status"] == "warning"

    def test_ours_do_not_hold_under_another_ca_or_when_changed(self, service: Running) -> None:
        client, now = attested(client_of(service)), datetime.now(UTC)
        anchors = x509.load_pem_x509_certificates(service.ca_pem.encode())
        stranger = scenario(1, now)
        head, body, signature = client.token.split(".")
        changed = b64url(rcar.unpadded(body).replace(b'"warning"', b'"affirming"'))
        for token, trusted in ((client.token, [stranger.trusted]), (f"{head}.{changed}.{signature}", anchors)):
            with pytest.raises(trustee_token.Refused):
                trustee_token.verify(token, trusted, now)

    @pytest.mark.parametrize("number", [*GOOD, *BAD])
    def test_the_check_is_cocos(self, number: int) -> None:
        """The seven scenarios of CoCo's fixtures, made anew under test roots."""
        now = datetime.now(UTC)
        made = scenario(number, now)
        token = made.token(claims(ec_key().jwk, now))
        if number in GOOD:
            assert trustee_token.verify(token, [made.trusted], now)["iss"] == "CoCo-Attestation-Service"
        else:
            with pytest.raises(trustee_token.Refused):
                trustee_token.verify(token, [made.trusted], now)

    def test_cocos_are_accepted_over_the_wire(self, tmp_path: Path) -> None:
        now = datetime.now(UTC)
        made, state = scenario(6, now), tmp_path / "state"
        (tmp_path / "roots.pem").write_bytes(made.trusted.public_bytes(Encoding.PEM))
        digest = "ab" * 32
        rule = f'init_data = ["sha256:{digest}"]\nappraisal_policy = "trustee:default"\n'
        with TrustAdmin(state) as admin:
            admin.put_resource(MODEL, CANARY)
            admin.put_release_rule(PATH, rule.encode())
        with running(state, "--trusted-token-roots", str(tmp_path / "roots.pem")) as service:
            client = client_of(service)
            client.token = made.token(claims(client.key.jwk, now, init_data=digest))
            assert client.resource(PATH, by="bearer") == CANARY
            client.token = scenario(6, now).token(claims(client.key.jwk, now, init_data=digest))
            with pytest.raises(Denied) as caught:
                client.resource(PATH, by="bearer")
            assert caught.value.status == 401


class TestItem5ReferenceValues(Elsewhere):
    """RVPS messages 0.1.0 are taken, unsigned ones with an explicit switch only."""

    ELSEWHERE = (
        ("unit/trust/test_trust_coco.py", "test_item_5_unsigned_ones_need_the_switch"),
        ("unit/trust/test_trust_coco.py", "test_they_read_back_until_they_expire"),
    )

    def test_with_the_switch(self, owner: Owner) -> None:
        assert owner.values(snp_launch_measurement=["ab" * 48]).status == 200
        assert json.loads(owner.do("GET", "reference-value/snp_launch_measurement")) == ["ab" * 48]

    def test_without_it(self, tmp_path: Path) -> None:
        with running(tmp_path / "state") as service:
            answer = Owner(service).values(snp_launch_measurement=["ab" * 48])
            assert answer.status == 403 and rcar.refusal(answer).body["code"] == "trust.reference.unsigned"
            assert Owner(service).ask("GET", "reference-value/snp_launch_measurement").status == 404


class TestItem6Answers(Elsewhere):
    """Missing is 404, denied is 403 with a reason and a denial id: a client stops after one attempt."""

    ELSEWHERE = (
        ("conformance/test_rcar_client.py", "test_a_missing_secret_is_404_and_a_denied_one_403"),
        ("conformance/test_rcar_client.py", "test_every_refusal_has_type_and_detail"),
    )

    def test_denied(self, service: Running, owner: Owner) -> None:
        owner.do("POST", "resource/no/rule/one", b"x")
        with pytest.raises(Denied) as caught:
            attested(client_of(service)).resource("no/rule/one")
        told = caught.value
        assert told.status == 403 and told.body["code"].startswith("trust.release.")
        assert told.body["denial-id"] in told.body["detail"] and told.body["code"] in told.body["detail"]

    def test_missing(self, service: Running, owner: Owner) -> None:
        owner.do("POST", "resource/default/model/gone", b"x")
        client = attested(client_of(service))
        assert client.resource("default/model/gone") == b"x"
        owner.do("DELETE", "resource/default/model/gone")
        with pytest.raises(Denied) as caught:
            client.resource("default/model/gone")
        assert caught.value.status == 404


class TestItem7Negatives(Elsewhere):
    """What must not work. All of it is tested where it belongs, by item; one is sent here over the wire."""

    ELSEWHERE = (
        *(("unit/trust/test_trust_negatives.py", f"test_item_7_{name}") for name in ITEM_7),
        ("adversary/test_hostile_evidence.py", "test_a_quote_over_other_registers_is_refused"),
        ("unit/trust/test_trust_evidence.py", "test_a_debug_guest"),
    )

    def test_a_second_attestation_on_the_session(self, service: Running) -> None:
        client = attested(client_of(service))
        bound = base64.b64encode(client.report_data()).decode()
        with pytest.raises(Denied) as caught:
            client.attest({"svn": "1", "report_data": bound})
        assert caught.value.status == 401

    def test_a_nonce_of_nobody(self, service: Running) -> None:
        client = client_of(service)
        client.auth("sample")
        client.nonce = base64.b64encode(bytes(32)).decode()
        bound = base64.b64encode(client.report_data()).decode()
        with pytest.raises(Denied) as caught:
            client.attest({"svn": "1", "report_data": bound})
        assert caught.value.status == 401


class TestItem8Rate(Elsewhere):
    """Attestations a second with the sample TEE, by as many clients as there are cores.

    The target, 100 a second on four cores with p99 under 200 ms, is measured with a load generator
    (docs/reference/performance.md). This client is Python on the same cores and makes a TLS connection for each
    request, so the floor here is generous and only says that nothing is slow by an order of magnitude.
    """

    ELSEWHERE = (("unit/trust/test_trust_store_hook.py", "test_its_rows_are_in_the_batch_and_it_runs_once"),)
    ATTESTATIONS = 100

    def test_a_floor(self, service: Running, record_property: Any) -> None:
        def one(_: int) -> float:
            begun = time.monotonic()
            attested(client_of(service))
            return time.monotonic() - begun

        attested(client_of(service))
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            begun = time.monotonic()
            seconds = sorted(threads.map(one, range(self.ATTESTATIONS)))
            rate = self.ATTESTATIONS / (time.monotonic() - begun)
        record_property("attestations_per_second", round(rate, 1))
        record_property("p99_seconds", round(seconds[-2], 3))
        print(f"{rate:.0f} attestations/s, p50 {seconds[50] * 1000:.0f} ms, p99 {seconds[-2] * 1000:.0f} ms")
        assert rate >= FLOOR and seconds[-1] < LONGEST
