"""What whoever changes or decides something tells the release log, without knowing it.

`cloister.trust.releaselog` implements `Events`. Everything else in the service takes it as an argument and calls
`append` in the transaction of the change, so that a change without its entry, or an entry without its change, cannot
become durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from sqlalchemy import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """Something that happened and must never be denied to have happened: an entry of the release log to be.

    Attributes:
        kind: `release`, `renewal`, `denial`, `revocation`, `policy`, `reference`, `resource`, `root`, `access`,
            `tenant` or `key`. Public.
        at: aware UTC. Public.
        tenant: whose event it is. Kept beside the entry, not public.
        fields: what happened, by name; values are texts. The names are public, each value is committed to with a salt
            of its own. Never a secret: whoever is shown the entry reads them.
    """

    kind: str
    at: datetime
    tenant: str
    fields: Mapping[str, str]


class Events(Protocol):
    """Where changes and decisions are recorded: the release log, or nothing."""

    def append(self, connection: Connection, event: LogEvent) -> object:
        """Record `event` in the transaction of `connection`, which is that of the change itself.

        Returns:
            What `ReleaseLog.receipt` takes once the transaction is durable; of no meaning to anybody else.

        Raises:
            FormatRefused: an unknown kind, or fields above a ceiling.
            Unavailable: the log must not be written now; the change is undone with it.
        """
        ...


class _NoEvents:
    """Records nothing."""

    def append(self, connection: Connection, event: LogEvent) -> object:
        """Do nothing."""


NO_EVENTS: Final[Events] = _NoEvents()
