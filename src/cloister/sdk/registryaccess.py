"""How the owner's commands reach registries: TLS, but plain HTTP to this machine itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing

from cloister.oci.location import ImageLocation, RegistryAccess
from cloister.oci.transport import HTTPTransport


def open_transport() -> AbstractContextManager[HTTPTransport]:
    """Return a transport to registries: TLS with the system's roots; its connections close with the block."""
    return closing(HTTPTransport())


def registry_access(location: ImageLocation, transport: HTTPTransport) -> RegistryAccess:
    """Plain HTTP to this machine only, as container tools do; TLS elsewhere."""
    host = location.reference.registry.partition(":")[0] if location.reference else ""
    local = host == "localhost" or host.startswith("127.")
    return RegistryAccess(transport=transport, plain_http=local, other_origins=not local)
