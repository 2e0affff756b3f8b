"""What all messages of the administration API share: ceilings, kinds of text, errors, findings."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cloister.wire.limits import POLICY_BYTES, REFERENCE_SET_BYTES, RESOURCE_BYTES

PREFIX: Final = "/admin/v1"
SCHEMA: Final = 1
PROBLEM_TYPE: Final = "application/problem+json"
PAGE: Final = 200  # rows of one answer, unless fewer are asked for
PAGE_CEILING: Final = 1000
DAYS_CEILING: Final = 3650
NAME_CHARS: Final = 64
NOTE_CHARS: Final = 200
REQUEST_BYTES: Final = 2 * REFERENCE_SET_BYTES  # the longest: a signed set, as text in JSON
_WAIT_DAYS: Final = 90

Base64Text = Annotated[str, Meta(max_length=RESOURCE_BYTES * 4 // 3 + 4, description="Standard base64, canonical.")]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]
Note = Annotated[str, Meta(max_length=NOTE_CHARS)]
PolicyText = Annotated[str, Meta(min_length=1, max_length=POLICY_BYTES)]
Version = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Days = Annotated[int, Meta(ge=1, le=DAYS_CEILING)]
WaitDays = Annotated[int, Meta(ge=1, le=_WAIT_DAYS)]
TenantName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
InitDataDigest = Annotated[str, Meta(pattern=r"^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$")]
TextDigest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Identity = Annotated[str, Meta(min_length=1, max_length=128)]


class Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A request."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer; a later version may add members, which clients of this one ignore."""


class Problem(Answer, frozen=True):
    """Why a request failed (RFC 9457).

    Attributes:
        type: `about:blank`: the code says more.
        title: what the status means.
        status: of HTTP.
        detail: the message of the error.
        code: stable dotted code; `cloister explain CODE`.
        path: where in the request.
        expected: what would have been accepted.
        actual: what was found.
        hint: what to change.
        denial: id of the record of a refused call; `cloister explain DENIAL`.
    """

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    path: str = ""
    expected: str = ""
    actual: str = ""
    hint: str = ""
    denial: str = ""


class FindingWire(Answer, frozen=True):
    """One check as recorded."""

    code: str
    question: str
    ok: bool
    message: str
    expected: str = ""
    actual: str = ""
    origin: str = ""
    hint: str = ""
    path: str = ""
    severity: str = ""


class Done(Answer, frozen=True):
    """Something was deleted, revoked or disabled."""

    subject: str
