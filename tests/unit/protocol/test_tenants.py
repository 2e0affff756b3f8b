"""Ids of tenants."""

from __future__ import annotations

import pytest

from cloister.errors import FormatRefused
from cloister.protocol.tenants import DEFAULT_TENANT, parse_tenant


@pytest.mark.parametrize("text", [DEFAULT_TENANT, "a", "0", "acme-2", "a" * 63])
def test_ids(text: str) -> None:
    assert parse_tenant(text) == text


@pytest.mark.parametrize("text", ["", "-a", "A", "a_b", "a.b", "a/b", "a:b", "a" * 64, "ä", "a\n", " a", "a\0"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_tenant(text)
    assert caught.value.code == "protocol.tenant.malformed"
