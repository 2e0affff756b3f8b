"""HTTP/1.1 as a client speaks it: one request to bytes, one answer from bytes (RFC 9110, RFC 9112).

Pure: bytes come from a function that the caller gives, so the same code reads a TLS connection and a test's list. Knows
nothing of redirects, cookies, compression or proxies. Trusts nobody: the other side may send anything.

Own code, because the pod VM pays for what it imports: `http.client` with its mail parser costs a tenth of a second of
every start under emulation, and it takes what this refuses (two lengths, folded lines, a body cut short).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.limits import HTTP_HEAD_BYTES, HTTP_HEADERS, HTTP_INTERIM_ANSWERS

Receive = Callable[[int], bytes]
"""Returns up to that many bytes, at least one, or none at the end of the connection."""

_RECEIVE_BYTES: Final = 64 * 1024
_CHUNK_LINE_BYTES: Final = 256  # a size in hexadecimal digits and extensions nobody uses
_CHUNK_SIZE_DIGITS: Final = 15
_LENGTH_DIGITS: Final = 18
_VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.0")
_CODE_DIGITS: Final = 3
_BODY_METHODS: Final = ("POST", "PUT", "PATCH")
_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")
_CONTROLS: Final = frozenset({*range(0x20), 0x7F} - {0x09})


def encode_request(method: str, target: str, host: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """Return a whole request.

    Args:
        method: of RFC 9110, section 9.
        target: path and query, in ASCII, beginning with a slash; to a proxy the whole address (RFC 9112, 3.2.2).
        host: value of the `Host` header.
        headers: further headers; those this function writes itself may not be among them.
        body: content, or None for none.

    Raises:
        FormatRefused: something that would end a line or a word early (`wire.http1.request`).
    """
    lines = [("Host", host), ("Accept-Encoding", "identity"), *headers.items()]
    if body is not None or method in _BODY_METHODS:
        lines.append(("Content-Length", str(len(body or b""))))
    try:
        start = f"{method} {target} HTTP/1.1".encode("ascii")
        named = [(name.encode("ascii"), value.encode("latin-1")) for name, value in lines]
    except UnicodeEncodeError as err:
        raise _bad_request() from err
    if start.count(b" ") != 2 or not target.startswith(("/", "http://")) or not _CONTROLS.isdisjoint(start):
        raise _bad_request()
    if any(not name or not _TOKEN.issuperset(name) or not _CONTROLS.isdisjoint(value) for name, value in named):
        raise _bad_request()
    head = b"".join(name + b": " + value + b"\r\n" for name, value in named)
    return start + b"\r\n" + head + b"\r\n" + (body or b"")


class Answer:
    """One answer: its head is read at once, its body as the caller asks for it.

    Attributes:
        status: status code, 200 to 599.
        headers: lower-case names to values; values of a repeated name are joined by a comma (RFC 9110, 5.3).

    Args:
        receive: gives the connection's bytes.
        method: of the request, on which the length of the answer depends.

    Raises:
        FormatRefused: not an answer of HTTP/1.1, or beyond a ceiling (`wire.http1.answer`).
    """

    def __init__(self, receive: Receive, method: str) -> None:
        self._receive = receive
        self._buffer = b""
        for _ in range(HTTP_INTERIM_ANSWERS):
            version, self.status, self.headers = self._read_head()
            if self.status >= 200:
                break
        else:
            raise _bad_answer("no final answer")
        options = {word.strip().lower() for word in self.headers.get("connection", "").split(",")}
        self._kept = version == b"HTTP/1.1" and "close" not in options
        self._chunked = False
        self._left: int | None = None  # bytes until the body's, or the chunk's, end; None: until the connection's
        self._ended = False
        self._frame_body(method)

    @property
    def ended(self) -> bool:
        """Whether the whole body was read."""
        return self._ended

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: the body was read, and nothing came behind it."""
        return self._ended and self._kept and not self._buffer

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes of the body, empty at its end.

        Raises:
            FormatRefused: the body is cut short or its framing is broken (`wire.http1.answer`).
        """
        if self._ended or count <= 0:
            return b""
        if self._chunked and self._left == 0 and not self._next_chunk():
            return b""
        data = self._take(count if self._left is None else min(count, self._left))
        if self._left is None:
            self._ended = not data
            return data
        if not data:
            raise _bad_answer("the body is cut short")
        self._left -= len(data)
        if self._left == 0:
            if not self._chunked:
                self._ended = True
            elif self._read_line(0):
                raise _bad_answer("a chunk is longer than it says")
        return data

    # -- head ------------------------------------------------------------------------------------------------

    def _read_head(self) -> tuple[bytes, int, dict[str, str]]:
        room = HTTP_HEAD_BYTES
        line = self._read_line(room)
        version, _, rest = line.partition(b" ")
        code, _, _ = rest.partition(b" ")
        if (
            version not in (b"HTTP/1.1", b"HTTP/1.0")
            or len(code) != 3
            or not code.isdigit()
            or not b"100" <= code < b"600"
        ):
            raise _bad_answer("not a status line")
        headers: dict[str, str] = {}
        for _ in range(HTTP_HEADERS + 1):
            room -= len(line) + 2
            line = self._read_line(room)
            if not line:
                return version, int(code), headers
            name, colon, value = line.partition(b":")
            if not colon or not name or not _TOKEN.issuperset(name) or not _CONTROLS.isdisjoint(value):
                raise _bad_answer("not a header")
            key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        raise _bad_answer(f"more than {HTTP_HEADERS} headers")

    def _frame_body(self, method: str) -> None:
        """Decide where the body ends (RFC 9112, section 6.3); an answer that says it twice is refused."""
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if coding is not None and length is not None:
            raise _bad_answer("both a length and a transfer coding")
        if length is not None and not (length.isascii() and length.isdigit() and len(length) <= _LENGTH_DIGITS):
            raise _bad_answer("not a content length")
        if method == "HEAD" or self.status in (204, 304):
            self._ended = True
        elif coding is not None:
            if coding.lower() != "chunked":
                raise _bad_answer("a transfer coding that was not asked for")
            self._chunked, self._left = True, 0
        elif length is not None:
            self._left = int(length)
            self._ended = self._left == 0
        else:
            self._kept = False

    # -- body ------------------------------------------------------------------------------------------------

    def _next_chunk(self) -> bool:
        """Read a chunk's size (RFC 9112, section 7.1); at the last one read the trailers and return False."""
        size, _, _ = self._read_line(_CHUNK_LINE_BYTES).partition(b";")
        digits = size.strip(b" \t")
        if not digits or len(digits) > _CHUNK_SIZE_DIGITS or not _HEX_DIGITS.issuperset(digits):
            raise _bad_answer("not the size of a chunk")
        self._left = int(digits, 16)
        if self._left:
            return True
        room = HTTP_HEAD_BYTES
        while line := self._read_line(room):
            room -= len(line) + 2
        self._ended = True
        return False

    def _take(self, count: int) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer[:count], self._buffer[count:]
            return data
        return self._receive(count)

    def _read_line(self, ceiling: int) -> bytes:
        """Return the next line without its CRLF."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            data = self._receive(_RECEIVE_BYTES) if len(self._buffer) <= ceiling + 1 else b""
            if not data:
                raise _bad_answer("a line is cut short or too long")
            self._buffer += data
        if end > ceiling:
            raise _bad_answer("a line is too long")
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line


def _bad_request() -> FormatRefused:
    return FormatRefused("wire.http1.request", "not something an HTTP request can hold", path="request")


def _bad_answer(reason: str) -> FormatRefused:
    return FormatRefused("wire.http1.answer", f"not an HTTP answer: {reason}", path="answer")
