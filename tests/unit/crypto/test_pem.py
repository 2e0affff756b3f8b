"""PEM: which texts hold blocks, and which are refused."""

from __future__ import annotations

import base64

import pytest

from cloister.crypto.pem import split_pem
from cloister.errors import FormatRefused

ONE = bytes(range(100))


def block(data: bytes, label: str = "CERTIFICATE", *, width: int = 64) -> str:
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[start : start + width] for start in range(0, len(text), width))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def split(text: str | bytes, **options: object) -> list[bytes]:
    data = text.encode("latin-1") if isinstance(text, str) else text
    return split_pem(data, **{"code": "x.y", "ceiling": 1000, **options})  # type: ignore[arg-type]  # as given


def test_blocks_in_order() -> None:
    assert split(block(ONE) + block(b"two") + block(b"")) == [ONE, b"two", b""]


def test_text_between_blocks_and_zeros_at_the_end() -> None:
    text = "subject: somebody\n" + block(ONE) + "\r\n# more\n" + block(b"two") + "bye"
    assert split(text + "\0" * 40) == [ONE, b"two"]


@pytest.mark.parametrize("width", [1, 64, 76, 10_000])
def test_any_width_and_line_ends(width: int) -> None:
    assert split(block(ONE, width=width)) == [ONE]
    assert split(block(ONE, width=width).replace("\n", "\r\n")) == [ONE]


def test_other_labels_are_other_things() -> None:
    text = block(b"key", "PUBLIC KEY") + block(ONE)
    assert split(text) == [ONE]
    assert split(text, label="PUBLIC KEY") == [b"key"]
    assert split(block(b"list", "X509 CRL"), label="X509 CRL") == [b"list"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no block",
        block(ONE, "PUBLIC KEY"),
        block(ONE).replace("-----END CERTIFICATE-----", ""),
        block(ONE).replace("-----END CERTIFICATE-----", "-----END OTHER-----"),
        "-----BEGIN CERTIFICATE-----\n" + block(ONE),  # one inside another
        block(ONE) + "-----END CERTIFICATE-----\n",
        block(ONE).replace("AA", "A!", 1),
        block(ONE).replace("==", "=", 1),
        block(ONE).replace("==", "", 1),
        block(b"\x00").replace("AA==", "AB=="),  # a stray bit
        block(ONE) + "\xe9",
        block(ONE) * 65,
    ],
)
def test_texts_that_are_no_list_of_blocks(text: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        split(text, path="chain")
    assert (caught.value.code, caught.value.path) == ("x.y.malformed", "chain")


def test_a_block_has_a_ceiling() -> None:
    assert split(block(bytes(1000))) == [bytes(1000)]
    with pytest.raises(FormatRefused) as caught:
        split(block(bytes(1001)))
    assert caught.value.code == "x.y.malformed"
