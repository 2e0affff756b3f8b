"""The roots an owner trusts: certificates and keys that endorse technologies, each with the level it proves."""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy import Connection, delete, select

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.dialects import upsert
from cloister.trust.store.schema import roots
from cloister.trust.store.times import to_micros


class RootStore:
    """Trusted roots of one tenant.

    Args:
        store: the database.
        tenant: whose.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def put(self, root: TrustedRoot, *, at: datetime) -> str:
        """Trust a root; return its id. The same root again changes level, name and instance.

        Raises:
            Unavailable: the store failed.
        """
        identity = root_id(root)
        row = {"level": root.level.value, "name": root.name, "instance": root.instance}

        def work(connection: Connection) -> str:
            key = {"tenant": self._tenant, "id": identity}
            upsert(connection, roots, key, row, tee=root.tee, der=root.der, created_at=to_micros(at))
            bump_configuration(connection)
            return identity

        return self._store.write(work)

    def list(self) -> tuple[TrustedRoot, ...]:
        """Return all roots in a stable order."""
        statement = select(roots).where(roots.c.tenant == self._tenant).order_by(roots.c.id)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(
            TrustedRoot(tee=row.tee, level=Level(row.level), name=row.name, der=row.der, instance=row.instance)
            for row in rows
        )

    def delete(self, identity: str) -> None:
        """Stop trusting a root.

        Raises:
            Refused: there is none (`trust.root.missing`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            statement = delete(roots).where(roots.c.tenant == self._tenant, roots.c.id == identity)
            if connection.execute(statement).rowcount != 1:
                raise Refused("trust.root.missing", "no such root", actual=identity[:80])
            bump_configuration(connection)

        self._store.write(work)


def root_id(root: TrustedRoot) -> str:
    """Return the name of a root: its technology and the SHA-256 of its DER."""
    return f"{root.tee}:{hashlib.sha256(root.der).hexdigest()}"
