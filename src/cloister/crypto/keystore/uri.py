"""Parts of a key store's address, strictly: an unknown, empty or repeated parameter is refused, never ignored.

RFC 3986 for `file` and `vault`. The address never holds a secret: secrets are named by the file they are in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cloister.crypto.keystore.interface import denied, unreachable
from cloister.errors import FormatRefused, Refused

SECRET_BYTES: Final = 4096  # a PIN, a token, a passphrase


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """A split address.

    Attributes:
        host: empty for a file.
        port: 0 when absent.
        path: decoded, beginning with a slash.
        parameters: of the query.
    """

    host: str
    port: int
    path: str
    parameters: dict[str, str]


def split_address(uri: str, *, parameters: Collection[str]) -> StoreAddress:
    """Split `scheme://host:port/path?name=value&..`.

    Raises:
        FormatRefused: `crypto.keystore.uri`.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port or 0
    except ValueError as err:
        raise bad_address("not an address") from err
    if parts.username or parts.password or parts.fragment or "://" not in uri:
        raise bad_address("only host, path and parameters belong into it")
    return StoreAddress(
        host=parts.hostname or "",
        port=port,
        path=decode_text(parts.path),
        parameters=split_parameters(parts.query, "&", parameters),
    )


def split_parameters(text: str, separator: str, known: Collection[str]) -> dict[str, str]:
    """Return `name=value` pairs.

    Raises:
        FormatRefused: one unknown, empty or given twice (`crypto.keystore.uri`).
    """
    found: dict[str, str] = {}
    for pair in filter(None, text.split(separator)):
        name, _, value = pair.partition("=")
        if name not in known:
            raise bad_address(f"no such parameter: {name[:40]}", expected=", ".join(sorted(known)))
        if name in found or not value:
            raise bad_address(f"parameter {name} is empty or given twice")
        found[name] = decode_text(value)
    return found


def decode_text(text: str) -> str:
    """Return percent-decoded UTF-8.

    Raises:
        FormatRefused: not that (`crypto.keystore.uri`).
    """
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError as err:
        raise bad_address("not UTF-8") from err
    if "\0" in decoded:
        raise bad_address("a zero character")
    return decoded


def bad_address(reason: str, *, expected: str = "") -> FormatRefused:
    """Return the refusal of an address."""
    return FormatRefused(
        "crypto.keystore.uri",
        f"the address of the key store is not usable: {reason}",
        expected=expected,
        hint="docs/reference/key-stores.md lists the forms",
    )


def read_secret(place: Path, what: str) -> str:
    """Return the one line of a private file that holds a PIN, token or passphrase.

    Raises:
        Refused: others may read the file (`crypto.keystore.permissions`).
        Unavailable: absent or empty (`crypto.keystore.unreachable`, `crypto.keystore.denied`).
    """
    try:
        require_private(place)
        with place.open("rb") as file:
            text = file.read(SECRET_BYTES + 1)
        line = text.decode("utf-8").strip("\r\n")
    except OSError as err:
        raise unreachable(str(place), f"{what}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise denied(str(place), f"{what} is not text") from err
    if not line or len(text) > SECRET_BYTES or "\n" in line:
        raise denied(str(place), f"{what} must be one line")
    return line


def require_private(place: Path) -> None:
    """Return if only this user, or root, can reach the file.

    Raises:
        Refused: `crypto.keystore.permissions`.
        OSError: it is not there.
    """
    status = place.stat()
    if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o077:
        raise Refused(
            "crypto.keystore.permissions",
            "others can reach a secret of the key store",
            path=str(place),
            expected="owned by this user or root, no access for others",
            actual=f"uid {status.st_uid} mode {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chmod go-rwx {place}",
        )
