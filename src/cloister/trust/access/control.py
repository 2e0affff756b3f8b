"""Who asks: tokens to principals, and the making and ending of tokens.

The first start on a database makes one token that may do everything and writes it to a private file; there is no mode
without authentication. Unknown, expired and revoked tokens get one and the same answer.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.trust.access.permissions import Role
from cloister.trust.access.principals import LOCAL_OWNER, Principal
from cloister.trust.access.tokens import is_token, new_token, token_hash
from cloister.trust.store.access import StoredToken, TokenStore
from cloister.trust.store.database import Store
from cloister.trust.store.records import random_id

TOKEN_FILE: Final = "admin-token"  # noqa: S105  a file's name
FIRST_NAME: Final = "first"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PRIVATE_FILE: Final = 0o600


class AccessControl:
    """Authenticates against the tokens of one database.

    Args:
        store: the database.
        clock: aware UTC now.
    """

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._tokens = TokenStore(store)
        self._clock = clock

    def authenticate(self, bearer: str) -> Principal:
        """Return who shows this token.

        Raises:
            Refused: none, unknown, expired or revoked: one answer (`trust.access.unauthenticated`).
            Unavailable: the store failed.
        """
        refusal = Refused(
            "trust.access.unauthenticated",
            "no valid access token",
            hint="send `Authorization: Bearer cat_..`; the first start wrote one to admin-token in the state directory",
        )
        if not is_token(bearer):
            raise refusal
        digest = token_hash(bearer)
        found = self._tokens.find(digest)
        if found is None or not hmac.compare_digest(found.hash, digest) or not found.live(self._clock()):
            raise refusal
        return Principal(id=found.id, name=found.name, role=Role(found.role), tenant=found.tenant)

    def bootstrap(self, file: Path) -> bool:
        """Make the first token and write it to `file`; do nothing when there ever was a token.

        The file comes first and is kept when a start was killed in between: the next one takes the token from it.

        Returns:
            Whether this call made the first token.

        Raises:
            Refused: the file is there and holds no token (`trust.access.first_file`).
            Unavailable: the file cannot be written (`trust.state.io`), or the store failed.
        """
        if self._tokens.list(None):
            return False
        text, made = _first_token(file)
        first = self.describe(text, name=FIRST_NAME, role=Role.ROOT, tenant=None, created_by="")
        if self._tokens.add_first(first):
            return True
        if made:  # another replica was quicker: this file opens nothing
            file.unlink(missing_ok=True)
        return False

    def describe(
        self,
        text: str,
        *,
        name: str,
        role: Role,
        tenant: str | None,
        created_by: str,
        expires_at: datetime | None = None,
    ) -> StoredToken:
        """Return what is to be stored of a fresh token.

        Raises:
            FormatRefused: not a name (`trust.access.name`), or an end that has passed (`trust.access.expiry`).
        """
        at = self._clock()
        if not _NAME.fullmatch(name):
            raise FormatRefused(
                "trust.access.name",
                "not a name for a token",
                path="name",
                expected="1 to 64 letters, digits and . _ @ -",
                actual=name[:80],
            )
        if expires_at is not None and expires_at <= at:
            raise FormatRefused(
                "trust.access.expiry",
                "the token would have expired already",
                path="expires_at",
                expected="a later time",
            )
        return StoredToken(
            id=random_id("t"),
            hash=token_hash(text),
            tenant=tenant,
            role=role.value,
            name=name,
            created_at=at,
            expires_at=expires_at,
            revoked_at=None,
            created_by=created_by,
        )


class LocalAccess(AccessControl):
    """Recognises one token, made here and never stored: that of whoever holds the state directory in this process.

    Args:
        access: makes tokens as usual.
    """

    def __init__(self, access: AccessControl) -> None:
        self._tokens = access._tokens
        self._clock = access._clock
        self.token = new_token()

    def authenticate(self, bearer: str) -> Principal:
        """Return the local owner.

        Raises:
            Refused: another token (`trust.access.unauthenticated`).
        """
        if not hmac.compare_digest(bearer.encode(), self.token.encode()):
            raise Refused("trust.access.unauthenticated", "no valid access token")
        return LOCAL_OWNER


def _first_token(file: Path) -> tuple[str, bool]:
    """Return the token in `file` and whether it was written just now; others see all of it or none."""
    text = new_token()
    draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(text + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.link(draft, file)
        finally:
            draft.unlink()
    except FileExistsError:
        found = file.read_text("ascii", "replace").strip()
        if not is_token(found):
            raise Refused(
                "trust.access.first_file",
                "the file for the first token is there and holds none",
                path=str(file),
                hint="remove it and start again",
            ) from None
        return found, False
    except OSError as err:
        raise Unavailable("trust.state.io", f"cannot write the first token: {err.strerror}", path=str(file)) from err
    return text, True
