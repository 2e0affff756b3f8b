"""TPM quotes, keys, event logs and certificates made by others: TPM emulators, cloud vTPMs, firmware of many machines.

The quotes carry no proof of whose key signed them, so none of them is good evidence here; their cryptography must
check out all the same, step by step, and each altered copy must not.
"""

from __future__ import annotations

import base64
import hashlib
import json
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
from cloister.tee.checklist import Checklist
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
from cloister.tee.tpm.eventlog import parse_event_log, replay, start_value
from cloister.tee.verification import verify_evidence

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
    """Return the three values of a tpm2-tools PCR file: a list of 16 selections, then digests of 64 bytes' room."""
    data = (at / "quotepcr.out").read_bytes()
    digest = parse_quote_attest((at / "quote.out").read_bytes()).pcr_digest
    for start in range(len(data) - 2 * 66 - 32):
        found = [data[start + 66 * index : start + 66 * index + 32] for index in range(3)]
        if hashlib.sha256(b"".join(found)).digest() == digest:
            return found
    raise AssertionError("the file holds other values than were quoted")


def test_an_ek_of_the_low_range_template(tpm_vectors: Path) -> None:
    public = parse_public((tpm_vectors / "keylime-emulator" / "ek.pub").read_bytes())
    template = parse_public(commands.sized(commands.EK_TEMPLATE))
    assert isinstance(public.unique, RSAUnique)
    assert (public.attributes, public.policy, public.symmetric) == (
        template.attributes,
        template.policy,
        template.symmetric,
    )


# Google's vTPM


def test_quotes_of_a_cloud_vtpm_and_its_log(tpm_vectors: Path) -> None:
    message = _protobuf((tpm_vectors / "gce-nonce9009" / "attestation.pb").read_bytes())
    public = commands.sized(message[1][0])
    key = quote.attestation_key(parse_public(public))
    events = parse_event_log(message[3][0])
    accepted = []
    for part in map(_protobuf, message[2]):
        pcrs = _protobuf(part[3][0])
        values = {entry[1][0]: entry[2][0] for entry in map(_with_zero, pcrs[2])}
        attest = parse_quote_attest(part[1][0])
        try:
            check_quote(
                key,
                part[1][0],
                part[2][0],
                extra_data=b"\x90\x09",
                selection=quote.ALL_PCRS,
                values=[values[index] for index in range(24)],
            )
        except EvidenceError as err:
            assert err.code == "tee.tpm.pcr_selection"
            assert attest.selections[0].algorithm in (c.ALG_SHA1, c.ALG_SHA384)
            continue
        accepted.append(attest)
        for index in range(10):
            assert replay(events, index, start_value(events, index)) == values[index]
    assert [item.selections for item in accepted] == [(quote.ALL_PCRS,)]


def _protobuf(data: bytes) -> dict[int, list[Any]]:
    """Return the fields of a protocol buffer message, as bytes or integers."""
    fields: dict[int, list[Any]] = {}
    offset = 0

    def varint() -> int:
        nonlocal offset
        value = shift = 0
        while True:
            byte = data[offset]
            offset += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while offset < len(data):
        number, kind = divmod(varint(), 8)
        length = varint()
        if kind == 0:
            fields.setdefault(number, []).append(length)
        else:
            fields.setdefault(number, []).append(data[offset : offset + length])
            offset += length
    return fields


def _with_zero(entry: bytes) -> dict[int, list[Any]]:
    """Return a map entry; protocol buffers may leave out a key of zero."""
    return {1: [0], **_protobuf(entry)}


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
    changed = parse_event_log(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
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
