"""Signed notes, keys, checkpoints: golden texts, and everything that must be refused."""

from __future__ import annotations

import hashlib

import pytest

from cloister.errors import FormatRefused, Refused
from cloister.tlog.checkpoint import Checkpoint, parse_checkpoint, verify_checkpoint
from cloister.tlog.merkle import EMPTY_ROOT, leaf_hash
from cloister.tlog.note import (
    COSIGNATURE_V1,
    ED25519,
    NOTE_SIGNATURES,
    NoteSignature,
    SignedNote,
    parse_note,
    parse_signatures,
    parse_verifier_key,
    verify_cosignature,
    verify_note,
)
from cloister.tlog.signers import LogSigner, WitnessSigner
from cloister.tlog.tree import CompactRange
from tlog_world import ORIGIN, MemoryLog, MemoryWitness

# golang.org/x/mod/sumdb/note, package documentation: an example key, its note and its signature.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# The roots of the reference tree of the Certificate Transparency project.
CT_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def test_roots_of_the_reference_tree() -> None:
    tree = CompactRange()
    assert tree.root() == EMPTY_ROOT == hashlib.sha256(b"").digest()
    for leaf, root in zip(CT_LEAVES, CT_ROOTS, strict=True):
        tree.append(leaf_hash(bytes.fromhex(leaf)))
        assert tree.root().hex() == root


def test_the_documented_note_verifies() -> None:
    note = parse_note(GO_NOTE)
    key = parse_verifier_key(GO_KEY, kind=ED25519)
    assert verify_note(note, key).startswith("If you think")
    assert str(key) == GO_KEY
    assert note.encode() == GO_NOTE


def test_keys_of_fixed_seeds() -> None:
    log, witness = LogSigner("log.example/1", bytes(32)), WitnessSigner("witness.example/1", bytes(32))
    assert str(log.verifier) == "log.example/1+db1c42f6+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
    assert str(witness.verifier) == "witness.example/1+84142fc7+BDtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
    for signer in (log, witness):
        assert type(signer).from_text(signer.private_text() + "\n").verifier == signer.verifier
        assert signer.private_text() not in repr(signer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PRIVATE+KEY+",
        "PRIVATE+KEY+log.example/1+00000000+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "PRIVATE+KEY+log.example/1+db1c42f6+BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "PRIVATE+KEY+log.example/1+db1c42f6+AQAA",
    ],
)
def test_other_private_keys_are_refused(text: str) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.note\.private_key"):
        LogSigner.from_text(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u00a0b", "a\nb", "x" * 201])
def test_names_that_no_key_has(name: str) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.note\.verifier_key"):
        LogSigner(name, bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        GO_KEY.replace("c74f20a3", "c74f20a4"),
        GO_KEY.replace("PeterNeumann", "PeterNeuman"),
        GO_KEY[:-4],
        GO_KEY + "\n",
        GO_KEY.replace("+ARpc", "+BBpc"),
        str(WitnessSigner("w", bytes(32)).verifier),
    ],
)
def test_other_keys_are_refused(text: str) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.note\.verifier_key|wire\.base64"):
        parse_verifier_key(text, kind=ED25519)


def test_a_log_key_is_no_witness() -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.note\.verifier_key"):
        parse_verifier_key(GO_KEY, kind=COSIGNATURE_V1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text\n",
        "text\n\n",
        "text\n\n\n",
        GO_NOTE[:-1],
        GO_NOTE.replace("— ", "- "),
        GO_NOTE.replace("— PeterNeumann x08", "— PeterNeumann  x08"),
        GO_NOTE.replace("— PeterNeumann x08", "— Peter+Neumann x08"),
        GO_NOTE.replace("AM=\n", "AM\n"),
        GO_NOTE.replace("think", "thi\tk"),
        GO_NOTE.replace("think", "thi\ud800k"),
        "text\n\n— name x08goA==\n",
        "text\n\n" + GO_NOTE.splitlines(keepends=True)[-1] * (NOTE_SIGNATURES + 1),
        "x" * 70_000 + GO_NOTE,
    ],
)
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.note\.malformed|wire\.base64"):
        parse_note(text)


def test_a_changed_text_does_not_verify() -> None:
    key = parse_verifier_key(GO_KEY, kind=ED25519)
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        verify_note(parse_note(GO_NOTE.replace("answer", "Answer")), key)


def test_signatures_of_unknown_keys_count_for_nothing_and_harm_nothing() -> None:
    key = parse_verifier_key(GO_KEY, kind=ED25519)
    foreign = NoteSignature(name="other", identity=key.identity, signature=bytes(64)).line()
    same_name = NoteSignature(name="PeterNeumann", identity=bytes(4), signature=bytes(2420)).line()
    verify_note(parse_note(GO_NOTE + foreign + same_name), key)
    text = GO_NOTE.rpartition("\n\n")[0]
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        verify_note(parse_note(text + "\n\n" + foreign + same_name), key)


@pytest.mark.parametrize("signature", [bytes(64), bytes(63), bytes(65), bytes(1)])
def test_a_false_signature_of_a_known_key_spoils_the_note(signature: bytes) -> None:
    key = parse_verifier_key(GO_KEY, kind=ED25519)
    false = NoteSignature(name=key.name, identity=key.identity, signature=signature).line()
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        verify_note(parse_note(GO_NOTE + false), key)


def test_a_cosignature_is_over_time_and_text() -> None:
    log = MemoryLog().fill(3)
    witness = MemoryWitness(9, log)
    note = witness.cosign(log)
    assert verify_cosignature(note, witness.signer.verifier) == 1_795_719_000
    later = note.signatures[-1]
    shifted = (1_795_719_001).to_bytes(8, "big") + later.signature[8:]
    forged = NoteSignature(name=later.name, identity=later.identity, signature=shifted)
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        verify_cosignature(SignedNote(text=note.text, signatures=(forged,)), witness.signer.verifier)
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        verify_cosignature(log.checkpoint(), witness.signer.verifier)
    endless = NoteSignature(name=later.name, identity=later.identity, signature=b"\xff" * 8 + later.signature[8:])
    with pytest.raises(Refused, match="no time"):
        verify_cosignature(SignedNote(text=note.text, signatures=(endless,)), witness.signer.verifier)


def test_a_log_signature_is_no_cosignature_even_by_the_same_seed() -> None:
    text = Checkpoint(origin="x", size=0, root=EMPTY_ROOT).text()
    log, witness = LogSigner("x", bytes(32)), WitnessSigner("x", bytes(32))
    note = SignedNote(text=text, signatures=(log.sign(text),))
    with pytest.raises(Refused, match=r"tlog\.note\.signature"):
        verify_cosignature(note, witness.verifier)


def test_checkpoints_go_both_ways() -> None:
    checkpoint = Checkpoint(origin=ORIGIN, size=7, root=bytes(32), extensions=("more", "and more"))
    assert parse_checkpoint(checkpoint.text()) == checkpoint


ROOT64 = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n7\n",
        f"o\n7\n{ROOT64}",
        f"\n7\n{ROOT64}\n",
        f"o\n07\n{ROOT64}\n",
        f"o\n+7\n{ROOT64}\n",
        f"o\n-7\n{ROOT64}\n",
        f"o\n٧\n{ROOT64}\n",
        f"o\n9999999999999999\n{ROOT64}\n",
        f"o\n7\n{ROOT64}\n\nx\n",
        "o\n7\nAAAA\n",
        f"o\n0\n{ROOT64}\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.checkpoint\.malformed|wire\.base64"):
        parse_checkpoint(text)


def test_a_checkpoint_of_another_origin_under_the_same_key_is_refused() -> None:
    log = MemoryLog().fill(1)
    text = Checkpoint(origin="another.example", size=1, root=log.root()).text()
    note = SignedNote(text=text, signatures=(log.signer.sign(text),))
    with pytest.raises(Refused, match=r"tlog\.checkpoint\.origin"):
        verify_checkpoint(note, log.signer.verifier)


@pytest.mark.parametrize("lines", ["", "\n", "— a AAAA", "x\n", "— a AAAAAAA=\n\n"])
def test_what_is_no_answer_of_a_witness_is_refused(lines: str) -> None:
    with pytest.raises(FormatRefused, match=r"tlog\.note\.malformed|wire\.base64"):
        parse_signatures(lines)
