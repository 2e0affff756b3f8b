"""Each checker sees the fault that is planted for it, and nothing where there is none."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from chaos import checkers
from chaos.history import History, Release
from chaos.records import Records, read_bound, read_records
from cloister.crypto.jwe import EphemeralKey
from cloister.tlog.receipt import LogPins, encode_receipt, parse_pins, parse_receipt
from trust_world import MODEL, Guest, make_world

REVOKED_AFTER = 3.0


@dataclass
class Run:
    """What a short run left: seen and recorded."""

    history: History
    records: Records
    pins: LogPins

    def check(self) -> list[str]:
        return checkers.check(self.history, self.records, self.pins)

    def copy(self) -> Run:
        history = History(
            releases=list(self.history.releases),
            attested=copy.deepcopy(self.history.attested),
            bound=dict(self.history.bound),
        )
        history.allow(str(MODEL), self.history.releases[0].init_data, since=0.0)
        return Run(history, copy.deepcopy(self.records), self.pins)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six guests, five of whom get a resource, and a denial between them."""
    world = make_world(tmp_path_factory.mktemp("run"))
    history = History()
    history.allow(str(MODEL), world.data.digest_text, since=0.0)
    for number in range(6):
        guest = Guest(world, world.guest().tpm, world.data).handshake()
        history.accepted(guest.nonce, number % 3)
        if number == 2:
            assert guest.resource("default/model/none").status == 404
            continue
        begun = time.monotonic()
        answer = guest.resource()
        guest.open(answer)
        history.released(
            Release(
                path=str(MODEL),
                guest_key=key_of(guest.key),
                init_data=world.data.digest_text,
                receipt=dict(answer.headers)[b"cloister-receipt"].decode(),
                replica=number % 3,
                begun=begun,
                ended=time.monotonic(),
            )
        )
    pins = parse_pins(world.admin.release_log_pins().key, (), 0)
    world.close()
    engine = create_engine(f"sqlite+pysqlite:///{world.state}/trust.db")
    with engine.connect() as connection:
        records = read_records(connection)
        history.bound.update(read_bound(connection))
    engine.dispose()
    return Run(history, records, pins)


def key_of(key: EphemeralKey) -> str:
    import hashlib

    from cloister.wire.canonicaljson import encode_canonical

    return hashlib.sha256(encode_canonical(key.public_jwk())).hexdigest()


@pytest.fixture
def run(kept: Run) -> Run:
    return kept.copy()


def released_at(run: Run) -> int:
    """Position of the entry of the first release."""
    return parse_receipt(run.history.releases[0].receipt).index


def test_nothing_is_wrong_with_a_run_without_a_fault(run: Run) -> None:
    assert run.check() == []
    figures = checkers.numbers(run.records)
    assert (figures["audit rows of releases"], figures["nonces spent"]) == (5, 6)
    assert figures["log entries"] > 5


def first_release(run: Run) -> int:
    return next(n for n, row in enumerate(run.records.audit) if row.decision == "released")


def delete_audit_row(run: Run) -> None:
    del run.records.audit[first_release(run)]


def relabel_audit_row(run: Run) -> None:
    index = first_release(run)
    run.records.audit[index] = replace(run.records.audit[index], decision="denied")


def exchange_guest_in_audit(run: Run) -> None:
    index = first_release(run)
    run.records.audit[index] = replace(run.records.audit[index], guest_key="00" * 32)


def acknowledge_what_was_not_recorded(run: Run) -> None:
    run.history.releases.append(replace(run.history.releases[0], guest_key="11" * 32))


def acknowledge_twice(run: Run) -> None:
    run.history.releases.append(run.history.releases[0])


def lose_receipt(run: Run) -> None:
    run.history.releases[0] = replace(run.history.releases[0], receipt="")


def exchange_receipts(run: Run) -> None:
    run.history.releases[0] = replace(run.history.releases[0], receipt=run.history.releases[1].receipt)


def doctor_receipt(run: Run) -> None:
    import msgspec

    receipt = parse_receipt(run.history.releases[0].receipt)
    changed = msgspec.structs.replace(receipt, fields={**receipt.fields, "resource": "default/model/two"})
    run.history.releases[0] = replace(run.history.releases[0], receipt=encode_receipt(changed))


def cut_log(run: Run) -> None:
    """As a restored backup does: everything from the last release on is gone, consistently."""
    position = parse_receipt(run.history.releases[-1].receipt).index
    del run.records.log[position:]
    run.records.checkpoints = {size: note for size, note in run.records.checkpoints.items() if size <= position}
    keep = {name: data for name, data in run.records.nodes.items() if (name[1] + 1) << name[0] <= position}
    run.records.nodes = keep


def lose_entry(run: Run) -> None:
    del run.records.log[released_at(run)]


def edit_entry(run: Run) -> None:
    position = released_at(run)
    entry = run.records.log[position]
    run.records.log[position] = replace(entry, fields={**entry.fields, "resource": "default/model/two"})


def edit_leaf(run: Run) -> None:
    """The entry before is put in its place, with all that belongs to it."""
    position = released_at(run)
    run.records.log[position] = replace(run.records.log[position - 1], position=position)


def edit_hash(run: Run) -> None:
    position = released_at(run)
    run.records.log[position] = replace(run.records.log[position], hash=bytes(32))


def edit_node(run: Run) -> None:
    run.records.nodes[next(iter(run.records.nodes))] = bytes(32)


def lose_checkpoint(run: Run) -> None:
    del run.records.checkpoints[max(run.records.checkpoints)]


def fork_checkpoint(run: Run) -> None:
    sizes = sorted(run.records.checkpoints)
    run.records.checkpoints[sizes[-2]] = run.records.checkpoints[sizes[-1]]


def edit_checkpoint(run: Run) -> None:
    size = max(run.records.checkpoints)
    origin, count, _, rest = run.records.checkpoints[size].split("\n", 3)
    run.records.checkpoints[size] = "\n".join((origin, count, "A" * 43 + "=", rest))


def log_more_than_was_audited(run: Run) -> None:
    index = first_release(run)
    run.records.audit[index] = replace(run.records.audit[index], attestation="a-other")


def gap_in_audit(run: Run) -> None:
    row = run.records.audit[-1]
    run.records.audit[-1] = replace(row, sequence=row.sequence + 1)


def accept_nonce_twice(run: Run) -> None:
    next(iter(run.history.attested.values())).append(2)


def accept_evidence_twice(run: Run) -> None:
    run.history.bound["a-second"] = next(iter(run.history.bound.values()))


def forget_nonce(run: Run) -> None:
    run.records.spent -= 1


def release_after_revocation(run: Run) -> None:
    first = run.history.releases[0]
    run.history.withdrawn(first.path, first.init_data)
    later = time.monotonic() + REVOKED_AFTER
    run.history.releases[0] = replace(first, begun=later, ended=later + 1)


def release_to_a_stranger(run: Run) -> None:
    run.history = replace_history(run.history, init_data="sha256:other")


def replace_history(history: History, *, init_data: str) -> History:
    history.releases[0] = replace(history.releases[0], init_data=init_data)
    return history


PLANTED: dict[Callable[[Run], None], str] = {
    delete_audit_row: "no audit row of a release",
    relabel_audit_row: "no audit row of a release",
    exchange_guest_in_audit: "no audit row of a release",
    acknowledge_what_was_not_recorded: "no audit row of a release",
    acknowledge_twice: "is the receipt of 2 releases",
    lose_receipt: "no receipt of the release",
    exchange_receipts: "is of something else",
    doctor_receipt: "tlog.proof.inclusion",
    cut_log: "is of another history",
    lose_entry: "the log has no entry",
    edit_entry: "does not commit to its fields",
    edit_leaf: "is not in the log",
    edit_hash: "is not that of its leaf",
    edit_node: "nodes of the tree",
    lose_checkpoint: "the newest checkpoint is of",
    fork_checkpoint: "is of another history",
    edit_checkpoint: "tlog.note.signature",
    log_more_than_was_audited: "has an audit row and no entry",
    gap_in_audit: "is missing",
    accept_nonce_twice: "a nonce was accepted by replicas",
    accept_evidence_twice: "evidence of one nonce was accepted 2 times",
    forget_nonce: "are recorded as spent",
    release_after_revocation: "was not allowed",
    release_to_a_stranger: "was not allowed",
}


@pytest.mark.parametrize(("plant", "found"), PLANTED.items(), ids=[plant.__name__ for plant in PLANTED])
def test_a_planted_fault_is_found(run: Run, plant: Callable[[Run], None], found: str) -> None:
    plant(run)
    assert any(found in fault for fault in run.check()), run.check()


class TestHistory:
    def release(self, begun: float, ended: float) -> Release:
        return Release(path="p", guest_key="k", init_data="d", receipt="", replica=0, begun=begun, ended=ended)

    def test_a_release_is_allowed_within_a_window_and_across_its_ends(self) -> None:
        history = History()
        assert not history.allowed(self.release(0, 9e9))
        history.allow("p", "d")
        begin = time.monotonic()
        history.withdrawn("p", "d")
        end = time.monotonic()
        assert history.allowed(self.release(begin - 9, end + 9))
        assert history.allowed(self.release(begin - 9, begin + 0.1))
        assert not history.allowed(self.release(begin - 9, begin - 8))
        assert not history.allowed(self.release(end + 0.1, end + 9))

    def test_a_second_window_opens_and_an_open_one_stays(self) -> None:
        history = History()
        history.allow("p", "d", since=1.0)
        history.allow("p", "d", since=2.0)
        history.withdrawn("p", "d")
        history.allow("p", "d")
        now = time.monotonic()
        assert history.allowed(self.release(1.5, 1.6))
        assert history.allowed(self.release(now + 5, now + 6))


def test_a_secret_in_a_log_is_found(tmp_path: Path) -> None:
    logs = {"a.log": b"nothing", "b.log": b'{"value": "canary-1"}'}
    assert checkers.silent([b"canary-2"], logs) == []
    assert checkers.silent([b"canary-1"], logs) == ["a secret is in b.log"]


def test_many_faults_of_a_kind_are_counted(run: Run) -> None:
    run.history.releases.extend(replace(run.history.releases[0], guest_key=f"{n:064x}") for n in range(20))
    faults = run.check()
    assert len(faults) < 20
    assert any(fault.endswith("more like the last") for fault in faults)
