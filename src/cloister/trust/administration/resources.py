"""Resources: the keys and files that are released. Their content is readable only with a permission of its own."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import Refused
from cloister.protocol.resourceuri import ResourcePath
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk
from cloister.trust.store.resources import ResourceEntry


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one tenant, as one principal may handle them."""

    desk: Desk

    def put(self, path: ResourcePath, content: bytes, *, replaces: int | None = None) -> ResourceEntry:
        """Store a resource, 1 byte to 1 MiB. Nobody gets it without a release rule.

        Args:
            path: where.
            content: what.
            replaces: the version that was read, 0 for none; None to replace whatever is there.

        Raises:
            FormatRefused: empty or too long (`trust.resource.size`).
            Refused: another version is there by now (`trust.resource.conflict`).
        """
        at = self.desk.now()
        version = self.desk.change(
            Permission.RESOURCE_WRITE,
            str(path),
            lambda stores: stores.resources.put(path, content, at=at, replaces=replaces),
            detail={"bytes": str(len(content))},
        )
        return ResourceEntry(path=path, version=version, updated_at=at)

    def content(self, path: ResourcePath) -> bytes:
        """Return the content of a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
        """
        return self.desk.look(Permission.SECRET_READ, str(path), lambda stores: stores.resources.get(path).content)

    def meta(self, path: ResourcePath) -> ResourceEntry:
        """Return version and time of a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
        """
        for entry in self.desk.look(Permission.RESOURCE_LIST, str(path), lambda stores: stores.resources.list()):
            if entry.path == path:
                return entry
        raise Refused("trust.resource.missing", "no such resource", path=str(path))

    def list(self) -> tuple[ResourceEntry, ...]:
        """Return path, version and time of each resource."""
        return self.desk.look(Permission.RESOURCE_LIST, "", lambda stores: stores.resources.list())

    def delete(self, path: ResourcePath) -> None:
        """Delete a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
        """
        self.desk.change(Permission.RESOURCE_DELETE, str(path), lambda stores: stores.resources.delete(path))
