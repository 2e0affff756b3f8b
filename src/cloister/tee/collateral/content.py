"""An item that was had: its bytes, the time it holds for, and how old it is. Pure.

Nobody here decides that old is good enough: `Entry` tells the age, the verifier reports it, the policy's grace decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloister.errors import EndorsementError
from cloister.tee.collateral.item import Item

_SOONEST: Final = timedelta(hours=1)  # half of a remainder, again and again, would ask a vendor every minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a vendor published for an item, checked to be well-formed and to be for that item. Not yet trusted.

    Attributes:
        data: the bytes, as signed.
        chain: certificates that came beside it (PEM); empty when it carries its own.
        issued: since when it holds; None when it does not say.
        expires: until when it may be used; None for ever.
        sequence: the vendor's own counter (CRL number, TCB evaluation data number), which never goes back; None when
            it has none.
    """

    data: bytes
    chain: str = ""
    issued: datetime | None = None
    expires: datetime | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An item, its content, and where and when it was had.

    Attributes:
        item: its full identity.
        content: what was published.
        fetched: aware time.
        origin: host name, directory or bundle, for people.
    """

    item: Item
    content: Content
    fetched: datetime
    origin: str

    def fresh(self, at: datetime) -> bool:
        """Whether it may be used at that time without any grace."""
        return self.content.expires is None or at < self.content.expires

    def age(self, at: datetime) -> timedelta:
        """How long ago it was had."""
        return at - self.fetched

    @property
    def due(self) -> datetime | None:
        """When it should be fetched again: half of the time it still had when fetched; None never."""
        if self.content.expires is None:
            return None
        return self.fetched + max((self.content.expires - self.fetched) / 2, _SOONEST)


def refuse_rollback(item: Item, old: Content, new: Content) -> None:
    """Refuse content that is older than what is already had: somebody replays an answer of the past.

    Raises:
        EndorsementError: `collateral.answer.rollback`.
    """
    went_back = (
        new.sequence < old.sequence
        if old.sequence is not None and new.sequence is not None
        else old.issued is not None and new.issued is not None and new.issued < old.issued
    )
    if went_back:
        raise EndorsementError(
            "collateral.answer.rollback",
            "answer is older than what is already known",
            path=item.label,
            expected=_stand(old),
            actual=_stand(new),
            hint="a mirror or cache on the way is behind; ask the vendor itself",
        )


def _stand(content: Content) -> str:
    issued = content.issued.isoformat(timespec="seconds") if content.issued else "undated"
    return f"number {content.sequence}, {issued}" if content.sequence is not None else issued
