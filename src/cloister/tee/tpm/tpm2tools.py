"""The files that tpm2-tools write for a quote, joined to one piece of evidence.

`tpm2_quote -m MESSAGE -s SIGNATURE -o PCRS --pcrs_format serialized` and `tpm2_create -u` or `tpm2_readpublic -f pem`
give four files. The PCR file is a memory image of the tools: TPML_PCR_SELECTION (a count and 16 records of 8 bytes),
then a count and that many TPML_DIGEST (a count and 8 records of 66 bytes), little endian. Its selection is not signed
and not read; the values are put to the signed one by the verifier. Pure; verifies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloister.crypto.pem import PUBLIC_KEY, split_pem
from cloister.errors import FormatRefused
from cloister.tee.tpm import constants as c
from cloister.wire.base64 import encode_b64
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import TPM_RESPONSE_BYTES

_CODE: Final = "tee.tpm.parts"
_SELECTION_BYTES: Final = 16 * 8
_DIGESTS: Final = 8
_DIGEST_BYTES: Final = 64
_LISTS: Final = c.PCRS // _DIGESTS * 2  # the tools may fill a list for each bank
_PEM: Final = b"-----BEGIN"


def join_parts(
    *,
    message: bytes,
    signature: bytes,
    pcrs: bytes,
    ak_public: bytes,
    event_log: bytes = b"",
    ak_certificate: bytes = b"",
) -> Mapping[str, Any]:  # Any: JSON object of texts and lists
    """Return the evidence body of the parts.

    Args:
        message: TPMS_ATTEST.
        signature: TPMT_SIGNATURE.
        pcrs: the serialised PCR file.
        ak_public: TPM2B_PUBLIC, or the key as PEM or SubjectPublicKeyInfo.
        event_log: TCG log.
        ak_certificate: DER.

    Raises:
        FormatRefused: the PCR file or the PEM key does not parse (`tee.tpm.parts.*`).
    """
    if ak_public[: len(_PEM)] == _PEM:
        keys = split_pem(ak_public, code=_CODE, path="ak_public", ceiling=TPM_RESPONSE_BYTES, label=PUBLIC_KEY)
        if len(keys) != 1:
            raise FormatRefused(f"{_CODE}.malformed", "more than one key", path="ak_public", actual=str(len(keys)))
        ak_public = keys[0]
    return {
        "ak_public": encode_b64(ak_public),
        "tpm_quote": {
            "signature": encode_b64(signature),
            "message": encode_b64(message),
            "pcrs": [value.hex() for value in parse_pcr_file(pcrs)],
        },
        "event_log": encode_b64(event_log),
        "ak_certificate": encode_b64(ak_certificate),
    }


def parse_pcr_file(data: bytes) -> tuple[bytes, ...]:
    """Return the digests of a serialised PCR file, in order.

    Raises:
        FormatRefused: another layout, or digests that are not of SHA-256 (`tee.tpm.parts.*`).
    """
    reader = BinaryReader(data, order="little", code=_CODE)
    reader.unsigned(4, "selection count")
    reader.take(_SELECTION_BYTES, "selections")
    lists = reader.unsigned(4, "list count")
    if lists > _LISTS:
        raise FormatRefused(f"{_CODE}.malformed", "too many lists of digests", actual=str(lists))
    values: list[bytes] = []
    for _ in range(lists):
        count = reader.unsigned(4, "digest count")
        if count > _DIGESTS:
            raise FormatRefused(f"{_CODE}.malformed", "too many digests in a list", actual=str(count))
        for index in range(_DIGESTS):
            size = reader.unsigned(2, "digest size")
            room = reader.take(_DIGEST_BYTES, "digest")
            if index < count:
                if size != c.SHA256_BYTES:
                    raise FormatRefused(
                        f"{_CODE}.malformed", "not a SHA-256 digest", expected=str(c.SHA256_BYTES), actual=str(size)
                    )
                values.append(room[:size])
    reader.finish()
    return tuple(values)
