"""Receipts: what a guest believes, and each way a log could cheat it."""

from __future__ import annotations

import msgspec
import pytest

from cloister.errors import FormatRefused, Refused
from cloister.tlog.entry import encode_leaf, parse_leaf
from cloister.tlog.note import SignedNote
from cloister.tlog.receipt import (
    RECEIPT_BYTES,
    LogPins,
    Receipt,
    encode_receipt,
    parse_pins,
    parse_receipt,
    verify_receipt,
)
from cloister.tlog.signers import LogSigner, WitnessSigner
from tlog_world import AT, MemoryLog, World, cosigned

FIELDS = {"resource": "default/key/1", "guest_key": "abc", "init_data": "sha256:00"}


@pytest.fixture
def world() -> World:
    return World()


def good(world: World) -> Receipt:
    return world.receipt(FIELDS, world.release(FIELDS))


def refused(receipt: Receipt, world: World, code: str) -> None:
    with pytest.raises(Refused) as caught:
        verify_receipt(receipt, world.pins)
    assert caught.value.code == code


def test_a_good_receipt_says_what_was_released(world: World) -> None:
    entry = verify_receipt(parse_receipt(encode_receipt(good(world))), world.pins)
    assert (entry.kind, entry.at, entry.fields, entry.index) == ("release", AT, FIELDS, 5)
    assert entry.checkpoint.size == 6
    assert len(entry.cosigned_by) == 3


def test_enough_witnesses_are_enough(world: World) -> None:
    index = world.release(FIELDS)
    note = cosigned(world.log.checkpoint(), [witness.cosign(world.log) for witness in world.witnesses[:2]])
    assert len(verify_receipt(world.receipt(FIELDS, index, note=note), world.pins).cosigned_by) == 2


def test_too_few_witnesses(world: World) -> None:
    index = world.release(FIELDS)
    one = world.witnesses[0].cosign(world.log)
    twice = SignedNote(text=one.text, signatures=(*one.signatures, one.signatures[-1]))
    for note in (world.log.checkpoint(), one, twice):
        refused(world.receipt(FIELDS, index, note=note), world, "tlog.receipt.cosignatures")


def test_witnesses_that_are_not_pinned_do_not_count(world: World) -> None:
    index = world.release(FIELDS)
    strangers = [World(5).witnesses[number] for number in (3, 4)]
    note = cosigned(world.log.checkpoint(), [stranger.cosign(world.log) for stranger in strangers])
    refused(world.receipt(FIELDS, index, note=note), world, "tlog.receipt.cosignatures")


@pytest.mark.parametrize("field", [*FIELDS, "further"])
def test_another_value_is_not_in_the_log(world: World, field: str) -> None:
    receipt = msgspec.structs.replace(good(world), fields={**FIELDS, field: "other"})
    refused(receipt, world, "tlog.proof.inclusion")


@pytest.mark.parametrize(
    "change", [{"kind": "denial"}, {"at": AT.replace("53", "54")}, {"salt": "00" * 32}, {"index": 4}, {"index": 0}]
)
def test_another_entry_is_not_in_the_log(world: World, change: dict[str, object]) -> None:
    refused(msgspec.structs.replace(good(world), **change), world, "tlog.proof.inclusion")


@pytest.mark.parametrize("index", [6, -1, 2**60])
def test_no_entry_has_that_index(world: World, index: int) -> None:
    refused(msgspec.structs.replace(good(world), index=index), world, "tlog.proof.inclusion")


def test_another_log(world: World) -> None:
    other = World()
    other.log.signer = LogSigner("log.example/other", bytes(32))
    index = other.release(FIELDS)
    refused(other.receipt(FIELDS, index, note=other.log.checkpoint()), world, "tlog.note.signature")


def test_a_fork_of_the_log_gets_no_cosignatures(world: World) -> None:
    """Both branches are signed by the log's own key; the witnesses have seen one of them."""
    good(world)
    fork = World()
    fork.log.fill(2)
    index = fork.release(FIELDS)
    for witness in world.witnesses:
        with pytest.raises(Refused, match=r"tlog\.(proof|witness)"):
            witness.cosign(fork.log)
    refused(fork.receipt(FIELDS, index, note=fork.log.checkpoint()), world, "tlog.receipt.cosignatures")


def test_the_cosignatures_of_the_other_branch_do_not_pass(world: World) -> None:
    true = good(world)
    stolen = [line for line in true.checkpoint.splitlines(keepends=True) if line.startswith("— witness")]
    fork = World()
    index = fork.release({**FIELDS, "resource": "default/key/2"})
    receipt = fork.receipt({**FIELDS, "resource": "default/key/2"}, index, note=fork.log.checkpoint())
    forged = msgspec.structs.replace(receipt, checkpoint=receipt.checkpoint + "".join(stolen))
    refused(forged, world, "tlog.receipt.cosignatures")


def test_a_log_without_witnesses_is_believed_by_its_key_alone(world: World) -> None:
    index = world.release(FIELDS)
    pins = LogPins(key=world.pins.key)
    assert verify_receipt(world.receipt(FIELDS, index, note=world.log.checkpoint()), pins).cosigned_by == ()


@pytest.mark.parametrize(
    "change",
    [
        {"salt": ""},
        {"salt": "zz" * 32},
        {"salt": "AA" * 32},
        {"proof": ("AAAA",) * 64},
        {"kind": "nonsense"},
        {"at": "now"},
        {"fields": {}},
        {"fields": {"Upper": "x"}},
        {"fields": {"x": "y" * 2000}},
        {"checkpoint": ""},
        {"checkpoint": "a\n\nb\n"},
        {"proof": ("AAAA",)},
        {"proof": ("!",)},
    ],
)
def test_malformed_receipts_are_refused(world: World, change: dict[str, object]) -> None:
    with pytest.raises(FormatRefused):
        verify_receipt(msgspec.structs.replace(good(world), **change), world.pins)


@pytest.mark.parametrize("text", ["", "!", "AAAA", "e30", "A" * (2 * RECEIPT_BYTES)])
def test_what_is_no_receipt_is_refused(text: str) -> None:
    with pytest.raises(FormatRefused):
        parse_receipt(text)


def test_unknown_version_and_member(world: World) -> None:
    receipt = good(world)
    with pytest.raises(FormatRefused, match="version"):
        parse_receipt(encode_receipt(msgspec.structs.replace(receipt, v=2)))
    with pytest.raises(FormatRefused, match=r"tlog\.receipt\.malformed"):
        parse_receipt(encode_receipt(receipt)[:-8])


def test_a_receipt_that_no_header_takes_is_not_made(world: World) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.receipt\.malformed"):
        encode_receipt(msgspec.structs.replace(good(world), checkpoint="x" * RECEIPT_BYTES))


def test_pins() -> None:
    log, witness = LogSigner("l", bytes(32)).verifier, WitnessSigner("w", bytes(32)).verifier
    again = WitnessSigner("other", bytes(32))
    assert parse_pins(str(log), (str(witness),), 1) == LogPins(key=log, witnesses=(witness,), cosignatures=1)
    for keys, count in (((str(witness),), 2), ((), 1), ((str(witness),), -1), ((str(witness),) * 2, 1)):
        with pytest.raises(FormatRefused, match=r"tlog\.receipt\.pins"):
            parse_pins(str(log), keys, count)
    with pytest.raises(FormatRefused, match="one key"):
        parse_pins(str(log), (str(witness), str(again.verifier)), 2)
    with pytest.raises(FormatRefused, match=r"tlog\.note\.verifier_key"):
        parse_pins(str(witness), (), 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        encode_leaf("release", AT, bytes(32), FIELDS).replace(b'"v":1', b'"v":2'),
        encode_leaf("release", AT, bytes(32), FIELDS).replace(b"release", b"nothing"),
        encode_leaf("release", AT, bytes(32), FIELDS).replace(b'"v":1', b'"v": 1'),
        encode_leaf("release", AT, bytes(32), FIELDS).replace(b'"v":1', b'"v":1,"x":1'),
        encode_leaf("release", AT, bytes(32), FIELDS).replace(b"resource", b"Resource"),
        encode_leaf("release", AT, bytes(32), FIELDS) + b" " * 9000,
    ],
)
def test_what_is_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.entry\.malformed"):
        parse_leaf(data)


GOLDEN = (
    '{"at":"2026-11-26T19:06:53.000000Z","commitments":{'
    '"name":"132b2e547a206117b4486c8ec4243497ee3b3443b761b32b47c1e9f6fddb2995",'
    '"tenant":"43273ac9ad5be9c99daa0f842a3a398b3ce3fd8d306b7211c5da3dfc94d73286"},"kind":"policy","v":1}'
)


def test_golden_entry() -> None:
    data = encode_leaf("policy", AT, bytes(range(32)), {"name": "default", "tenant": "default"})
    assert data.decode() == GOLDEN


def test_memory_log_is_not_the_code_under_test() -> None:
    """The helper's root is the definition's, so that an error in the tree cannot hide itself."""
    log = MemoryLog().fill(11)
    assert log.tree.root() == log.root()
