"""Strict JSON: what a stranger may send costs no more than linear time."""

from __future__ import annotations

import time

import pytest

from cloister.errors import FormatRefused
from cloister.wire.limits import MIB
from cloister.wire.strictjson import parse_json_object


def test_a_key_that_comes_twice_among_very_many_is_found_at_once() -> None:
    names = ",".join(f'"{number:x}":0' for number in range(200_000))
    data = f'{{{names},"twice":1,"twice":2}}'.encode()
    began = time.process_time()
    with pytest.raises(FormatRefused) as caught:
        parse_json_object(data, ceiling=8 * MIB, code="test", family=FormatRefused)
    assert (caught.value.code, caught.value.path) == ("test.duplicate_key", "twice")
    assert time.process_time() - began < 5  # comparing each name with each took minutes


def test_plain_documents_are_read() -> None:
    assert parse_json_object(b'{"a":{"b":[1]}}', ceiling=40, code="test", family=FormatRefused) == {"a": {"b": [1]}}
