"""Where items of collateral are had from: vendors' services and their mirrors, or a directory somebody filled.

A source gives bytes; it is not believed. Addresses are those vendors publish unless an owner names others: a PCCS, a
mirror, a cache of one's own; only an address that was named may be plain HTTP.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from cloister.errors import Refused, Unavailable
from cloister.tee.collateral.amd import vcek_identity_of
from cloister.tee.collateral.item import Item, Kind, Service
from cloister.tee.collateral.recipes import RECIPES
from cloister.tee.collateral.transport import Answer, HTTPTransport, NoSuchItem, parse_address
from cloister.tee.nvidia_gpu.endorsements import OCSP_SERVICE, RIM_SERVICE
from cloister.tee.sev_snp.endorsements import KDS, store_names
from cloister.wire.limits import COLLATERAL_BYTES

_API: Final = "/sgx/certification/v4"
Read = Callable[[], Answer]

ADDRESSES: Final[Mapping[Service, str]] = {
    Service.AMD_KDS: KDS,
    Service.INTEL_PCS: "https://api.trustedservices.intel.com",
    Service.INTEL_ROOT: "https://certificates.trustedservices.intel.com",
    Service.NVIDIA_RIM: RIM_SERVICE.removesuffix("/v1/rim"),
    Service.NVIDIA_OCSP: OCSP_SERVICE,
}


class Source(Protocol):
    """Gives items."""

    name: str

    def open(self, item: Item) -> AbstractContextManager[Read]:
        """Return how to read `item`, once it is this process's turn to ask.

        Raises:
            NoSuchItem: it has no such item.
            Unavailable: it cannot be asked now.
            Refused: what it gives is refused.
        """
        ...


class ServiceSource:
    """Vendors' web services.

    Args:
        transport: asks them.
        addresses: base addresses that replace the vendors' own.

    Raises:
        Refused: not an address (`collateral.fetch.address`).
    """

    name = "services"

    def __init__(self, transport: HTTPTransport, addresses: Mapping[Service, str] | None = None) -> None:
        named = dict(addresses or {})
        for address in named.values():
            parse_address(address)
        if Service.INTEL_PCS in named:  # a PCCS serves the root's list too, and may be all that is reachable
            named.setdefault(Service.INTEL_ROOT, named[Service.INTEL_PCS])
        self._transport = transport
        self._addresses = {**ADDRESSES, **named}

    @contextlib.contextmanager
    def open(self, item: Item) -> Iterator[Read]:
        """Return how to read `item`, see `Source.open`."""
        address = self._addresses[item.service]
        mirror = address != ADDRESSES[item.service]
        if item.service is Service.INTEL_ROOT:  # a copy of Intel's static host keeps Intel's path
            mirror = address == self._addresses[Service.INTEL_PCS]
        request = RECIPES[item.kind].request(item, mirror)
        with self._transport.turn(address) as ask:
            yield lambda: ask(request)


class StoreSource:
    """A directory of VCEKs in the layout that CoCo's Trustee reads: `vcek/HWID/bl03_tee00_snp08_ucode115_vcek.der`.

    `_fmcNN` follows the microcode where the product has one. `vcek/HWID/vcek.der` is taken when there is no file for
    the TCB; if it is for another TCB, its content says so and it is refused. Other kinds of items it does not have.

    Args:
        directory: the one that holds `vcek`.
    """

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._directory = directory

    @contextlib.contextmanager
    def open(self, item: Item) -> Iterator[Read]:
        """Return how to read `item`, see `Source.open`."""
        yield lambda: self._read(item)

    def _read(self, item: Item) -> Answer:
        if item.kind is Kind.VCEK:
            for path in map(self._directory.joinpath, store_names(vcek_identity_of(item))):
                try:
                    with path.open("rb") as file:
                        data = file.read(COLLATERAL_BYTES + 1)
                except FileNotFoundError:
                    continue
                except OSError as err:
                    raise Unavailable(
                        "collateral.store.unreadable", f"cannot read: {err.strerror}", path=str(path)
                    ) from err
                return Answer(body=data, origin=str(path))
        raise NoSuchItem("collateral.fetch.absent", "the directory has no such item", path=f"{self.name}: {item.label}")


def parse_addresses(texts: list[str]) -> dict[Service, str]:
    """Return services and their addresses of `SERVICE=URL` texts.

    Raises:
        Refused: no such service, or no address (`collateral.fetch.address`).
    """
    found = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not equals or name not in {service.value for service in Service}:
            raise Refused(
                "collateral.fetch.address",
                "not a service and its address",
                expected=f"SERVICE=URL with {', '.join(service.value for service in Service)}",
                actual=text[:80],
            )
        parse_address(address)
        found[Service(name)] = address.rstrip("/").removesuffix(_API)  # as a PCCS is usually named
    return found
