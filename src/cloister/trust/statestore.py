"""The store of a state directory: where the directory says it is, so that every command on it finds the same one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cloister.trust.statedir import StateDirectory
from cloister.trust.store.database import BatchHook, Store


def open_store(
    state: StateDirectory,
    *,
    database: str = "",
    password_file: Path | None = None,
    seconds: float = 4.0,
    batch_hook: BatchHook | None = None,
    committed: Callable[[int, float], None] | None = None,
) -> Store:
    """Open the database at `database`, which is remembered once that worked; else the remembered one, else SQLite.

    Args:
        state: the directory; its file `database` remembers address and password file.
        database: address, empty for what is remembered.
        password_file: file with the password, when an address is given.
        seconds: as the store takes it.
        batch_hook: as the store takes it.
        committed: as the store takes it.

    Raises:
        Refused: the address cannot be used (`trust.settings.database`).
        Unavailable: it cannot be opened.
    """
    if not database:
        address, _, password = state.remembered("database").partition("\n")
        database, password_file = address, Path(password) if password else password_file
        given = ""
    else:
        given = f"{database}\n{password_file.absolute() if password_file is not None else ''}"
    store = Store(
        database or state.database,
        state.write_lock,
        seconds=seconds,
        batch_hook=batch_hook,
        password_file=password_file,
        committed=committed,
    )
    if given:
        try:
            state.remember("database", given)
        except BaseException:
            store.close()
            raise
    return store
