"""Control port: frames go out whole, an absent peer is waited for, a gone one ends the pod."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.guest import ports
from cloister.guest.ports import ControlPort, HostGone, open_socket_port, open_virtio_port
from cloister.protocol.guestapi import FrameSplitter


def pair(absence: float = 0) -> tuple[ControlPort, socket.socket]:
    ours, theirs = socket.socketpair()
    return ControlPort(ours.detach(), absence_seconds=absence), theirs


def test_frames_of_several_threads_do_not_mix() -> None:
    port, peer = pair()
    bodies = [bytes([number]) * 50_000 for number in range(1, 9)]
    threads = [threading.Thread(target=port.send, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    splitter = FrameSplitter()
    frames: list[bytes] = []
    while len(frames) < len(bodies):
        frames += splitter.feed(peer.recv(65536))
    for thread in threads:
        thread.join()
    assert sorted(frames) == bodies
    peer.close()


def test_bytes_arrive() -> None:
    port, peer = pair()
    peer.sendall(b"abc")
    assert port.receive() == b"abc"
    peer.close()


def test_end_of_a_socket_is_final() -> None:
    port, peer = pair()
    peer.close()
    with pytest.raises(HostGone):
        port.receive()


def test_absent_peer_is_waited_for(tmp_path: Path) -> None:
    """A virtio port without a peer reads as empty; a FIFO without a writer does the same."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    port = ControlPort(reader, absence_seconds=30)

    def appear() -> None:
        with path.open("wb") as writer:
            writer.write(b"back")

    timer = threading.Timer(0.12, appear)
    timer.start()
    assert port.receive() == b"back"
    timer.join()


def test_absence_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    port = ControlPort(os.open(path, os.O_RDONLY | os.O_NONBLOCK), absence_seconds=0.06)
    with pytest.raises(HostGone):
        port.receive()


def test_sending_to_nobody_raises() -> None:
    port, peer = pair()
    peer.close()
    with pytest.raises(OSError, match="roken pipe"):
        port.send(b"x" * 10)


def test_socket_port_connects(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        fd = open_socket_port(str(tmp_path / "s"))
        connection, _ = listener.accept()
        os.write(fd, b"hello")
        assert connection.recv(10) == b"hello"
        assert not os.get_inheritable(fd)
        os.close(fd)
        connection.close()


def test_socket_port_without_listener_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        open_socket_port(str(tmp_path / "s"))
    assert caught.value.code == "guest.ports.absent"


def test_virtio_port_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in ((1, "cloister.streams"), (2, "cloister.control")):
        (tmp_path / f"vport0p{number}").mkdir()
        (tmp_path / f"vport0p{number}" / "name").write_text(f"{name}\n")
    monkeypatch.setattr(ports, "_PORTS", str(tmp_path))
    monkeypatch.setattr(ports, "_APPEAR_SECONDS", 0.02)
    opened: list[str] = []
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(path) or 5)
    assert open_virtio_port("cloister.control") == 5
    assert opened == ["/dev/vport0p2"]
    with pytest.raises(Unavailable):
        open_virtio_port("cloister.other")
