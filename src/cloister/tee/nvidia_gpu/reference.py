"""Does a device run what NVIDIA published? The comparison of a report's measurements with the signed manifests.

A GPU needs two manifests, of its driver and of its VBIOS, a switch one, of its BIOS; the device's own signed words
name them. An index belongs to the manifest that marks it active; no index may be active in two. Each active index must
hold one of its accepted values; index 35 means nothing while the first video decoder is off (nvtrust's rule). What no
manifest speaks of is not compared, and is counted. Pure; what the outcome means is `appraisal`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.endorsement import Document, Endorsements
from cloister.rats.reference import ReferenceEntry
from cloister.tee.nvidia_gpu.abi import Block
from cloister.tee.nvidia_gpu.certificate import DeviceIdentity
from cloister.tee.nvidia_gpu.endorsements import (
    ID_PREFIX,
    TEE,
    document_id,
    driver_rim_id,
    switch_rim_id,
    vbios_rim_id,
)
from cloister.tee.nvidia_gpu.manifest import Manifest, ReferenceMeasurement, verify_manifest
from cloister.tee.nvidia_gpu.opaque import Opaque
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import RIM_BYTES
from cloister.wire.strictjson import parse_json_object

NVDEC0_INDEX: Final = 35
_BLOCK_OF_INDEX: Final = 1  # manifests count from 0, blocks from 1
_CODE: Final = "tee.nvidia_gpu.rim"
_HEAD_BYTES: Final = 4096
_PRODUCT: Final = re.compile(r' product="([^"]{1,64})"')
_VERSION: Final = re.compile(r' colloquialVersion="([^"]{1,64})"')
_OUT_OF_TIME: Final = (f"{_CODE}.chain.expired", f"{_CODE}.chain.not_yet_valid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One measurement that holds none of its accepted values; `actual` is empty when the report lacks it."""

    index: int
    name: str
    origin: str
    expected: tuple[bytes, ...]
    actual: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of comparing one device.

    Attributes:
        missing: ids of manifests that were not given.
        stale: ids of manifests whose signer was not valid at the time.
        manifests: those compared with, by id.
        compared: indexes that hold an accepted value.
        differences: indexes that do not.
        conflicts: indexes that two manifests claim.
        uncovered: indexes of the report that no manifest speaks of.
    """

    missing: tuple[str, ...]
    stale: tuple[str, ...]
    manifests: Mapping[str, Manifest]
    compared: tuple[int, ...]
    differences: tuple[Difference, ...]
    conflicts: tuple[int, ...]
    uncovered: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether every manifest was there, and every measurement it speaks of was as it says."""
        return bool(self.compared) and not (self.missing or self.stale or self.differences or self.conflicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A manifest that a device must match: its id, and the version and products it must be of."""

    id: str
    version: str
    products: frozenset[str]


def wanted_manifests(identity: DeviceIdentity, opaque: Opaque) -> tuple[Wanted, ...]:
    """Return the manifests of a device, driver first."""
    products = frozenset({identity.chip, opaque.chip_info} - {""})
    if identity.switch:
        return (
            Wanted(id=switch_rim_id(version=opaque.vbios_version), version=opaque.vbios_version, products=products),
        )
    driver = driver_rim_id(arch=identity.arch, chip=opaque.chip_info or identity.chip, version=opaque.driver_version)
    vbios = vbios_rim_id(
        project=opaque.project,
        project_sku=opaque.project_sku,
        chip_sku=opaque.chip_sku,
        version=opaque.vbios_version,
    )
    return (
        Wanted(id=driver, version=opaque.driver_version, products=products),
        Wanted(id=vbios, version=opaque.vbios_version, products=products),
    )


def compare_device(
    identity: DeviceIdentity, opaque: Opaque, blocks: Sequence[Block], endorsements: Endorsements, *, at: datetime
) -> Comparison:
    """Find the manifests of a device, verify them and compare.

    Raises:
        FormatRefused: a manifest does not parse (`tee.nvidia_gpu.rim.*`).
        EndorsementError: a manifest is not signed by NVIDIA, or is for something else (`tee.nvidia_gpu.rim.*`). Only
            a signer out of its time is no refusal: the manifest is stale then.
    """
    manifests: dict[str, Manifest] = {}
    missing, stale = [], []
    for wanted in wanted_manifests(identity, opaque):
        data = find_manifest(wanted, endorsements.documents)
        if data is None:
            missing.append(wanted.id)
            continue
        try:
            manifest = verify_manifest(data, endorsements, at=at)
        except EndorsementError as err:
            if err.code not in _OUT_OF_TIME:
                raise
            stale.append(wanted.id)
            continue
        _require_subject(manifest, wanted)
        manifests[wanted.id] = manifest
    return _compare(opaque, blocks, manifests, missing=tuple(missing), stale=tuple(stale))


def reference_entries(comparison: Comparison, blocks: Sequence[Block]) -> tuple[ReferenceEntry, ...]:
    """Return NVIDIA's manifests of one device as reference values of its registers: one entry, or none where a manifest
    is missing, stale or contradicts another.

    A register that may hold one of several values gets the one it holds, and the first of them where it holds none.
    """
    if comparison.missing or comparison.stale or comparison.conflicts:
        return ()
    values = {block.index - _BLOCK_OF_INDEX: block.value for block in blocks}
    golden = {index: values[index] for index in comparison.compared}
    golden |= {item.index: item.expected[0] for item in comparison.differences if item.expected}
    if not golden:
        return ()
    return (
        ReferenceEntry(
            id=", ".join(comparison.manifests),
            tee=TEE,
            registers={register_name(index): value for index, value in golden.items()},
            not_after=min(manifest.window[1] for manifest in comparison.manifests.values()),
            origin="NVIDIA's signed reference manifests",
        ),
    )


def register_name(index: int) -> str:
    """Return how the measurement with a manifest's index is called among the registers of one device."""
    return f"measurement_{index}"


def find_manifest(wanted: Wanted, documents: Sequence[Document]) -> bytes | None:
    """Return the XML of the document that has this id: the file itself, or the RIM service's JSON answer.

    Where no name is an id, the first manifest whose head has product and version is tried; what it is, the signature
    and `compare_device` decide.

    Raises:
        FormatRefused: the answer does not hold the manifest it is named after (`tee.nvidia_gpu.rim.answer.*`).
    """
    identity = wanted.id
    for document in documents:
        if document_id(document.name) != identity.upper():
            continue
        if document.data.lstrip()[:1] != b"{":
            return document.data
        code = f"{_CODE}.answer"
        answer = parse_json_object(document.data, ceiling=2 * RIM_BYTES, code=code, family=FormatRefused)
        text, named = answer.get("rim"), answer.get("id", identity)
        if not isinstance(text, str) or not isinstance(named, str) or named.upper() != identity.upper():
            raise FormatRefused(
                f"{code}.malformed", "answer holds no manifest of this id", path=document.name, expected=identity
            )
        try:
            return decode_b64(text, path="rim", ceiling=RIM_BYTES)
        except FormatRefused as err:
            raise FormatRefused(f"{code}.malformed", err.message, path=document.name) from err
    unnamed = (item.data for item in documents if not document_id(item.name).startswith(ID_PREFIX))
    return next((data for data in unnamed if _head_names(data, wanted)), None)


def _head_names(data: bytes, wanted: Wanted) -> bool:
    head = data[:_HEAD_BYTES].decode("utf-8", "replace")
    product, version = _PRODUCT.search(head), _VERSION.search(head)
    return (
        product is not None
        and version is not None
        and product[1].replace("_", "") in wanted.products
        and version[1].upper() == wanted.version.upper()
    )


def _require_subject(manifest: Manifest, wanted: Wanted) -> None:
    """A genuine manifest of another chip or version, under this one's name, must not be taken for it."""
    if manifest.product not in wanted.products or manifest.version.upper() != wanted.version.upper():
        raise EndorsementError(
            f"{_CODE}.subject",
            "manifest is for another product or version than its id says",
            path=wanted.id,
            expected=f"{' or '.join(sorted(wanted.products))} {wanted.version}",
            actual=f"{manifest.product} {manifest.version}",
        )


def _compare(
    opaque: Opaque,
    blocks: Sequence[Block],
    manifests: Mapping[str, Manifest],
    *,
    missing: tuple[str, ...],
    stale: tuple[str, ...],
) -> Comparison:
    golden: dict[int, tuple[str, ReferenceMeasurement]] = {}
    conflicts = []
    for identity, manifest in manifests.items():
        for index, item in manifest.measurements.items():
            if not item.active or (index == NVDEC0_INDEX and opaque.nvdec0_disabled):
                continue
            if index in golden:
                conflicts.append(index)
            golden[index] = (identity, item)
    values = {block.index - _BLOCK_OF_INDEX: block.value for block in blocks}
    differences = tuple(
        Difference(index=index, name=item.name, origin=origin, expected=item.values, actual=values.get(index, b""))
        for index, (origin, item) in sorted(golden.items())
        if values.get(index) not in item.values
    )
    differing = {item.index for item in differences}
    return Comparison(
        missing=missing,
        stale=stale,
        manifests=manifests,
        compared=tuple(sorted(set(golden) - differing)),
        differences=differences,
        conflicts=tuple(sorted(conflicts)),
        uncovered=tuple(sorted(set(values) - set(golden))),
    )
