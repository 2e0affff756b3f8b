"""Trust anchors of CCA platforms: raw public keys (CPAK, IAK) that an owner configured. Nothing is fetched.

No vendor publishes a root: anchors come from the maker of the platform, as a JWK, a JWK set, a SubjectPublicKeyInfo, or
the JSON trust anchor store of Arm's verifier (a list of `{pkey, instance-id, implementation-id}`). An anchor of a store
speaks for the one platform it names, any other for every platform it signed for. CoRIM endorsements, signed or not,
are not read: reference values come as Cloister's own signed ones.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.claims import Level
from cloister.rats.endorsement import PinnedRoot, TrustedRoot
from cloister.tee.cca.evidence import TEE
from cloister.tee.collateral.files import parse_trust_roots
from cloister.wire.limits import COLLATERAL_BYTES, COLLATERAL_DOCUMENTS
from cloister.wire.strictjson import parse_json_object

PINS: Final[tuple[PinnedRoot, ...]] = ()  # whose platforms to trust is the owner's choice
_CODE: Final = "tee.cca.anchor"
_INSTANCE_HEX: Final = 66
_IMPLEMENTATION_HEX: Final = 64


class _AnchorWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, rename="kebab"):
    pkey: dict[str, Any]  # Any: a JWK, typed by its own parser
    instance_id: str
    implementation_id: str = ""


def is_anchor_store(data: bytes) -> bool:
    """Return whether `data` begins like a trust anchor store: a JSON list."""
    return data.lstrip()[:1] == b"["


def parse_cca_roots(data: bytes, *, level: Level = Level.HARDWARE, origin: str) -> tuple[TrustedRoot, ...]:
    """Return the anchors of one file.

    Args:
        data: a JWK or JWK set, SubjectPublicKeyInfo (PEM or DER), or a trust anchor store.
        level: what a platform under these anchors proves.
        origin: where they come from, for findings.

    Raises:
        FormatRefused: no public key in it (`collateral.root.malformed`), or not a store (`tee.cca.anchor.*`).
    """
    if not is_anchor_store(data):
        return parse_trust_roots(TEE, level, [(origin, data)]).roots
    roots = []
    for index, anchor in enumerate(_store(data)):
        path = f"{origin}[{index}]"
        for text, length in ((anchor.instance_id, _INSTANCE_HEX), (anchor.implementation_id, _IMPLEMENTATION_HEX)):
            if text and not _is_hex(text, length):
                raise _malformed("an id is not hexadecimal, or has another length", path)
        if not anchor.instance_id:
            raise _malformed("an anchor of a store names its platform", path)
        key = json.dumps(anchor.pkey).encode()
        roots += [
            TrustedRoot(tee=TEE, level=level, name=root.name, der=root.der, instance=anchor.instance_id.lower())
            for root in parse_trust_roots(TEE, level, [(path, key)]).roots
        ]
    return tuple(roots)


def _store(data: bytes) -> list[_AnchorWire]:
    """Parse the list as the one member of an object, which is what the strict reader reads."""
    value = parse_json_object(b'{"anchors":' + data + b"}", ceiling=COLLATERAL_BYTES, code=_CODE, family=FormatRefused)
    try:
        anchors = msgspec.convert(value["anchors"], list[_AnchorWire])
    except msgspec.ValidationError as err:
        raise _malformed(f"not a trust anchor store: {err}", "") from err
    if set(value) != {"anchors"} or not 0 < len(anchors) <= COLLATERAL_DOCUMENTS:
        raise _malformed(f"a trust anchor store has 1 to {COLLATERAL_DOCUMENTS} anchors", "")
    return anchors


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and not set(text.lower()) - set("0123456789abcdef")


def _malformed(message: str, path: str) -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", message, path=path)
