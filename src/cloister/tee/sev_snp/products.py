"""AMD's product lines as data: which CPUs belong to one, how it counts its TCB, how long its chip ids are.

A new line is a row here, not code. Sources: SEV-SNP Firmware ABI Specification (AMD 56860), TCB_VERSION; VCEK
Certificate and KDS Interface Specification (AMD 57230), sections 3.1 and 4.1. Lines without a root certificate that is
known (Venice, whose TCB has neither boot loader nor microcode) are absent: nothing could be verified with their row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused

TCB_BYTES: Final = 8
CHIP_ID_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TCBLayout:
    """Place of each component in the 8 bytes of a TCB_VERSION; what is not named is zero.

    Attributes:
        places: byte of each component, in the order in which the KDS wants them.
        struct_version: `structVersion` of certificates that count so.
    """

    places: Mapping[str, int]
    struct_version: int

    def decode(self, data: bytes, *, code: str, path: str = "") -> dict[str, int]:
        """Return the components of a TCB_VERSION.

        Raises:
            FormatRefused: a reserved byte is not zero, so this is another layout (`<code>.malformed`).
        """
        components = {name: data[index] for name, index in self.places.items()}
        if self.encode(components) != data:
            raise FormatRefused(
                f"{code}.malformed",
                "a reserved byte of the TCB version is not zero",
                path=path,
                expected=f"components {', '.join(self.places)}",
                actual=data.hex(),
            )
        return components

    def encode(self, components: Mapping[str, int]) -> bytes:
        """Return the TCB_VERSION with exactly these components."""
        data = bytearray(TCB_BYTES)
        for name, index in self.places.items():
            data[index] = components[name]
        return bytes(data)


CLASSIC: Final = TCBLayout(places={"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}, struct_version=0)
WITH_FMC: Final = TCBLayout(places={"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}, struct_version=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """CPUs of one product line whose microcode is numbered alike.

    Attributes:
        name: what people call it.
        family: CPUID family.
        models: CPUID models.
        steppings: CPUID steppings; empty is any.
    """

    name: str
    family: int
    models: range
    steppings: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product line: one root certificate of AMD.

    Attributes:
        line: name in the subjects of its CAs and in KDS addresses.
        key: of the advisory table.
        layout: how it counts its TCB.
        hwid_bytes: significant bytes of its chip ids.
        silicon: its CPUs; the first that fits names a CPU.
        ark_sha256: fingerprint of its root certificate (DER).
    """

    line: str
    key: str
    layout: TCBLayout
    hwid_bytes: int
    silicon: tuple[Silicon, ...]
    ark_sha256: bytes


PRODUCTS: Final[tuple[Product, ...]] = (
    Product(
        line="Milan",
        key="amd-milan",
        layout=CLASSIC,
        hwid_bytes=64,
        silicon=(
            Silicon(name="Milan-X", family=0x19, models=range(0x10), steppings=frozenset({2})),
            Silicon(name="Milan", family=0x19, models=range(0x10)),
        ),
        ark_sha256=bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),
    ),
    Product(
        line="Genoa",
        key="amd-genoa",
        layout=CLASSIC,
        hwid_bytes=64,
        silicon=(
            Silicon(name="Genoa-X", family=0x19, models=range(0x10, 0x20), steppings=frozenset({2})),
            Silicon(name="Genoa", family=0x19, models=range(0x10, 0x20)),
            Silicon(name="Bergamo", family=0x19, models=range(0xA0, 0xB0)),  # and Siena
        ),
        ark_sha256=bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),
    ),
    Product(
        line="Turin",
        key="amd-turin",
        layout=WITH_FMC,
        hwid_bytes=8,
        silicon=(
            Silicon(name="Turin", family=0x1A, models=range(0x10)),
            Silicon(name="Turin Dense", family=0x1A, models=range(0x10, 0x12)),
        ),
        ark_sha256=bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),
    ),
)


def product_of_cpu(family: int, model: int) -> Product | None:
    """Return the product line of a CPU (report version 3 and newer), None when it is of none."""
    return next(
        (item for item in PRODUCTS for part in item.silicon if part.family == family and model in part.models), None
    )


def product_of_name(name: str) -> Product | None:
    """Return the product line a certificate's `productName` (`Milan-B0`, `Turin`) is of, None when of none."""
    line = name.partition("-")[0]
    return next((item for item in PRODUCTS if item.line == line), None)


def silicon_of_cpu(family: int, model: int, stepping: int) -> str:
    """Return the name of a CPU's silicon, empty when unknown."""
    return next(
        (
            part.name
            for item in PRODUCTS
            for part in item.silicon
            if part.family == family and model in part.models and (not part.steppings or stepping in part.steppings)
        ),
        "",
    )
