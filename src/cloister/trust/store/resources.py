"""Resources: the keys and files that are released. At rest sealed under the root key, bound to path and version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select

from cloister.errors import FormatRefused, Refused
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.rowseal import RowSealer, SealedColumn
from cloister.trust.store.database import Store
from cloister.trust.store.dialects import upsert
from cloister.trust.store.prepared import Prepared, Row
from cloister.trust.store.schema import resources
from cloister.trust.store.tenancy import sealed_name
from cloister.trust.store.times import from_micros, to_micros
from cloister.wire.limits import RESOURCE_BYTES

_PURPOSE: Final = "resource"
_RESOURCE: Final = Prepared(
    select(resources.c.version, resources.c.sealed).where(
        resources.c.tenant == bindparam("of_tenant"), resources.c.path == bindparam("wanted")
    )
)


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
    """Resources of one tenant.

    Args:
        store: the database.
        root_key: seals their content.
        tenant: whose.
    """

    def __init__(self, store: Store, root_key: RowSealer, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._root_key = root_key
        self._tenant = tenant

    def put(self, path: ResourcePath, content: bytes, *, at: datetime, replaces: int | None = None) -> int:
        """Store a resource, replacing an older one; return its version.

        Args:
            path: where.
            content: what.
            at: time of the change.
            replaces: the version the caller read, 0 for none; None to replace whatever is there.

        Raises:
            FormatRefused: empty or too long (`trust.resource.size`).
            Refused: another version is there by now (`trust.resource.conflict`).
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
            present = _RESOURCE.row(connection, self._key(path))
            held = 0 if present is None else int(present[0])
            if replaces is not None and replaces != held:
                raise Refused(
                    "trust.resource.conflict",
                    "another version of the resource is there",
                    path=str(path),
                    expected=f"version {replaces}",
                    actual=f"version {held}",
                )
            version = held + 1
            sealed = self._root_key.seal(_PURPOSE, self._name(path, version), content)
            row = {"version": version, "sealed": sealed, "updated_at": to_micros(at)}
            upsert(connection, resources, {"tenant": self._tenant, "path": str(path)}, row)
            return version

        return self._store.write(work)

    def get(self, path: ResourcePath) -> Resource:
        """Return a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
            Unavailable: the store failed, or the row was altered.
        """
        row = self._row(path)
        if row is None:
            raise _missing(path)
        version, sealed = row
        return Resource(
            path=path, version=version, content=self._root_key.open(_PURPOSE, self._name(path, version), sealed)
        )

    def require(self, path: ResourcePath) -> None:
        """Return if there is such a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
            Unavailable: the store failed.
        """
        if self._row(path) is None:
            raise _missing(path)

    def list(self) -> tuple[ResourceEntry, ...]:
        """Return all resources, without content, by path."""
        columns = resources.c
        listed = select(columns.path, columns.version, columns.updated_at)
        statement = listed.where(columns.tenant == self._tenant).order_by(columns.path)
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
            columns = resources.c
            statement = delete(resources).where(columns.tenant == self._tenant, columns.path == str(path))
            if connection.execute(statement).rowcount != 1:
                raise _missing(path)

        self._store.write(work)

    def _row(self, path: ResourcePath) -> Row | None:
        return self._store.read(lambda connection: _RESOURCE.row(connection, self._key(path)))

    def _key(self, path: ResourcePath) -> dict[str, str]:
        return {"of_tenant": self._tenant, "wanted": str(path)}

    def _name(self, path: ResourcePath, version: int) -> str:
        return sealed_name(self._tenant, f"{path}#{version}")


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
    row_of=lambda row: sealed_name(row.tenant, f"{row.path}#{row.version}"),
)
