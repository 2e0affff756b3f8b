"""Where a store of a test is: a SQLite file or a database of a PostgreSQL server, empty at first."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Final

from sqlalchemy import Engine, create_engine

from cloister.trust.store.database import Store
from postgres_process import USER, PostgreSQLServer

PATIENT_SECONDS: Final = 60.0  # a machine that stands still for a while fails no test


class Place:
    """One database; closes the stores it opened and drops what it made.

    Args:
        directory: for a SQLite file.
        server: makes it a database of that server.
    """

    def __init__(self, directory: Path, server: PostgreSQLServer | None = None) -> None:
        self.directory = directory
        self.server = server
        self.name = server.create_database() if server is not None else ""
        self._stores: list[Store] = []

    @property
    def address(self) -> str:
        if self.server is not None:
            return self.server.url(self.name)
        return f"sqlite:///{self.directory}/trust.db"

    def open(self, *, seconds: float = PATIENT_SECONDS, **options: Any) -> Store:
        """Open a store here. A test of deadlines says which; no other depends on one."""
        self._stores.append(Store(self.address, seconds=seconds, **options))
        return self._stores[-1]

    def engine(self) -> Engine:
        """A way in that is not the store's; whoever takes it disposes of it."""
        if self.server is None:
            return create_engine(f"sqlite+pysqlite:///{self.directory}/trust.db")
        query = f"host={self.server.directory}&port={self.server.port}"
        return create_engine(f"postgresql+psycopg://{USER}@/{self.name}?{query}")

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for store in self._stores:
            store.close()
        if self.server is not None:
            self.server.drop_database(self.name)
