"""Resources: the keys and files that are released. At rest sealed under the root key, bound to path and version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from cloister.errors import FormatRefused, Refused
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.trust.rowseal import RowSealer, SealedColumn
from cloister.trust.store.database import Store
from cloister.trust.store.schema import resources
from cloister.trust.store.times import from_micros, to_micros
from cloister.wire.limits import RESOURCE_BYTES

_PURPOSE: Final = "resource"
_RESOURCE: Final = select(resources).where(resources.c.path == bindparam("wanted"))  # made once


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Resource:
    """One resource with its content; not printable."""

    path: ResourcePath
    version: int
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceEntry:
    """One line of a listing."""

    path: ResourcePath
    version: int
    updated_at: datetime


class ResourceStore:
    """Resources of one database."""

    def __init__(self, store: Store, root_key: RowSealer) -> None:
        self._store = store
        self._root_key = root_key

    def put(self, path: ResourcePath, content: bytes, *, at: datetime) -> int:
        """Store a resource, replacing an older one; return its version.

        Raises:
            FormatRefused: empty or too long (`trust.resource.size`).
            Unavailable: the store failed.
        """
        if not 0 < len(content) <= RESOURCE_BYTES:
            raise FormatRefused(
                "trust.resource.size",
                "a resource is a key or a small file",
                path=str(path),
                expected=f"1 to {RESOURCE_BYTES} bytes",
                actual=f"{len(content)} bytes",
            )

        def work(connection: Connection) -> int:
            newest = select(func.max(resources.c.version)).where(resources.c.path == str(path))
            version = int(connection.execute(newest).scalar() or 0) + 1
            sealed = self._root_key.seal(_PURPOSE, _row(path, version), content)
            row = {"version": version, "sealed": sealed, "updated_at": to_micros(at)}
            statement = insert(resources).values(path=str(path), **row)
            connection.execute(statement.on_conflict_do_update(index_elements=["path"], set_=row))
            return version

        return self._store.write(work)

    def get(self, path: ResourcePath) -> Resource:
        """Return a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
            Unavailable: the store failed, or the row was altered.
        """
        row = self._store.read(lambda connection: connection.execute(_RESOURCE, {"wanted": str(path)}).one_or_none())
        if row is None:
            raise _missing(path)
        content = self._root_key.open(_PURPOSE, _row(path, row.version), row.sealed)
        return Resource(path=path, version=row.version, content=content)

    def require(self, path: ResourcePath) -> None:
        """Return if there is such a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
            Unavailable: the store failed.
        """
        statement = select(resources.c.version).where(resources.c.path == str(path))
        if self._store.read(lambda connection: connection.execute(statement).one_or_none()) is None:
            raise _missing(path)

    def list(self) -> tuple[ResourceEntry, ...]:
        """Return all resources, without content, by path."""
        statement = select(resources.c.path, resources.c.version, resources.c.updated_at).order_by(resources.c.path)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(
            ResourceEntry(
                path=parse_resource_path(row.path), version=row.version, updated_at=from_micros(row.updated_at)
            )
            for row in rows
        )

    def delete(self, path: ResourcePath) -> None:
        """Delete a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            if connection.execute(delete(resources).where(resources.c.path == str(path))).rowcount != 1:
                raise _missing(path)

        self._store.write(work)


def _row(path: ResourcePath, version: int) -> str:
    return f"{path}#{version}"


def _missing(path: ResourcePath) -> Refused:
    return Refused(
        "trust.resource.missing",
        "no such resource",
        path=str(path),
        hint="compare the address in the image or pod policy with what the trust service holds",
    )


RESOURCE_ROWS: Final = SealedColumn(
    purpose=_PURPOSE,
    table=resources,
    column="sealed",
    row_of=lambda row: _row(parse_resource_path(row.path), row.version),
)
