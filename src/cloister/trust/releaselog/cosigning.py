"""Asking witnesses for cosignatures (C2SP tlog-witness), one thread per witness, behind the service's back.

All are asked about one checkpoint, the round's, so that their cosignatures come together; the next round begins with
the newest one when all have answered, or after a moment. A witness that is slow or gone holds up nobody else. Answers
are authenticated by the witness's key; the transport is not, so whoever sits in between can withhold cosignatures, and
claim that a witness saw more, which stops the log: both are failures to the safe side.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from cloister.errors import CloisterError, FormatRefused, Unavailable
from cloister.tlog.checkpoint import DECIMAL
from cloister.tlog.note import (
    COSIGNATURE_V1,
    NoteSignature,
    SignedNote,
    VerifierKey,
    parse_signatures,
    parse_verifier_key,
    verify_cosignature,
)
from cloister.tlog.receipt import WITNESSES
from cloister.tlog.tree import Range, consistency_ranges
from cloister.tlog.witness import ROUTE, encode_request

ANSWER_SECONDS: Final = 5.0
_ANSWER_BYTES: Final = 64 * 1024
_ROUND_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 1.0
_ATTEMPTS: Final = 4
_KEPT: Final = 64  # rounds whose cosignatures are remembered

Prove = Callable[[list[Range]], list[bytes]]
Newest = Callable[[], tuple[int, SignedNote]]


class Judge(Protocol):
    """Who is told what witnesses say about the log."""

    def agreed(self, *, exactly: bool) -> None:
        """A witness cosigned what it was first asked about; `exactly` that had it cosigned last."""
        ...

    def contradicted(self, witness: str, size: int) -> None:
        """A witness has cosigned another history, or more of this one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """One witness.

    Attributes:
        key: what its cosignatures are verified by.
        url: submission prefix, http or https.
    """

    key: VerifierKey
    url: str


def parse_witnesses(texts: Sequence[str]) -> tuple[Witness, ...]:
    """Parse `KEY@URL`, each.

    Raises:
        FormatRefused: malformed, too many, or one named twice (`trust.settings.witness`).
    """
    found = []
    for text in texts:
        key, _, rest = text.rpartition("@http")
        url = urlsplit(f"http{rest}")
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or not key:
            raise FormatRefused(
                "trust.settings.witness", "not a witness", expected="KEY@https://host[:port][/path]", actual=text[:80]
            )
        witness = Witness(key=parse_verifier_key(key, kind=COSIGNATURE_V1), url=f"http{rest}".rstrip("/"))
        found.append(witness)
    if len(found) > WITNESSES or len({item.key.public for item in found}) != len(found):
        raise FormatRefused(
            "trust.settings.witness", "too many witnesses, or one twice", expected=f"at most {WITNESSES}"
        )
    return tuple(found)


@dataclass(slots=True)
class _Round:
    size: int
    note: SignedNote
    began: float
    answered: set[str]


class Cosigner:
    """Keeps the newest checkpoint cosigned.

    Args:
        witnesses: whom to ask.
        post: sends one request and returns status and body; over HTTP when absent.
    """

    def __init__(
        self, witnesses: Sequence[Witness], *, post: Callable[[Witness, bytes], tuple[int, bytes]] | None = None
    ) -> None:
        self.witnesses = tuple(witnesses)
        self._post = post or _post
        self._state = threading.Condition()
        self._closed = False
        self._round: _Round | None = None
        self._latest: tuple[int, SignedNote] | None = None
        self._collected: dict[int, tuple[SignedNote, dict[str, NoteSignature]]] = {}

    def begin(self, size: int, note: SignedNote, *, prove: Prove, newest: Newest, judge: Judge) -> None:
        """Start asking, first about this checkpoint.

        Args:
            size: of the checkpoint.
            note: the checkpoint, signed by the log.
            prove: returns a consistency proof of the stored log.
            newest: returns the newest stored checkpoint, which another process may have written.
            judge: is told.
        """
        self.offer(size, note)
        for witness in self.witnesses:
            threading.Thread(
                target=self._serve, args=(witness, prove, newest, judge), name="log-witness", daemon=True
            ).start()

    def offer(self, size: int, note: SignedNote) -> None:
        """Have a newer checkpoint cosigned."""
        with self._state:
            self._latest = (size, note)
            self._advance()

    def wait(self, size: int, count: int, seconds: float) -> tuple[SignedNote, int]:
        """Return a checkpoint of at least `size` entries with at least `count` cosignatures, and its size.

        Raises:
            Unavailable: there is none within that time (`trust.releaselog.cosignatures`).
        """

        def found() -> int | None:
            sizes = sorted(self._collected)
            return next((have for have in sizes if have >= size and len(self._collected[have][1]) >= count), None)

        with self._state:
            self._state.wait_for(lambda: found() is not None or self._closed, min(seconds, ANSWER_SECONDS))
            have = found()
            if have is None:
                newest = max((len(signed) for at, (_, signed) in self._collected.items() if at >= size), default=0)
                raise Unavailable(
                    "trust.releaselog.cosignatures",
                    "too few witnesses cosigned the release in time",
                    expected=f"{count} of {len(self.witnesses)}",
                    actual=str(newest),
                    hint="see that the witnesses run and are reachable; nothing was released",
                )
            return self._with(*self._collected[have]), have

    def cosigned(self, note: SignedNote) -> SignedNote:
        """Return the checkpoint with the cosignatures that are there."""
        with self._state:
            for kept, signed in self._collected.values():
                if kept.text == note.text:
                    return self._with(kept, signed)
        return note

    def close(self) -> None:
        """Stop; a question that is under way ends by itself."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _with(self, note: SignedNote, signed: dict[str, NoteSignature]) -> SignedNote:
        return SignedNote(text=note.text, signatures=(*note.signatures, *signed.values()))

    def _advance(self) -> None:
        """Begin the next round if there is something new and the last one is over; called under the lock."""
        latest, last = self._latest, self._round
        if latest is None or (last is not None and last.size >= latest[0]):
            return
        over = last is None or len(last.answered) == len(self.witnesses)
        if over or (last is not None and time.monotonic() - last.began > _ROUND_SECONDS):
            self._round = _Round(*latest, began=time.monotonic(), answered=set())
            self._state.notify_all()

    def _serve(self, witness: Witness, prove: Prove, newest: Newest, judge: Judge) -> None:
        known: int | None = None
        name = witness.key.name
        while True:
            with self._state:
                while not self._closed and (self._round is None or name in self._round.answered):
                    self._state.wait(_ROUND_SECONDS)
                    self._advance()
                if self._closed or self._round is None:
                    return
                asked = self._round
            try:
                size, note, signature, exactly = self._ask(witness, asked, known, prove, newest, judge)
            except (CloisterError, OSError, http.client.HTTPException):
                with self._state:
                    self._state.wait_for(lambda: self._closed, _PAUSE_SECONDS)
                    # Others go on; this one is asked again about the round that is on then.
                    if self._round is asked and self._latest is not None and self._latest[0] > asked.size:
                        asked.answered.add(name)
                        self._advance()
                continue
            judge.agreed(exactly=exactly and known is None)
            known = size
            with self._state:
                asked.answered.add(name)
                self._collected.setdefault(size, (note, {}))[1][name] = signature
                for old in sorted(self._collected)[:-_KEPT]:
                    del self._collected[old]
                self._advance()
                self._state.notify_all()

    def _ask(
        self, witness: Witness, asked: _Round, known: int | None, prove: Prove, newest: Newest, judge: Judge
    ) -> tuple[int, SignedNote, NoteSignature, bool]:
        """Have one checkpoint cosigned; return size and note, the cosignature, and whether the first question got it.

        A witness that has seen more than we ask about is asked about the newest stored checkpoint: another process may
        have written it. Only when that is smaller, too, the witness has seen what we have not.
        """
        size, note = asked.size, asked.note
        old = size if known is None else min(known, size)
        for attempt in range(_ATTEMPTS):
            proof = prove(consistency_ranges(old, size))
            status, body = self._post(witness, encode_request(old, proof, note.encode()))
            if status == 200:
                return size, note, _cosignature(note, body, witness.key), attempt == 0 and old == size
            if status == 422:
                judge.contradicted(witness.key.name, old)
                break
            if status != 409:
                raise Unavailable("trust.releaselog.witness", "a witness does not cosign", actual=f"status {status}")
            seen = _size(body)
            if seen > size:
                size, note = newest()
            if seen > size or seen == old:
                judge.contradicted(witness.key.name, seen)
                break
            old = seen
        raise Unavailable("trust.releaselog.witness", "a witness has seen another state of the log")


def _cosignature(note: SignedNote, body: bytes, key: VerifierKey) -> NoteSignature:
    """Return the witness's line in its answer, verified."""
    for item in parse_signatures(body.decode("utf-8", "replace")):
        if item.name == key.name and item.identity == key.identity:
            verify_cosignature(SignedNote(text=note.text, signatures=(item,)), key)
            return item
    raise Unavailable("trust.releaselog.witness", "a witness answered without its cosignature", path=key.name)


def _size(body: bytes) -> int:
    text = body.decode("ascii", "replace").removesuffix("\n")
    if not DECIMAL.fullmatch(text):
        raise Unavailable("trust.releaselog.witness", "a witness answered with no size", actual=text[:20])
    return int(text)


def _post(witness: Witness, body: bytes) -> tuple[int, bytes]:
    url = urlsplit(witness.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", f"{url.path}/{ROUTE}", body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        return response.status, response.read(_ANSWER_BYTES)
    finally:
        connection.close()
