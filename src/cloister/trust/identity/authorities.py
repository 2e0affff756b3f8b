"""The keys that vouch for a trust domain, and how they change without anybody noticing.

X509-SVIDs are signed by self-signed authorities of their own, JWT-SVIDs by keys of their own; neither is the CA of
the service's TLS certificate, nor the key of Attestation Results. A key is published in the bundle from the moment it
exists until it expires, and signs from `active_at` until the next one is active. So relying parties know a new key
before they meet it, and an old one as long as something it signed may live:

    created ............ active ................ next active ........ expires
    |<-- in bundle only -->|<------- signs -------->|<-- in bundle only -->|

Where keys are kept is the business of whoever implements `Authorities`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from cloister.crypto.jwt import key_id
from cloister.crypto.signer import Signer

REFRESH_HINT: Final = timedelta(minutes=5)  # how often relying parties are asked to fetch the bundle
OVERLAP: Final = timedelta(hours=1)  # a new key is published so long before it signs: many refreshes
ROTATED_AFTER: Final = timedelta(days=30)
KEY_LIFE: Final = timedelta(days=60)
SVID_LIFE: Final = timedelta(hours=1)  # the longest an X509-SVID can live; the Attestation Result bounds it further
JWT_LIFE: Final = timedelta(minutes=5)


class Use(enum.StrEnum):
    """What a key may sign, in the words of a SPIFFE bundle."""

    X509 = "x509-svid"
    JWT = "jwt-svid"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Authority:
    """One key that vouches for the trust domain.

    Attributes:
        use: what it may sign.
        signer: holds the private key.
        certificate: DER of its self-signed CA certificate; empty for JWT-SVIDs.
        created_at: aware UTC.
        active_at: from when on it signs.
        expires_at: until when it is published.
    """

    use: Use
    signer: Signer
    certificate: bytes
    created_at: datetime
    active_at: datetime
    expires_at: datetime

    @property
    def key_id(self) -> str:
        """RFC 7638 thumbprint of the key."""
        return key_id(self.signer.public_key)


class Authorities(Protocol):
    """The keys of a trust domain."""

    def signing(self, use: Use, *, at: datetime) -> Authority:
        """Return the key that signs now; it outlives what it signs.

        Raises:
            Unavailable: it cannot be had.
        """
        ...

    def published(self, *, at: datetime) -> tuple[Authority, ...]:
        """Return the keys of the bundle, oldest first.

        Raises:
            Unavailable: they cannot be had.
        """
        ...

    def sequence(self, *, at: datetime) -> int:
        """Return a number that grows with each change of what is published.

        Raises:
            Unavailable: it cannot be had.
        """
        ...
