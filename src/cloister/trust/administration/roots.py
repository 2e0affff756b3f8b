"""The roots an owner trusts: certificates and keys that endorse technologies."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.rats.endorsement import TrustedRoot
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk
from cloister.trust.store.endorsers import root_id


@dataclass(frozen=True, slots=True)
class Roots:
    """Trusted roots of one tenant, as one principal may handle them."""

    desk: Desk

    def add(self, root: TrustedRoot) -> str:
        """Trust a root for its technology and level; return its id."""
        at = self.desk.now()
        return self.desk.change(
            Permission.ROOT_WRITE,
            root_id(root),
            lambda stores: stores.roots.put(root, at=at),
            detail={"level": root.level.value},
        )

    def list(self) -> tuple[TrustedRoot, ...]:
        """Return all trusted roots."""
        return self.desk.look(Permission.ROOT_READ, "", lambda stores: stores.roots.list())

    def remove(self, identity: str) -> None:
        """Stop trusting a root.

        Raises:
            Refused: there is none (`trust.root.missing`).
        """
        self.desk.change(Permission.ROOT_WRITE, identity, lambda stores: stores.roots.delete(identity))
