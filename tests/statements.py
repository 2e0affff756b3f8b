"""Which statements the store runs: those that go through SQLAlchemy, and those that were prepared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event

from cloister.trust.store.prepared import Prepared


@contextmanager
def statements() -> Iterator[list[str]]:
    """Give the texts of all statements that are run in the block, of any thread."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    look_up = Prepared._for

    def noted(self: Prepared, connection: Connection) -> Any:  # Any: the store's own
        compiled = look_up(self, connection)
        seen.append(compiled.text)
        return compiled

    event.listen(Engine, "before_cursor_execute", note)
    Prepared._for = noted  # type: ignore[method-assign]  # runs on the driver's cursor, where SQLAlchemy has no event
    try:
        yield seen
    finally:
        Prepared._for = look_up  # type: ignore[method-assign]  # as before
        event.remove(Engine, "before_cursor_execute", note)
