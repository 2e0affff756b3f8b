"""What every test of a process would make anew and make the same: compiled SQL, the tree of commands, HTTP routes.

A program makes each of them once. Tests open stores, call commands and furnish administrations by the hundred, and
this making cost a third of their time. To import this module is enough.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import typer.main
import typer.testing
from sqlalchemy import Engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

if TYPE_CHECKING:
    from cloister.trust.administration import Administration

_compiled: dict[Any, Any] = {}  # Any: SQLAlchemy's, by dialect and statement


class SharedSQLite(SQLiteDialect_pysqlite):
    """SQLite whose engines compile a statement once for all of them."""

    supports_statement_cache = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedSQLite)

    def __hash__(self) -> int:
        return hash(SharedSQLite)

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        """Let an engine use what others compiled."""
        engine.update_execution_options(compiled_cache=_compiled)


registry.register("sqlite.pysqlite", __name__, SharedSQLite.__name__)

# Of each call `CliRunner` would make the commands again.
setattr(typer.testing, "_get_command", cache(typer.main.get_command))  # noqa: B010  # it is not exported


@cache
def administration_routes() -> Any:  # Any: the framework's application
    """Return the application, of nobody's administration."""
    from cloister.trust.administration import Administration
    from cloister.trust.web.admin import application  # the framework is a quarter of a second

    return application.admin_application(Administration.__new__(Administration))


def admin_application(administration: Administration) -> Any:  # Any: as above
    """Return the administration API of the product: of the same routes, for this administration."""
    from cloister.trust.web.admin.entrance import state_of

    made = copy.copy(administration_routes())
    made.state = copy.copy(made.state)
    made.state.update(state_of(administration))
    return made
