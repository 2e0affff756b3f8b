"""The HTTP application of the trust service without a server."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from typing import Any

from cloister.protocol.kbs import Request, encode_message
from cloister.trust.journal import Journal
from cloister.trust.web import Mount, trust_application
from trust_world import World

AUTH = encode_message(Request(version="0.4.0", tee="cloister-simulated"))


class Edge:
    """An application without a server."""

    def __init__(self, world: World, broker: Any = None, mounts: Sequence[Mount] = (), **options: Any) -> None:
        self.log = io.StringIO()
        brokers = (lambda _: broker) if broker else world.service.broker_of
        self.app = trust_application(
            brokers, world.service, world.settings, Journal(self.log), mounts=mounts, **options
        )

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] = b"",
        headers: dict[str, str] | None = None,
        pause: float = 0,
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        chunks = body if isinstance(body, list) else [body]
        events = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
            for index, chunk in enumerate(chunks)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(pause)
            return events.pop(0) if events else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs, "client": ("192.0.2.1", 1)}
        await self.app(scope, receive, send)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]
