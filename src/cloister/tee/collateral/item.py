"""What an item of collateral is called: its kind and its full identity. Pure.

Two items that a vendor may answer differently never share a name: a VCEK is named by every component of its TCB, the
fmc of Turin among them, and TCB info by the channel it was published in. A table says which fields make an identity
and how each is written, so that one thing has one name and a name is safe in a file, a URL and a message.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cloister.errors import FormatRefused

_CODE: Final = "collateral.item"


class Service(enum.StrEnum):
    """Who publishes it."""

    AMD_KDS = "amd-kds"
    INTEL_PCS = "intel-pcs"
    INTEL_ROOT = "intel-root"
    NVIDIA_RIM = "nvidia-rim"
    NVIDIA_OCSP = "nvidia-ocsp"


class Kind(enum.StrEnum):
    """What it is."""

    VCEK = "vcek"
    AMD_CHAIN = "amd-chain"
    AMD_CRL = "amd-crl"
    TCB_INFO = "tcb-info"
    QE_IDENTITY = "qe-identity"
    PCK_CRL = "pck-crl"
    INTEL_ROOT_CRL = "intel-root-crl"
    RIM = "rim"
    OCSP = "ocsp"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    service: Service
    fields: Mapping[str, str]  # name to the pattern of its values
    immutable: bool = False


_SPL: Final = r"0|[1-9][0-9]{0,2}"
_UPDATE: Final = "early|standard"
_TEE: Final = "sgx|tdx"
_IDENTITIES: Final[Mapping[Kind, _Identity]] = {
    Kind.VCEK: _Identity(
        service=Service.AMD_KDS,
        fields={
            "product": "[A-Z][A-Za-z]{1,19}",
            "hwid": "(?:[0-9a-f]{2}){8}|(?:[0-9a-f]{2}){64}",
            "fmc": f"|{_SPL}",  # empty: the product has none
            "bootloader": f"|{_SPL}",
            "tee": f"|{_SPL}",
            "snp": _SPL,
            "microcode": f"|{_SPL}",
        },
        immutable=True,
    ),
    Kind.AMD_CHAIN: _Identity(
        service=Service.AMD_KDS, fields={"signer": "vcek|vlek", "product": "[A-Z][A-Za-z]{1,19}"}, immutable=True
    ),
    Kind.AMD_CRL: _Identity(service=Service.AMD_KDS, fields={"signer": "vcek|vlek", "product": "[A-Z][A-Za-z]{1,19}"}),
    Kind.TCB_INFO: _Identity(
        service=Service.INTEL_PCS, fields={"tee": _TEE, "fmspc": "[0-9a-f]{12}", "update": _UPDATE}
    ),
    Kind.QE_IDENTITY: _Identity(service=Service.INTEL_PCS, fields={"tee": _TEE, "update": _UPDATE}),
    Kind.PCK_CRL: _Identity(service=Service.INTEL_PCS, fields={"ca": "platform|processor"}),
    Kind.INTEL_ROOT_CRL: _Identity(service=Service.INTEL_ROOT, fields={}),
    Kind.RIM: _Identity(service=Service.NVIDIA_RIM, fields={"id": "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"}),
    Kind.OCSP: _Identity(service=Service.NVIDIA_OCSP, fields={"request": "(?:[0-9a-f]{2}){1,512}"}),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One item, by its kind and full identity. Make one with `item`.

    Attributes:
        kind: what it is.
        fields: (name, value), all that the kind has, in the order of the table.
    """

    kind: Kind
    fields: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> str:
        return dict(self.fields)[name]

    @property
    def service(self) -> Service:
        """Who publishes it."""
        return _IDENTITIES[self.kind].service

    @property
    def immutable(self) -> bool:
        """Whether the vendor never publishes another under the same identity."""
        return _IDENTITIES[self.kind].immutable

    @property
    def text(self) -> str:
        """The one way the identity is written."""
        return " ".join([self.kind.value, *(f"{name}={value}" for name, value in self.fields)])

    @property
    def label(self) -> str:
        """The identity for people: long values shortened."""
        shown = (f"{name}={value if len(value) <= 20 else value[:16] + '..'}" for name, value in self.fields if value)
        return " ".join([self.kind.value, *shown])

    @property
    def key(self) -> str:
        """SHA-256 of `text`, hex: a file name."""
        return sha256(self.text.encode("ascii")).hexdigest()


def make_item(kind: Kind, **fields: str) -> Item:
    """Return the item of that identity.

    Raises:
        FormatRefused: a field is missing, unknown, or not written in its one way (`collateral.item.malformed`).
    """
    patterns = _IDENTITIES[kind].fields
    if set(fields) != set(patterns):
        raise FormatRefused(
            f"{_CODE}.malformed",
            "identity of an item of collateral is not whole",
            path=kind.value,
            expected=", ".join(patterns) or "no fields",
            actual=", ".join(sorted(fields))[:80],
        )
    for name, pattern in patterns.items():
        if re.fullmatch(pattern, fields[name], re.ASCII) is None:
            raise FormatRefused(
                f"{_CODE}.malformed",
                "identity of an item of collateral is not well-formed",
                path=f"{kind.value}.{name}",
                expected=pattern,
                actual=fields[name][:80],
            )
    return Item(kind, tuple((name, fields[name]) for name in patterns))


def parse_item(text: str) -> Item:
    """Return the item whose `text` this is.

    Raises:
        FormatRefused: not such a text (`collateral.item.malformed`).
    """
    word, *rest = text.split(" ")
    pairs = [field.partition("=") for field in rest]
    known = {kind.value: kind for kind in Kind}
    if word in known:
        found = make_item(known[word], **{name: value for name, _, value in pairs})
        if found.text == text:
            return found
    raise FormatRefused(
        f"{_CODE}.malformed",
        "not the identity of an item of collateral",
        expected=f"{'|'.join(known)} and fields",
        actual=text[:80],
    )
