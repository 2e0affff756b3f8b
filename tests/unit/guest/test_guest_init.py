"""Bytes that go to the kernel: interface requests and routes as C lays them out."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

from cloister.errors import Unavailable
from cloister.guest import init


def test_interface_request_is_struct_ifreq() -> None:
    request = init._address_request("eth0", "10.0.2.15")
    expected = struct.pack("16sHH4s8x8x", b"eth0", socket.AF_INET, 0, socket.inet_aton("10.0.2.15"))
    assert request == expected
    assert len(request) == 40


def test_route_is_struct_rtentry() -> None:
    class SockAddr(ctypes.Structure):
        _fields_ = (("family", ctypes.c_ushort), ("port", ctypes.c_ushort), ("addr", ctypes.c_ubyte * 4),
                    ("zero", ctypes.c_ubyte * 8))  # fmt: skip

    class RouteEntry(ctypes.Structure):
        _fields_ = (("pad1", ctypes.c_ulong), ("dst", SockAddr), ("gateway", SockAddr), ("genmask", SockAddr),
                    ("flags", ctypes.c_ushort), ("pad2", ctypes.c_short), ("pad3", ctypes.c_ulong),
                    ("pad4", ctypes.c_void_p), ("metric", ctypes.c_short), ("dev", ctypes.c_char_p),
                    ("mtu", ctypes.c_ulong), ("window", ctypes.c_ulong), ("irtt", ctypes.c_ushort))  # fmt: skip

    raw = init._default_route("10.0.2.2")
    assert len(raw) == ctypes.sizeof(RouteEntry)
    entry = RouteEntry.from_buffer_copy(raw)
    assert bytes(entry.gateway.addr) == socket.inet_aton("10.0.2.2")
    assert entry.gateway.family == entry.dst.family == entry.genmask.family == socket.AF_INET
    assert bytes(entry.dst.addr) == bytes(entry.genmask.addr) == bytes(4)
    assert entry.flags == 3  # RTF_UP | RTF_GATEWAY
    assert entry.dev is None


def test_missing_interface_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "INTERFACE", "nonexistent0")
    monkeypatch.setattr(init, "_LINK_SECONDS", 0.01)
    with pytest.raises(Unavailable) as caught:
        init.bring_network_up()
    assert caught.value.code == "guest.init.network"
