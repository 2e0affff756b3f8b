"""The witness's decision: what continues is cosigned, a fork or a rollback never."""

from __future__ import annotations

import pytest

from cloister.errors import FormatRefused, Refused, RequestRefused
from cloister.tlog.checkpoint import Checkpoint
from cloister.tlog.note import SignedNote, verify_cosignature
from cloister.tlog.witness import AddCheckpoint, Conflict, encode_request, parse_request
from tlog_world import ORIGIN, MemoryLog, MemoryWitness


def site(size: int = 5) -> tuple[MemoryLog, MemoryWitness]:
    log = MemoryLog().fill(size)
    witness = MemoryWitness(9, log)
    witness.cosign(log)
    return log, witness


def fork_of(log: MemoryLog, *, edited: int) -> MemoryLog:
    fork = MemoryLog()
    for index, item in enumerate(log.entries):
        fork.add(b"edited" if index == edited else item)
    return fork


def test_what_continues_is_cosigned() -> None:
    log, witness = site()
    for _ in range(9):
        log.fill(1)
        verify_cosignature(witness.cosign(log), witness.signer.verifier)
        assert witness.latest() == len(log.entries)


def test_the_same_checkpoint_again_is_cosigned_again() -> None:
    log, witness = site()
    verify_cosignature(witness.cosign(log), witness.signer.verifier)


def test_an_empty_log_is_cosigned_first() -> None:
    log = MemoryLog()
    witness = MemoryWitness(9, log)
    verify_cosignature(witness.cosign(log), witness.signer.verifier)


def test_a_rollback_is_never_cosigned() -> None:
    log, witness = site()
    with pytest.raises(Conflict) as caught:
        witness.add_checkpoint(AddCheckpoint(old=3, proof=(), note=log.checkpoint(3)))
    assert caught.value.size == 5
    with pytest.raises(FormatRefused, match=r"tlog\.witness\.malformed"):
        witness.add_checkpoint(AddCheckpoint(old=5, proof=(), note=log.checkpoint(3)))
    assert witness.latest() == 5


def test_a_fork_of_the_same_size_is_never_cosigned() -> None:
    log, witness = site()
    with pytest.raises(Conflict):
        witness.cosign(fork_of(log, edited=2))


@pytest.mark.parametrize("edited", range(5))
def test_a_longer_fork_is_never_cosigned(edited: int) -> None:
    log, witness = site()
    fork = fork_of(log, edited=edited).fill(3)
    with pytest.raises(Refused, match=r"tlog\.proof\.consistency"):
        witness.cosign(fork)
    log.fill(3)
    witness.cosign(log)


def test_a_log_from_before_the_witness_cannot_begin_anew() -> None:
    _, witness = site()
    with pytest.raises(Conflict) as caught:
        witness.add_checkpoint(AddCheckpoint(old=0, proof=(), note=MemoryLog().fill(9).checkpoint()))
    assert caught.value.size == 5


def test_another_key_of_the_same_origin_is_refused() -> None:
    _, witness = site()
    other = MemoryLog(seed=2).fill(9)
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        witness.add_checkpoint(AddCheckpoint(old=5, proof=(), note=other.checkpoint()))


def test_an_unknown_log_is_refused() -> None:
    _, witness = site()
    with pytest.raises(RequestRefused, match=r"tlog\.witness\.unknown_log"):
        witness.cosign(MemoryLog(origin="other.example/log").fill(2))


def test_an_unsigned_checkpoint_is_refused() -> None:
    log, witness = site()
    foreign = MemoryLog(origin="x").fill(1).checkpoint().signatures
    text = Checkpoint(origin=ORIGIN, size=5, root=log.root()).text()
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        witness.add_checkpoint(AddCheckpoint(old=5, proof=(), note=SignedNote(text=text, signatures=foreign)))


def test_an_empty_proof_does_not_stand_for_any() -> None:
    log, witness = site()
    log.fill(2)
    with pytest.raises(Refused, match=r"tlog\.proof\.consistency"):
        witness.add_checkpoint(AddCheckpoint(old=5, proof=(), note=log.checkpoint()))


GOOD = encode_request(1, [bytes(32)], MemoryLog().fill(2).checkpoint().encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        GOOD.replace(b"old 1", b"old 01"),
        GOOD.replace(b"old 1", b"old -1"),
        GOOD.replace(b"old 1", b"new 1"),
        GOOD.replace(b"old 1\n", b"old 1\nAAAA\n"),
        GOOD.replace(b"old 1\n", b"old 1\n" + b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n" * 63),
        GOOD.partition(b"\n\n")[0],
        GOOD + b"x" * 100_000,
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    parse_request(GOOD)
    with pytest.raises(FormatRefused, match=r"tlog\.|wire\.base64"):
        parse_request(body)
