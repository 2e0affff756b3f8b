"""Messages about SPIFFE identities: the keys of a trust domain. Policies of identities are policies like others."""

from __future__ import annotations

from datetime import datetime

from cloister.protocol.admin.base import Answer


class IdentityKey(Answer, frozen=True):
    """A key that vouches for identities, without its private half.

    Attributes:
        id: by which it is withdrawn.
        use: `x509-svid` or `jwt-svid`.
        active_at: from when it signs.
        expires_at: until when it is published.
        withdrawn_at: when it was taken out of the bundle; null while it is not.
    """

    id: str
    use: str
    active_at: datetime
    expires_at: datetime
    withdrawn_at: datetime | None


class IdentityKeyList(Answer, frozen=True):
    """Keys of a trust domain, oldest first."""

    keys: list[IdentityKey]
