"""How the owner's commands reach registries: by what this machine says about proxies, certificates, mirrors and
credentials; TLS, but plain HTTP to this machine itself."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, closing

from cloister.oci.location import ImageLocation, RegistryAccess
from cloister.oci.network import OwnerTransport, owner_access


def open_transport() -> AbstractContextManager[OwnerTransport]:
    """Return a transport to registries, through this machine's proxies; its connections close with the block."""
    return closing(OwnerTransport(os.environ))


def registry_access(location: ImageLocation, transport: OwnerTransport) -> RegistryAccess:
    """Return how to reach the registry of a location.

    Raises:
        ImageRefused: `oci.mirrors.*`, `oci.credentials.*`.
        Unavailable: `oci.mirrors.unreadable`, `oci.credentials.*`.
    """
    return owner_access(location, transport, os.environ)
