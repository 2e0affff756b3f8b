"""Names under which rows of tenants are sealed."""

from __future__ import annotations

from cloister.protocol.tenants import DEFAULT_TENANT


def sealed_name(tenant: str, row: str) -> str:
    """Return the name that the seal of a row is bound to.

    Those of the default tenant are what they were before there were others. A tenant's id holds no colon and a row of
    the default tenant has none in its name, so no two names are the same.
    """
    return row if tenant == DEFAULT_TENANT else f"{tenant}:{row}"
