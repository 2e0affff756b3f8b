"""TOML from strangers: bounded in length, and in how deep one name reaches.

TOML 1.0 by the standard library's parser, which keeps every prefix of a dotted name: a name of a hundred thousand
parts, in a file of 200 KiB, would take more memory than any machine has. So a line on which a name has more parts than
JSON may nest is refused before the parser sees it. Inside a string of several lines such a line is refused, too: it
cannot be told apart without parsing, and no real text has one. Trusts nobody. Loaded inside the pod VM.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

from cloister.errors import FormatRefused
from cloister.wire.limits import TOML_NAME_PARTS

# One part of a name (TOML 1.0, Keys), and where on a line a name may begin: at its start, or inside a table or array.
# Compiled where a line has so many dots that it matters, which in a pod VM is never.
_PART: Final = r"""[ \t]*(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')[ \t]*"""
_START: Final = r"^|[\[{,]"


def parse_toml(data: bytes, *, ceiling: int, code: str, path: str = "") -> dict[str, Any]:  # Any: TOML values
    """Parse one document.

    Args:
        data: UTF-8.
        ceiling: most bytes accepted.
        code: of the error.
        path: place in the input, for the error.

    Raises:
        FormatRefused: too long, not UTF-8, not TOML, or a name of too many parts (`code`).
    """
    if len(data) > ceiling:
        raise FormatRefused(
            code, "document is too long", path=path, expected=f"at most {ceiling} bytes", actual=str(len(data))
        )
    try:
        text = data.decode("utf-8")
        _refuse_long_names(text, code, path)
        return tomllib.loads(text)
    except RecursionError as err:
        raise FormatRefused(code, "document nests too deep", path=path) from err
    except ValueError as err:  # also UnicodeDecodeError, and numbers and times that there are not
        raise FormatRefused(code, f"not TOML: {err}"[:200], path=path) from err


def _refuse_long_names(text: str, code: str, path: str) -> None:
    for line in text.split("\n"):
        if line.count(".") < TOML_NAME_PARTS:
            continue
        for start in re.finditer(_START, line):
            if _parts(line, start.end()) > TOML_NAME_PARTS:
                raise FormatRefused(code, "a name has too many parts", path=path, expected=f"at most {TOML_NAME_PARTS}")


def _parts(line: str, place: int) -> int:
    """Return how many parts the name at `place` has, as far as it matters."""
    parts, part = 0, re.compile(_PART)
    while parts <= TOML_NAME_PARTS and (found := part.match(line, place)) is not None:
        parts += 1
        if line[found.end() : found.end() + 1] != ".":
            break
        place = found.end() + 1
    return parts
