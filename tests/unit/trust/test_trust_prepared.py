"""Prepared statements: the same results and the same errors as SQLAlchemy's own, on both databases."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, bindparam, func, insert, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from cloister.errors import Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.numbering import OF_TENANT, NumberedRows, insert_numbered, number_of
from cloister.trust.store.prepared import Prepared, PreparedRows
from cloister.trust.store.schema import audit, log_nodes, nonces
from statements import statements
from store_places import Place

PUT = Prepared(insert(nonces))
MANY = PreparedRows(nonces)
FIND = Prepared(select(nonces.c.hash, nonces.c.issued_at).where(nonces.c.hash == bindparam("wanted")))
COUNT = Prepared(select(func.count()).select_from(nonces))


def row(name: str, *, issued: int = 0) -> dict[str, object]:
    return {"tenant": DEFAULT_TENANT, "hash": name, "issued_at": issued, "used_at": None}


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


def test_what_is_written_is_read(store: Store) -> None:
    store.write(lambda connection: PUT.run(connection, row("one", issued=7)))
    assert store.read(lambda connection: FIND.row(connection, {"wanted": "one"})) == ("one", 7)
    assert store.read(lambda connection: FIND.row(connection, {"wanted": "two"})) is None
    assert store.read(lambda connection: COUNT.rows(connection, {})) == [(1,)]


def test_many_rows_at_once(store: Store) -> None:
    many = [{"level": 1, "position": number, "hash": bytes([number]) * 32} for number in range(203)]
    with statements() as seen:
        store.write(lambda connection: PreparedRows(log_nodes).run(connection, many))
    assert sum("log_nodes" in text for text in seen) == 6, "64, 64, 64, 8, 2 and 1"
    read = Prepared(select(log_nodes.c.position, log_nodes.c.hash).order_by(log_nodes.c.position))
    assert [(place, bytes(data)) for place, data in store.read(lambda connection: read.rows(connection, {}))] == [
        (item["position"], item["hash"]) for item in many
    ]


def test_constants_of_the_statement_are_bound(store: Store) -> None:
    statement = Prepared(insert_count := select(nonces.c.hash).where(nonces.c.issued_at == 3, nonces.c.hash != "no"))
    assert "3" not in str(insert_count)
    store.write(lambda connection: MANY.run(connection, [row("yes", issued=3), row("no", issued=3)]))
    assert store.read(lambda connection: statement.rows(connection, {})) == [("yes",)]


def test_numbers_are_given_in_order(store: Store) -> None:
    numbered = insert_numbered(audit)
    empty = {column.name: "" for column in audit.columns if column.name != "sequence"}
    values = {**empty, "tenant": DEFAULT_TENANT, OF_TENANT: DEFAULT_TENANT, "at": 0, "resource_version": 0}
    given = [store.write(lambda connection: number_of(numbered.row(connection, values))) for _ in range(3)]
    assert given == [1, 2, 3]


def test_many_rows_of_many_tenants_are_numbered_in_order(store: Store) -> None:
    """Each tenant's from its newest on, without a gap, in every size of a statement."""
    empty = {column.name: "" for column in audit.columns if column.name != "sequence"}
    numbered, made = NumberedRows(audit), 0
    for count in (1, 2, 3, 7, 70, 133):
        rows = [
            {**empty, "tenant": f"t{(made + place) % 3}", "at": made + place, "resource_version": 0}
            for place in range(count)
        ]
        store.write(lambda connection, rows=rows: numbered.run(connection, rows))  # type: ignore[misc]  # bound by default
        made += count
    read = select(audit.c.tenant, audit.c.sequence, audit.c.at).order_by(audit.c.at)
    found = store.read(lambda connection: connection.execute(read).all())
    assert [tuple(item) for item in found] == [(f"t{at % 3}", at // 3 + 1, at) for at in range(made)]


def test_a_broken_rule_is_an_integrity_error_and_spoils_nobody_else(store: Store) -> None:
    store.write(lambda connection: PUT.run(connection, row("one")))
    seen: list[SQLAlchemyError] = []

    def twice(connection: Connection) -> None:
        try:
            PUT.run(connection, row("one"))
        except SQLAlchemyError as err:
            seen.append(err)
            raise

    ready = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(store.write, lambda _: ready.wait(2))  # so that the others are one batch
        time.sleep(0.05)
        bad = pool.submit(store.write, twice)
        good = pool.submit(store.write, lambda connection: PUT.run(connection, row("two")))
        time.sleep(0.05)
        ready.set()
        with pytest.raises(Unavailable):
            bad.result(5)
        good.result(5)
        first.result(5)
    assert isinstance(seen[0], IntegrityError)
    assert (seen[0].statement, seen[0].params) == (None, None), "what was being stored is not in the error"
    assert store.read(lambda connection: FIND.row(connection, {"wanted": "two"})) is not None


def test_a_statement_that_is_none_fails_the_write(store: Store) -> None:
    with pytest.raises(Unavailable) as caught:
        store.write(lambda connection: Prepared(text("no statement")).run(connection, {}))
    assert caught.value.code == "trust.store.failed"
    store.write(lambda connection: PUT.run(connection, row("after")))


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(Unavailable):
        store.read(lambda connection: PUT.run(connection, row("one")))
    assert store.read(lambda connection: COUNT.rows(connection, {})) == [(0,)]


def test_readers_that_failed_leave_their_place_to_others(store: Store) -> None:
    for _ in range(40):
        with pytest.raises(Unavailable):
            store.read(lambda connection: Prepared(text("select nothing from nowhere")).rows(connection, {}))
    assert store.read(lambda connection: COUNT.rows(connection, {})) == [(0,)]


def test_a_connection_that_was_closed_meanwhile_is_replaced(store: Store) -> None:
    """As whoever watches deadlines closes one: the read is run again on another, the dead one does not come back."""

    def close(connection: Connection) -> None:
        held = connection.connection.dbapi_connection
        assert held is not None
        held.close()

    for _ in range(3):
        store.read(close)
        assert store.read(lambda connection: COUNT.rows(connection, {})) == [(0,)]


def test_many_readers_share_the_connections(store: Store) -> None:
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda _: store.read(lambda connection: COUNT.rows(connection, {})), range(400)))
    assert found == [[(0,)]] * 400


def test_several_rows_where_one_is_meant_are_a_fault(store: Store) -> None:
    store.write(lambda connection: MANY.run(connection, [row("one"), row("two")]))
    with pytest.raises(RuntimeError):
        store.read(lambda connection: Prepared(select(nonces.c.hash)).row(connection, {}))


def test_an_error_is_what_sqlalchemy_makes_of_it(store: Store) -> None:
    """Whoever looks at the type of an error must find the same, however the statement was run."""
    kinds = []

    def work(connection: Connection) -> None:
        for run in (
            lambda: Prepared(text("select * from nowhere")).rows(connection, {}),
            lambda: connection.execute(text("select * from nowhere")),
        ):
            connection.exec_driver_sql("SAVEPOINT here")
            try:
                run()
            except SQLAlchemyError as err:
                kinds.append(type(err))
            connection.exec_driver_sql("ROLLBACK TO here")

    store.write(work)
    assert kinds[0] is kinds[1] and issubclass(kinds[0], SQLAlchemyError), (kinds, ProgrammingError)


class TestGathering:
    """A batch waits for a moment when many callers are under way, and only then."""

    def sizes(self, store: Store, committed: list[int], busy: int, writers: int) -> list[int]:
        store.gather(lambda: busy)
        committed.clear()

        def late(number: int) -> None:
            time.sleep(0.0004 * number)
            store.write(lambda connection: PUT.run(connection, row(f"{busy} {number}")))

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(late, range(writers)))
        return list(committed)

    def test_many_share_a_commit(self, place: Place) -> None:
        committed: list[int] = []
        store = place.open(committed=lambda writes, _: committed.append(writes))
        sizes = self.sizes(store, committed, busy=64, writers=8)
        assert sum(sizes) == 8 and max(sizes) > 1

    def test_one_alone_does_not_wait(self, place: Place) -> None:
        class Pause:
            """Tells whether there was one, not how long."""

            taken = 0

            def acquire(self, *, timeout: float) -> bool:
                self.taken += 1
                return False

        store, pause = place.open(), Pause()
        store._pause = pause  # type: ignore[assignment]  # has the one method that is used
        store.gather(lambda: 3)
        store.write(lambda connection: PUT.run(connection, row("one")))
        assert not pause.taken
        store.gather(lambda: 4)
        store.write(lambda connection: PUT.run(connection, row("two")))
        assert pause.taken == 1
