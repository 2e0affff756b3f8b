"""Changes good inputs so that the change arrives: in the binary inside the base64 inside the JSON, not around it.

`mutate` gives for one input and one number always the same change: cuts, flipped bits, 00 and ff, a stretch taken out
or written twice, length fields one off or at their extremes; members of JSON and CBOR removed, doubled or of another
type; PEM blocks and XML elements likewise. Text that is itself an encoding (base64, hex, JSON, PEM) is changed inside.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any, Final

from cloister.errors import CloisterError
from cloister.wire.cbor import Tagged, decode_cbor, encode_cbor

_DEPTH: Final = 4  # encodings inside encodings
_EDGES: Final = (0x00, 0xFF, 0x7F, 0x80, 0x01, 0x20, 0x30)
_NUMBERS: Final = (0, -1, 1, 255, 256, 65536, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 1.5, 1e300)
_OTHERS: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    "",
    "?",
    [],
    {},
    [[]],
    {"": None},
    "A" * 300,
    "\x00",
    "é",
    "ff" * 40,
)
_PEM: Final = re.compile(rb"(-----BEGIN [A-Z0-9 ]+-----)([^-]*)(-----END [A-Z0-9 ]+-----)")
_ELEMENT: Final = re.compile(rb"<[^<>]*>")
_QUOTED: Final = re.compile(rb"\"[^\"]*\"")
_HEX: Final = re.compile(r"(?:[0-9a-f]{2}){4,}|(?:[0-9A-F]{2}){4,}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_CBOR_BYTES: Final = 1 << 16


class _Pairs(list[tuple[str, Any]]):
    """Members of a JSON object, of which two may have one name."""


def mutate(data: bytes, number: int) -> bytes:
    """Return the `number`-th change of `data`."""
    random = Random(number)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = _change(data, random, _DEPTH)
    return data


def _change(data: bytes, random: Random, depth: int) -> bytes:
    """Make one change in the way that goes with what `data` looks like; sometimes in none."""
    if depth and random.random() < 0.85:
        for structured in (_json, _pem, _xml, _cbor):
            changed = structured(data, random, depth)
            if changed is not None:
                return changed
    return _bytes(data, random)


# -- bytes ---------------------------------------------------------------------------------------------------


def _bytes(data: bytes, random: Random) -> bytes:
    return random.choice(_CHANGES)(data, random)


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _flip(data: bytes, random: Random) -> bytes:
    return _write(data, random, lambda byte: byte ^ 1 << random.randrange(8))


def _edge(data: bytes, random: Random) -> bytes:
    return _write(data, random, lambda _: random.choice(_EDGES))


def _any(data: bytes, random: Random) -> bytes:
    return _write(data, random, lambda _: random.randrange(256))


def _write(data: bytes, random: Random, value: Callable[[int], int]) -> bytes:
    if not data:
        return bytes([value(0)])
    # Headers decide more than what is behind them.
    at = random.randrange(len(data) if random.random() < 0.6 else min(len(data), 96))
    return data[:at] + bytes([value(data[at])]) + data[at + 1 :]


def _fill(data: bytes, random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:start] + bytes([random.choice((0, 0xFF))]) * (end - start) + data[end:]


def _drop(data: bytes, random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:start] + data[end:]


def _double(data: bytes, random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:end] + data[start:end] + data[end:]


def _insert(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice((1, 2, 4, 8))) + data[at:]


def _append(data: bytes, random: Random) -> bytes:
    return data + bytes([random.choice((0, 0, 0xFF, 0x0A))]) * random.choice((1, 2, 16, 300))


def _length(data: bytes, random: Random) -> bytes:
    """Change a number that may be a length: it is not zero and no more than what follows."""
    for _ in range(40):
        if len(data) < 2:
            break
        width, order = random.choice((1, 2, 2, 4, 8)), random.choice(("big", "little"))
        at = random.randrange(max(1, len(data) - width))
        value = int.from_bytes(data[at : at + width], order)  # type: ignore[arg-type]  # one of the two words
        if 0 < value <= len(data) - at:
            most = (1 << 8 * width) - 1
            changed = random.choice((value - 1, value + 1, 0, most, most >> 1, len(data) - at, value * 2))
            new = max(0, min(changed, most)).to_bytes(width, order)  # type: ignore[arg-type]  # one of the two words
            return data[:at] + new + data[at + width :]
    return _flip(data, random)


def _range(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 2, 4, 8, 16, 32, 48, 256, 4096)))


_CHANGES: Final = (_cut, _flip, _flip, _edge, _edge, _any, _fill, _drop, _double, _insert, _append, _length, _length)


# -- JSON and CBOR -------------------------------------------------------------------------------------------


def _json(data: bytes, random: Random, depth: int) -> bytes | None:
    if data.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        tree = json.loads(data, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    return _written(_tree(tree, random, depth)).encode("utf-8", "surrogatepass")


def _cbor(data: bytes, random: Random, depth: int) -> bytes | None:
    if data[:1] < b"\x80" or data[:1] >= b"\xe0":
        return None
    try:
        tree = decode_cbor(data, ceiling=_CBOR_BYTES, code="fuzz", indefinite=True)
        changed = _tree(tree, random, depth)
        return encode_cbor(changed)
    except (CloisterError, TypeError):
        return None


def _tree(node: Any, random: Random, depth: int) -> Any:
    """Return the tree with one change, at a place where every depth is as likely as any other."""
    items = list(node) if isinstance(node, _Pairs) else list(node.items()) if isinstance(node, dict) else None
    if items is not None:
        return _object(node, items, random, depth)
    if isinstance(node, Tagged):
        if random.random() < 0.2:
            return random.choice((node.value, Tagged(tag=node.tag ^ 1, value=node.value)))
        return Tagged(tag=node.tag, value=_tree(node.value, random, depth))
    if isinstance(node, list):
        return _list(node, random, depth)
    return _leaf(node, random, depth)


def _object(node: Any, items: list[tuple[Any, Any]], random: Random, depth: int) -> Any:
    make: Any = _Pairs if isinstance(node, _Pairs) else dict
    if not items or random.random() < 0.02:
        return random.choice((*_OTHERS, make([*items, (random.choice(("", "extra", "0")), None)])))
    at = random.randrange(len(items))
    name, value = items[at]
    choice = random.random()
    if choice < 0.08:
        return make(items[:at] + items[at + 1 :])
    if choice < 0.12:
        return make([*items, (name, value)])
    if choice < 0.16:
        other = random.choice(items)[0]
        return make(
            [*items[:at], (other if random.random() < 0.5 else _other_name(name, random), value), *items[at + 1 :]]
        )
    if choice < 0.24:
        return make([*items[:at], (name, random.choice((*_OTHERS, *_NUMBERS))), *items[at + 1 :]])
    return make([*items[:at], (name, _tree(value, random, depth)), *items[at + 1 :]])


def _other_name(name: Any, random: Random) -> Any:
    return name + random.choice((-1, 1, 1000)) if isinstance(name, int) else f"{name}_"


def _list(node: list[Any], random: Random, depth: int) -> Any:
    if not node or random.random() < 0.02:
        return random.choice((*_OTHERS, [*node, None]))
    at = random.randrange(len(node))
    choice = random.random()
    if choice < 0.1:
        return node[:at] + node[at + 1 :]
    if choice < 0.2:
        return node[: at + 1] + node[at:]
    if choice < 0.22:
        return node * random.choice((2, 20))
    if choice < 0.35 and all(isinstance(item, int) for item in node):  # bytes, written as numbers
        raw = bytes(item & 0xFF for item in node)
        return list(_change(raw, random, depth - 1))
    return [*node[:at], _tree(node[at], random, depth), *node[at + 1 :]]


def _leaf(node: Any, random: Random, depth: int) -> Any:
    if isinstance(node, bytes):
        return _change(node, random, depth - 1)
    if random.random() < 0.06:
        return random.choice((*_OTHERS, *_NUMBERS))
    if isinstance(node, bool) or node is None:
        return random.choice((True, False, None, 1))
    if isinstance(node, int | float):
        return random.choice((*_NUMBERS, node + 1, node - 1))
    if isinstance(node, str):
        return _text(node, random, depth)
    return None


def _text(text: str, random: Random, depth: int) -> str:
    """Change what the text encodes, or the text."""
    if depth and random.random() < 0.85:
        if text[:1] in "{[<" or text.startswith("-----BEGIN"):
            return _change(text.encode("utf-8", "surrogatepass"), random, depth - 1).decode("utf-8", "replace")
        if _HEX.fullmatch(text):
            changed = _change(bytes.fromhex(text), random, depth - 1).hex()
            return changed.upper() if text.isupper() else changed
        if _BASE64.fullmatch(text):
            url, bare = "-" in text or "_" in text, not text.endswith("=") and len(text) % 4 != 0
            try:
                raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_" if url else b"+/")
            except (binascii.Error, ValueError):
                return _bytes(text.encode(), random).decode("latin-1")
            encoded = base64.b64encode(_change(raw, random, depth - 1), altchars=b"-_" if url else b"+/").decode()
            return encoded.rstrip("=") if bare else encoded
    return _bytes(text.encode("utf-8", "surrogatepass"), random).decode("latin-1")


def _written(tree: Any) -> str:
    """Return JSON text; of pairs, also those with one name."""
    if isinstance(tree, _Pairs):
        return "{" + ",".join(f"{json.dumps(str(name))}:{_written(value)}" for name, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(_written, tree)) + "]"
    if isinstance(tree, dict):
        return json.dumps({str(name): None for name in tree})
    return json.dumps(tree, ensure_ascii=False)


# -- PEM and XML ---------------------------------------------------------------------------------------------


def _pem(data: bytes, random: Random, depth: int) -> bytes | None:
    blocks = list(_PEM.finditer(data))
    if not blocks or (not data.startswith(b"-----") and random.random() < 0.6):  # it is only a part of something else
        return None
    block = random.choice(blocks)
    if random.random() < 0.3:
        return data[: block.start()] + random.choice((b"", block[0] * 2)) + data[block.end() :]
    try:
        raw = base64.b64decode(block[2])
    except (binascii.Error, ValueError):
        return None
    body = base64.encodebytes(_change(raw, random, depth - 1))
    return data[: block.start()] + block[1] + b"\n" + body + block[3] + data[block.end() :]


def _xml(data: bytes, random: Random, depth: int) -> bytes | None:
    if data.lstrip()[:1] != b"<":
        return None
    places = list((_ELEMENT if random.random() < 0.5 else _QUOTED).finditer(data))
    if not places or random.random() < 0.2:
        return None
    place = random.choice(places)
    inside = place[0][1:-1]
    changed: bytes = random.choice(
        (
            b"",
            place[0] * 2,
            place[0][:1] + _bytes(inside, random) + place[0][-1:],
            place[0][:1] + _text(inside.decode("latin-1"), random, depth).encode("latin-1", "replace") + place[0][-1:],
        )
    )
    return data[: place.start()] + changed + data[place.end() :]
