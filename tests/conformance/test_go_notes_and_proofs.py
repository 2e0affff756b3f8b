"""Notes, keys, proofs and tile addresses against Go's: golang.org/x/mod/sumdb/note and sumdb/tlog, both ways.

The program is written and built here; what it prints is checked here, and what is made here is checked there.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from cloister.errors import Refused
from cloister.tlog.checkpoint import verify_checkpoint
from cloister.tlog.merkle import leaf_hash, verify_consistency, verify_inclusion
from cloister.tlog.note import ED25519, parse_note, parse_verifier_key
from cloister.tlog.signers import LogSigner
from cloister.tlog.tiles import Tile
from cloister.tlog.tree import consistency_ranges, inclusion_ranges, prove
from conformance.tools import skip_or_fail
from tlog_world import MemoryLog, mth

MODULE: Final = "golang.org/x/mod@v0.17.0"  # the newest that Debian 12's Go takes
SIZE: Final = 45
PROGRAM: Final = r"""
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type proof struct {
	Old, New int64
	Hashes   []tlog.Hash
}

type work struct {
	Key, Private, Note string
	Entries            []string
	Inclusion          []proof
	Consistency        []proof
	Tiles              []int64
}

type hashes []tlog.Hash

func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		list[i] = h[index]
	}
	return list, nil
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func main() {
	var in work
	must(0, json.NewDecoder(os.Stdin).Decode(&in))
	opened := must(note.Open([]byte(in.Note), note.VerifierList(must(note.NewVerifier(in.Key)))))
	signed := must(note.Sign(&note.Note{Text: opened.Text}, must(note.NewSigner(in.Private))))

	var stored hashes
	for i, entry := range in.Entries {
		stored = append(stored, must(tlog.StoredHashes(int64(i), []byte(entry), stored))...)
	}
	root := func(size int64) tlog.Hash { return must(tlog.TreeHash(size, stored)) }
	size := int64(len(in.Entries))
	for _, p := range in.Inclusion {
		must(0, tlog.CheckRecord(p.Hashes, p.New, root(p.New), p.Old, tlog.RecordHash([]byte(in.Entries[p.Old]))))
	}
	for _, p := range in.Consistency {
		must(0, tlog.CheckTree(p.Hashes, p.New, root(p.New), p.Old, root(p.Old)))
	}
	var inclusion, consistency []proof
	for i := int64(0); i < size; i++ {
		inclusion = append(inclusion, proof{i, size, must(tlog.ProveRecord(size, i, stored))})
	}
	for i := int64(1); i <= size; i++ {
		consistency = append(consistency, proof{i, size, must(tlog.ProveTree(size, i, stored))})
	}
	var paths []string
	for _, n := range in.Tiles {
		for _, w := range []int{1, 77, 256} {
			paths = append(paths, strings.Replace(tlog.Tile{H: 8, L: 1, N: n, W: w}.Path(), "tile/8/", "tile/", 1))
		}
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"note": string(signed), "root": root(size), "inclusion": inclusion, "consistency": consistency, "paths": paths,
	})
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        skip_or_fail("Go is not installed (Debian: golang-go)")
    home = tmp_path_factory.mktemp("go")
    (home / "main.go").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    for command in (["mod", "init", "conformance"], ["get", MODULE], ["build", "-o", "program", "."]):
        done = subprocess.run(
            [go, *command], cwd=home, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        if done.returncode and command[0] == "get":
            skip_or_fail(f"{MODULE} cannot be had: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, done.stderr
    return home / "program"


def run(program: Path, work: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program], input=json.dumps(work), capture_output=True, text=True, timeout=60, check=False, env={}
    )


def work_of(log: MemoryLog, key: str, private: str) -> dict[str, Any]:
    def hashes(ranges: list[tuple[int, int]]) -> list[str]:
        return [go_hash(item) for item in prove(ranges, log.read)]

    return {
        "Key": key,
        "Private": private,
        "Note": log.checkpoint().encode(),
        "Entries": [entry.decode() for entry in log.entries],
        "Inclusion": [
            {"Old": index, "New": size, "Hashes": hashes(inclusion_ranges(index, size))}
            for size in range(1, SIZE + 1)
            for index in range(size)
        ],
        "Consistency": [
            {"Old": old, "New": size, "Hashes": hashes(consistency_ranges(old, size))}
            for size in range(1, SIZE + 1)
            for old in range(1, size + 1)
        ],
        "Tiles": [0, 999, 1000, 1234067],
    }


def go_hash(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_go(texts: list[str] | None) -> list[bytes]:
    return [base64.b64decode(text) for text in texts or []]


def test_go_accepts_ours_and_we_accept_gos(program: Path) -> None:
    log = MemoryLog().fill(SIZE)
    work = work_of(log, str(log.signer.verifier), log.signer.private_text())
    done = run(program, work)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)

    checkpoint = verify_checkpoint(parse_note(answer["note"]), parse_verifier_key(work["Key"], kind=ED25519))
    assert answer["note"] == work["Note"]  # Ed25519 signatures are deterministic
    leaves = [leaf_hash(entry) for entry in log.entries]
    assert from_go([answer["root"]]) == [checkpoint.root] == [mth(leaves)]
    for item in answer["inclusion"]:
        verify_inclusion(leaves[item["Old"]], item["Old"], item["New"], from_go(item["Hashes"]), checkpoint.root)
    for item in answer["consistency"]:
        old = item["Old"]
        verify_consistency(old, item["New"], from_go(item["Hashes"]), mth(leaves[:old]), checkpoint.root)
    ours = [Tile(level=1, index=index, width=width).path() for index in work["Tiles"] for width in (1, 77, 256)]
    assert answer["paths"] == ours


@pytest.mark.parametrize("part", ["Note", "Inclusion", "Consistency", "Key"])
def test_go_refuses_what_is_changed(program: Path, part: str) -> None:
    """The comparison above must be able to fail."""
    log = MemoryLog().fill(SIZE)
    work = work_of(log, str(log.signer.verifier), log.signer.private_text())
    if part == "Note":
        work["Note"] = work["Note"].replace(f"\n{SIZE}\n", f"\n{SIZE + 1}\n")
    elif part == "Key":
        work["Key"] = str(LogSigner("another", bytes(32)).verifier)
    else:
        work[part][-2]["Hashes"][0] = go_hash(bytes(32))
    assert run(program, work).returncode == 1
    if part == "Note":
        with pytest.raises(Refused):
            verify_checkpoint(parse_note(work["Note"]), log.signer.verifier)
