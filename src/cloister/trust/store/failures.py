"""What a database error becomes: a refusal that names its kind; no statement, value, address or password is in it."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cloister.errors import Unavailable

_SQLITE_LOCKED: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")
_SQLSTATES: Final = {  # PostgreSQL, appendix A
    "55P03": "trust.store.locked",  # lock_not_available: lock_timeout
    "57014": "trust.store.timeout",  # query_canceled: statement_timeout
    "25P03": "trust.store.timeout",  # idle_in_transaction_session_timeout
}


def unavailable(err: SQLAlchemyError | OSError, *, hint: str) -> Unavailable:
    """Return the refusal for an error of the database. Raise it `from None`: the driver's text can hold values."""
    cause: BaseException = err.orig if isinstance(err, DBAPIError) and err.orig is not None else err
    name: str = getattr(cause, "sqlite_errorname", type(cause).__name__)
    code = _SQLSTATES.get(getattr(cause, "sqlstate", None) or "", "trust.store.failed")
    if name.startswith(_SQLITE_LOCKED):
        code = "trust.store.locked"
    elif isinstance(err, PoolTimeout):
        code = "trust.store.timeout"
    return Unavailable(code, f"the store failed: {name}", hint=hint)


def locked() -> Unavailable:
    """Return the refusal when other writers did not let this one have its turn."""
    return Unavailable(
        "trust.store.locked", "another process holds the store's write lock", hint="wait for the other command to end"
    )


def too_late(seconds: float, *, hint: str) -> Unavailable:
    """Return the refusal when the store did not answer in time."""
    return Unavailable(
        "trust.store.timeout",
        "the store did not answer in time",
        expected=f"an answer within {seconds:g} s",
        hint=hint,
    )
