"""HTTP/1.1: requests that end no line early, answers however they are cut, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatRefused
from cloister.wire.http1 import Answer, encode_request
from cloister.wire.limits import HTTP_HEAD_BYTES, HTTP_HEADERS

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Wire:
    """Gives the bytes of an answer in pieces, then the end of the connection."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = [piece for piece in pieces if piece]

    def receive(self, count: int) -> bytes:
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > count:
            self.pieces.insert(0, piece[count:])
        return piece[:count]


def answer(*pieces: bytes, method: str = "GET") -> Answer:
    return Answer(Wire(pieces).receive, method)


def body(read: Answer, count: int = 7) -> bytes:
    return b"".join(iter(lambda: read.read(count), b""))


def test_request() -> None:
    assert encode_request("GET", "/v2/", "h:5000", {"Accept": "a/b"}, None) == (
        b"GET /v2/ HTTP/1.1\r\nHost: h:5000\r\nAccept-Encoding: identity\r\nAccept: a/b\r\n\r\n"
    )
    assert encode_request("POST", "/x", "h", {}, b"ab").endswith(b"Content-Length: 2\r\n\r\nab")
    assert encode_request("PUT", "/x", "h", {}, None).endswith(b"Content-Length: 0\r\n\r\n")


def test_a_proxy_is_asked_with_the_whole_address() -> None:
    assert encode_request("GET", "http://h/x", "h", {}, None).startswith(b"GET http://h/x HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("method", "target", "host", "headers"),
    [
        ("GET", "/a b", "h", {}),
        ("GET", "/a\r\nX: y", "h", {}),
        ("GET", "/\x00", "h", {}),
        ("GET", "/\u00e9", "h", {}),
        ("GET", "a", "h", {}),
        ("GET", "https://h/", "h", {}),
        ("GET", "http:/h/", "h", {}),
        ("GET", "http://h/ x", "h", {}),
        ("GE T", "/", "h", {}),
        ("GET", "/", "h\r\nX: y", {}),
        ("GET", "/", "h", {"A": "b\r\nC: d"}),
        ("GET", "/", "h", {"A": "b\n"}),
        ("GET", "/", "h", {"A:": "b"}),
        ("GET", "/", "h", {"": "b"}),
        ("GET", "/", "h", {"A": "\u20ac"}),
    ],
)
def test_requests_that_would_say_something_else(method: str, target: str, host: str, headers: dict[str, str]) -> None:
    with pytest.raises(FormatRefused, match=r"wire\.http1\.request"):
        encode_request(method, target, host, headers, None)


@pytest.mark.parametrize(
    ("raw", "content", "reusable"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
        (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", b"hello", False),
        (OK + b"Content-Length: 5\r\nConnection: Keep-Alive, Close\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (OK + b"Content-Length: 0\r\n\r\n", b"", True),
        (OK + b"\r\nhello", b"hello", False),
        (CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: t\r\n\r\n", b"hello", True),
        (CHUNKED + b"0\r\n\r\n", b"", True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", b"a", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", True),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na", b"a", True),
        (OK + b"Content-Length: 1\r\n\r\nab", b"a", False),  # something came behind the answer
    ],
)
def test_answers(raw: bytes, content: bytes, reusable: bool) -> None:
    for pieces in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        read = answer(*pieces)
        assert body(read) == content
        assert read.ended
        if len(pieces) == 1 or not raw.endswith(b"ab"):
            assert read.reusable == reusable


def test_head_has_no_body_whatever_it_says() -> None:
    read = answer(OK + b"Content-Length: 500\r\n\r\n", method="HEAD")
    assert read.reusable
    assert read.headers["content-length"] == "500"
    assert body(read) == b""


def test_headers_have_small_names_and_repeated_ones_are_joined() -> None:
    read = answer(OK + b"Link: a\r\nLINK:  b \r\nX-Empty:\r\nContent-Length: 0\r\n\r\n")
    assert read.headers == {"link": "a, b", "x-empty": "", "content-length": "0"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not http\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b": b\r\n\r\n",
        OK + b"A: b\r\n folded\r\n\r\n",
        OK + b"A: b\nC: d\r\n\r\n",
        OK + b"A: \x00\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: 5a\r\n\r\n",
        OK + b"Content-Length: \xb2\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 19 + b"\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"A: b\r\n" * (HTTP_HEADERS + 1) + b"\r\n",
        OK + b"A: " + b"b" * HTTP_HEAD_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
)
def test_heads_that_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatRefused, match=r"wire\.http1\.answer"):
        answer(raw)


def test_ceilings_hold_what_they_say() -> None:
    assert len(answer(OK + b"".join(b"A%d: b\r\n" % n for n in range(HTTP_HEADERS)) + b"\r\n").headers) == HTTP_HEADERS


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"Content-Length: 6\r\n\r\nhello",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello0\r\n\r\n",
        CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"\r\n",
        CHUNKED + b"f" * 16 + b"\r\n",
        CHUNKED + b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"0\r\nT: " + b"t" * HTTP_HEAD_BYTES + b"\r\n\r\n",
    ],
)
def test_bodies_that_are_refused(raw: bytes) -> None:
    read = answer(raw)
    with pytest.raises(FormatRefused, match=r"wire\.http1\.answer"):
        body(read)


@given(st.binary(max_size=400), st.sampled_from([b"", OK, CHUNKED, OK + b"Content-Length: 9\r\n"]))
def test_any_bytes_are_read_or_refused(raw: bytes, start: bytes) -> None:
    try:
        read = answer(start + raw)
        assert len(body(read)) <= len(raw)
    except FormatRefused:
        return


def test_a_cut_at_any_offset_is_no_whole_answer() -> None:
    for raw in (OK + b"Content-Length: 5\r\n\r\nhello", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"):
        for end in range(len(raw)):
            with pytest.raises(FormatRefused):
                body(answer(raw[:end]))


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(1, 60))
def test_chunks_come_out_as_they_went_in(chunks: list[bytes], count: int) -> None:
    raw = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    read = answer(raw)
    assert body(read, count) == b"".join(chunks)
    assert read.reusable
