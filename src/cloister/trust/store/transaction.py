"""Several changes as one: a store whose writes and reads all happen in a transaction that is already open.

    store.write(lambda connection: change(Transaction(connection)))

What `change` does with the classes of this package becomes durable together or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from cloister.trust.store.database import Store

_T = TypeVar("_T")


class Transaction(Store):
    """The store as seen from within one of its writes; for the length of that write only.

    It owns no connection and no thread, which is why the constructor of `Store` is not called.
    """

    def __init__(self, connection: Connection) -> None:
        self._open = connection

    def write(self, work: Callable[[Connection], _T], *, seconds: float | None = None, single: bool = False) -> _T:
        """Run `work` at once, in the open transaction; the deadline is that of the transaction."""
        return work(self._open)

    def read(self, work: Callable[[Connection], _T]) -> _T:
        """Run `work`, which sees what the transaction changed so far."""
        return work(self._open)

    def close(self) -> None:
        """Do nothing: whoever opened the transaction ends it."""
