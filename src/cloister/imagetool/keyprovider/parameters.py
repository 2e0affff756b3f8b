"""What a tool's user writes behind `provider:attestation-agent:`, as CoCo's own provider reads it: `k=v` joined by
`::`.

`keyid` is where the guest asks for the key-encryption key, `keypath` a file with that key. `algorithm` may be A256GCM,
which is what is always written. `sample` asks for the key that CoCo publishes as an example, and is refused. Pure.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloister.errors import FormatRefused, ImageRefused
from cloister.oci.encryption.packet import WRAP_TYPE
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri

_NAMES: Final = ("keyid", "keypath", "algorithm", "sample")
_NOTHING: Final = ("", "Enabled")  # what tools send where their user wrote the provider's name alone
_CHARS: Final = 8192


class KeyParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Which key: its address in the key broker, the file that holds it, either, both or neither."""

    kek: ResourcePath | None = None
    key_path: str = ""


def parse_parameters(data: bytes) -> KeyParameters:
    """Parse the parameters of one recipient or key.

    Raises:
        ImageRefused: `imagetool.keyprovider.parameters`, `.sample`.
        FormatRefused: `keyid` is not `kbs:///repository/type/tag`.
    """
    try:
        text = data[:_CHARS].decode("utf-8")
    except UnicodeDecodeError:
        raise _refused("text in UTF-8", "") from None
    if len(data) > _CHARS or not text.isprintable():
        raise _refused(f"at most {_CHARS} printable characters", "")
    if text in _NOTHING:
        return KeyParameters()
    found: dict[str, str] = {}
    for part in text.split("::"):
        name, equals, value = part.partition("=")
        if not equals or name not in _NAMES or name in found or not value:
            raise _refused("keyid=kbs:///repository/type/tag::keypath=FILE", part[:80])
        found[name] = value
    if found.get("sample", "false") != "false":
        raise ImageRefused(
            "imagetool.keyprovider.sample",
            "sample=true asks for the published sample key, which protects nothing",
            path="sample",
            hint="leave it out: a key is made, or name one with keyid",
        )
    algorithm = found.get("algorithm", WRAP_TYPE)
    if algorithm != WRAP_TYPE:
        raise _refused(f"algorithm={WRAP_TYPE}", f"algorithm={algorithm[:40]}")
    return KeyParameters(kek=_address(found["keyid"]) if "keyid" in found else None, key_path=found.get("keypath", ""))


def _address(text: str) -> ResourcePath:
    try:
        return parse_resource_uri(text)
    except FormatRefused as err:
        raise _refused("keyid=kbs:///repository/type/tag", f"keyid={text[:80]}") from err


def _refused(expected: str, actual: str) -> ImageRefused:
    return ImageRefused(
        "imagetool.keyprovider.parameters",
        "key provider cannot read what follows its name",
        path="parameters",
        expected=expected,
        actual=actual,
    )
