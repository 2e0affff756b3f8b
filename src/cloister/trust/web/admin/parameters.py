"""Query parameters that several routes share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from litestar.params import PathParameter, QueryParameter
from msgspec import Meta

from cloister.protocol.admin.base import PAGE_CEILING
from cloister.wire.limits import RESOURCE_SEGMENT_CHARS

Words = Annotated[str, Meta(max_length=400, pattern=r"^[^\x00]*$")]
Segment = Annotated[str, PathParameter(max_length=RESOURCE_SEGMENT_CHARS, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")]
PrefixSegment = Annotated[
    str,
    PathParameter(
        max_length=RESOURCE_SEGMENT_CHARS,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]*|[*])$",
        description="`*` for all, which only `*` may follow.",
    ),
]
PathWord = Annotated[str, PathParameter(max_length=200, pattern=r"^[^\x00]*$")]
PathNumber = Annotated[int, PathParameter(ge=1, le=2**53 - 1)]
Limit = Annotated[int, QueryParameter(name="limit", ge=1, le=PAGE_CEILING, description="Most rows of the answer.")]
After = Annotated[
    int,
    QueryParameter(name="after", ge=0, le=2**53 - 1, description="Sequence number of the last row seen."),
]
Replaces = Annotated[
    int | None,
    QueryParameter(name="replaces", ge=0, le=2**53 - 1, description="The version that was read."),
]
Since = Annotated[datetime | None, QueryParameter(name="since", description="Not before, with time zone.")]
Until = Annotated[datetime | None, QueryParameter(name="until", description="Before, with time zone.")]


def word(name: str, description: str) -> object:
    """Return a parameter that asks for rows by one word; empty asks for nothing."""
    return QueryParameter(name=name, max_length=400, pattern=r"^[^\x00]*$", description=description)
