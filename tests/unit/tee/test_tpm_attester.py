"""The guest's attester against scripted answers: what it sends, and what it makes of a device that misbehaves."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.errors import EvidenceError, FormatRefused, Unavailable
from cloister.tee.tpm import commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.attester import TPMAttester
from cloister.tee.tpm.transport import DeviceTransport, SocketTransport

OK = struct.pack(">HII", c.ST_NO_SESSIONS, 10, 0)


def answer(code: int = 0, body: bytes = b"", tag: int = c.ST_NO_SESSIONS) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), code) + body


def authorised(parameters: bytes, handle: bytes = b"") -> bytes:
    body = handle + struct.pack(">I", len(parameters)) + parameters + bytes(5)
    return answer(0, body, c.ST_SESSIONS)


class Script:
    """A transport whose answers are given by command code; records what was sent."""

    def __init__(self, answers: dict[int, list[bytes] | bytes | Callable[[bytes], bytes]]) -> None:
        self.answers = answers
        self.sent: list[bytes] = []
        self.closed = False

    def exchange(self, command: bytes) -> bytes:
        self.sent.append(command)
        given = self.answers.get(int.from_bytes(command[6:10], "big"), OK)
        if callable(given):
            return given(command)
        if isinstance(given, list):
            return given.pop(0)
        return given

    def close(self) -> None:
        self.closed = True


def attester(script: Script, **options: str | None) -> TPMAttester:
    options.setdefault("event_log", None)
    return TPMAttester(transport=script, **options)  # type: ignore[arg-type]  # tests pass texts and None only


def test_extending_sends_the_command_of_the_standard() -> None:
    script = Script({})
    with attester(script) as tpm:
        tpm.extend(8, b"d" * 32)
    assert script.sent == [
        bytes.fromhex("8002 00000041 00000182 00000008 00000009 40000009 0000 00 0000 00000001 000b") + b"d" * 32
    ]
    assert script.closed


@pytest.mark.parametrize(("pcr", "size"), [(8, 31), (8, 0), (24, 32), (-1, 32)])
def test_extending_otherwise_is_our_mistake(pcr: int, size: int) -> None:
    with attester(Script({})) as tpm, pytest.raises(RuntimeError):
        tpm.extend(pcr, bytes(size))


def test_a_refused_extend_stops_the_guest() -> None:
    with attester(Script({0x182: answer(0x907)})) as tpm, pytest.raises(Unavailable) as caught:
        tpm.extend(8, bytes(32))
    assert (caught.value.code, caught.value.actual) == ("tee.tpm.command_failed", "response code 0x907")


def test_a_busy_tpm_is_asked_again_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("cloister.tee.tpm.attester.time.sleep", waits.append)
    script = Script({0x182: [answer(0x922), answer(0x90A), OK]})
    with attester(script) as tpm:
        tpm.extend(8, bytes(32))
    assert len(script.sent) == 3
    with attester(Script({0x182: answer(0x922)})) as tpm, pytest.raises(Unavailable):
        tpm.extend(8, bytes(32))
    assert sum(waits) < 1


def test_reading_registers_that_the_bank_does_not_have() -> None:
    other_bank = struct.pack(">I", 0) + struct.pack(">IHB3s", 1, c.ALG_SHA1, 3, b"\xff\0\0") + bytes(4)
    with attester(Script({0x17E: answer(0, other_bank)})) as tpm, pytest.raises(FormatRefused) as caught:
        tpm.read_pcrs()
    assert caught.value.code == "tee.tpm.response.pcr_selection"


@pytest.mark.parametrize(
    "response",
    [
        b"",
        bytes(9),
        struct.pack(">HII", c.ST_NO_SESSIONS, 11, 0),
        struct.pack(">HII", 0x1234, 10, 0),
        bytes(5000),
    ],
)
def test_answers_that_are_none(response: bytes) -> None:
    with attester(Script({0x182: response})) as tpm, pytest.raises(FormatRefused) as caught:
        tpm.extend(8, bytes(32))
    assert caught.value.code.startswith("tee.tpm.response.")


def _nv_public(size: int) -> bytes:
    public = struct.pack(">IHIHH", c.EK_CERTIFICATE_INDEX, c.ALG_SHA256, 0, 0, size)
    return answer(0, struct.pack(">H", len(public)) + public)


def _nv(data: bytes) -> Callable[[bytes], bytes]:
    def read(command: bytes) -> bytes:
        size, offset = struct.unpack(">HH", command[-4:])
        part = data[offset : offset + size]
        return authorised(struct.pack(">H", len(part)) + part)

    return read


def _created(handle: int) -> bytes:
    return authorised(struct.pack(">H", 4) + b"area" + bytes(20), struct.pack(">I", handle))


def test_the_certificate_is_read_in_parts_and_cut_from_its_padding() -> None:
    certificate = b"\x30\x82" + (1000).to_bytes(2, "big") + b"c" * 1000
    padded = certificate + b"\xff" * 300
    script = Script({0x169: _nv_public(len(padded)), 0x14E: _nv(padded), 0x131: _created(0x80000001)})
    with attester(script) as tpm:
        assert tpm.enrol() == (certificate, b"\x00\x04area")
        assert tpm.enrol() == (certificate, b"\x00\x04area")
    assert [int.from_bytes(item[6:10], "big") for item in script.sent] == [0x169, 0x14E, 0x14E, 0x14E, 0x131, 0x165]


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\x30", b"\x30\x80aa", b"\x30\x83aaaa"])
def test_an_index_that_holds_no_certificate(data: bytes) -> None:
    script = Script({0x169: _nv_public(len(data)), 0x14E: _nv(data)})
    with attester(script) as tpm, pytest.raises(Unavailable) as caught:
        tpm.enrol()
    assert caught.value.code == "tee.tpm.ek_certificate_absent"


def test_a_tpm_without_an_ek_certificate_says_what_to_do() -> None:
    with attester(Script({0x169: answer(0x18B)})) as tpm, pytest.raises(Unavailable) as caught:
        tpm.enrol()
    assert caught.value.code == "tee.tpm.ek_certificate_absent"
    assert "swtpm_setup" in caught.value.hint


def test_an_index_that_gives_nothing_or_claims_too_much() -> None:
    with attester(Script({0x169: _nv_public(9), 0x14E: authorised(b"\0\0")})) as tpm, pytest.raises(Unavailable):
        tpm.enrol()
    with attester(Script({0x169: _nv_public(60000)})) as tpm, pytest.raises(FormatRefused):
        tpm.enrol()


def _activation(code: int) -> Script:
    return Script(
        {
            0x131: _created(0x80000001),
            0x176: answer(0, struct.pack(">IH", 0x03000000, 0)),
            0x147: answer(code) if code else authorised(b"\x00\x06secret"),
        }
    )


def test_activation_recovers_the_secret_and_leaves_nothing_loaded() -> None:
    script = _activation(0)
    with attester(script) as tpm:
        assert tpm.activate(b"\0\1b", b"\0\1s") == b"secret"
    flushed = [item[10:] for item in script.sent if item[6:10] == b"\0\0\x01\x65"]
    assert flushed == [struct.pack(">I", 0x80000001)]


def test_a_refused_credential_has_its_own_code_and_its_session_is_flushed() -> None:
    script = _activation(0x2DF)
    with attester(script) as tpm, pytest.raises(EvidenceError) as caught:
        try:
            tpm.activate(b"\0\1b", b"\0\1s")
        finally:
            assert script.sent[-1] == commands.flush_context(0x03000000)
    assert caught.value.code == "tee.tpm.credential_refused"
    assert script.sent[-1] == commands.flush_context(0x80000001)


def _read_zeros(command: bytes) -> bytes:
    return answer(0, bytes(4) + command[10:20] + struct.pack(">I", 8) + (b"\x00\x20" + bytes(32)) * 8)


def test_registers_that_never_hold_still_are_unavailable() -> None:
    script = Script(
        {
            0x169: _nv_public(4),
            0x14E: _nv(b"\x30\x02cc"),
            0x131: _created(0x80000001),
            0x17E: _read_zeros,
            0x158: authorised(struct.pack(">H", 32) + b"d" * 32 + b"signature"),
        }
    )
    with attester(script) as tpm, pytest.raises(Unavailable) as caught:
        tpm.attest(b"r" * 32 + b"s" * 16, b"")
    assert caught.value.code == "tee.tpm.registers_unsteady"
    assert commands.quote(0x80000001, b"r" * 32) in script.sent


def test_report_data_shorter_than_a_quote_binds_is_our_mistake() -> None:
    with attester(Script({})) as tpm, pytest.raises(RuntimeError):
        tpm.attest(bytes(31), b"")


def test_the_log_is_bounded_and_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    with attester(Script({}), event_log=str(log)) as tpm:
        assert tpm._read_event_log() == b""
        log.write_bytes(b"log")
        assert tpm._read_event_log() == b"log"
        monkeypatch.setattr("cloister.tee.tpm.attester.EVENT_LOG_BYTES", 2)
        with pytest.raises(Unavailable) as caught:
            tpm._read_event_log()
        assert caught.value.code == "tee.tpm.event_log"
    with attester(Script({}), event_log=str(tmp_path)) as tpm, pytest.raises(Unavailable):
        tpm._read_event_log()


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        TPMAttester(device=str(tmp_path / "tpmrm0"))
    assert (caught.value.code, caught.value.path) == ("tee.tpm.device", str(tmp_path / "tpmrm0"))
    with pytest.raises(Unavailable):
        SocketTransport(str(tmp_path / "socket"))


def test_a_device_file_is_spoken_to_in_whole_commands(tmp_path: Path) -> None:
    """A regular file stands for the device: what is written lands in it, reading at its end gives nothing."""
    device = tmp_path / "tpm"
    device.write_bytes(b"")
    way = DeviceTransport(str(device))
    assert way.exchange(commands.flush_context(1)) == b""
    way.close()
    assert device.read_bytes() == commands.flush_context(1)
    with pytest.raises(Unavailable):
        way.exchange(b"closed")


@pytest.mark.parametrize(
    "response",
    [b"", b"\x80\x01", struct.pack(">HII", 0x8001, 20, 0) + b"short", struct.pack(">HII", 0x8001, 1 << 30, 0)],
)
def test_a_socket_that_hangs_up_or_lies(response: bytes, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)
                peer.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        way = SocketTransport(path)
        try:
            with pytest.raises(Unavailable) as caught:
                way.exchange(commands.flush_context(1))
            assert caught.value.code == "tee.tpm.device"
        finally:
            way.close()
            thread.join()
