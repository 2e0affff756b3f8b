"""Strict JSON from strangers: bounded, UTF-8, no duplicate keys, no NaN, no half surrogate pairs.

RFC 8259. A duplicate key is refused: two readers of the same signed bytes must not see two documents. Trusts nobody.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from cloister.errors import Refused
from cloister.wire.limits import JSON_DEPTH

JSONObject = dict[str, Any]  # Any: JSON values, typed by whoever reads them


def parse_json_object(data: bytes, *, ceiling: int, code: str, family: type[Refused]) -> JSONObject:
    """Parse one JSON object.

    Args:
        data: the whole document.
        ceiling: most bytes accepted.
        code: prefix of the error codes: `<code>.too_long`, `<code>.not_json`, `<code>.duplicate_key`,
        `<code>.too_deep`.
        family: class of the errors.
    """
    if len(data) > ceiling:
        raise family(
            f"{code}.too_long", "document is too long", expected=f"at most {ceiling} bytes", actual=str(len(data))
        )

    def build(pairs: list[tuple[str, Any]]) -> JSONObject:
        result = dict(pairs)
        if len(result) != len(pairs):
            counts = Counter(name for name, _ in pairs)  # in linear time: a peer may send a million names
            twice = next(name for name, count in counts.items() if count > 1)
            raise family(f"{code}.duplicate_key", "document has a key twice", path=twice[:80])
        return result

    def refuse_constant(text: str) -> None:
        raise family(f"{code}.not_json", "document holds a number JSON does not have", actual=text)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=build, parse_constant=refuse_constant)
    except RecursionError as err:
        raise family(f"{code}.too_deep", "document nests too deep", expected=str(JSON_DEPTH)) from err
    except ValueError as err:  # also UnicodeDecodeError, and integers of thousands of digits
        raise family(f"{code}.not_json", "document is not JSON in UTF-8") from err
    _check_depth(value, JSON_DEPTH, code, family)
    if b"\\u" in data:
        _refuse_lone_surrogates(value, code, family)
    if not isinstance(value, dict):
        raise family(f"{code}.not_json", "document is not a JSON object", actual=type(value).__name__)
    return value


def _check_depth(value: object, left: int, code: str, family: type[Refused]) -> None:
    if isinstance(value, dict):
        children: Any = value.values()
    elif isinstance(value, list):
        children = value
    else:
        return
    if left == 0:
        raise family(f"{code}.too_deep", "document nests too deep", expected=f"at most {JSON_DEPTH}")
    for child in children:
        _check_depth(child, left - 1, code, family)


def _refuse_lone_surrogates(value: object, code: str, family: type[Refused]) -> None:
    """Only an escape can smuggle in half a character, which no file name, variable or signed text may hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as err:
        raise family(f"{code}.not_json", "document holds half a surrogate pair") from err
