"""What the kernel still lacks when the agent starts: its network.

The initrd has loaded the drivers and mounted `/proc`, `/sys`, `/dev`, `/run` and the control groups. The network is
QEMU's user network or a tap device; its addresses come from the host and prove nothing: every peer is authenticated by
a key or a digest. Runs as root in the VM only; requests to the kernel go through `ioctl`, because a program per step
costs 0.1 s each under emulation.
"""

from __future__ import annotations

import os
import time
from typing import Final

from cloister.errors import Unavailable

_LINK_SECONDS: Final = 10.0
_LINK_POLL_SECONDS: Final = 0.005

# include/uapi/linux/sockios.h
_SIOCADDRT: Final = 0x890B
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_IFF_UP: Final = 1
_RTF_UP_GATEWAY: Final = 3
_IFREQ_BYTES: Final = 40
_RTENTRY_BYTES: Final = 120

ADDRESS: Final = "10.0.2.15"  # QEMU's user network, `-netdev user` defaults
NETMASK: Final = "255.255.255.0"
GATEWAY: Final = "10.0.2.2"
NAMESERVER: Final = "10.0.2.3"
INTERFACE: Final = "eth0"


def bring_network_up() -> None:
    """Give the loopback and the first Ethernet interface their addresses, and set the default route.

    Raises:
        Unavailable: there is no such interface (`guest.init.network`).
    """
    import _socket  # the C half of `socket`, which is enough for ioctl and loads faster
    import fcntl

    handle = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        _wait_for_interface(INTERFACE)
        _configure(handle.fileno(), fcntl.ioctl, "lo", "127.0.0.1", "255.0.0.0")
        _configure(handle.fileno(), fcntl.ioctl, INTERFACE, ADDRESS, NETMASK)
        fcntl.ioctl(handle.fileno(), _SIOCADDRT, _default_route(GATEWAY))
    except OSError as err:
        raise Unavailable("guest.init.network", f"network does not come up: {err.strerror}", path=INTERFACE) from err
    finally:
        handle.close()


def _wait_for_interface(name: str) -> None:
    deadline = time.monotonic() + _LINK_SECONDS
    while not os.access(f"/sys/class/net/{name}", os.F_OK):
        if time.monotonic() > deadline:
            raise Unavailable("guest.init.network", "no network interface", path=name)
        time.sleep(_LINK_POLL_SECONDS)


def _configure(fd: int, ioctl: object, name: str, address: str, netmask: str) -> None:
    if not callable(ioctl):
        raise TypeError("ioctl is a function")
    ioctl(fd, _SIOCSIFADDR, _address_request(name, address))
    ioctl(fd, _SIOCSIFNETMASK, _address_request(name, netmask))
    answer = ioctl(fd, _SIOCGIFFLAGS, name.encode().ljust(_IFREQ_BYTES, b"\0"))
    flags = int.from_bytes(answer[16:18], "little") | _IFF_UP
    ioctl(fd, _SIOCSIFFLAGS, name.encode().ljust(16, b"\0") + flags.to_bytes(2, "little") + bytes(22))


def _address_request(name: str, address: str) -> bytes:
    """Return `struct ifreq` (netdevice(7)): interface name, `struct sockaddr_in`."""
    return (name.encode().ljust(16, b"\0") + _sockaddr(address)).ljust(_IFREQ_BYTES, b"\0")


def _sockaddr(address: str) -> bytes:
    """Return `struct sockaddr_in` with port 0."""
    return b"\x02\0\0\0" + bytes(int(part) for part in address.split(".")) + bytes(8)


def _default_route(gateway: str) -> bytes:
    """Return `struct rtentry` (x86-64 layout) of the default route."""
    route = bytes(8) + _sockaddr("0.0.0.0") + _sockaddr(gateway) + _sockaddr("0.0.0.0")  # noqa: S104  # not a bind
    return (route + _RTF_UP_GATEWAY.to_bytes(2, "little")).ljust(_RTENTRY_BYTES, b"\0")
