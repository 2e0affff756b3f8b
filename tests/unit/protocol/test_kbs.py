"""Key broker messages: the deployed spelling, the hash that evidence carries, and strict request bodies."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest

from cloister.errors import FormatRefused
from cloister.protocol import kbs
from cloister.wire.canonicaljson import encode_canonical
from cloister.wire.limits import CERTIFICATE_BYTES, KBS_REQUEST_BYTES, TPM_RESPONSE_BYTES

KEY = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "AAAA", "y": "BBBB"}
NONCE = "bm9uY2U="
RUNTIME = {"nonce": NONCE, "tee-pubkey": KEY}
ATTESTATION = {
    "init-data": {"format": "toml", "body": "version = '0.1.0'"},
    "runtime-data": RUNTIME,
    "tee-evidence": {"primary_evidence": {"quote": "AA=="}, "additional_evidence": ""},
}
REQUEST = {"version": "0.4.0", "tee": "tpm", "extra-params": {"supported-hash-algorithms": ["sha384"]}}
CHALLENGE = {"nonce": base64.b64encode(bytes(32)).decode(), "extra-params": ""}
SEALED = {"protected": "p", "encrypted_key": "k", "iv": "i", "ciphertext": "c", "tag": "t"}


def decode(kind: type[msgspec.Struct], value: object) -> Any:
    return kbs.decode_message(json.dumps(value).encode(), kind)


# --- the hash ---


def test_report_data_vector_of_primary_evidence() -> None:
    runtime = decode(kbs.RuntimeData, RUNTIME)
    assert kbs.report_data(runtime, "").hex() == (
        "d20490d30e5f16cba693abc1ca3c31ed977d2722d0adf01a980972d16913dc38f103c1f12abf477df0523af2b12e4b43"
    )


def test_report_data_vector_of_an_additional_device() -> None:
    """The same canonical form without the additional evidence, which cannot contain itself."""
    assert hashlib.sha384(encode_canonical(RUNTIME)).hexdigest() == (
        "84311321a3f9248c2457e978ea553b35b2b6e99f0d949e55b9fc7fc1040807571644e7e47c90a2a673e49a46f265ec7a"
    )


def test_report_data_has_the_size_evidence_expects() -> None:
    assert len(kbs.report_data(decode(kbs.RuntimeData, RUNTIME), "{}")) == kbs.REPORT_DATA_BYTES == 48


@pytest.mark.parametrize("member", ["nonce", "x", "y", "crv", "kty", "alg", "additional", "extra"])
def test_every_bound_component_changes_the_hash(member: str) -> None:
    before = kbs.report_data(decode(kbs.RuntimeData, RUNTIME), "")
    runtime = json.loads(json.dumps(RUNTIME))
    additional = ""
    if member == "nonce":
        runtime["nonce"] = "bm9uY2V4"
    elif member == "additional":
        additional = "{}"
    else:
        runtime["tee-pubkey"][member] = "CCCC"
    assert kbs.report_data(decode(kbs.RuntimeData, runtime), additional) != before


def test_key_member_order_does_not_change_the_hash() -> None:
    turned = {"tee-pubkey": dict(reversed(KEY.items())), "nonce": NONCE}
    assert kbs.report_data(decode(kbs.RuntimeData, turned), "") == kbs.report_data(decode(kbs.RuntimeData, RUNTIME), "")


# --- spelling ---


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (kbs.Request, REQUEST),
        (kbs.Request, {"version": "0.4.0", "tee": "snp", "extra-params": ""}),
        (kbs.Challenge, CHALLENGE),
        (kbs.Attestation, ATTESTATION),
        (kbs.SealedResource, SEALED),
        (kbs.AttestAnswer, {"token": "a.b.c"}),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_messages_keep_the_deployed_spelling(kind: type[msgspec.Struct], value: object) -> None:
    assert json.loads(kbs.encode_message(decode(kind, value))) == value


def test_init_data_may_be_absent_or_null() -> None:
    body = {name: value for name, value in ATTESTATION.items() if name != "init-data"}
    assert decode(kbs.Attestation, body).init_data is None
    assert decode(kbs.Attestation, {**body, "init-data": None}).init_data is None


def test_error_body_leaves_empty_members_out() -> None:
    body = kbs.ErrorBody(type=f"{kbs.ERROR_TYPE_PREFIX}PolicyDeny", detail="denied")
    assert set(json.loads(kbs.encode_message(body))) == {"type", "detail"}


def test_answers_may_grow() -> None:
    """A newer broker may add members to its answers; a guest must still understand the ones it knows."""
    assert decode(kbs.Challenge, {**CHALLENGE, "new": 1}).nonce == CHALLENGE["nonce"]
    assert decode(kbs.AttestAnswer, {"token": "t", "new": 1}).token == "t"


# --- refusals ---


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (kbs.Request, {**REQUEST, "unknown": 1}),
        (kbs.Request, {"tee": "tpm"}),
        (kbs.Request, {**REQUEST, "version": 4}),
        (kbs.Attestation, {**ATTESTATION, "unknown": 1}),
        (kbs.Attestation, {**ATTESTATION, "runtime-data": {**RUNTIME, "unknown": 1}}),
        (kbs.Attestation, {**ATTESTATION, "runtime-data": {"nonce": NONCE, "tee-pubkey": {**KEY, "n": 1}}}),
        (kbs.Attestation, {**ATTESTATION, "tee-evidence": {"primary_evidence": 1, "unknown": 1}}),
        (kbs.Attestation, {**ATTESTATION, "init-data": {"format": "toml", "body": "", "unknown": 1}}),
        (kbs.Attestation, {**ATTESTATION, "init-data": "version = '0.1.0'"}),
        (kbs.SealedResource, {**SEALED, "recipients": []}),
        (kbs.SealedResource, {}),
        (kbs.Request, []),
        (kbs.Request, None),
    ],
)
def test_messages_outside_the_schema_are_refused(kind: type[msgspec.Struct], value: object) -> None:
    with pytest.raises(FormatRefused) as refusal:
        decode(kind, value)
    assert refusal.value.code == "protocol.kbs.malformed"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b'{"version":"0.4.0","tee":"tpm"}x', b"[" * 100_000, b'{"version":"\xed\xa0\x80","tee":"t"}'],
    ids=["empty", "cut", "not utf-8", "tail", "deep", "surrogate"],
)
def test_bytes_that_are_not_json_are_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused) as refusal:
        kbs.decode_message(data, kbs.Request)
    assert refusal.value.code == "protocol.kbs.malformed"


def test_too_long_is_refused_before_parsing() -> None:
    with pytest.raises(FormatRefused) as refusal:
        kbs.decode_message(b" " * (KBS_REQUEST_BYTES + 1), kbs.Request)
    assert refusal.value.code == "protocol.kbs.too_long"


@pytest.mark.parametrize("size", [0, 1, 31])
def test_short_nonce_is_refused(size: int) -> None:
    with pytest.raises(FormatRefused) as refusal:
        kbs.decode_nonce(base64.b64encode(bytes(size)).decode())
    assert refusal.value.code == "protocol.kbs.nonce"


def test_long_nonce_is_refused() -> None:
    with pytest.raises(FormatRefused):
        kbs.decode_nonce(base64.b64encode(bytes(33)).decode())


def test_nonce_of_32_bytes() -> None:
    assert kbs.decode_nonce(CHALLENGE["nonce"]) == bytes(32)


def test_nonce_text_has_one_spelling() -> None:
    text = base64.b64encode(bytes(31) + b"\x01").decode()
    assert text.endswith("E=")
    with pytest.raises(FormatRefused):
        kbs.decode_nonce(text[:-2] + "F=")


# --- TPM members inside extra-params ---


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


ENROLMENT = {"ek_certificate": b64(b"certificate"), "ak_public": b64(b"public")}
CREDENTIAL = {"credential_blob": b64(b"blob"), "encrypted_secret": b64(b"secret")}


def test_enrolment_and_credential_are_found() -> None:
    assert kbs.parse_tpm_enrolment({kbs.TPM_EXTRA: ENROLMENT}) == (b"certificate", b"public")
    assert kbs.parse_tpm_credential({kbs.TPM_EXTRA: CREDENTIAL, "other": 1}) == (b"blob", b"secret")


@pytest.mark.parametrize("extra", ["", None, {}, [], 4, {"other": 1}])
def test_a_guest_without_enrolment_is_not_a_parse_error(extra: object) -> None:
    assert kbs.parse_tpm_enrolment(extra) is None


@pytest.mark.parametrize("extra", ["", None, {}, [], {"other": CREDENTIAL}])
def test_a_broker_without_credential_is_refused(extra: object) -> None:
    with pytest.raises(FormatRefused) as refusal:
        kbs.parse_tpm_credential(extra)
    assert refusal.value.code == "protocol.kbs.no_credential"


@pytest.mark.parametrize(
    ("parse", "member"),
    [
        *[(kbs.parse_tpm_enrolment, item) for item in ("", 1, [], {}, {**ENROLMENT, "more": 1})],
        *[(kbs.parse_tpm_enrolment, {**ENROLMENT, name: bad}) for name in ENROLMENT for bad in (1, "Zg", "Z")],
        *[(kbs.parse_tpm_credential, item) for item in ("", 1, [], {}, {**CREDENTIAL, "more": 1})],
        *[(kbs.parse_tpm_credential, {**CREDENTIAL, name: bad}) for name in CREDENTIAL for bad in (1, "Zg", "Z")],
    ],
)
def test_malformed_tpm_members_are_refused(parse: Any, member: object) -> None:
    with pytest.raises(FormatRefused):
        parse({kbs.TPM_EXTRA: member})


def test_tpm_members_have_ceilings() -> None:
    for parse, member in (
        (kbs.parse_tpm_enrolment, {**ENROLMENT, "ek_certificate": b64(bytes(CERTIFICATE_BYTES + 1))}),
        (kbs.parse_tpm_enrolment, {**ENROLMENT, "ak_public": b64(bytes(TPM_RESPONSE_BYTES + 1))}),
        (kbs.parse_tpm_credential, {**CREDENTIAL, "credential_blob": b64(bytes(TPM_RESPONSE_BYTES + 1))}),
        (kbs.parse_tpm_credential, {**CREDENTIAL, "encrypted_secret": b64(bytes(TPM_RESPONSE_BYTES + 1))}),
    ):
        with pytest.raises(FormatRefused) as refusal:
            parse({kbs.TPM_EXTRA: member})
        assert refusal.value.code == "wire.base64.too_long"
