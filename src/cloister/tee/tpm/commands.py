"""TPM 2.0 commands as bytes and their answers as values: part 3 "Commands" (rev. 1.59), no device, no cryptography.

Only what the guest's attester needs. All authorisations are the empty password. Answers come from a device that the
host emulates at level `measured`: lengths are checked against ceilings, and an answer that does not end where it
should is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from cloister.errors import FormatRefused
from cloister.tee.tpm import constants as c
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import TPM_NV_BYTES, TPM_RESPONSE_BYTES

HEADER_BYTES: Final = 10
PCRS_PER_READ: Final = 8  # a TPML_DIGEST holds eight (part 2, table 106)
NV_CHUNK_BYTES: Final = 512  # every PC Client TPM reads at least this much at once
_CODE: Final = "tee.tpm.response"
_CC_PCR_EXTEND: Final = 0x182
_CC_PCR_READ: Final = 0x17E
_CC_CREATE_PRIMARY: Final = 0x131
_CC_READ_PUBLIC: Final = 0x173
_CC_NV_READ_PUBLIC: Final = 0x169
_CC_NV_READ: Final = 0x14E
_CC_NV_WRITE: Final = 0x137
_CC_NV_DEFINE_SPACE: Final = 0x12A
_CC_START_AUTH_SESSION: Final = 0x176
_CC_POLICY_SECRET: Final = 0x151
_CC_ACTIVATE_CREDENTIAL: Final = 0x147
_CC_QUOTE: Final = 0x158
_CC_FLUSH_CONTEXT: Final = 0x165
_SE_POLICY: Final = 0x01
_EMPTY_PASSWORD: Final = struct.pack(">IHBH", c.RS_PASSWORD, 0, 0, 0)
_NULL_SCHEME: Final = struct.pack(">H", c.ALG_NULL)

# TCG EK Credential Profile, B.3.3: template L-1. Its policy is PolicySecret(endorsement).
EK_TEMPLATE: Final = struct.pack(
    ">HHIH32sHHHHHIH256s",
    c.ALG_RSA,
    c.ALG_SHA256,
    c.FIXED_TPM | c.FIXED_PARENT | c.SENSITIVE_DATA_ORIGIN | c.ADMIN_WITH_POLICY | c.RESTRICTED | c.DECRYPT,
    32,
    bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"),
    c.ALG_AES,
    128,
    c.ALG_CFB,
    c.ALG_NULL,
    2048,
    0,
    256,
    bytes(256),
)
# The attestation key: a primary key, so the same template gives the same key for the life of the TPM's seed.
AK_ATTRIBUTES: Final = (
    c.FIXED_TPM
    | c.FIXED_PARENT
    | c.SENSITIVE_DATA_ORIGIN
    | c.USER_WITH_AUTH
    | c.NO_DA  # else every unclean power-off counts as a failed authorisation
    | c.RESTRICTED
    | c.SIGN_ENCRYPT
)
AK_TEMPLATE: Final = struct.pack(
    ">HHIHHHHHHHH",
    c.ALG_ECC,
    c.ALG_SHA256,
    AK_ATTRIBUTES,
    0,
    c.ALG_NULL,
    c.ALG_ECDSA,
    c.ALG_SHA256,
    c.CURVE_P256,
    c.ALG_NULL,
    0,
    0,
)


def sized(data: bytes) -> bytes:
    """Return a TPM2B: two bytes of length, then `data`."""
    return struct.pack(">H", len(data)) + data


def pcr_selection(indexes: Sequence[int]) -> bytes:
    """Return a TPML_PCR_SELECTION of one SHA-256 bank of 24 registers."""
    bitmap = sum(1 << index for index in indexes)
    return struct.pack(">IHB3s", 1, c.ALG_SHA256, 3, bitmap.to_bytes(3, "little"))


def pcr_extend(index: int, digest: bytes) -> bytes:
    """Return TPM2_PCR_Extend (section 22.2) for the SHA-256 bank."""
    return _command(_CC_PCR_EXTEND, (index,), struct.pack(">IH", 1, c.ALG_SHA256) + digest, authorised=1)


def pcr_read(indexes: Sequence[int]) -> bytes:
    """Return TPM2_PCR_Read (section 22.4); at most `PCRS_PER_READ` registers."""
    return _command(_CC_PCR_READ, (), pcr_selection(indexes))


def create_primary(hierarchy: int, template: bytes) -> bytes:
    """Return TPM2_CreatePrimary (section 24.1) without a secret, a creation PCR or outside information."""
    parameters = sized(bytes(4)) + sized(template) + sized(b"") + bytes(4)
    return _command(_CC_CREATE_PRIMARY, (hierarchy,), parameters, authorised=1)


def read_public(handle: int) -> bytes:
    """Return TPM2_ReadPublic (section 12.4)."""
    return _command(_CC_READ_PUBLIC, (handle,), b"")


def nv_read_public(index: int) -> bytes:
    """Return TPM2_NV_ReadPublic (section 31.6)."""
    return _command(_CC_NV_READ_PUBLIC, (index,), b"")


def nv_read(index: int, size: int, offset: int, *, authority: int | None = None) -> bytes:
    """Return TPM2_NV_Read (section 31.13), authorised by the index itself or by the hierarchy `authority`."""
    handles = (index if authority is None else authority, index)
    return _command(_CC_NV_READ, handles, struct.pack(">HH", size, offset), authorised=1)


def nv_write(index: int, data: bytes, *, authority: int) -> bytes:
    """Return TPM2_NV_Write (section 31.7) of the whole of an index, at most `NV_CHUNK_BYTES`."""
    return _command(_CC_NV_WRITE, (authority, index), sized(data) + struct.pack(">H", 0), authorised=1)


def nv_define_space(index: int, size: int, attributes: int, *, authority: int) -> bytes:
    """Return TPM2_NV_DefineSpace (section 31.3) of an index without a secret or policy of its own."""
    public = struct.pack(">IHI", index, c.ALG_SHA256, attributes) + sized(b"") + struct.pack(">H", size)
    return _command(_CC_NV_DEFINE_SPACE, (authority,), sized(b"") + sized(public), authorised=1)


def start_policy_session(nonce: bytes) -> bytes:
    """Return TPM2_StartAuthSession (section 11.1) for an unbound, unsalted SHA-256 policy session."""
    parameters = sized(nonce) + sized(b"") + struct.pack(">BHH", _SE_POLICY, c.ALG_NULL, c.ALG_SHA256)
    return _command(_CC_START_AUTH_SESSION, (c.RH_NULL, c.RH_NULL), parameters)


def policy_secret(session: int) -> bytes:
    """Return TPM2_PolicySecret (section 23.4) by the endorsement hierarchy."""
    parameters = sized(b"") * 3 + struct.pack(">i", 0)
    return _command(_CC_POLICY_SECRET, (c.RH_ENDORSEMENT, session), parameters, authorised=1)


def activate_credential(ak: int, ek: int, session: int, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
    """Return TPM2_ActivateCredential (section 12.5).

    Args:
        ak: handle of the key whose name the credential is for.
        ek: handle of the key it is encrypted to.
        session: policy session that satisfies the EK's policy; it ends with the command.
        credential_blob: TPM2B_ID_OBJECT, with its length.
        encrypted_secret: TPM2B_ENCRYPTED_SECRET, with its length.
    """
    by_policy = struct.pack(">IHBH", session, 0, 0, 0)
    return _command(
        _CC_ACTIVATE_CREDENTIAL, (ak, ek), credential_blob + encrypted_secret, authorised=1, sessions=by_policy
    )


def quote(ak: int, extra_data: bytes) -> bytes:
    """Return TPM2_Quote (section 18.4) over all 24 registers, with the key's own scheme."""
    parameters = sized(extra_data) + _NULL_SCHEME + pcr_selection(range(c.PCRS))
    return _command(_CC_QUOTE, (ak,), parameters, authorised=1)


def flush_context(handle: int) -> bytes:
    """Return TPM2_FlushContext (section 28.4)."""
    return _command(_CC_FLUSH_CONTEXT, (), struct.pack(">I", handle))


def response_code(response: bytes) -> int:
    """Return the response code of an answer, after checking its header.

    Raises:
        FormatRefused: not one whole answer.
    """
    if not HEADER_BYTES <= len(response) <= TPM_RESPONSE_BYTES:
        raise FormatRefused(f"{_CODE}.size", "answer has an impossible size", actual=str(len(response)))
    tag, size, code = struct.unpack_from(">HII", response)
    if size != len(response) or tag not in (c.ST_NO_SESSIONS, c.ST_SESSIONS):
        raise FormatRefused(
            f"{_CODE}.header", "answer header does not fit", expected=str(size), actual=str(len(response))
        )
    return int(code)


def parse_handle(response: bytes) -> tuple[int, BinaryReader]:
    """Return the handle that an answer without sessions begins with, and a reader over the rest."""
    reader = _body(response)
    return reader.unsigned(4, "handle"), reader


def parse_create_primary(response: bytes) -> tuple[int, bytes]:
    """Return (handle, TPM2B_PUBLIC) of TPM2_CreatePrimary."""
    handle, reader = parse_handle(response)
    return handle, sized(_parameters(reader).sized(2, "outPublic", ceiling=TPM_RESPONSE_BYTES))


def parse_pcr_read(response: bytes, indexes: Sequence[int]) -> dict[int, bytes]:
    """Return the values of `indexes` from the answer to `pcr_read(indexes)`.

    Raises:
        FormatRefused: another selection or another number of values.
    """
    reader = _body(response)
    reader.unsigned(4, "update counter")
    if reader.take(10, "selection") != pcr_selection(indexes):
        raise FormatRefused(f"{_CODE}.pcr_selection", "the TPM read other registers than asked: no SHA-256 bank?")
    if reader.unsigned(4, "count") != len(indexes):
        raise FormatRefused(f"{_CODE}.pcr_selection", "the TPM returned another number of registers")
    values = {index: reader.sized(2, "digest", ceiling=c.SHA256_BYTES) for index in indexes}
    reader.finish()
    return values


def parse_nv_read_public(response: bytes) -> int:
    """Return the size of an NV index.

    Raises:
        FormatRefused: larger than any certificate.
    """
    public = BinaryReader(_body(response).sized(2, "nvPublic", ceiling=TPM_RESPONSE_BYTES), order="big", code=_CODE)
    public.take(4 + 2 + 4, "index, algorithm, attributes")
    public.sized(2, "policy", ceiling=64)
    size = public.unsigned(2, "data size")
    public.finish()
    if size > TPM_NV_BYTES:
        raise FormatRefused(f"{_CODE}.too_long", "NV index is too large", expected=f"at most {TPM_NV_BYTES}")
    return size


def parse_sized(response: bytes) -> bytes:
    """Return the one TPM2B that the parameters of an authorised command's answer consist of."""
    parameters = _parameters(_body(response))
    value = parameters.sized(2, "value", ceiling=TPM_RESPONSE_BYTES)
    parameters.finish()
    return value


def parse_quote(response: bytes) -> tuple[bytes, bytes]:
    """Return (TPMS_ATTEST, TPMT_SIGNATURE)."""
    parameters = _parameters(_body(response))
    attest = parameters.sized(2, "quoted", ceiling=TPM_RESPONSE_BYTES)
    return attest, parameters.take(parameters.remaining, "signature")


def _command(
    code: int, handles: Sequence[int], parameters: bytes, *, authorised: int = 0, sessions: bytes = b""
) -> bytes:
    """Return a whole command; `authorised` handles use the empty password, then come further `sessions`."""
    area = _EMPTY_PASSWORD * authorised + sessions
    body = b"".join(struct.pack(">I", handle) for handle in handles)
    body += struct.pack(">I", len(area)) + area + parameters if area else parameters
    tag = c.ST_SESSIONS if area else c.ST_NO_SESSIONS
    return struct.pack(">HII", tag, HEADER_BYTES + len(body), code) + body


def _body(response: bytes) -> BinaryReader:
    return BinaryReader(response[HEADER_BYTES:], order="big", code=_CODE)


def _parameters(reader: BinaryReader) -> BinaryReader:
    """Return a reader over the parameters that stand before the authorisation area of an answer."""
    return BinaryReader(reader.take(reader.unsigned(4, "parameter size"), "parameters"), order="big", code=_CODE)
