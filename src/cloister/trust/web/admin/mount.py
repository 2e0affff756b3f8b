"""The administration API of a running service: composed, its first token made, ready to be mounted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, cast

from cloister.protocol.admin.base import PREFIX, REQUEST_BYTES
from cloister.trust.access import TOKEN_FILE, AccessControl
from cloister.trust.administration import Administration, AdministrationParts
from cloister.trust.keys import KeyAdministration
from cloister.trust.service import TrustService, utc_now
from cloister.trust.settings import TrustSettings
from cloister.trust.web.exchange import Receive, Scope, Send
from cloister.trust.web.gate import Limits
from cloister.trust.web.router import Mount
from cloister.wire.structs import prepare_structs

NAME: Final = "admin"
_ADMITTED: Final = 16  # at once: administration is rare, and guests come first
_SECONDS: Final = 60.0  # a data key's rotation seals every resource anew


def administration_of(service: TrustService, *, clock: Callable[[], datetime] = utc_now) -> Administration:
    """Return a service's administration; the first start on a database writes the first token into the state directory.

    Args:
        service: that is administered.
        clock: aware UTC now.

    Raises:
        Refused: the token's file is there and holds none (`trust.access.first_file`).
        Unavailable: the file cannot be written, or the store failed.
    """
    access = AccessControl(service.store, clock)
    access.bootstrap(service.settings.state / TOKEN_FILE)
    return Administration(
        parts=AdministrationParts(
            store=service.store,
            keys=service.keys.ring,
            clock=clock,
            events=service.log,
            collateral=service.collateral,
            ask_rego=service.ask_rego,
        ),
        access=access,
        keys=KeyAdministration(service.store, service.keys),
        settings=_shown(service.settings),
    )


def mount_administration(administration: Administration) -> Mount:
    """Return the mount of the administration API."""
    limits = Limits(body_bytes=REQUEST_BYTES, seconds=_SECONDS, admitted=_ADMITTED)
    return Mount(prefix=PREFIX, name=NAME, limits=limits, application=_Lazy(administration))


class _Lazy:
    """The application, made for its first request: a service that nobody administers starts without the framework."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration
        self._made: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None
        self._making = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._made is None:
            await asyncio.to_thread(self._make)
        await self._make()(scope, receive, send)

    def _make(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        from cloister.trust.web.admin.application import admin_application

        with self._making:
            if (made := self._made) is None:
                made = cast(Any, admin_application(self._administration))  # Any: ASGI in other words
                prepare_structs()  # of what was loaded just now, before its requests meet in threads
                self._made = made
            return made


def _shown(settings: TrustSettings) -> dict[str, str]:
    """Return what may be shown of the settings: of addresses the kind alone, since they can name what is private."""
    return {
        "listen": f"{settings.host}:{settings.port}",
        "database": settings.database.partition(":")[0] or "sqlite",
        "key_store": settings.key_store.partition(":")[0] or "file",
        "appraisal_policy": settings.appraisal_policy,
        "session_seconds": f"{settings.session_seconds:g}",
    }
