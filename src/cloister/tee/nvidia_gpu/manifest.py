"""NVIDIA's reference integrity manifests (RIM): signed reference values of one driver, VBIOS or switch BIOS.

A SWID tag (ISO/IEC 19770-2:2015) with the TCG's RIM attributes, signed as `xmlsignature` says, by a chain of four
certificates to `NVIDIA CoRIM signing Root CA`. `Resource` elements carry for one measurement index the accepted
SHA-384 values and whether the index belongs to this manifest (`active`). Index 0 is block 1 of a report.

Steps of `verify_manifest`: 1 document and signature, 2 content, 3 chain of exactly four to a root of that name at the
given time. The time may be in the past: a signer's certificate lasts two years, its manifest longer. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from lxml import etree

from cloister.crypto.x509path import load_certificate, validity, verify_path
from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.endorsement import Endorsements
from cloister.tee.nvidia_gpu.certificate import MANIFEST_ROOT_NAME, require_root
from cloister.tee.nvidia_gpu.endorsements import TEE
from cloister.tee.nvidia_gpu.xmlsignature import SignedDocument, parse_plain_xml, verify_signed_document
from cloister.wire.limits import RIM_ALTERNATIVES, RIM_MEASUREMENTS

CHAIN_LENGTH: Final = 4
DIGEST_BYTES: Final = 48
_SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_HEX: Final = re.compile(rf"[0-9a-fA-F]{{{2 * DIGEST_BYTES}}}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,3}")
_CODE: Final = "tee.nvidia_gpu.rim"
_CHAIN: Final = "tee.nvidia_gpu.rim.chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceMeasurement:
    """Accepted values of one measurement.

    Attributes:
        index: from 0; block `index` + 1 of a report.
        name: as the manifest calls it.
        active: whether the index belongs to this manifest; values of others say nothing.
        values: accepted digests, 48 bytes each.
    """

    index: int
    name: str
    active: bool
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest that is signed by a certificate of the given root's PKI.

    Attributes:
        product: chip it is for (`GH100`), without underscore.
        version: of the driver or VBIOS, as written.
        measurements: by index.
        path: certificates, signer first, root last.
        window: time in which all of them are valid.
    """

    product: str
    version: str
    measurements: Mapping[int, ReferenceMeasurement]
    path: tuple[x509.Certificate, ...]
    window: tuple[datetime, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    document: SignedDocument
    product: str
    version: str
    measurements: Mapping[int, ReferenceMeasurement]


def verify_manifest(data: bytes, endorsements: Endorsements, *, at: datetime) -> Manifest:
    """Return the manifest in `data`.

    Args:
        data: the XML.
        endorsements: roots and pins for `nvidia`; intermediates come with the manifest.
        at: aware time.

    Raises:
        FormatRefused: not a manifest of this form (`tee.nvidia_gpu.rim.malformed`, `.profile`, `.certificate.*`).
        EndorsementError: digest, signature or chain do not hold (`tee.nvidia_gpu.rim.digest`, `.signature`,
            `.no_roots`, `.chain.*`).
    """
    # 1 2
    content = _verified_content(data)
    # 3
    certificates = content.document.certificates
    path = _verify_chain(certificates, endorsements, at=at)
    return Manifest(
        product=content.product,
        version=content.version,
        measurements=content.measurements,
        path=path,
        window=validity(path),
    )


@lru_cache(maxsize=64)
def _verified_content(data: bytes) -> _Content:
    """Steps 1 and 2. Same bytes, same answer: the time is not asked for here."""
    document = verify_signed_document(data)
    root = parse_plain_xml(document.canonical)
    if root.tag != f"{_SWID}SoftwareIdentity":
        raise _malformed("not a SWID tag", str(root.tag)[:80])
    meta, payload = _single(root, "Meta"), _single(root, "Payload")
    if not 0 < len(payload) <= RIM_MEASUREMENTS:
        raise _malformed(f"not 1 to {RIM_MEASUREMENTS} measurements", str(len(payload)))
    measurements: dict[int, ReferenceMeasurement] = {}
    for resource in payload:
        item = _read_resource(resource)
        if item.index in measurements:
            raise _malformed("an index comes twice", str(item.index))
        measurements[item.index] = item
    return _Content(
        document=document,
        product=_text(meta, "product").replace("_", ""),
        version=_text(meta, "colloquialVersion"),
        measurements=measurements,
    )


def _verify_chain(
    certificates: tuple[x509.Certificate, ...], endorsements: Endorsements, *, at: datetime
) -> tuple[x509.Certificate, ...]:
    carried = [item.public_bytes(Encoding.DER) for item in certificates]
    roots = endorsements.roots_for(TEE, carried)
    anchors = require_root(
        [load_certificate(root.der, code="tee.nvidia_gpu.root", path=root.name) for root in roots], MANIFEST_ROOT_NAME
    )
    if not anchors:
        raise EndorsementError(
            f"{_CODE}.no_roots",
            "no root for reference manifests is trusted",
            expected=MANIFEST_ROOT_NAME,
            actual=", ".join(root.name for root in roots)[:120] or "none",
            hint="the manifest carries NVIDIA's root, or another is configured",
        )
    path = verify_path(certificates[0], anchors=anchors, intermediates=certificates[1:], at=at, code=_CHAIN)
    if len(path) != CHAIN_LENGTH:
        raise EndorsementError(
            f"{_CHAIN}.length",
            "chain of the manifest has another length than NVIDIA's",
            expected=str(CHAIN_LENGTH),
            actual=str(len(path)),
        )
    return path


def _single(root: etree._Element, name: str) -> etree._Element:
    found = root.findall(f"{_SWID}{name}")
    if len(found) != 1:
        raise _malformed(f"not exactly one {name}", str(len(found)))
    return found[0]


def _read_resource(element: etree._Element) -> ReferenceMeasurement:
    """Read one `Resource`; every hash must be counted, and every counted hash be there."""
    if element.tag != f"{_SWID}Resource" or element.get("type") != "Measurement" or len(element):
        raise _malformed("a payload of something else than measurements", str(element.tag)[:80])
    index, count = _number(element, "index"), _number(element, "alternatives")
    size, active = _number(element, "size"), _text(element, "active")
    hashes = {str(name) for name in element.attrib if str(name).startswith(_HASH)}
    expected = [f"{_HASH}{number}" for number in range(min(count, RIM_ALTERNATIVES))]
    if index >= RIM_MEASUREMENTS or size != DIGEST_BYTES or active not in ("True", "False"):
        raise _malformed("measurement with index, size or state out of range", f"{index}, {size}, {active}"[:60])
    if not expected or hashes != set(expected):
        raise _malformed("alternatives are not those counted", f"{count} counted, {len(hashes)} found")
    values = [element.get(name, "") for name in expected]
    if not all(_HEX.fullmatch(value) for value in values):
        raise _malformed("alternative that is no SHA-384 digest", str(index))
    return ReferenceMeasurement(
        index=index,
        name=element.get("name", "")[:80],
        active=active == "True",
        values=tuple(bytes.fromhex(value) for value in values),
    )


def _number(element: etree._Element, name: str) -> int:
    text = _text(element, name)
    if not _NUMBER.fullmatch(text):
        raise _malformed(f"{name} is not a small number", text[:20])
    return int(text)


def _text(element: etree._Element, name: str) -> str:
    text = element.get(name, "")
    if not text or len(text) > 64:
        raise _malformed(f"{name} is absent or too long", text[:20])
    return text


def _malformed(message: str, actual: str) -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", f"manifest: {message}", actual=actual)
