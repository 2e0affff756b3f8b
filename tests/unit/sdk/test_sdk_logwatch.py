"""Witness and monitor: files, HTTP, and each alarm against a log that really does it."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.sdk import logwitness
from cloister.sdk.logmonitor import (
    Alarm,
    Expectations,
    Known,
    fetcher,
    load_known,
    look,
    parse_expectations,
    store_known,
)
from cloister.sdk.logwitness import LogWitness, WitnessServer
from cloister.tlog.entry import encode_leaf
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import SignedNote, parse_note, parse_signatures, verify_cosignature
from cloister.tlog.receipt import encode_receipt
from cloister.tlog.tiles import ENTRIES, encode_entries, parse_tile_path
from cloister.tlog.tree import consistency_ranges, prove
from cloister.tlog.witness import encode_request
from tlog_world import AT, MemoryLog, World

NOW = 1_795_719_000.0


def entry(number: int, kind: str = "release") -> bytes:
    return encode_leaf(kind, AT, bytes(32), {"resource": f"default/key/{number}"})


def log_of(count: int, *, edited: int = -1) -> MemoryLog:
    log = MemoryLog()
    for number in range(count):
        log.add(entry(-1 if number == edited else number))
    return log


class Served:
    """A log as it is served; `edit` changes entries without the tree, as somebody in the database would."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.edit: dict[int, bytes] = {}
        self.down = False

    def __call__(self, path: str) -> bytes:
        if self.down:
            raise Unavailable("sdk.releaselog.unreachable", "no answer")
        if path == "checkpoint":
            return self.log.checkpoint().encode().encode()
        tile = parse_tile_path(path)
        places = range(tile.first, tile.first + tile.width)
        if tile.level == ENTRIES:
            return encode_entries([self.edit.get(place, self.log.entries[place]) for place in places])
        return b"".join(self.log.read(8 * tile.level, place) for place in places)


class Monitor:
    """A monitor with its state in memory."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.key = served.log.signer.verifier
        self.known = Known(key=str(self.key))

    def look(self, *, whole: bool = False, **expected: object) -> dict[str, int]:
        expectations = Expectations(**expected)  # type: ignore[arg-type]  # as the test gives them
        seen, self.known = look(self.served, self.key, self.known, expected=expectations, whole=whole)
        return dict(seen.kinds)

    def alarm(self, code: str, **options: object) -> Refused:
        before = self.known
        with pytest.raises(Refused) as caught:
            self.look(**options)  # type: ignore[arg-type]  # as the test gives them
        assert caught.value.code == code
        assert self.known is before
        return caught.value


@pytest.fixture
def monitor() -> Monitor:
    return Monitor(Served(log_of(300)))


class TestMonitor:
    def test_it_follows_an_honest_log(self, monitor: Monitor) -> None:
        assert monitor.look() == {"release": 300}
        assert monitor.look() == {}
        for step in (1, 2, 253, 256):
            for _ in range(step):
                monitor.served.log.add(entry(7, "denial"))
            assert monitor.look() == {"denial": step}
        assert monitor.look(whole=True) == {}
        assert monitor.known.size == 812

    def test_an_empty_log(self) -> None:
        empty = Monitor(Served(MemoryLog()))
        assert empty.look() == {}
        empty.served.log.add(entry(1))
        assert empty.look() == {"release": 1}

    @pytest.mark.parametrize("size", [299, 256, 1, 0])
    def test_a_log_that_became_smaller(self, monitor: Monitor, size: int) -> None:
        monitor.look()
        monitor.served.log = log_of(size)
        error = monitor.alarm("sdk.releaselog.rolled_back")
        assert isinstance(error, Alarm)
        assert parse_note(error.before).text.split("\n")[1] == "300"
        assert parse_note(error.after).text.split("\n")[1] == str(size)

    @pytest.mark.parametrize("edited", [0, 255, 256, 299])
    @pytest.mark.parametrize("size", [300, 301, 600])
    @pytest.mark.parametrize("whole", [False, True])
    def test_another_history(self, monitor: Monitor, edited: int, size: int, whole: bool) -> None:
        """The log's key signed both; its tree and its entries fit together."""
        monitor.look()
        monitor.served.log = log_of(size, edited=edited)
        monitor.alarm("sdk.releaselog.forked", whole=whole)

    @pytest.mark.parametrize("place", [0, 299])
    def test_an_edited_entry(self, monitor: Monitor, place: int) -> None:
        monitor.served.edit[place] = entry(99)
        monitor.alarm("sdk.releaselog.edited")

    def test_an_edited_old_entry_is_found_by_reading_it_again(self, monitor: Monitor) -> None:
        monitor.look()
        monitor.served.edit[3] = entry(99)
        assert monitor.look() == {}
        monitor.alarm("sdk.releaselog.edited", whole=True)

    def test_an_entry_edited_together_with_its_hash(self, monitor: Monitor) -> None:
        monitor.served.edit[5] = entry(99)
        monitor.served.log.nodes[0, 5] = leaf_hash(entry(99))
        monitor.alarm("sdk.releaselog.forked")

    def test_unexpected_kinds_and_counts(self, monitor: Monitor) -> None:
        monitor.alarm("sdk.releaselog.unexpected", most={"release": 299})
        monitor.look(most={"release": 300}, kinds=("release",))
        monitor.served.log.add(entry(1, "key"))
        monitor.alarm("sdk.releaselog.unexpected", kinds=("release", "policy"))

    def test_entries_that_are_none(self, monitor: Monitor) -> None:
        monitor.served.log.add(b"{}")
        monitor.alarm("tlog.entry.malformed")

    def test_a_log_of_another_key(self, monitor: Monitor) -> None:
        monitor.served.log = MemoryLog(seed=9).fill(1)
        monitor.alarm("tlog.note.signature")

    def test_a_log_that_does_not_answer_is_no_alarm(self, monitor: Monitor) -> None:
        monitor.served.down = True
        with pytest.raises(Unavailable):
            monitor.look()

    def test_state(self, monitor: Monitor, tmp_path: Path) -> None:
        monitor.look()
        place = tmp_path / "deep" / "state.json"
        assert load_known(place, monitor.key) == Known(key=str(monitor.key))
        store_known(place, monitor.known)
        assert load_known(place, monitor.key) == monitor.known
        for text in ("", "{}", place.read_text().replace('"size":300', '"size":301')):
            place.write_text(text)
            with pytest.raises(FormatRefused, match=r"sdk\.releaselog\.monitor_state"):
                load_known(place, monitor.key)

    @pytest.mark.parametrize("text", ["kinds = 1", 'kinds = ["nonsense"]', "[most]\nx = 1", "other = 1", "= ="])
    def test_what_are_no_expectations(self, text: str) -> None:
        with pytest.raises(FormatRefused, match=r"sdk\.releaselog\.expectations"):
            parse_expectations(text.encode())

    @pytest.mark.parametrize("url", ["", "x", "ftp://x", "http://", "https://x/?q=1"])
    def test_what_is_no_address(self, url: str) -> None:
        with pytest.raises(FormatRefused, match=r"sdk\.releaselog\.address"):
            fetcher(url, None)


class TestWitness:
    def request(self, log: MemoryLog, old: int) -> bytes:
        size = len(log.entries)
        proof = prove(consistency_ranges(old, size), log.read)
        return encode_request(old, proof, log.checkpoint().encode())

    def open(self, directory: Path, *logs: MemoryLog) -> LogWitness:
        return LogWitness(directory, allow=[str(log.signer.verifier) for log in logs], now=lambda: NOW)

    def test_it_cosigns_and_remembers(self, tmp_path: Path) -> None:
        log = log_of(3)
        with self.open(tmp_path, log) as witness:
            key = witness.key
            answer = witness.add_checkpoint(self.request(log, 0))
            assert answer.status == 200
            note = SignedNote(text=log.checkpoint().text, signatures=parse_signatures(answer.body.decode()))
            assert verify_cosignature(note, key) == int(NOW)
        with self.open(tmp_path) as witness:
            assert witness.key == key
            assert witness.logs.keys() == {log.signer.verifier.name}
            log.add(entry(3))
            answer = witness.add_checkpoint(self.request(log, 0))
            assert (answer.status, answer.body, answer.content_type) == (409, b"3\n", "text/x.tlog.size")
            assert witness.add_checkpoint(self.request(log, 3)).status == 200

    def test_forks_and_rollbacks_are_not_cosigned_after_a_restart_either(self, tmp_path: Path) -> None:
        log = log_of(5)
        with self.open(tmp_path, log) as witness:
            assert witness.add_checkpoint(self.request(log, 0)).status == 200
        with self.open(tmp_path) as witness:
            assert witness.add_checkpoint(self.request(log_of(7, edited=1), 5)).status == 422
            assert witness.add_checkpoint(self.request(log_of(5, edited=1), 5)).status == 409
            assert witness.add_checkpoint(self.request(log_of(3), 3)).status == 409
            assert witness.add_checkpoint(encode_request(5, [], log_of(3).checkpoint().encode())).status == 400

    def test_what_is_stored_comes_before_what_is_signed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = log_of(3)

        def full(_place: Path, _data: bytes, *, mode: int) -> None:
            raise OSError(28, "No space left on device")

        with self.open(tmp_path, log) as witness:
            monkeypatch.setattr(logwitness, "write_whole", full)
            assert witness.add_checkpoint(self.request(log, 0)).status == 503
            monkeypatch.undo()
            assert witness.add_checkpoint(self.request(log, 0)).status == 200

    def test_others_logs_and_nonsense(self, tmp_path: Path) -> None:
        log = log_of(3)
        with self.open(tmp_path, log) as witness:
            other, forged = MemoryLog(origin="other.example").fill(1), MemoryLog(seed=2).fill(1)
            assert witness.add_checkpoint(self.request(other, 0)).status == 404
            assert witness.add_checkpoint(self.request(forged, 0)).status == 403
            assert witness.add_checkpoint(b"nonsense").status == 400

    def test_a_directory_has_one_process_and_all_its_files(self, tmp_path: Path) -> None:
        log = log_of(3)
        with self.open(tmp_path, log) as witness:
            witness.add_checkpoint(self.request(log, 0))
            with pytest.raises(Unavailable, match="another process"):
                self.open(tmp_path)
        (tmp_path / "state.json").write_text("{")
        with pytest.raises(FormatRefused, match=r"sdk\.releaselog\.witness_state"):
            self.open(tmp_path)
        (tmp_path / "witness.key").unlink()
        with pytest.raises(Refused, match=r"sdk\.releaselog\.witness_key"):
            self.open(tmp_path)

    def test_one_log_has_one_key(self, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="two keys"):
            self.open(tmp_path, MemoryLog(seed=1), MemoryLog(seed=2))

    def test_requests_at_once_are_decided_one_by_one(self, tmp_path: Path) -> None:
        """The race of C2SP tlog-witness: two continuations of the same state, of which one may be cosigned."""
        log = log_of(4)
        with self.open(tmp_path, log) as witness:
            witness.add_checkpoint(self.request(log, 0))
            bodies = [self.request(log_of(size, edited=size - 1), 4) for size in range(5, 13)]
            statuses: list[int] = []
            threads = [
                threading.Thread(target=lambda body=body: statuses.append(witness.add_checkpoint(body).status))
                for body in bodies
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(statuses) == [200] + 7 * [409]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[MemoryLog, int]]:
    log = log_of(3)
    with (
        LogWitness(tmp_path, allow=[str(log.signer.verifier)], now=lambda: NOW) as witness,
        WitnessServer(("127.0.0.1", 0), witness) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield log, server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, response.headers["Content-Type"], data


def test_a_witness_over_http(serving: tuple[MemoryLog, int]) -> None:
    log, port = serving
    body = TestWitness().request(log, 0)
    assert ask(port, "POST", "/add-checkpoint", body)[0] == 200
    assert ask(port, "POST", "/add-checkpoint", encode_request(1, [], log.checkpoint().encode()))[:2] == (
        409,
        "text/x.tlog.size",
    )
    assert ask(port, "POST", "/other", body)[0] == 404
    assert ask(port, "POST", "/add-checkpoint", **{"Content-Length": "99999999"})[0] == 413
    assert ask(port, "DELETE", "/add-checkpoint")[0] == 501
    status, _, data = ask(port, "GET", "/")
    assert status == 200
    assert b"+" in data


def test_an_address_in_use(serving: tuple[MemoryLog, int], tmp_path: Path) -> None:
    with LogWitness(tmp_path / "other", now=lambda: NOW) as witness, pytest.raises(Refused, match="cannot listen"):
        WitnessServer(("127.0.0.1", serving[1]), witness)


class TestCommands:
    @pytest.fixture
    def served(self) -> Iterator[tuple[Served, str, list[bytes]]]:
        """A log over HTTP, and what its webhook was told."""
        log, told = Served(log_of(5)), []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = log(self.path.removeprefix("/log/"))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                told.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield log, f"http://127.0.0.1:{server.server_address[1]}", told
            server.shutdown()
            thread.join()

    def run(self, *words: str) -> tuple[BaseException | None, str]:
        result = CliRunner().invoke(app, ["log", *words])
        return result.exception, result.stdout

    def test_monitor(self, served: tuple[Served, str, list[bytes]], tmp_path: Path) -> None:
        log, url, told = served
        words = ["monitor", f"{url}/log", "--vkey", str(log.log.signer.verifier), "--once"]
        words += ["--state", str(tmp_path / "state"), "--webhook", f"{url}/hook"]
        error, text = self.run(*words, "--output", "json")
        assert error is None
        assert json.loads(text) == {"size": 5, "new": 5, "kinds": {"release": 5}}
        assert self.run(*words) == (None, "5 entries, none new\n")
        log.log = log_of(4)
        error, _ = self.run(*words)
        assert isinstance(error, Refused)
        assert error.code == "sdk.releaselog.rolled_back"
        alarm = json.loads(told[0])
        assert alarm["code"] == "sdk.releaselog.rolled_back"
        assert parse_note(alarm["before"]).text != parse_note(alarm["after"]).text

    def test_monitor_with_expectations(self, served: tuple[Served, str, list[bytes]], tmp_path: Path) -> None:
        log, url, _ = served
        (tmp_path / "expect.toml").write_text('kinds = ["policy", "release"]\n[most]\nrelease = 4\n')
        words = ["monitor", f"{url}/log", "--vkey", str(log.log.signer.verifier), "--once"]
        error, _ = self.run(*words, "--state", str(tmp_path / "s"), "--expect", str(tmp_path / "expect.toml"))
        assert isinstance(error, Refused)
        assert error.code == "sdk.releaselog.unexpected"

    def test_a_log_that_is_gone(self, tmp_path: Path) -> None:
        key = str(MemoryLog().signer.verifier)
        error, _ = self.run(
            "monitor", "http://127.0.0.1:1/log", "--vkey", key, "--once", "--state", str(tmp_path / "s")
        )
        assert isinstance(error, Unavailable)

    def test_verify(self, tmp_path: Path) -> None:
        world = World()
        fields = {"resource": "a/b/c"}
        (tmp_path / "receipt").write_text(encode_receipt(world.receipt(fields, world.release(fields))) + "\n")
        words = ["verify", str(tmp_path / "receipt"), "--vkey", str(world.pins.key), "--cosignatures", "2"]
        for witness in world.pins.witnesses:
            words += ["--witness", str(witness)]
        error, text = self.run(*words)
        assert error is None
        assert "entry 5 of 6" in text
        assert "resource: a/b/c" in text
        assert json.loads(self.run(*words, "--output", "json")[1])["fields"] == fields
        error, _ = self.run("verify", str(tmp_path / "receipt"), "--vkey", str(MemoryLog(seed=3).signer.verifier))
        assert isinstance(error, Refused)

    def test_a_witness_without_a_log_does_not_start(self, tmp_path: Path) -> None:
        error, _ = self.run("witness", "--data", str(tmp_path))
        assert isinstance(error, Refused)
        assert error.code == "tlog.witness.unknown_log"
