"""Receipts: what proves to a guest that the release it is about to use is in the public log.

The opened entry, its place, an inclusion proof, and a checkpoint with the log's signature and witnesses' cosignatures;
base64url of JSON, in the HTTP header `Cloister-Receipt`. The entry itself is not sent: whoever verifies builds it from
kind, time, salt and fields. The keys to verify with come from measured init data, never from the receipt.

Steps of `verify_receipt`: 1 the receipt is well formed; 2 the log's key signed the checkpoint, for its own origin;
3 enough of the pinned witnesses cosigned it; 4 the entry, built anew from what was opened, is in the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.tlog.checkpoint import Checkpoint, verify_checkpoint
from cloister.tlog.entry import SALT_BYTES, encode_leaf
from cloister.tlog.merkle import HASH_BYTES, PROOF_HASHES, leaf_hash, verify_inclusion
from cloister.tlog.note import COSIGNATURE_V1, ED25519, VerifierKey, parse_note, parse_verifier_key, verify_cosignature
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64, encode_b64url

HEADER: Final = "Cloister-Receipt"
RECEIPT_BYTES: Final = 32 * 1024  # it travels in a header; with 16 cosignatures and all fields at length 24
WITNESSES: Final = 16
VERSION: Final = 1
_MALFORMED: Final = "tlog.receipt.malformed"


class LogPins(msgspec.Struct, frozen=True, kw_only=True):
    """Which log is believed, and who must have seen it.

    Attributes:
        key: of the log; its name is the origin.
        witnesses: keys whose cosignatures count.
        cosignatures: how many of them must be there.
    """

    key: VerifierKey
    witnesses: tuple[VerifierKey, ...] = ()
    cosignatures: int = 0


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A receipt as it travels; nothing of it is true yet.

    Attributes:
        v: 1.
        kind: of the entry.
        at: of the entry.
        salt: of the entry, hexadecimal.
        fields: of the entry, opened.
        index: of the entry.
        proof: inclusion proof, base64 each.
        checkpoint: signed note.
    """

    v: int
    kind: str
    at: str
    salt: str
    fields: Mapping[str, str]
    index: int
    proof: tuple[str, ...]
    checkpoint: str


class VerifiedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that is in the log, with the checkpoint that says so. Only `verify_receipt` makes one."""

    kind: str
    at: str
    fields: Mapping[str, str]
    index: int
    checkpoint: Checkpoint
    cosigned_by: tuple[str, ...]


def parse_pins(key: str, witnesses: tuple[str, ...], cosignatures: int) -> LogPins:
    """Return pins from their text forms.

    Raises:
        FormatRefused: malformed keys, a witness twice, or more cosignatures than witnesses (`tlog.receipt.pins`).
    """
    if len(witnesses) > WITNESSES or not 0 <= cosignatures <= len(witnesses):
        raise FormatRefused(
            "tlog.receipt.pins",
            "more cosignatures than witnesses, or too many witnesses",
            expected=f"at most {WITNESSES} witnesses",
            actual=f"{cosignatures} of {len(witnesses)}",
        )
    keys = tuple(parse_verifier_key(text, kind=COSIGNATURE_V1) for text in witnesses)
    # The message of a cosignature does not name the witness: two names with one key would count twice.
    if len({item.public for item in keys}) != len(keys):
        raise FormatRefused("tlog.receipt.pins", "two witnesses with one key")
    return LogPins(key=parse_verifier_key(key, kind=ED25519), witnesses=keys, cosignatures=cosignatures)


def build_receipt(
    *,
    kind: str,
    at: str,
    salt: bytes,
    fields: Mapping[str, str],
    index: int,
    proof: list[bytes],
    checkpoint: str,
) -> Receipt:
    """Return a receipt of an entry; `checkpoint` is the signed note."""
    return Receipt(
        v=VERSION,
        kind=kind,
        at=at,
        salt=salt.hex(),
        fields=dict(fields),
        index=index,
        proof=tuple(encode_b64(item) for item in proof),
        checkpoint=checkpoint,
    )


def encode_receipt(receipt: Receipt) -> str:
    """Return the value of the header.

    Raises:
        FormatRefused: too long (`tlog.receipt.malformed`).
    """
    data = msgspec.json.encode(receipt)
    if len(data) > RECEIPT_BYTES:
        raise FormatRefused(_MALFORMED, "the receipt is too long", expected=f"at most {RECEIPT_BYTES} bytes")
    return encode_b64url(data)


def parse_receipt(text: str) -> Receipt:
    """Parse the value of the header.

    Raises:
        FormatRefused: not a receipt (`tlog.receipt.malformed`), or not base64url within its ceiling.
    """
    data = decode_b64url(text, path=HEADER, ceiling=RECEIPT_BYTES)
    try:
        receipt = msgspec.json.decode(data, type=Receipt)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, "not a receipt of a release log") from err
    if receipt.v != VERSION:
        raise FormatRefused(_MALFORMED, "unknown version", expected=str(VERSION), actual=str(receipt.v))
    return receipt


def verify_receipt(receipt: Receipt, pins: LogPins) -> VerifiedEntry:
    """Return the entry that `receipt` proves to be in the log.

    Raises:
        FormatRefused: malformed (`tlog.receipt.malformed`, `tlog.entry.malformed`, ..).
        Refused: of another log, not signed, not cosigned by enough (`tlog.receipt.cosignatures`), or the entry is not
            in the tree (`tlog.proof.inclusion`).
    """
    # 1
    salt = _parse_salt(receipt.salt)
    if len(receipt.proof) > PROOF_HASHES:
        raise FormatRefused(_MALFORMED, "the proof is too long", expected=f"at most {PROOF_HASHES}")
    proof = [decode_b64(item, path="proof", ceiling=HASH_BYTES) for item in receipt.proof]
    note = parse_note(receipt.checkpoint)
    # 2
    checkpoint = verify_checkpoint(note, pins.key)
    # 3
    cosigned_by = []
    for witness in pins.witnesses:
        try:
            verify_cosignature(note, witness)
        except Refused:
            continue
        cosigned_by.append(witness.name)
    if len(cosigned_by) < pins.cosignatures:
        raise Refused(
            "tlog.receipt.cosignatures",
            "too few witnesses have seen this state of the log",
            expected=f"{pins.cosignatures} of {len(pins.witnesses)}",
            actual=str(len(cosigned_by)),
            hint="witnesses do not cosign a log that was cut, edited or forked; see that they run and are reachable",
        )
    # 4
    leaf = leaf_hash(encode_leaf(receipt.kind, receipt.at, salt, receipt.fields))
    verify_inclusion(leaf, receipt.index, checkpoint.size, proof, checkpoint.root)
    return VerifiedEntry(
        kind=receipt.kind,
        at=receipt.at,
        fields=receipt.fields,
        index=receipt.index,
        checkpoint=checkpoint,
        cosigned_by=tuple(cosigned_by),
    )


def _parse_salt(text: str) -> bytes:
    try:
        salt = bytes.fromhex(text) if len(text) == 2 * SALT_BYTES else b""
    except ValueError as err:
        raise FormatRefused(_MALFORMED, "no salt of an entry") from err
    if salt.hex() != text or not salt:
        raise FormatRefused(_MALFORMED, "no salt of an entry")
    return salt
