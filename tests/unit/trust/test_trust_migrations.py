"""Databases of other versions: brought up with all they hold, or refused; and back again by one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.types import Text

from cloister.crypto.aead import GCM_NONCE_BYTES, seal_aes256gcm
from cloister.errors import Refused, Unavailable
from cloister.protocol.resourceuri import parse_resource_path
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.testing.tpm import NOW
from cloister.trust.rowseal import LEGACY, DataKey
from cloister.trust.store import schema
from cloister.trust.store.database import Store
from cloister.trust.store.endorsers import RootStore
from cloister.trust.store.migrations import HEAD, REVISIONS, VERSIONS, chain
from cloister.trust.store.migrations.runner import downgrade, upgrade
from cloister.trust.store.policies import APPRAISAL, PolicyStore
from cloister.trust.store.records import RELEASED, AuditRow, RecordStore, store_audit
from cloister.trust.store.resources import ResourceStore
from store_places import Place

KEY = DataKey(LEGACY, bytes(32))
PATH = parse_resource_path("default/model/one")
OLD = Path(__file__).with_name("schema_v2.sql")


def run(place: Place, work: Callable[[Connection], Any]) -> Any:
    """Run `work` in a transaction of its own, as the owner of the database."""
    engine = place.engine()
    try:
        if place.server is not None:
            with engine.begin() as connection:
                return work(connection)
        with engine.connect() as connection:  # this driver begins by itself, and not before DDL
            result = work(connection)
            connection.commit()
            return result
    finally:
        engine.dispose()


def shape(connection: Connection) -> dict[str, Any]:
    """Everything about the tables that a statement could depend on."""
    look = inspect(connection)
    found: dict[str, Any] = {}
    for name in sorted(look.get_table_names()):
        columns = [
            (c["name"], str(c["type"]), getattr(c["type"], "collation", None), c["nullable"], c.get("default"))
            for c in look.get_columns(name)
        ]
        found[name] = {
            "columns": columns,
            "primary": look.get_pk_constraint(name),
            "foreign": [
                (f["name"], f["constrained_columns"], f["referred_table"]) for f in look.get_foreign_keys(name)
            ],
            "unique": sorted((u["name"] or "", tuple(u["column_names"])) for u in look.get_unique_constraints(name)),
            "indexes": sorted((i["name"] or "", tuple(i["column_names"]), i["unique"]) for i in look.get_indexes(name)),
        }
    return found


def test_the_chain_is_one_line() -> None:
    config = Config()
    config.set_main_option("script_location", str(VERSIONS.parent))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == HEAD
    assert [step.revision for step in reversed(list(script.walk_revisions()))] == list(REVISIONS)
    assert chain(REVISIONS[0]) == (REVISIONS[0], None)
    assert all(len(revision) <= 32 for revision in REVISIONS), "as long as Alembic's column"


def test_migrated_and_fresh_are_equal(place: Place) -> None:
    place.open().close()
    fresh = run(place, shape)
    assert set(fresh) == set(schema.metadata.tables)

    def again(connection: Connection) -> None:
        everything = MetaData()
        everything.reflect(connection)
        everything.drop_all(connection)
        upgrade(connection)

    run(place, again)
    assert run(place, shape) == fresh
    assert run(place, lambda c: compare_metadata(MigrationContext.configure(c), schema.metadata)) == []


def test_a_difference_would_be_seen(place: Place) -> None:
    place.open().close()
    fresh = run(place, shape)
    run(place, lambda c: c.execute(text("ALTER TABLE roots ADD COLUMN more TEXT")))
    assert run(place, shape) != fresh


def test_back_by_one_and_up_again(place: Place) -> None:
    """Of the newest revision: a release that turns out wrong can be taken back with what is stored."""
    store = place.open()
    ResourceStore(store, KEY).put(PATH, b"content", at=NOW)
    store.close()
    before = run(place, shape)
    run(place, lambda c: downgrade(c, REVISIONS[-2]))
    assert run(place, lambda c: MigrationContext.configure(c).get_current_revision()) == REVISIONS[-2]
    assert run(place, shape) != before
    assert ResourceStore(place.open(), KEY).get(PATH).content == b"content"
    assert run(place, shape) == before


def test_tenants_do_not_fit_into_the_version_without(place: Place) -> None:
    store = place.open()
    ResourceStore(store, KEY, tenant="other").put(PATH, b"content", at=NOW)
    store.close()
    with pytest.raises(Refused) as caught:
        run(place, lambda c: downgrade(c, "r0001_first"))
    assert caught.value.code == "trust.store.downgrade"
    assert ResourceStore(place.open(), KEY, tenant="other").get(PATH).content == b"content"


@pytest.mark.parametrize("revision", ["r9999_of_tomorrow", ""])
def test_another_revision_is_refused(place: Place, revision: str) -> None:
    running = place.open()
    assert running.configuration() == 1
    run(place, lambda c: c.execute(text("UPDATE alembic_version SET version_num = :new"), {"new": revision}))
    with pytest.raises(Unavailable) as caught:
        place.open()
    assert caught.value.code == "trust.store.schema"
    with pytest.raises(Unavailable) as caught:
        running.configuration()
    assert caught.value.code == "trust.store.schema", "a replica that runs sees it too"


def old_database(directory: Path, *more: tuple[str, *tuple[object, ...]]) -> Path:
    """Make a database as version 2 made it; run statements, each with its values, on it."""
    file = directory / "trust.db"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(OLD.read_text())
    for statement, *values in more:
        connection.execute(statement, values)
    connection.commit()
    connection.close()
    return file


def old_resource() -> tuple[str, *tuple[object, ...]]:
    nonce = bytes(GCM_NONCE_BYTES)
    sealed = nonce + seal_aes256gcm(
        KEY.derive(b"cloister trust resource v1"), nonce, b"old content", f"{PATH}#3".encode()
    )
    return ("INSERT INTO resources VALUES (?, 3, ?, 1)", str(PATH), sealed)


SET_VERSION = "UPDATE schema_version SET version = ?"


@pytest.mark.parametrize("version", [1, 2])
def test_a_database_from_before_revisions_is_taken_over(quick: Path, version: int) -> None:
    """A root kept before the store knew of devices speaks for any, as it did then; no record and no key is lost."""
    first = [("ALTER TABLE roots DROP COLUMN instance",), (SET_VERSION, 1)] if version == 1 else []
    root = ("cca:1", "cca", "hardware", "key", b"\0", 1)
    file = old_database(
        quick,
        *first,
        old_resource(),
        ("INSERT INTO policies VALUES ('appraisal', 'default', 1, 'sha256:00', ?, 1)", b"{}"),
        ("INSERT INTO roots (id, tee, level, name, der, created_at) VALUES (?, ?, ?, ?, ?, ?)", *root),
        (
            "INSERT INTO audit VALUES (7, 1, ?, 'trust.released', ?, 3, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '')",
            *(RELEASED, str(PATH), *"abcdefghij"),
        ),
        ("INSERT INTO nonces VALUES ('spent', 5, 6)",),
        ("INSERT INTO sessions VALUES ('key', 'tpm', 'spent', NULL, 5, 9, NULL)",),
        ("UPDATE counters SET value = 41 WHERE name = 'configuration'",),
    )
    for _ in range(2):  # the second finds nothing to do
        store = Store(file)
        assert store.configuration() == 41
        assert ResourceStore(store, KEY).get(PATH).content == b"old content"
        assert PolicyStore(store).history(APPRAISAL, "default")[0].text == b"{}"
        assert RootStore(store).list() == (TrustedRoot(tee="cca", level=Level.HARDWARE, name="key", der=b"\0"),)
        [row] = RecordStore(store).list_audit()
        assert (row.sequence, row.resource, row.decision) == (7, str(PATH), RELEASED)
        assert store.read(lambda c: c.execute(text("SELECT tenant, used_at FROM nonces")).one()) == ("default", 6)
        store.close()
    store = Store(file)
    row = AuditRow(at=NOW, decision=RELEASED, code="trust.released")
    store.write(lambda connection: store_audit(connection, "default", row))
    assert [row.sequence for row in RecordStore(store).list_audit()] == [7, 8]
    store.close()


@pytest.mark.parametrize("version", [0, 3, 99])
def test_a_database_of_an_unknown_version_is_left_alone(quick: Path, version: int) -> None:
    file = old_database(quick, (SET_VERSION, version))
    before = dump(file)
    with pytest.raises(Unavailable) as caught:
        Store(file)
    assert caught.value.code == "trust.store.schema"
    assert dump(file) == before


def test_a_start_that_fails_half_way_changes_nothing(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = old_database(quick, old_resource())
    before = dump(file)

    def fail(*_: object) -> None:
        raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        # A fault after the tables were copied: there is no fake of a disk that fails at one statement.
        patch.setattr("alembic.runtime.migration.HeadMaintainer.update_to_step", fail)
        with pytest.raises(Unavailable):
            Store(file)
    assert dump(file) == before
    store = Store(file)
    assert ResourceStore(store, KEY).get(PATH).content == b"old content"
    store.close()


def dump(file: Path) -> list[str]:
    connection = sqlite3.connect(file)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def test_a_start_that_changes_nothing_does_not_load_alembic(quick: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cloister.trust.store.database import Store;"
        f"Store(Path({str(quick / 'trust.db')!r})).close(); print('alembic' in sys.modules, 'psycopg' in sys.modules)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False"]


def test_columns_are_of_types_that_are_the_same_everywhere() -> None:
    """Integer is 32 bits on PostgreSQL, too short for a time, and bare text compares by the server's locale there."""
    for table in schema.metadata.sorted_tables:
        if table is schema.alembic_version:
            continue
        for column in table.columns:
            kind = column.type
            assert kind is schema.INT64 or kind is schema.TEXT or str(kind) == "BLOB", f"{table.name}.{column.name}"
            assert not isinstance(kind, Text) or kind is schema.TEXT


def test_every_table_of_tenants_begins_with_the_tenant() -> None:
    shared = {"counters", "alembic_version", "data_keys", "key_ring", "signing_keys", "identity_keys"}
    one_for_all = {"log_entries", "log_nodes", "log_checkpoints"}  # a leaf tells no tenant from another
    for table in schema.metadata.sorted_tables:
        if table.name not in shared | one_for_all:
            assert next(iter(table.columns)).name == "tenant", table.name
            assert next(iter(table.primary_key)).name == "tenant", table.name
