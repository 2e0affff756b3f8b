"""The service's keys, as one principal may handle them: they belong to no tenant.

A rotation is several transactions of the keys' own, so it is recorded twice: before it begins and when it has ended.
Cut short in between, it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk
from cloister.trust.keys import KeyAdministration, KeyEntry

ROOT: Final = "root"
DATA: Final = "data"
TOKEN: Final = "token"  # noqa: S105  a purpose's name
_BEGUN: Final = "begun"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of the service."""

    desk: Desk
    keys: KeyAdministration

    def list(self) -> tuple[KeyEntry, ...]:
        """Return all keys: root, data keys, signing keys; no private half."""
        return self.desk.look(Permission.KEY_READ, "", lambda _: self.keys.list_keys())

    def rotate(self, purpose: str, *, revoke: bool) -> str:
        """Make a new key of a purpose; return its identity.

        Args:
            purpose: `root`, `data` or `token`.
            revoke: for a token key that leaked: let no token of an older key count from now on.

        Raises:
            FormatRefused: another purpose, or `revoke` for one that signs no tokens (`trust.request.malformed`).
            Refused: the last rotation has not finished (`trust.keys.pending`).
            Unavailable: store or key store cannot be used.
        """
        acts: dict[str, Callable[[], str]] = {
            ROOT: self.keys.rotate_root,
            DATA: self.keys.rotate_data_key,
            TOKEN: lambda: self.keys.rotate_token_key(revoke=revoke),
        }
        if purpose not in acts or (revoke and purpose != TOKEN):
            raise FormatRefused(
                "trust.request.malformed",
                "no such rotation of keys",
                path="purpose",
                expected="root, data or token; only token keys are revoked",
                actual=purpose[:40],
            )
        self.desk.change(Permission.KEY_WRITE, f"rotate {purpose}", lambda _: None, code=lambda _: _BEGUN)
        identity = acts[purpose]()
        self.desk.change(Permission.KEY_WRITE, f"rotate {purpose}", lambda _: None, detail={"key": identity})
        return identity
