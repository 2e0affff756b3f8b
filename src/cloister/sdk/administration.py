"""Administration of a trust service from this machine: over the network, or on a state directory in this process.

Both ways speak the same protocol to the same application; without a server it runs here, over the directory, and who
asks is whoever may open that directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx

from cloister.client.admin import AdminClient
from cloister.errors import Refused, Unavailable

_FILE_BYTES: Final = 64 * 1024
_HERE: Final = "http://localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdministrationTarget:
    """Which trust service, and as whom.

    Attributes:
        server: its address; empty for the state directory.
        token_file: file with an access token; needed with a server.
        ca_file: CA certificate to pin; None for the CAs of the system.
        tenant: whose things; empty for the token's own.
        state: state directory, where there is no server.
        collateral: directory with vendors' statements, where there is no server; None for the service's own.
    """

    server: str
    token_file: Path | None
    ca_file: Path | None
    tenant: str
    state: Path
    collateral: Path | None = None


@contextmanager
def open_administration(target: AdministrationTarget) -> Iterator[AdminClient]:
    """Give a client of a trust service, or of a state directory, for as long as the block runs.

    Raises:
        Refused: no token (`sdk.administration.token`), collateral for a server (`sdk.administration.collateral`), or
            the state directory is not private.
        Unavailable: a file cannot be read (`sdk.administration.file`), or the state cannot be used.
    """
    if target.server:
        if target.token_file is None:
            raise Refused(
                "sdk.administration.token",
                "an access token is needed",
                path="--token-file",
                hint="the first start of the service wrote one to admin-token in its state directory",
            )
        if target.collateral is not None:
            raise Refused(
                "sdk.administration.collateral",
                "a service on the network judges with the vendors' statements it has",
                path="--collateral",
                hint="bring them to the service with `cloister collateral import`, or name a state directory",
            )
        token = _text(target.token_file, "--token-file").strip()
        ca_pem = "" if target.ca_file is None else _text(target.ca_file, "--ca")
        with AdminClient(target.server, token, ca_pem=ca_pem, tenant=target.tenant) as client:
            yield client
        return
    with _local(target) as client:
        yield client


@contextmanager
def _local(target: AdministrationTarget) -> Iterator[AdminClient]:
    # Only here: with a server, none of the service's libraries are needed.
    from cloister.trust.access import LocalAccess
    from cloister.trust.admin import TrustAdmin
    from cloister.trust.web.admin.application import admin_application

    with TrustAdmin(target.state, collateral=target.collateral) as admin:
        access = LocalAccess(admin.administration.access)
        application = admin_application(replace(admin.administration, access=access))
        transport = _InProcess(application)
        with AdminClient(_HERE, access.token, tenant=target.tenant, transport=transport) as client:
            yield client


class _InProcess(httpx.BaseTransport):
    """Runs an ASGI application for each request, in an event loop of its own."""

    def __init__(self, application: Callable[..., Any]) -> None:  # Any: as ASGI defines it
        self._transport = httpx.ASGITransport(application, raise_app_exceptions=True)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        return asyncio.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        content = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, content=content)


def _text(file: Path, flag: str) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_FILE_BYTES).decode("ascii", "replace")
    except OSError as err:
        raise Unavailable("sdk.administration.file", f"cannot read {flag}: {err.strerror}", path=str(file)) from err
