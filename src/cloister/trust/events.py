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

from cloister.tlog.entry import VALUE_BYTES


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


class Receipts(Events, Protocol):
    """Events whose entries can be proven to those they are about."""

    def receipt(self, appended: object, *, cosignatures: int = 0, deadline: float) -> str:
        """Return the value of the header `Cloister-Receipt` for an entry whose transaction is durable.

        Args:
            appended: what `append` returned.
            cosignatures: how many witnesses must have cosigned.
            deadline: on the monotonic clock.

        Raises:
            Unavailable: too few witnesses cosigned in time; nothing must be handed out.
        """
        ...


class _NoEvents:
    """Records nothing."""

    def append(self, connection: Connection, event: LogEvent) -> object:
        """Do nothing."""

    def receipt(self, appended: object, *, cosignatures: int = 0, deadline: float) -> str:
        """Return no receipt."""
        return ""


NO_EVENTS: Final[Receipts] = _NoEvents()


def loggable(text: str) -> str:
    """Return a text that somebody else chose, such as a path asked for, in a form that an entry holds.

    What is no UTF-8 is written out, and the rest is cut at the length of a value.
    """
    return text.encode("utf-8", "backslashreplace")[:VALUE_BYTES].decode("utf-8", "ignore")
