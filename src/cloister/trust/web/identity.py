"""What the SPIFFE trust domain publishes, for anybody: its bundle, and the documents of OpenID Connect.

    GET /spiffe/bundle   GET /spiffe/keys   GET /.well-known/openid-configuration

Public keys only. Relying parties and clouds fetch them again and again, so they may be kept for the refresh hint.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cloister.errors import RequestRefused
from cloister.trust.identity import PublicDocuments
from cloister.trust.identity.documents import DISCOVERY_PATH
from cloister.trust.web.exchange import Receive, Scope, Send
from cloister.trust.web.gate import Limits
from cloister.trust.web.router import Mount

_LIMITS: Final = Limits(body_bytes=0, seconds=10, admitted=32)


def identity_mounts(documents: PublicDocuments | None) -> tuple[Mount, ...]:
    """Return the mounts that serve a trust domain's documents; none when identities are off."""
    if documents is None:
        return ()
    application = _Documents(documents)
    return tuple(
        Mount(prefix=prefix, name="spiffe", limits=_LIMITS, application=application)
        for prefix in ("/spiffe", DISCOVERY_PATH)
    )


class _Documents:
    """The ASGI application."""

    def __init__(self, documents: PublicDocuments) -> None:
        self._documents = documents

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise RequestRefused("trust.request.method", "no such method", expected="GET")
        # The store answers in a thread, and may have to make a key first.
        document = await asyncio.to_thread(self._documents.document, scope["path"])
        if document is None:
            raise RequestRefused("trust.request.path", "no such address")
        headers = [
            (b"content-type", document.content_type.encode()),
            (b"content-length", str(len(document.body)).encode()),
            (b"cache-control", f"public, max-age={document.max_age_seconds}".encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": document.body})
