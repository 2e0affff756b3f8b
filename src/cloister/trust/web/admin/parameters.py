"""Query parameters that several routes share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from litestar.params import Parameter
from msgspec import Meta

from cloister.protocol.admin.base import PAGE, PAGE_CEILING

Words = Annotated[str, Meta(max_length=400, pattern=r"^[^\x00]*$")]
Limit = Annotated[
    int, Parameter(query="limit", default=PAGE, ge=1, le=PAGE_CEILING, description="Most rows of the answer.")
]
After = Annotated[
    int, Parameter(query="after", default=0, ge=0, le=2**53 - 1, description="Sequence number of the last row seen.")
]
Replaces = Annotated[
    int | None,
    Parameter(query="replaces", default=None, ge=0, le=2**53 - 1, description="The version that was read."),
]
Since = Annotated[datetime | None, Parameter(query="since", default=None, description="Not before, with time zone.")]
Until = Annotated[datetime | None, Parameter(query="until", default=None, description="Before, with time zone.")]


def word(name: str, description: str) -> object:
    """Return a parameter that asks for rows by one word; empty asks for nothing."""
    return Parameter(query=name, default="", max_length=400, pattern=r"^[^\x00]*$", description=description)
