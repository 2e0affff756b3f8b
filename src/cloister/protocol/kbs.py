"""The key broker protocol of CNCF Confidential Containers, versions 0.4.0, 0.2.0 and 0.1.1: messages and hashes.

Messages are those of 0.4.0 where nothing else is said. The older versions differ in the Attestation: no init data, no
further devices, no nonce repeated, and in 0.1.1 the evidence is JSON text and a resource's JWE is of a form of its own
(`cloister.crypto.jwe`).

RCAR handshake: Request -> Challenge -> Attestation -> Response, as JSON over HTTPS under `/kbs/v0`. Field names and
their mixed spelling (kebab-case outside, snake_case inside `tee-evidence`) follow the deployed protocol, so that
unmodified CoCo guests and brokers interoperate.

What Cloister adds fits into members the protocol leaves open: `extra-params` of Request and Challenge carry the TPM
credential activation (TCG TPM 2.0 part 1, section 24) under the key `cloister-tpm`; a CoCo peer that does not know
it ignores it, and is refused for it by policy, not by a parse error.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, TypeVar

import msgspec

from cloister.errors import FormatRefused
from cloister.wire.base64 import decode_b64
from cloister.wire.canonicaljson import encode_canonical
from cloister.wire.limits import CERTIFICATE_BYTES, KBS_REQUEST_BYTES, NONCE_BYTES, TPM_RESPONSE_BYTES
from cloister.wire.strictjson import parse_json_object

VERSION: Final = "0.4.0"
VERSIONS: Final = ("0.1.1", "0.2.0", VERSION)  # what there is, oldest first; 0.3.0 was in no release
TEXT_EVIDENCE: Final = "0.1.1"  # evidence is JSON text, and sealed resources are of the form before RFC 7516
PREFIX: Final = "/kbs/v0"
SESSION_COOKIE: Final = "kbs-session-id"
ERROR_TYPE_PREFIX: Final = "https://github.com/confidential-containers/kbs/errors/"
TPM_EXTRA: Final = "cloister-tpm"
REPORT_DATA_BYTES: Final = 48

_M = TypeVar("_M", bound=msgspec.Struct)
JSONValue = Any  # Any: JSON of technology-defined shape, typed by that technology's parser


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /auth`."""

    version: str
    tee: str
    extra_params: JSONValue = msgspec.field(default="", name="extra-params")


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `POST /auth`."""

    nonce: str
    extra_params: JSONValue = msgspec.field(default="", name="extra-params")


class InitDataMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The init data as the guest was given it; only format `toml` exists."""

    format: str
    body: str


class RuntimeData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The nonce and the guest's public key (JWK), exactly as hashed into the evidence."""

    nonce: str
    tee_pubkey: dict[str, str] = msgspec.field(name="tee-pubkey")


class TEEEvidence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Evidence of the primary TEE, and the JSON text of a map for additional devices (empty when none)."""

    primary_evidence: JSONValue
    additional_evidence: str = ""


class Attestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /attest`."""

    runtime_data: RuntimeData = msgspec.field(name="runtime-data")
    tee_evidence: TEEEvidence = msgspec.field(name="tee-evidence")
    init_data: InitDataMember | None = msgspec.field(default=None, name="init-data")


class LegacyAttestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /attest` before 0.4.0; the nonce is the session's, and there is no init data."""

    tee_pubkey: dict[str, str] = msgspec.field(name="tee-pubkey")
    tee_evidence: JSONValue = msgspec.field(name="tee-evidence")


class AttestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `POST /attest`."""

    token: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of every answer that is not 200.

    `type` and `detail` are what CoCo's client requires; the other members are ours and safe for the guest to see: no
    policy text, no reference value.
    """

    type: str
    detail: str
    code: str = ""
    denial_id: str = msgspec.field(default="", name="denial-id")
    hint: str = ""


class TPMEnrolment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`extra-params["cloister-tpm"]` of a Request: what MakeCredential needs. Both standard base64."""

    ek_certificate: str
    ak_public: str


class TPMCredential(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`extra-params["cloister-tpm"]` of a Challenge: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, standard base64."""

    credential_blob: str
    encrypted_secret: str


class SealedResource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answer to `GET /resource`: a flattened JWE (RFC 7516 section 7.2.2); in 0.1.1 only nearly one."""

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str


def decode_message(data: bytes, kind: type[_M]) -> _M:
    """Decode one message of the given kind.

    Raises:
        FormatRefused: too long, not JSON, wrong shape (`protocol.kbs.malformed`).
    """
    if len(data) > KBS_REQUEST_BYTES:
        raise FormatRefused(
            "protocol.kbs.too_long",
            "message too long",
            expected=f"at most {KBS_REQUEST_BYTES} bytes",
            actual=str(len(data)),
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused("protocol.kbs.malformed", f"not a {kind.__name__}: {err}") from err


def encode_message(message: msgspec.Struct) -> bytes:
    """Return the JSON bytes of `message`."""
    return msgspec.json.encode(message)


def decode_nonce(text: str) -> bytes:
    """Return the 32 bytes of a challenge nonce.

    Raises:
        FormatRefused: not standard base64 of exactly 32 bytes (`protocol.kbs.nonce`).
    """
    nonce = decode_b64(text, path="nonce", ceiling=NONCE_BYTES)
    if len(nonce) != NONCE_BYTES:
        raise FormatRefused("protocol.kbs.nonce", "nonce length", expected=str(NONCE_BYTES), actual=str(len(nonce)))
    return nonce


def report_data(runtime: RuntimeData, additional_evidence: str) -> bytes:
    """Return the 48-byte SHA-384 that primary evidence must carry.

    Over the canonical JSON of `{"additional-evidence", "nonce", "tee-pubkey"}`; the additional evidence enters as
    the exact text sent.
    """
    body = {"additional-evidence": additional_evidence, "nonce": runtime.nonce, "tee-pubkey": runtime.tee_pubkey}
    return hashlib.sha384(encode_canonical(body)).digest()


def device_report_data(runtime: RuntimeData) -> bytes:
    """Return the 48-byte SHA-384 that the evidence of every further device must carry.

    Over the canonical JSON of `{"nonce", "tee-pubkey"}`: a device's evidence cannot contain itself. The primary
    evidence binds its text (`report_data`), so that devices cannot be swapped afterwards.
    """
    return hashlib.sha384(encode_canonical({"nonce": runtime.nonce, "tee-pubkey": runtime.tee_pubkey})).digest()


def bound_data(version: str, runtime: RuntimeData, additional_evidence: str) -> bytes:
    """Return the 48-byte SHA-384 that primary evidence must carry in this version of the protocol.

    Before 0.4.0 there were no further devices, and none were hashed.
    """
    return report_data(runtime, additional_evidence) if version == VERSION else device_report_data(runtime)


def parse_legacy_attestation(data: bytes, version: str) -> tuple[dict[str, str], JSONValue]:
    """Return key and evidence of an Attestation before 0.4.0.

    Raises:
        FormatRefused: not of that version (`protocol.kbs.*`).
    """
    message = decode_message(data, LegacyAttestation)
    evidence = message.tee_evidence
    if version == TEXT_EVIDENCE:
        if not isinstance(evidence, str):
            raise FormatRefused(
                "protocol.kbs.malformed", "evidence of this version is JSON text", path="tee-evidence", expected="text"
            )
        try:
            text = evidence.encode("utf-8")
        except UnicodeEncodeError as err:
            raise FormatRefused("protocol.kbs.malformed", "evidence is not text", path="tee-evidence") from err
        evidence = parse_json_object(
            text, ceiling=KBS_REQUEST_BYTES, code="protocol.kbs.evidence", family=FormatRefused
        )
    return message.tee_pubkey, evidence


def is_legacy_attestation(data: bytes) -> bool:
    """Return whether a body of `POST /attest` is shaped as before 0.4.0.

    Raises:
        FormatRefused: not JSON, or too long.
    """
    return decode_message(data, _AnyAttestation).tee_pubkey is not msgspec.UNSET


class _AnyAttestation(msgspec.Struct, frozen=True, kw_only=True):
    tee_pubkey: msgspec.Raw | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="tee-pubkey")


def parse_tpm_enrolment(extra_params: JSONValue) -> tuple[bytes, bytes] | None:
    """Return (EK certificate DER, AK TPM2B_PUBLIC) from a Request's `extra-params`; None when the guest offers none.

    Raises:
        FormatRefused: the member is present but malformed.
    """
    member = _extra_member(extra_params)
    if member is None:
        return None
    try:
        wire = msgspec.convert(member, TPMEnrolment)
    except msgspec.ValidationError as err:
        raise FormatRefused("protocol.kbs.malformed", f"{TPM_EXTRA}: {err}", path="extra-params") from err
    return (
        decode_b64(wire.ek_certificate, path="ek_certificate", ceiling=CERTIFICATE_BYTES),
        decode_b64(wire.ak_public, path="ak_public", ceiling=TPM_RESPONSE_BYTES),
    )


def parse_tpm_credential(extra_params: JSONValue) -> tuple[bytes, bytes]:
    """Return (TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET) from a Challenge's `extra-params`.

    Raises:
        FormatRefused: absent or malformed: a broker that does not activate credentials cannot tell one TPM from
        another.
    """
    member = _extra_member(extra_params)
    if member is None:
        raise FormatRefused("protocol.kbs.no_credential", "the broker sent no TPM credential", path="extra-params")
    try:
        wire = msgspec.convert(member, TPMCredential)
    except msgspec.ValidationError as err:
        raise FormatRefused("protocol.kbs.malformed", f"{TPM_EXTRA}: {err}", path="extra-params") from err
    return (
        decode_b64(wire.credential_blob, path="credential_blob", ceiling=TPM_RESPONSE_BYTES),
        decode_b64(wire.encrypted_secret, path="encrypted_secret", ceiling=TPM_RESPONSE_BYTES),
    )


def _extra_member(extra_params: JSONValue) -> JSONValue | None:
    if not isinstance(extra_params, dict):
        return None
    return extra_params.get(TPM_EXTRA)
