"""Tenants: separate spaces of one trust service, with policies, resources, sessions and records of their own.

Guests of `DEFAULT_TENANT` use the addresses of CoCo's key broker as they are, those of others the same ones below
`/t/<tenant>`. Nothing of one tenant is ever read for another.
"""

from __future__ import annotations

import re
from typing import Final

from cloister.errors import FormatRefused

DEFAULT_TENANT: Final = "default"
TENANT_CHARS: Final = 63  # a DNS label (RFC 1035): a tenant may become one
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def audience_of(tenant: str) -> str:
    """Return the `aud` of Attestation Results made for a tenant."""
    return f"cloister:{tenant}"


def parse_tenant(text: str) -> str:
    """Return the id of a tenant.

    Raises:
        FormatRefused: not `[a-z0-9][a-z0-9-]{0,62}` (`protocol.tenant.malformed`).
    """
    if len(text) > TENANT_CHARS or not _TENANT.fullmatch(text):
        raise FormatRefused(
            "protocol.tenant.malformed",
            "not the id of a tenant",
            expected=f"1 to {TENANT_CHARS} of a-z, 0-9 and -, not starting with -",
            actual=text[:TENANT_CHARS],
        )
    return text
