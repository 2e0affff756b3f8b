"""TPM quotes, keys, event logs and certificates made by others: TPM emulators, cloud vTPMs, firmware of many machines.

The quotes carry no proof of whose key signed them, so none of them is good evidence here; their cryptography must
check out all the same, step by step, and each altered copy must not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key, load_pem_public_key

from cloister.crypto.x509path import load_certificate, verify_path
from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Unchecked, Verdict
from cloister.tee.checklist import Checklist
from cloister.tee.collateral.files import parse_trust_roots, sort_endorsement_files
from cloister.tee.tpm import commands, quote
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import (
    PCRSelection,
    RSAUnique,
    encode_public,
    encode_quote_attest,
    encode_signature,
    parse_public,
    parse_quote_attest,
    parse_signature,
)
from cloister.tee.tpm.credential import ak_name
from cloister.tee.tpm.endorsements import parse_tpm_roots
from cloister.tee.tpm.eventlog import EV_NO_ACTION, parse_event_log, replay, start_value
from cloister.tee.tpm.evidence import read_evidence
from cloister.tee.tpm.instanceinfo import read_instance_info
from cloister.tee.tpm.tpm2tools import join_parts, parse_pcr_file
from cloister.tee.tpm.verifier import authenticate
from cloister.tee.verification import examine_evidence, verify_evidence
from tampering import flipped

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def tpm_vectors(vectors: Path) -> Path:
    """The directory of TPM vectors."""
    return vectors / "evidence" / "tpm"


@pytest.fixture(scope="session")
def cases(vectors: Path) -> list[dict[str, Any]]:
    """All machine-readable cases."""
    loaded = json.loads((vectors / "evidence" / "cases.json").read_text())
    found: list[dict[str, Any]] = loaded["cases"] if isinstance(loaded, dict) else loaded
    return found


def check_quote(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    message: bytes,
    signature: bytes,
    *,
    extra_data: bytes,
    selection: PCRSelection,
    values: list[bytes],
) -> int:
    """Run every check on one quote; return how many findings it gave."""
    checks = Checklist()
    attest = parse_quote_attest(message)
    assert encode_quote_attest(attest) == message
    assert encode_signature(parse_signature(signature)) == signature
    quote.verify_signature(checks, key, message, parse_signature(signature))
    if attest.extra_data != extra_data:
        raise EvidenceError("evidence.freshness", "another nonce")
    quote.verify_selection(checks, attest, selection)
    quote.verify_values(checks, attest, values)
    return len(checks.findings)


# CoCo's attester


@pytest.fixture
def coco(tpm_vectors: Path) -> dict[str, Any]:
    """Evidence of CoCo's `tpm` attester."""
    evidence: dict[str, Any] = json.loads((tpm_vectors / "trustee-ms-vtpm" / "evidence.json").read_text())
    return evidence


def test_coco_evidence_is_refused_because_nothing_vouches_for_its_key(coco: dict[str, Any]) -> None:
    binding = ExpectedBinding(report_data=bytes(48), init_data_digest=bytes(32), session_secret=bytes(32))
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(Evidence(tee="tpm", body=coco), binding, Endorsements(roots=()), at=NOW)
    assert caught.value.code == "tee.tpm.no_ek_certificate"


def test_the_cryptography_of_coco_evidence_checks_out(coco: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    key = load_der_public_key(base64.b64decode(coco["ak_public"]))
    assert isinstance(key, rsa.RSAPublicKey)
    parts = coco["tpm_quote"]
    message, signature = base64.b64decode(parts["message"]), base64.b64decode(parts["signature"])
    values = [bytes.fromhex(text) for text in parts["pcrs"]]
    nonce = bytes.fromhex(next(case["nonce"] for case in cases if case["id"] == "tpm/trustee-ms-vtpm"))
    good: dict[str, Any] = {"extra_data": nonce, "selection": quote.ALL_PCRS, "values": values}
    assert check_quote(key, message, signature, **good) == 4
    wrong = bytes.fromhex(next(case["nonce"] for case in cases if case["id"] == "tpm/trustee-ms-vtpm#wrong-nonce"))
    with pytest.raises(EvidenceError) as caught:
        check_quote(key, message, signature, **{**good, "extra_data": wrong})
    assert caught.value.code == "evidence.freshness"
    with pytest.raises(EvidenceError) as caught:
        check_quote(key, message, signature, **{**good, "values": [bytes(32)] * 24})
    assert caught.value.code == "tee.tpm.pcr_digest_mismatch"


# keylime's emulator: tpm2-tools files


def test_a_quote_of_tpm2_tools(tpm_vectors: Path) -> None:
    at = tpm_vectors / "keylime-emulator"
    public = parse_public((at / "ak.pub").read_bytes())
    assert encode_public(public) == (at / "ak.pub").read_bytes()
    assert ak_name((at / "ak.pub").read_bytes()) == (at / "ak.name").read_bytes()
    key = quote.attestation_key(public)
    pem = load_pem_public_key((at / "akpub.pem").read_bytes())
    assert isinstance(key, rsa.RSAPublicKey)
    assert isinstance(pem, rsa.RSAPublicKey)
    assert key.public_numbers() == pem.public_numbers()
    selection = PCRSelection(algorithm=c.ALG_SHA256, bitmap=bytes.fromhex("008041"))  # PCRs 15, 16, 22
    good: dict[str, Any] = {
        "extra_data": (at / "rand.out").read_bytes(),
        "selection": selection,
        "values": _keylime_values(at),
    }
    message, signature = (at / "quote.out").read_bytes(), (at / "quotesig.out").read_bytes()
    assert check_quote(key, message, signature, **good) == 4
    with pytest.raises(EvidenceError) as caught:
        check_quote(key, message, signature, **{**good, "selection": quote.ALL_PCRS})
    assert caught.value.code == "tee.tpm.pcr_selection"


def _keylime_values(at: Path) -> list[bytes]:
    return list(parse_pcr_file((at / "quotepcr.out").read_bytes()))


def test_an_ek_of_the_low_range_template(tpm_vectors: Path) -> None:
    public = parse_public((tpm_vectors / "keylime-emulator" / "ek.pub").read_bytes())
    template = parse_public(commands.sized(commands.EK_TEMPLATE))
    assert isinstance(public.unique, RSAUnique)
    assert (public.attributes, public.policy, public.symmetric) == (
        template.attributes,
        template.policy,
        template.symmetric,
    )


def test_parts_of_tpm2_tools_give_their_expected_verdict(vectors: Path, cases: list[dict[str, Any]]) -> None:
    seen = 0
    for case in cases:
        if case["kind"] != "evidence-parts" or case["platform"] != "tpm":
            continue
        at = (vectors / "evidence" / case["file"]).parent
        for ak in ("ak.pub", "akpub.pem"):
            body = join_parts(
                message=(at / "quote.out").read_bytes(),
                signature=(at / "quotesig.out").read_bytes(),
                pcrs=(at / "quotepcr.out").read_bytes(),
                ak_public=(at / ak).read_bytes(),
            )
            answer = examine_parts(vectors, case, body)
            expected = case["expect"]
            assert (answer.verdict.value, answer.authentic) == (expected["verdict"], expected["authentic"])
            assert answer.bound.value == expected["bound"]
            assert answer.claims is not None
            assert set(answer.claims.registers) == {"pcr15", "pcr22"}  # 16 may be reset by anyone
            wrong = examine_parts(vectors, {**case, "nonce": case["nonce"][:-2]}, body)
            assert (wrong.verdict, wrong.bound) == (Verdict.REFUSE, Bound.NO)
        seen += 1
    assert seen == 1


def examine_parts(vectors: Path, case: dict[str, Any], body: Mapping[str, Any]) -> Examination:
    files = [(name, (vectors / "evidence" / name).read_bytes()) for name in case["trust_roots"]]
    not_asked = Unchecked(reason="not asked for")
    return examine_evidence(
        Evidence(tee="tpm", body=body),
        ExpectedBinding(report_data=bytes.fromhex(case["nonce"]), init_data_digest=not_asked, exact=True),
        Endorsements(roots=parse_trust_roots("tpm", Level.MEASURED, files).roots),
        AppraisalPolicy(id="p", tees=frozenset({"tpm"}), levels=frozenset(Level), accept_debug=False, digest=""),
        not_asked,
        at=datetime.fromisoformat(case["at"]),
    )


# Google's vTPM


@pytest.fixture(scope="session")
def cloud(vectors: Path) -> tuple[Evidence, Endorsements]:
    """An attestation of Google Compute Engine and what vouches for its AK."""
    at = vectors / "evidence"
    data = (at / "tpm" / "gce-nonce9009" / "attestation.pb").read_bytes()
    root = (at / "roots" / "gcp" / "tpm_ek_root_1.cer").read_bytes()
    intermediate = (at / "roots" / "gcp" / "tpm_ek_intermediate_2.crt").read_bytes()
    return Evidence(tee="tpm", body=read_evidence(data, tee="tpm").body), Endorsements(
        roots=parse_trust_roots("tpm", Level.MEASURED, [("root", root)]).roots,
        certificates=sort_endorsement_files([("intermediate", intermediate)]).certificates,
    )


def test_a_cloud_vtpm_is_vouched_for_by_the_certificate_of_its_ak(cloud: tuple[Evidence, Endorsements]) -> None:
    evidence, endorsements = cloud
    found = authenticate(evidence, endorsements, at=NOW)
    assert found.freshness.value == b"\x90\x09"
    assert len(found.claims.registers) == 22
    instance = found.claims.native["gce_instance"]
    assert (instance["zone"], instance["production"]) == ("us-central1-a", True)
    # Both certificates say where their revocation lists are, and none was given.
    assert [item.unknown for item in found.findings if item.code == "tee.tpm.ak_certificate.revocation"] == [True, True]
    assert any("registers 10, 11" in item.reason for item in found.unchecked)
    for roots in ((), endorsements.roots):
        with pytest.raises(EndorsementError):
            authenticate(evidence, replace(endorsements, roots=roots, certificates=()), at=NOW)


def test_every_flipped_bit_of_what_a_cloud_signed_is_found(cloud: tuple[Evidence, Endorsements]) -> None:
    evidence, endorsements = cloud
    tried = 0
    for place in ("message", "signature"):
        data = base64.b64decode(evidence.body["tpm_quote"][place])
        for offset in range(0, len(data), 5):
            changed = data[:offset] + bytes([data[offset] ^ 0x20]) + data[offset + 1 :]
            quote_body = {**evidence.body["tpm_quote"], place: base64.b64encode(changed).decode()}
            with pytest.raises(Refused):
                authenticate(replace(evidence, body={**evidence.body, "tpm_quote": quote_body}), endorsements, at=NOW)
            tried += 1
    assert tried > 70


# Event logs


def test_every_log_replays_to_what_others_computed(vectors: Path, cases: list[dict[str, Any]]) -> None:
    seen = 0
    for case in cases:
        if case["kind"] != "eventlog" or not case["file"].startswith("tpm/"):
            continue
        events = parse_event_log((vectors / "evidence" / case["file"]).read_bytes())
        expected = case["expect"]
        assert len(events) == expected.get("events", len(events)), case["id"]
        for index, value in expected.get("sha256", {}).items():
            register = int(index)
            assert replay(events, register, start_value(events, register)).hex() == value, case["id"]
        seen += 1
    assert seen == 9


def test_a_log_with_any_digest_changed_replays_to_something_else(tpm_vectors: Path) -> None:
    data = (tpm_vectors / "eventlogs" / "rhel8-uefi.bin").read_bytes()
    expected = json.loads((tpm_vectors / "eventlogs" / "expected-pcrs.json").read_text())
    good = parse_event_log(data)
    values = {index: replay(good, index, start_value(good, index)) for index in range(10)}
    assert json.dumps(expected).count(values[4].hex()) >= 1
    offset = data.index(good[3].digests["sha256"])
    changed = parse_event_log(flipped(data, offset))
    assert [i for i in values if replay(changed, i, start_value(changed, i)) != values[i]] == [good[3].register]


def test_cut_logs_are_refused_or_shorter(tpm_vectors: Path) -> None:
    data = (tpm_vectors / "eventlogs" / "arch-linux-workstation.bin").read_bytes()
    whole = parse_event_log(data)
    lengths = set()
    for length in range(0, len(data), 3):
        try:
            events = parse_event_log(data[:length])
        except FormatRefused:
            continue
        assert events == whole[: len(events)]
        lengths.add(len(events))
    assert len(whole) not in lengths


def test_logs_of_confidential_vms_say_what_others_read_in_them(vectors: Path, cases: list[dict[str, Any]]) -> None:
    """Register, digest and data of each event, in order, as CoCo's parser gives them."""
    seen = 0
    for case in cases:
        if case["kind"] != "eventlog" or "parsed" not in case["expect"]:
            continue
        events = parse_event_log((vectors / "evidence" / case["file"]).read_bytes())
        theirs = json.loads((vectors / "evidence" / case["expect"]["parsed"]).read_text())["uefi_event_logs"]
        told = [item for item in events if item.kind != EV_NO_ACTION]
        ours = [(item.register, item.digests["sha384"].hex(), base64.b64encode(item.data).decode()) for item in told]
        others = [
            (item["index"], item["digests"][0]["digest"], item["event"])
            for item in theirs
            if item["type_name"] != "EV_NO_ACTION"
        ]
        assert ours == others, case["id"]
        seen += 1
    assert seen == 3


# Certificates


def _load(path: Path) -> x509.Certificate:
    (root,) = parse_tpm_roots(path.read_bytes(), level=Level.MEASURED, origin=path.name)
    return load_certificate(root.der, code="x")


def test_cloud_ek_certificates_chain_through_their_intermediates(vectors: Path, cases: list[dict[str, Any]]) -> None:
    seen = 0
    for case in cases:
        if case["index"] != "tpm/certs":
            continue
        given = [_load(vectors / "evidence" / name) for name in case["endorsements"]]
        anchors = [item for item in given if item.subject == item.issuer]
        leaf = _load(vectors / "evidence" / case["file"])
        options: dict[str, Any] = {
            "intermediates": [item for item in given if item not in anchors],
            "at": NOW,
            "code": "x",
            "leaf_critical": frozenset({x509.oid.ExtensionOID.SUBJECT_ALTERNATIVE_NAME}),
        }
        assert verify_path(leaf, anchors=anchors, **options)[-1] in anchors, case["id"]
        instance = read_instance_info(leaf)
        assert instance is not None
        assert instance.project_id == "google.com:wuale-gcp-testing", case["id"]
        with pytest.raises(EndorsementError):
            verify_path(leaf, anchors=[], **options)
        late = {**options, "at": datetime(2060, 1, 1, tzinfo=UTC)}
        with pytest.raises(EndorsementError) as caught:
            verify_path(leaf, anchors=anchors, **late)
        assert caught.value.code == "x.expired"
        seen += 1
    assert seen == 8


def test_cloud_roots_load_as_trusted_roots(vectors: Path) -> None:
    for path in sorted((vectors / "evidence" / "roots" / "gcp").iterdir()):
        (root,) = parse_tpm_roots(path.read_bytes(), level=Level.MEASURED, origin=path.name)
        assert load_certificate(root.der, code="x").public_bytes(Encoding.DER) == root.der
        assert path.name in root.name


def test_no_vector_that_is_something_else_passes_for_a_tpm_structure(tpm_vectors: Path) -> None:
    for path in sorted(item for item in tpm_vectors.rglob("*") if item.is_file()):
        data = path.read_bytes()
        for parse, own in (
            (parse_public, ("ak.pub", "ek.pub")),
            (parse_quote_attest, ("quote.out",)),
            (parse_signature, ("quotesig.out",)),
        ):
            if path.name not in own:
                with pytest.raises(Refused):
                    parse(data)
