"""The release log in the store: one checkpoint per transaction, proofs without reading, and no second history."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from cloister.errors import CloisterError, FormatRefused, Refused, Unavailable
from cloister.tlog.checkpoint import Checkpoint, verify_checkpoint
from cloister.tlog.entry import parse_leaf
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import SignedNote, parse_note
from cloister.tlog.receipt import LogPins, VerifiedEntry, parse_receipt, verify_receipt
from cloister.tlog.signers import LogSigner
from cloister.tlog.tiles import ENTRIES, Tile, levels_of, parse_entries, parse_hashes, tiles_of
from cloister.tlog.witness import Conflict, parse_request
from cloister.trust.events import LogEvent
from cloister.trust.releaselog import PublicLog, ReleaseLog, Witness, parse_witnesses
from cloister.trust.releaselog.cosigning import Cosigner
from cloister.trust.releaselog.highwater import HighWater, Mark
from cloister.trust.releaselog.log import origin_of
from cloister.trust.store.database import Store
from cloister.trust.store.deferred import defer
from statements import statements
from tlog_world import MemoryLog, MemoryWitness, mth

AT = datetime(2026, 11, 26, 19, 6, 53, tzinfo=UTC)


def release(number: int = 0, tenant: str = "default") -> LogEvent:
    return LogEvent(kind="release", at=AT, tenant=tenant, fields={"resource": f"default/key/{number}"})


ORIGIN = "log.example/test"
KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)


@dataclass
class OpenedLog:
    """A store and the log in it."""

    store: Store
    log: ReleaseLog

    def close(self) -> None:
        self.store.close()
        self.log.close()


class Site:
    """A state directory and what opens it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        self.witnesses: list[MemoryWitness] = []
        self.down: set[str] = set()
        self.opened: list[OpenedLog] = []

    def open(self, *, seconds: float = 2.0) -> OpenedLog:
        cosigner = None
        if self.witnesses:
            asked = [Witness(key=item.signer.verifier, url="http://test") for item in self.witnesses]
            cosigner = Cosigner(asked, post=self.post)
        log = ReleaseLog(HighWater(self.directory), cosigner=cosigner, random=lambda size: bytes(range(size)))
        store = Store(self.directory / "trust.db", batch_hook=log)
        opened = OpenedLog(store=store, log=log)
        self.opened.append(opened)
        log.open(store, KEY, origin=ORIGIN, seconds=seconds)
        return opened

    def post(self, witness: Witness, body: bytes) -> tuple[int, bytes]:
        """What HTTP would carry."""
        if witness.key.name in self.down:
            raise ConnectionRefusedError
        own = next(item for item in self.witnesses if item.signer.verifier == witness.key)
        try:
            note = own.add_checkpoint(parse_request(body))
        except Conflict as err:
            return 409, f"{err.size}\n".encode()
        except Refused as err:
            return (422 if err.code.startswith("tlog.proof") else 403), b""
        return 200, note.signatures[-1].line().encode()

    def witness(self, count: int = 1) -> None:
        key = LogSigner(ORIGIN, KEY.private_bytes_raw()).verifier
        for number in range(count):
            own = MemoryWitness(20 + number)
            own.logs[key.name] = key
            self.witnesses.append(own)

    def close(self) -> None:
        for opened in self.opened:
            opened.close()
        self.opened.clear()

    def rollback_to(self, copy: Path) -> None:
        """Put an older database in the place of the newer one."""
        for file in self.directory.glob("trust.db*"):
            file.unlink()
        shutil.copy(copy, self.directory / "trust.db")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "state")
    yield made
    made.close()


def append(opened: OpenedLog, *events: LogEvent) -> list[object]:
    return opened.store.write(lambda connection: [opened.log.append(connection, item) for item in events])


def verify(opened: OpenedLog, appended: object, *, witnesses: list[MemoryWitness] | None = None) -> VerifiedEntry:
    keys = tuple(item.signer.verifier for item in witnesses or ())
    text = opened.log.receipt(appended, cosignatures=len(keys), deadline=time.monotonic() + 5)
    pins = LogPins(key=opened.log.key, witnesses=keys, cosignatures=len(keys))
    return verify_receipt(parse_receipt(text), pins)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises((Refused, Unavailable)) as caught:
        call()
    assert isinstance(caught.value, CloisterError)
    return caught.value.code


class TestAppend:
    def test_each_entry_has_a_receipt(self, site: Site) -> None:
        opened = site.open()
        for number in range(40):
            (one,) = append(opened, release(number, tenant="acme"))
            entry = verify(opened, one)
            assert entry.index == number
            assert entry.fields == {"resource": f"default/key/{number}", "tenant": "acme"}
            assert entry.checkpoint.size == number + 1

    def test_a_batch_has_one_checkpoint(self, site: Site) -> None:
        opened = site.open()
        append(opened, release())
        entries = [verify(opened, one) for one in append(opened, *(release(number) for number in range(13)))]
        assert {entry.checkpoint.size for entry in entries} == {14}
        assert [entry.index for entry in entries] == list(range(1, 14))

    def test_proofs_are_made_without_the_database(self, site: Site) -> None:
        opened = site.open()
        append(opened, *(release(number) for number in range(37)))
        (one,) = append(opened, release(99))
        opened.store.close()
        assert verify(opened, one).index == 37

    def test_a_job_that_refuses_takes_its_entries_with_it(self, site: Site) -> None:
        opened = site.open()

        def refuse(connection: Connection) -> None:
            opened.log.append(connection, release(1))
            opened.log.append(connection, release(2))
            raise Refused("trust.resource.missing", "no")

        assert refusal(lambda: opened.store.write(refuse)) == "trust.resource.missing"
        (one,) = append(opened, release(3))
        assert verify(opened, one).index == 0

    def test_a_job_that_refuses_within_a_batch(self, site: Site) -> None:
        """Jobs that wait behind a slow one share a transaction; only one of them refuses, before and after others."""
        opened = site.open()
        began, go = threading.Event(), threading.Event()
        kept: list[object] = []

        def slow(connection: Connection) -> None:
            began.set()
            go.wait(3)

        def good(connection: Connection) -> None:
            kept.append(opened.log.append(connection, release(5)))

        def bad(connection: Connection) -> None:
            opened.log.append(connection, release(6))
            raise Refused("trust.resource.missing", "no")

        def run(work: Callable[[Connection], None]) -> threading.Thread:
            def call() -> None:
                try:
                    opened.store.write(work)
                except Refused:
                    assert work is bad

            thread = threading.Thread(target=call)
            thread.start()
            return thread

        threads = [run(slow)]
        began.wait(3)
        threads += [run(work) for work in (good, bad, good, bad, bad, good, bad)]
        time.sleep(0.1)
        go.set()
        for thread in threads:
            thread.join(5)
        assert sorted(verify(opened, one).index for one in kept) == [0, 1, 2]
        assert verify(opened, kept[0]).checkpoint.size == 3

    def test_a_commit_that_fails_leaves_the_log_as_it_was(self, site: Site) -> None:
        opened = site.open()
        append(opened, release(0))

        def fail(connection: Connection) -> None:
            opened.log.append(connection, release(1))
            connection.exec_driver_sql("no statement")

        assert refusal(lambda: opened.store.write(fail)) == "trust.store.failed"
        (one,) = append(opened, release(2))
        assert verify(opened, one).index == 1

    def test_a_commit_that_fails_after_the_checkpoint_was_signed(self, site: Site) -> None:
        """What commits next, without an entry, must not be taken for it."""
        opened = site.open()
        append(opened, release(0))

        def fail_late(connection: Connection) -> None:
            opened.log.append(connection, release(1))
            defer(connection, lambda connection, _: connection.exec_driver_sql("no statement") and None, None)

        assert refusal(lambda: opened.store.write(fail_late)) == "trust.store.failed"
        opened.store.write(lambda connection: None)
        assert size_of(opened.log.newest, opened.log) == HighWater(site.directory).read().size == 1
        (one,) = append(opened, release(2))
        assert verify(opened, one).index == 1

    def test_writes_without_entries_make_no_checkpoint(self, site: Site) -> None:
        opened = site.open()
        opened.store.write(lambda connection: None)
        assert size_of(opened.log.newest, opened.log) == 0

    @pytest.mark.parametrize(
        "changed",
        [
            {"kind": "nonsense"},
            {"fields": {"x": "y" * 1025}},
            {"fields": {f"f{number}": "" for number in range(40)}},
            {"fields": {"Bad": ""}},
        ],
    )
    def test_what_no_entry_holds_is_refused_with_its_change(self, site: Site, changed: dict[str, Any]) -> None:
        opened = site.open()
        bad = dataclasses.replace(release(), **changed)
        with pytest.raises(FormatRefused, match=r"tlog\.entry\.malformed"):
            append(opened, bad)
        append(opened, release())

    def test_a_receipt_before_the_commit_is_a_fault_of_ours(self, site: Site) -> None:
        opened = site.open()

        def early(connection: Connection) -> None:
            opened.log.receipt(opened.log.append(connection, release()), deadline=time.monotonic())

        with pytest.raises(TypeError):
            opened.store.write(early)


def size_of(note: SignedNote, log: ReleaseLog) -> int:
    return verify_checkpoint(note, log.key).size


class TestSecondProcess:
    def test_two_processes_append_in_turn(self, site: Site) -> None:
        one, other = site.open(), site.open()
        for number in range(6):
            opened = (one, other)[number % 2]
            (appended,) = append(opened, release(number))
            assert verify(opened, appended).index == number
        assert size_of(one.log.newest, one.log) == 5
        append(one, release())
        assert size_of(one.log.newest, one.log) == 7

    def test_a_restart_goes_on(self, site: Site) -> None:
        append(site.open(), *(release(number) for number in range(11)))
        site.close()
        (one,) = append(site.open(), release())
        assert verify(site.opened[0], one).index == 11

    def test_another_key_is_not_that_of_the_log(self, site: Site) -> None:
        append(site.open(), release())
        site.close()
        log = ReleaseLog(HighWater(site.directory), cosigner=None)
        store = Store(site.directory / "trust.db", batch_hook=log)
        site.opened.append(OpenedLog(store=store, log=log))
        other = Ed25519PrivateKey.from_private_bytes(bytes(32))
        assert refusal(lambda: log.open(store, other, origin=ORIGIN)) == "trust.releaselog.damaged"
        assert refusal(lambda: append(site.opened[0], release())) == "trust.releaselog.closed"

    def test_a_log_has_the_name_of_its_key(self) -> None:
        assert origin_of(KEY) == origin_of(KEY) != origin_of(Ed25519PrivateKey.generate())

    def test_nothing_is_appended_before_it_is_open(self, site: Site) -> None:
        """A service that starts sealed has a store before it has keys."""
        log = ReleaseLog(HighWater(site.directory), cosigner=None)
        store = Store(site.directory / "trust.db", batch_hook=log)
        opened = OpenedLog(store=store, log=log)
        site.opened.append(opened)
        assert refusal(lambda: append(opened, release())) == "trust.releaselog.closed"
        assert refusal(lambda: PublicLog(log, store).get("checkpoint")) == "trust.releaselog.closed"
        log.open(store, KEY, origin=ORIGIN)
        log.open(store, KEY, origin=ORIGIN)
        append(opened, release())


class TestRollback:
    def grown(self, site: Site, tmp_path: Path) -> Path:
        """A log of 5 entries, a copy of its database then, and two more."""
        opened = site.open()
        append(opened, *(release(number) for number in range(5)))
        site.close()
        copy = tmp_path / "old.db"
        shutil.copy(site.directory / "trust.db", copy)
        append(site.open(), release(5), release(6))
        site.close()
        return copy

    def test_an_older_database_is_not_written(self, site: Site, tmp_path: Path) -> None:
        site.rollback_to(self.grown(site, tmp_path))
        opened = site.open()
        assert refusal(lambda: append(opened, release(9))) == "trust.releaselog.rolled_back"
        assert size_of(opened.log.newest, opened.log) == 5

    def test_what_is_logged_does_not_happen_then(self, site: Site, tmp_path: Path) -> None:
        site.rollback_to(self.grown(site, tmp_path))
        opened = site.open()
        done = []

        def work(connection: Connection) -> None:
            opened.log.append(connection, release())
            done.append(True)

        assert refusal(lambda: opened.store.write(work)) == "trust.releaselog.rolled_back"
        assert not done

    def test_another_history_of_the_same_length(self, site: Site, tmp_path: Path) -> None:
        copy = self.grown(site, tmp_path)
        mark = (site.directory / "log.highwater").read_bytes()
        site.rollback_to(copy)
        (site.directory / "log.highwater").unlink()
        append(site.open(), release(50), release(51), release(52))
        site.close()
        (site.directory / "log.highwater").write_bytes(mark)
        assert refusal(lambda: append(site.open(), release(9))) == "trust.releaselog.rolled_back"

    def test_an_empty_database_beside_the_mark(self, site: Site, tmp_path: Path) -> None:
        self.grown(site, tmp_path)
        for file in site.directory.glob("trust.db*"):
            file.unlink()
        assert refusal(lambda: append(site.open(), release(9))) == "trust.releaselog.rolled_back"

    def test_a_database_replaced_under_a_running_service(self, site: Site) -> None:
        opened = site.open()
        append(opened, release(0), release(1))
        with sqlite3.connect(site.directory / "trust.db") as other:
            other.executescript("DELETE FROM log_entries; DELETE FROM log_nodes; DELETE FROM log_checkpoints")
        other.close()
        assert refusal(lambda: append(opened, release(9))) == "trust.releaselog.rolled_back"

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE log_entries SET hash = zeroblob(32) WHERE position = 4",
            "UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 2",
            "DELETE FROM log_nodes",
            "DELETE FROM log_entries WHERE position = 4",
            "UPDATE log_checkpoints SET note = replace(note, 'log.example', 'log.elsewhere')",
            "UPDATE log_checkpoints SET note = ''",
            "UPDATE log_checkpoints SET size = size + 1",
        ],
    )
    def test_a_damaged_log_is_not_opened(self, site: Site, statement: str) -> None:
        append(site.open(), *(release(number) for number in range(5)))
        site.close()
        with sqlite3.connect(site.directory / "trust.db") as other:
            other.execute(statement)
        other.close()
        assert refusal(site.open) == "trust.releaselog.damaged"

    def test_entries_without_a_checkpoint(self, site: Site) -> None:
        opened = site.open()
        with sqlite3.connect(site.directory / "trust.db") as other:
            other.execute("INSERT INTO log_entries VALUES (0, x'00', zeroblob(32), x'00', 'default', '{}')")
        other.close()
        assert refusal(lambda: append(opened, release())) == "trust.releaselog.damaged"


class TestWitnesses:
    def test_receipts_carry_cosignatures(self, site: Site) -> None:
        site.witness(3)
        opened = site.open()
        for number in range(4):
            (one,) = append(opened, release(number))
            assert len(verify(opened, one, witnesses=site.witnesses).cosigned_by) == 3

    def test_a_witness_that_is_down_is_missed_only_where_it_is_needed(self, site: Site) -> None:
        site.witness(2)
        site.down.add(site.witnesses[1].signer.verifier.name)
        opened = site.open()
        (one,) = append(opened, release())
        assert verify(opened, one, witnesses=site.witnesses[:1]).index == 0
        code = refusal(lambda: opened.log.receipt(one, cosignatures=2, deadline=time.monotonic() + 0.2))
        assert code == "trust.releaselog.cosignatures"

    def test_cosignatures_without_witnesses(self, site: Site) -> None:
        opened = site.open()
        (one,) = append(opened, release())
        code = refusal(lambda: opened.log.receipt(one, cosignatures=1, deadline=time.monotonic() + 1))
        assert code == "trust.releaselog.cosignatures"

    def test_nothing_is_written_before_a_witness_answers(self, site: Site) -> None:
        site.witness()
        name = site.witnesses[0].signer.verifier.name
        site.down.add(name)
        opened = site.open(seconds=0.1)
        assert refusal(lambda: append(opened, release())) == "trust.releaselog.unconfirmed"
        site.down.clear()
        until = time.monotonic() + 5
        while time.monotonic() < until and site.witnesses[0].latest("log.example/test") == 0:
            try:
                append(opened, release())
                break
            except Unavailable:
                time.sleep(0.05)
        else:
            pytest.fail("the witness was not asked again")

    def grown(self, site: Site, tmp_path: Path) -> Path:
        site.witness()
        opened = site.open()
        append(opened, *(release(number) for number in range(5)))
        self.seen(site, 5)
        site.close()
        copy = tmp_path / "old"
        shutil.copytree(site.directory, copy)
        append(site.open(), release(5), release(6))
        self.seen(site, 7)
        site.close()
        return copy

    def seen(self, site: Site, size: int) -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if site.witnesses[0].latest("log.example/test") >= size:
                return
            time.sleep(0.01)
        pytest.fail("the witness was not shown the log")

    def test_a_whole_state_directory_from_a_backup_is_not_written(self, site: Site, tmp_path: Path) -> None:
        copy = self.grown(site, tmp_path)
        shutil.rmtree(site.directory)
        shutil.copytree(copy, site.directory)
        assert refusal(lambda: append(site.open(), release(9))) == "trust.releaselog.rolled_back"

    def test_another_history_is_not_written(self, site: Site, tmp_path: Path) -> None:
        copy = self.grown(site, tmp_path)
        shutil.rmtree(site.directory)
        shutil.copytree(copy, site.directory)
        known, site.witnesses = site.witnesses, []
        append(site.open(), *(release(90 + number) for number in range(4)))
        site.close()
        site.witnesses = known
        assert refusal(lambda: append(site.open(), release(9))) == "trust.releaselog.rolled_back"

    def test_a_witness_that_saw_exactly_this_lifts_the_mark(self, site: Site, tmp_path: Path) -> None:
        """The entries after the backup were never shown to anybody: the witness cosigned last what the backup holds."""
        site.witness()
        append(site.open(), *(release(number) for number in range(5)))
        self.seen(site, 5)
        site.close()
        copy = tmp_path / "old.db"
        shutil.copy(site.directory / "trust.db", copy)
        known, site.witnesses = site.witnesses, []
        append(site.open(), release(5))
        site.close()
        site.rollback_to(copy)
        assert refusal(lambda: append(site.open(), release(9))) == "trust.releaselog.rolled_back"
        site.close()
        site.witnesses = known
        (one,) = append(site.open(), release(9))
        assert verify(site.opened[0], one).index == 5
        assert HighWater(site.directory).read().size == 6

    def test_a_witness_that_is_behind_does_not_lift_the_mark(self, site: Site, tmp_path: Path) -> None:
        site.witness()
        append(site.open(), release(0))
        self.seen(site, 1)
        site.close()
        known, site.witnesses = site.witnesses, []
        append(site.open(), release(1))
        site.close()
        copy = tmp_path / "old.db"
        shutil.copy(site.directory / "trust.db", copy)
        append(site.open(), release(2))
        site.close()
        site.rollback_to(copy)
        site.witnesses = known
        assert refusal(lambda: append(site.open(), release(9))) == "trust.releaselog.rolled_back"

    def test_two_processes_share_a_witness(self, site: Site) -> None:
        site.witness()
        one, other = site.open(), site.open()
        for number in range(8):
            opened = (one, other)[number % 2]
            (appended,) = append(opened, release(number))
            assert verify(opened, appended, witnesses=site.witnesses).index == number

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "x@http://h",
            "@http://h",
            "log.example/1+db1c42f6+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop@http://h",
        ],
    )
    def test_what_names_no_witness(self, text: str) -> None:
        assert refusal(lambda: parse_witnesses([text])) in ("trust.settings.witness", "tlog.note.verifier_key")

    def test_witnesses_are_named_once(self) -> None:
        key = str(MemoryWitness(3, MemoryLog()).signer.verifier)
        assert parse_witnesses([f"{key}@https://w.example/x/"])[0].url == "https://w.example/x"
        assert refusal(lambda: parse_witnesses([f"{key}@http://a", f"{key}@http://b"])) == "trust.settings.witness"
        for place in ("http://", "http://h/?q", "ftp://h"):
            with pytest.raises(FormatRefused, match=r"trust\.settings\.witness"):
                parse_witnesses([f"{key}@{place}"])


class TestHighWater:
    def test_it_rises_and_survives_a_torn_write(self, tmp_path: Path) -> None:
        file = HighWater(tmp_path)
        assert file.read() == Mark()
        for size in (1, 5, 9):
            file.raise_to(Mark(size=size, root=bytes([size]) * 32))
        file.raise_to(Mark(size=3, root=bytes(32)))
        assert file.read() == Mark(size=9, root=b"\x09" * 32)
        data = bytearray((tmp_path / "log.highwater").read_bytes())
        newest = data.rindex(b"\x09" * 32)
        data[newest] ^= 1
        (tmp_path / "log.highwater").write_bytes(data)
        assert file.read().size == 5

    def test_without_it_nothing_is_opened(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match=r"trust\.releaselog\.highwater"):
            HighWater(tmp_path / "absent")


class TestServing:
    def test_tiles_are_the_log(self, site: Site) -> None:
        opened = site.open()
        append(opened, *(release(number) for number in range(150)))
        append(opened, *(release(number) for number in range(150, 300)))
        public = PublicLog(opened.log, opened.store)
        checkpoint = verify_checkpoint(parse_note(public.get("checkpoint").body.decode()), opened.log.key)
        assert checkpoint.size == 300
        leaves: list[bytes] = []
        for tile in tiles_of(300, level=ENTRIES):
            file = public.get(tile.path())
            assert file.immutable
            leaves += parse_entries(tile, file.body)
        assert {parse_leaf(leaf).kind for leaf in leaves} == {"release"}
        hashes = [leaf_hash(leaf) for leaf in leaves]
        assert mth(hashes) == checkpoint.root
        assert levels_of(300) == range(2)
        for level in levels_of(300):
            for tile in tiles_of(300, level=level):
                covered = range(tile.first, tile.first + tile.width)
                expected = [mth(hashes[at << 8 * level : (at + 1) << 8 * level]) for at in covered]
                assert parse_hashes(tile, public.get(tile.path()).body) == expected
        assert public.get(Tile(level=0, index=1, width=3).path()).body == b"".join(hashes[256:259])

    @pytest.mark.parametrize(
        "path",
        [
            "",
            "tile/0/000",
            "tile/0/000.p/4",
            "tile/1/000.p/1",
            "tile/entries/001",
            "tile/0/0",
            "../trust.db",
            "log.key",
        ],
    )
    def test_nothing_else_is_served(self, site: Site, path: str) -> None:
        opened = site.open()
        append(opened, release(), release(), release())
        assert refusal(lambda: PublicLog(opened.log, opened.store).get(path)) in (
            "tlog.tile.malformed",
            "trust.request.path",
        )

    def test_no_value_salt_or_tenant_is_public(self, site: Site) -> None:
        opened = site.open()
        append(opened, release(7, tenant="acme"))
        public = PublicLog(opened.log, opened.store)
        served = b"".join(public.get(path).body for path in ("checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1"))
        for secret in (b"default/key/7", b"acme", bytes(range(32)), bytes(range(32)).hex().encode()):
            assert secret not in served

    def test_an_empty_log_has_a_checkpoint(self, site: Site) -> None:
        opened = site.open()
        note = parse_note(PublicLog(opened.log, opened.store).get("checkpoint").body.decode())
        checkpoint = verify_checkpoint(note, opened.log.key)
        assert checkpoint == Checkpoint(origin="log.example/test", size=0, root=mth([]))


def test_an_entry_costs_four_statements(site: Site) -> None:
    """The log must stay a small part of a release: no statement per node, none per proof."""
    opened = site.open()
    append(opened, *(release(number) for number in range(9)))
    with statements() as seen:
        one = opened.store.write(lambda connection: opened.log.append(connection, release(9)))
    verify(opened, one)
    own = [statement for statement in seen if "log_" in statement]
    assert 4 <= len(own) <= 6, own
