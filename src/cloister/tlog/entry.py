"""Entries of the release log: canonical JSON that says what kind of thing happened when, and commits to the rest.

    {"at":"2026-11-26T19:06:53.000000Z","commitments":{"resource":"<sha256>",..},"kind":"release","v":1}

A commitment is SHA-256 over a salt and the value, UTF-8. The salt of a field is HMAC-SHA256 of the entry's salt over
the field's name: who is shown the entry's salt opens all of it, who is shown one field's salt opens that field alone.
spec/release-log.md.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.wire.canonicaljson import encode_canonical

VERSION: Final = 1
KINDS: Final = (
    "release",
    "renewal",
    "denial",
    "revocation",
    "policy",
    "reference",
    "resource",
    "root",
    "access",
    "tenant",
    "key",
)
SALT_BYTES: Final = 32
FIELDS: Final = 32
VALUE_BYTES: Final = 1024  # a path, a digest, a name; what is longer is logged by its digest
LEAF_BYTES: Final = 8 * 1024  # 32 commitments with the longest names take 4
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_COMMITMENT: Final = re.compile(r"[0-9a-f]{64}")
_MALFORMED: Final = "tlog.entry.malformed"


class Leaf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry as anybody sees it.

    Attributes:
        kind: one of `KINDS`.
        at: UTC by the service's clock, RFC 3339 with six digits of a second.
        commitments: lower-case hexadecimal SHA-256, by field.
        v: version of the format, 1.
    """

    kind: str
    at: str
    commitments: Mapping[str, str]
    v: int


def encode_leaf(kind: str, at: str, salt: bytes, fields: Mapping[str, str]) -> bytes:
    """Return the entry that commits to `fields`.

    Raises:
        FormatRefused: unknown kind, malformed time or salt, or fields above a ceiling (`tlog.entry.malformed`).
    """
    if kind not in KINDS or not _TIME.fullmatch(at) or len(salt) != SALT_BYTES:
        raise FormatRefused(_MALFORMED, "no kind, time or salt of an entry", actual=f"{kind[:20]} {at[:40]}")
    if not 0 < len(fields) <= FIELDS:
        raise FormatRefused(_MALFORMED, "too many fields, or none", expected=f"1 to {FIELDS}")
    salts = _field_salts(salt)
    commitments = {name: commit(salts(name), value, name=name) for name, value in fields.items()}
    return encode_canonical({"v": VERSION, "kind": kind, "at": at, "commitments": commitments})


def parse_leaf(entry: bytes) -> Leaf:
    """Parse an entry.

    Raises:
        FormatRefused: not one, or not in its one form (`tlog.entry.malformed`).
    """
    try:
        leaf = msgspec.json.decode(entry, type=Leaf) if len(entry) <= LEAF_BYTES else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, "not an entry of a release log") from err
    if leaf is None or leaf.v != VERSION or leaf.kind not in KINDS or not _TIME.fullmatch(leaf.at):
        raise FormatRefused(_MALFORMED, "not an entry of a release log")
    names = all(_NAME.fullmatch(name) and _COMMITMENT.fullmatch(text) for name, text in leaf.commitments.items())
    if not names or not 0 < len(leaf.commitments) <= FIELDS or encode_canonical(msgspec.to_builtins(leaf)) != entry:
        raise FormatRefused(_MALFORMED, "not an entry of a release log")
    return leaf


def field_salt(salt: bytes, name: str) -> bytes:
    """Return the salt of one field, which opens that field and no other."""
    return _field_salts(salt)(name)


def _field_salts(salt: bytes) -> Callable[[str], bytes]:
    """Return what makes the salts of an entry's fields: half the time of an HMAC that begins anew for each."""
    keyed = hmac.new(salt, None, "sha256")

    def salt_of(name: str) -> bytes:
        own = keyed.copy()
        own.update(name.encode("utf-8", "surrogatepass"))
        return own.digest()

    return salt_of


def commit(salt: bytes, value: str, *, name: str) -> str:
    """Return the commitment to `value` under a field's salt.

    Raises:
        FormatRefused: no name of a field, or a value that is too long or no text (`tlog.entry.malformed`).
    """
    if not _NAME.fullmatch(name):
        raise FormatRefused(_MALFORMED, "no name of a field", path=name[:40])
    try:
        data = value.encode()
    except UnicodeEncodeError as err:
        raise FormatRefused(_MALFORMED, "the value is not text", path=name) from err
    if len(data) > VALUE_BYTES:
        raise FormatRefused(_MALFORMED, "the value is too long", path=name, expected=f"at most {VALUE_BYTES} bytes")
    return hashlib.sha256(salt + data).hexdigest()


def open_field(leaf: Leaf, name: str, salt: bytes, value: str) -> None:
    """Return if the entry commits to this value of this field, by the field's own salt.

    Raises:
        Refused: it does not (`tlog.entry.opening`).
    """
    expected = leaf.commitments.get(name, "")
    if not hmac.compare_digest(commit(salt, value, name=name), expected):
        raise Refused("tlog.entry.opening", "the entry does not commit to this", path=name)
