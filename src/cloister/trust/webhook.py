"""Calls to an address of the owner's when a guest is denied. Never in the way of a request.

A denial is put into a bounded queue; a thread sends them one after the other, each a few times with growing pauses.
What does not fit is dropped and counted: the record in the store is the truth, the call is a hint to look.

    POST <webhook_url>
    content-type: application/json
    cloister-timestamp: 1790000000
    cloister-signature: sha256=<hex HMAC-SHA256(secret, timestamp "." body)>
    traceparent: 00-<request id>-...

    {"version":1,"event":"denied","at":"...","tenant":"default","route":"attest","tee":"snp",
     "code":"tee.sev_snp.signature","denial":"d-...","request":"<32 hex>"}

Receivers check the signature over the body as received and refuse timestamps that are minutes old. No name of a
resource, no evidence, no token is in the body.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.trust.tracing import Observed

QUEUE: Final = 256
SECRET_BYTES: Final = (16, 1024)
PAUSES: Final = (1.0, 4.0, 16.0)  # between four attempts
_SEND_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 1.0
_ROUTES: Final = frozenset({"attest", "resource"})

Post = Callable[[str, bytes, dict[str, str]], int]


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent."""

    version: int
    event: str
    at: datetime
    tenant: str
    route: str
    tee: str
    code: str
    denial: str
    request: str


class Webhook:
    """Tells one address of denials. `close` it.

    Args:
        url: `https://`, or `http://` on this machine.
        secret: key of the signature.
        clock: aware UTC now.
        count: told `sent`, `failed` or `dropped` for each call.
        post: sends one; returns the status, raises Unavailable when there was no answer.
        pauses: seconds between attempts.

    Raises:
        FormatRefused: not such an address (`trust.settings.webhook`).
    """

    def __init__(
        self,
        url: str,
        secret: bytes,
        *,
        clock: Callable[[], datetime],
        count: Callable[[str], None],
        post: Post | None = None,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self._url = parse_webhook_url(url)
        self._secret = secret
        self._clock = clock
        self._count = count
        self._post = post or _post
        self._pauses = pauses
        self._waiting: queue.Queue[tuple[bytes, str] | None] = queue.Queue(QUEUE)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trust-webhook", daemon=True)
        self._thread.start()

    def observed(self, seen: Observed) -> None:
        """Take note of an answered request; returns at once."""
        if not seen.denial or seen.route not in _ROUTES:
            return
        marks = seen.correlation
        body = _Body(
            version=1,
            event="denied",
            at=self._clock(),
            tenant=marks.tenant,
            route=seen.route,
            tee=marks.tee,
            code=seen.code,
            denial=seen.denial,
            request=marks.identity,
        )
        try:
            self._waiting.put_nowait((msgspec.json.encode(body), marks.traceparent.decode()))
        except queue.Full:
            self._count("dropped")

    def close(self) -> None:
        """Send nothing more; a call that is under way gets a moment."""
        self._ending.set()
        with suppress(queue.Full):  # the thread is busy then, and looks at `_ending` next
            self._waiting.put_nowait(None)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None and not self._ending.is_set():
            self._count("sent" if self._deliver(*item) else "failed")

    def _deliver(self, body: bytes, traceparent: str) -> bool:
        for pause in (*self._pauses, None):
            stamp = str(int(self._clock().timestamp()))
            signature = hmac.new(self._secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
            headers = {
                "content-type": "application/json",
                "cloister-timestamp": stamp,
                "cloister-signature": f"sha256={signature}",
                "traceparent": traceparent,
            }
            try:
                status = self._post(self._url, body, headers)
            except Unavailable:
                status = 0
            if 200 <= status < 300:
                return True
            if pause is None or self._ending.wait(pause):
                return False
        return False


def parse_webhook_url(text: str) -> str:
    """Return the address of a webhook.

    Raises:
        FormatRefused: not `https://`, nor `http://` on this machine (`trust.settings.webhook`).
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    private = parts.scheme == "https" or (parts.scheme == "http" and _here(host))
    if host and private and not parts.username and not parts.fragment:
        return text
    raise FormatRefused(
        "trust.settings.webhook",
        "not the address of a webhook",
        path="webhook_url",
        expected="https://HOST/PATH, or http:// on this machine",
        actual=text[:60],
    )


def read_webhook_secret(file: Path) -> bytes:
    """Return the secret in a private file, without the line's end.

    Raises:
        Refused: others can read it, or it is too short or long (`trust.settings.webhook_secret`).
        Unavailable: it cannot be read (`trust.settings.unreadable`).
    """
    least, most = SECRET_BYTES
    try:
        with file.open("rb") as stream:
            mode = file.stat().st_mode
            secret = stream.read(most + 2).rstrip(b"\r\n")
    except OSError as err:
        raise Unavailable(
            "trust.settings.unreadable", f"the webhook's secret cannot be read: {err.strerror}", path=str(file)
        ) from err
    if mode & 0o077 or not least <= len(secret) <= most:
        raise Refused(
            "trust.settings.webhook_secret",
            "not the secret of a webhook",
            path=str(file),
            expected=f"a file of mode 0600 with {least} to {most} bytes",
            actual=f"mode {mode & 0o777:04o}, {len(secret)} bytes",
            hint=f"(umask 077; openssl rand -hex 32 > {file})",
        )
    return secret


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    import httpx  # a tenth of a second that services without a webhook do not spend

    try:
        with httpx.Client(timeout=_SEND_SECONDS, trust_env=False) as client:
            return client.post(url, content=body, headers=headers).status_code
    except httpx.HTTPError as err:
        raise Unavailable("trust.app.webhook", "the webhook did not answer") from err
