"""Strict JSON for image documents: bounded, UTF-8, no duplicate keys, no NaN, with typed access that names the place.

RFC 8259; the OCI image specification asks readers to ignore unknown members, so they stay in the parsed value (and
in the bytes, which are what is signed). A duplicate key is refused: two readers of the same signed bytes must not
see two manifests. Trusts nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from cloister.errors import ImageRefused
from cloister.wire.base64 import decode_b64
from cloister.wire.strictjson import JSONObject, parse_json_object

_MAX_SIZE: Final = 2**63 - 1  # int64, as the specification types every size


def parse_document(data: bytes, *, ceiling: int, code: str) -> JSONObject:
    """Parse one JSON object.

    Args:
        data: the whole document.
        ceiling: most bytes accepted.
        code: prefix of the error codes: `<code>.too_long`, `<code>.not_json`, `<code>.duplicate_key`,
        `<code>.too_deep`.
    """
    return parse_json_object(data, ceiling=ceiling, code=code, family=ImageRefused)


def encode_document(value: Mapping[str, Any]) -> bytes:
    """Return compact JSON with the members in the order given, as registries and tools write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


class Members:
    """Typed access to the members of one JSON object; null counts as absent, as the field's tools write it.

    Args:
        value: the object.
        path: where it stands in the document (`layers[2]`).
        code: prefix of the error codes: `<code>.missing_member`, `<code>.wrong_type`, `<code>.too_many`.
    """

    __slots__ = ("_code", "_path", "_value")

    def __init__(self, value: object, *, path: str, code: str) -> None:
        self._path = path
        self._code = code
        if not isinstance(value, dict):
            self._refuse_type("", "an object", value)
        self._value: JSONObject = value

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def place(self, name: str) -> str:
        """Return the path of member `name`."""
        return f"{self._path}.{name}" if self._path and name else self._path or name

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text member; without a default it must be there."""
        value = self._get(name, default)
        if not isinstance(value, str):
            self._refuse_type(name, "text", value)
        return value

    def unsigned(self, name: str, *, ceiling: int = _MAX_SIZE) -> int:
        """Return an integer member between 0 and `ceiling`."""
        value = self._get(name, None)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= ceiling:
            self._refuse_type(name, f"an integer from 0 to {ceiling}", value)
        return value

    def flag(self, name: str) -> bool:
        """Return a member that is true or false, false when absent."""
        value = self._get(name, False)
        if not isinstance(value, bool):
            self._refuse_type(name, "true or false", value)
        return value

    def octets(self, name: str, *, ceiling: int) -> bytes:
        """Return bytes, written as base64 or as an array of integers. What is in them is in no error."""
        value = self._get(name, None)
        if isinstance(value, str):
            return decode_b64(value, path=self.place(name), ceiling=ceiling)
        values = self.array(name, ceiling=ceiling)
        if not all(type(item) is int and 0 <= item <= 255 for item in values):
            self._refuse_type(name, "base64 or an array of bytes", values)
        return bytes(values)

    def names(self) -> tuple[str, ...]:
        """Return the names of all members."""
        return tuple(self._value)

    def array(self, name: str, *, ceiling: int, required: bool = False) -> list[Any]:
        """Return an array member of at most `ceiling` items; an absent one is empty unless it is required."""
        value = self._get(name, None if required else [])
        if not isinstance(value, list):
            self._refuse_type(name, "an array", value)
        if len(value) > ceiling:
            raise ImageRefused(
                f"{self._code}.too_many",
                "array has too many items",
                path=self.place(name),
                expected=f"at most {ceiling}",
                actual=str(len(value)),
            )
        return value

    def texts(self, name: str, *, ceiling: int) -> tuple[str, ...]:
        """Return an array of texts, empty when absent."""
        values = self.array(name, ceiling=ceiling)
        for number, value in enumerate(values):
            if not isinstance(value, str):
                self._refuse_type(f"{name}[{number}]", "text", value)
        return tuple(values)

    def text_map(self, name: str, *, ceiling: int, value_ceiling: int) -> dict[str, str]:
        """Return an object of texts, empty when absent, with at most `ceiling` members."""
        values = self.raw_members(name)
        if len(values) > ceiling:
            raise ImageRefused(
                f"{self._code}.too_many", "too many members", path=self.place(name), expected=f"at most {ceiling}"
            )
        for key, value in values.items():
            if not isinstance(value, str):
                self._refuse_type(f"{name}.{key[:80]}", "text", value)
            if len(value) > value_ceiling:
                raise ImageRefused(
                    f"{self._code}.too_long",
                    "value is too long",
                    path=self.place(f"{name}.{key[:80]}"),
                    expected=f"at most {value_ceiling} characters",
                    actual=str(len(value)),
                )
        return dict(values)

    def members(self, name: str) -> Members:
        """Return a member that is an object."""
        return Members(self._get(name, None), path=self.place(name), code=self._code)

    def raw_members(self, name: str) -> JSONObject:
        """Return a member that is an object as it was parsed, empty when absent."""
        return self.members(name)._value if name in self else {}

    def only(self, *names: str) -> None:
        """Refuse members other than `names` (`<code>.unknown_member`), for closed formats."""
        for name in self._value:
            if name not in names:
                raise ImageRefused(
                    f"{self._code}.unknown_member",
                    "document has a member its format does not define",
                    path=self.place(name[:80]),
                    expected=", ".join(names),
                )

    def _get(self, name: str, default: object) -> Any:
        value = self._value.get(name)
        if value is None:
            value = default
        if value is None:
            raise ImageRefused(f"{self._code}.missing_member", "document lacks a member", path=self.place(name))
        return value

    def _refuse_type(self, name: str, expected: str, actual: object) -> NoReturn:
        raise ImageRefused(
            f"{self._code}.wrong_type",
            "member has the wrong type or range",
            path=self.place(name),
            expected=expected,
            actual=str(actual)[:40] if isinstance(actual, int) else type(actual).__name__,
        )
