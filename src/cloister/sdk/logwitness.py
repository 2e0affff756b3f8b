"""A witness of release logs on any machine: remembers what each log showed last, and cosigns only what continues it.

C2SP tlog-witness over plain HTTP: a cosignature proves itself. State is one directory: `witness.key` (0600), `logs`
(keys that are witnessed, a line each), `state.json` (what was cosigned last), `lock`. The state is on disk, synced,
before a cosignature leaves; one process at a time has the directory, and decides one request at a time.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused, Refused, RequestRefused, Unavailable
from cloister.tlog.checkpoint import Checkpoint
from cloister.tlog.merkle import HASH_BYTES
from cloister.tlog.note import ED25519, VerifierKey, parse_verifier_key
from cloister.tlog.signers import SEED_BYTES, WitnessSigner
from cloister.tlog.witness import REQUEST_BYTES, ROUTE, SIZE_TYPE, Conflict, Seen, decide, parse_request
from cloister.wholefile import OWNER_ONLY, write_whole

LOGS: Final = 1024
_KEY: Final = "witness.key"
_LOGS: Final = "logs"
_STATE: Final = "state.json"
_FILE_BYTES: Final = 1024 * 1024
_NAME: Final = "cloister/witness/"
_SECONDS: Final = 10.0  # silence after which a connection is closed
_AT_ONCE: Final = 64  # connections; more are closed at once
_TEXT: Final = "text/plain; charset=utf-8"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back over HTTP."""

    status: int
    body: bytes
    content_type: str = _TEXT


class LogWitness:
    """The witness of one directory. Use as a context manager, or `close` it.

    Args:
        directory: made private when absent.
        allow: keys of further logs to witness, remembered from now on.
        name: of the witness when it is made; a random one when empty.
        now: seconds since 1970.

    Raises:
        FormatRefused: a file does not parse, or `allow` holds no log's key.
        Refused: two keys for one log (`tlog.witness.unknown_log`).
        Unavailable: the directory cannot be used, or another process has it (`sdk.releaselog.witness_state`).
    """

    def __init__(self, directory: Path, *, allow: Sequence[str] = (), name: str = "", now: Callable[[], float]) -> None:
        self._directory = directory
        self._now = now
        self._deciding = threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise _unusable(directory, err) from err
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._signer = self._load_key(name)
            self.logs = self._load_logs(allow)
            self._seen = self._load_state()
        except OSError as err:
            os.close(self._lock)
            raise _unusable(directory, err) from err
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> LogWitness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def key(self) -> VerifierKey:
        """What others pin."""
        return self._signer.verifier

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._lock)

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer `POST add-checkpoint`."""
        try:
            request = parse_request(body)
            with self._deciding:
                checkpoint = decide(request, self.logs, self._seen)
                self._remember(checkpoint)
                signature = self._signer.cosign(request.note.text, at=int(self._now()))
        except Conflict as err:
            return Answer(status=409, body=f"{err.size}\n".encode(), content_type=SIZE_TYPE)
        except RequestRefused as err:
            return Answer(status=404, body=f"{err}\n".encode())
        except FormatRefused as err:
            return Answer(status=400, body=f"{err}\n".encode())
        except Refused as err:
            return Answer(status=422 if err.code.startswith("tlog.proof.") else 403, body=f"{err}\n".encode())
        except OSError as err:
            return Answer(status=503, body=f"the state cannot be stored: {err.strerror}\n".encode())
        return Answer(status=200, body=signature.line().encode())

    def _remember(self, checkpoint: Checkpoint) -> None:
        """Store the newest state durably; only then it counts, and only then may be signed."""
        seen = {**self._seen, checkpoint.origin: Seen(size=checkpoint.size, root=checkpoint.root)}
        if seen == self._seen:
            return
        write_whole(self._directory / _STATE, msgspec.json.encode(seen) + b"\n", mode=OWNER_ONLY)
        self._seen = seen

    def _load_key(self, name: str) -> WitnessSigner:
        place = self._directory / _KEY
        if not place.exists():
            if (self._directory / _STATE).exists():
                raise Refused(
                    "sdk.releaselog.witness_key",
                    "the witness has lost its key",
                    path=str(place),
                    hint="restore it from its backup; a new key is a new witness, in a directory of its own",
                )
            made = WitnessSigner(name or _NAME + secrets.token_hex(8), secrets.token_bytes(SEED_BYTES))
            write_whole(place, made.private_text().encode() + b"\n", mode=OWNER_ONLY)
        return WitnessSigner.from_text(_read(place).decode("utf-8", "replace"))

    def _load_logs(self, allow: Sequence[str]) -> dict[str, VerifierKey]:
        place = self._directory / _LOGS
        known = _read(place).decode("utf-8", "replace").split() if place.exists() else []
        texts = list(dict.fromkeys([*known, *allow]))
        keys = [parse_verifier_key(text, kind=ED25519) for text in texts]
        logs = {key.name: key for key in keys}
        if len(logs) != len(keys) or len(logs) > LOGS:
            raise Refused(
                "tlog.witness.unknown_log",
                "two keys for one log, or too many logs",
                path=str(place),
                expected=f"{LOGS}",
            )
        if texts != known:
            write_whole(place, "".join(f"{text}\n" for text in texts).encode(), mode=OWNER_ONLY)
        return logs

    def _load_state(self) -> dict[str, Seen]:
        place = self._directory / _STATE
        if not place.exists():
            return {}
        try:
            seen = msgspec.json.decode(_read(place), type=dict[str, Seen])
        except (msgspec.MsgspecError, UnicodeDecodeError) as err:
            raise FormatRefused(
                "sdk.releaselog.witness_state", "the witness's state is damaged", path=str(place)
            ) from err
        if any(len(item.root) != HASH_BYTES or item.size < 0 for item in seen.values()):
            raise FormatRefused("sdk.releaselog.witness_state", "the witness's state is damaged", path=str(place))
        return seen


class WitnessServer(ThreadingHTTPServer):
    """HTTP in front of a witness: `POST /add-checkpoint`, and `GET /` for its key. `serve_forever` runs it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], witness: LogWitness) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.witness = witness
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        try:
            super().__init__(address, _Handler)
        except OSError as err:
            raise Refused(
                "trust.app.address_in_use", f"cannot listen: {err.strerror}", path=f"{address[0]}:{address[1]}"
            ) from err

    def process_request(self, request: Any, client_address: Any) -> None:  # Any: as the base class has them
        """Hand a connection to a thread, or close it when there are too many."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # Any: as the base class has them
        """Serve a connection and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # Any: as the base class has them
        """Say nothing about connections that break."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS
    server: WitnessServer

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path.rstrip("/").rpartition("/")[2] != ROUTE:
            self._send(Answer(status=404, body=b"no such address\n"))
        elif not length.isdecimal() or int(length) > REQUEST_BYTES:
            self._send(Answer(status=413, body=b"too long\n"))
        else:
            self._send(self.server.witness.add_checkpoint(self.rfile.read(int(length))))

    def do_GET(self) -> None:
        self._send(Answer(status=200, body=f"{self.server.witness.key}\n".encode()))

    def _send(self, answer: Answer) -> None:
        self.close_connection = self.close_connection or answer.status == 413
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "cloister-witness"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep no record of who asked."""


def _read(place: Path) -> bytes:
    with place.open("rb") as file:
        return file.read(_FILE_BYTES)


def _unusable(directory: Path, err: OSError) -> Unavailable:
    taken = isinstance(err, BlockingIOError)
    reason = "another process has it" if taken else f"{err.strerror}"
    return Unavailable(
        "sdk.releaselog.witness_state", f"the witness's directory cannot be used: {reason}", path=str(directory)
    )
