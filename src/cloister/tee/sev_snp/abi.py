"""Layout of ATTESTATION_REPORT, versions 2, 3 and 5: exactly 1184 bytes, little endian.

SEV-SNP Firmware ABI Specification (AMD 56860), table "ATTESTATION_REPORT"; sections 7.3 and 10 for the bit fields.
Version 3 adds the CPU's family, model and stepping, version 5 the mitigation vectors. Bytes that a version reserves
must be zero, or the same report could be read in two ways. The signature covers bytes 0 to 0x29F; what follows R and S
must be zero, so that no byte of a report is free. Pure; verifies no signature.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.limits import SNP_REPORT_BYTES

CODE: Final = "tee.sev_snp.report"
SIGNED_BYTES: Final = 0x2A0
REPORT_DATA_BYTES: Final = 64
HOST_DATA_BYTES: Final = 32
MEASUREMENT_BYTES: Final = 48
VERSIONS: Final = (2, 3, 5)
WITH_CPUID: Final = 3
WITH_MITIGATIONS: Final = 5
ECDSA_P384_SHA384: Final = 1
COMPONENT_BYTES: Final = 72  # of R and of S
P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
VCEK: Final = 0
VLEK: Final = 1

_POLICY_ONE: Final = 1 << 17  # reserved, must be one
_POLICY_KNOWN: Final = (1 << 26) - 1  # 25 is PAGE_SWAP_DISABLE, the last one defined
_KEY_INFO_KNOWN: Final = (1 << 5) - 1

_LAYOUT: Final = struct.Struct(
    "<"
    "IIQ16s16sII"  # 0x000 VERSION GUEST_SVN POLICY FAMILY_ID IMAGE_ID VMPL SIGNATURE_ALGO
    "8sQII"  # 0x038 CURRENT_TCB PLATFORM_INFO key information, reserved
    "64s48s32s48s48s32s32s"  # 0x050 REPORT_DATA MEASUREMENT HOST_DATA ID_KEY and AUTHOR_KEY digest, REPORT_ID (_MA)
    "8s3B21s"  # 0x180 REPORTED_TCB, CPUID family, model, stepping, reserved
    "64s8s4B4B8s"  # 0x1A0 CHIP_ID COMMITTED_TCB, CURRENT and COMMITTED build, minor, major, reserved, LAUNCH_TCB
    "QQ152s"  # 0x1F8 LAUNCH and CURRENT_MIT_VECTOR, reserved
    "72s72s368s"  # 0x2A0 R, S, reserved
)


@dataclass(frozen=True, slots=True)
class Report:
    """A report as it is laid out; nothing of it is verified. TCB versions stay bytes: their layout is the product's.

    Attributes:
        cpuid: family, model, stepping; None in version 2.
        current: firmware that runs: major, minor, build.
        committed: firmware that cannot be rolled back below: major, minor, build.
        launch_mitigations: LAUNCH_MIT_VECTOR, zero before version 5.
        current_mitigations: CURRENT_MIT_VECTOR, zero before version 5.
        r: of the signature.
        s: of the signature.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    key_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current: tuple[int, int, int]
    committed: tuple[int, int, int]
    launch_tcb: bytes
    launch_mitigations: int
    current_mitigations: int
    r: int
    s: int

    @property
    def signing_key(self) -> int:
        """`VCEK`, `VLEK`, 7 for none; others are undefined."""
        return self.key_info >> 2 & 7

    @property
    def debug(self) -> bool:
        """Whether the guest policy allows the host to read and alter the guest."""
        return bool(self.policy >> 19 & 1)

    @property
    def chip_id_masked(self) -> bool:
        """Whether the platform hides which chip it is."""
        return not any(self.chip_id)


# Names of PLATFORM_INFO bits; the others have none yet.
PLATFORM_BITS: Final = {
    "smt_enabled": 0,
    "tsme_enabled": 1,
    "ecc_enabled": 2,
    "rapl_disabled": 3,
    "ciphertext_hiding_enabled": 4,
    "alias_check_complete": 5,
    "iommu_write_safe": 6,
    "tio_enabled": 7,
}
# Names of POLICY bits.
POLICY_BITS: Final = {
    "policy_smt_allowed": 16,
    "policy_migrate_ma": 18,
    "policy_debug_allowed": 19,
    "policy_single_socket": 20,
    "policy_cxl_allowed": 21,
    "policy_mem_aes_256_xts": 22,
    "policy_rapl_dis": 23,
    "policy_ciphertext_hiding": 24,
    "policy_page_swap_disable": 25,
}


def parse_report(data: bytes) -> Report:
    """Parse an attestation report.

    Raises:
        FormatRefused: `tee.sev_snp.report.truncated`, `.trailing_bytes`, `.version`, `.algorithm`, `.malformed` (a
            reserved byte or bit), `.signature_range` (R or S is no number of the curve).
    """
    if len(data) < SNP_REPORT_BYTES:
        raise _wrong_length("truncated", "report is too short", len(data))
    if len(data) > SNP_REPORT_BYTES:
        raise _wrong_length("trailing_bytes", "bytes follow the end of the report", len(data))
    (
        version, guest_svn, policy, family_id, image_id, vmpl, algorithm,
        current_tcb, platform_info, key_info, reserved_key,
        report_data, measurement, host_data, id_key, author_key, report_id, report_id_ma,
        reported_tcb, family, model, stepping, reserved_cpuid,
        chip_id, committed_tcb, build, minor, major, reserved_current,
        committed_build, committed_minor, committed_major, reserved_committed, launch_tcb,
        launch_mitigations, current_mitigations, reserved_end, r_bytes, s_bytes, reserved_signature,
    ) = _LAYOUT.unpack(data)  # fmt: skip
    if version not in VERSIONS:
        raise FormatRefused(
            f"{CODE}.version",
            "version of the report is not one that is known",
            path="VERSION",
            expected=", ".join(map(str, VERSIONS)),
            actual=str(version),
        )
    if algorithm != ECDSA_P384_SHA384:
        raise FormatRefused(
            f"{CODE}.algorithm",
            "signature algorithm is not ECDSA P-384 with SHA-384",
            path="SIGNATURE_ALGO",
            expected=str(ECDSA_P384_SHA384),
            actual=str(algorithm),
        )
    if not policy & _POLICY_ONE or policy & ~_POLICY_KNOWN:
        raise _malformed("guest policy has bits that are not defined", "POLICY", f"{policy:#x}")
    if key_info & ~_KEY_INFO_KNOWN:
        raise _malformed("key information has bits that are not defined", "key information", f"{key_info:#x}")
    cpuid = (family, model, stepping)
    if version < WITH_CPUID and any(cpuid):
        raise _malformed("a reserved byte is not zero", "bytes 0x188 to 0x18A", bytes(cpuid).hex())
    if version < WITH_MITIGATIONS and (launch_mitigations or current_mitigations):
        raise _malformed("a reserved byte is not zero", "bytes 0x1F8 to 0x207", "mitigation vectors")
    if reserved_key or reserved_current or reserved_committed or (reserved_cpuid + reserved_end).strip(b"\0"):
        raise _malformed("a reserved byte is not zero", "reserved bytes", "a byte that is not zero")
    if reserved_signature.strip(b"\0"):
        raise _malformed("a byte after the signature is not zero", "bytes 0x330 to 0x49F", "a byte that is not zero")
    r, s = int.from_bytes(r_bytes, "little"), int.from_bytes(s_bytes, "little")
    if not (0 < r < P384_ORDER and 0 < s < P384_ORDER):
        raise FormatRefused(
            f"{CODE}.signature_range",
            "signature is no pair of numbers of the curve",
            path="SIGNATURE",
            expected="0 < R, S < order of P-384",
            hint="a platform that masks its chip key signs nothing",
        )
    return Report(
        version, guest_svn, policy, family_id, image_id, vmpl, algorithm, current_tcb, platform_info, key_info,
        report_data, measurement, host_data, id_key, author_key, report_id, report_id_ma, reported_tcb,
        cpuid if version >= WITH_CPUID else None, chip_id, committed_tcb, (major, minor, build),
        (committed_major, committed_minor, committed_build), launch_tcb, launch_mitigations, current_mitigations, r, s,
    )  # fmt: skip


def encode_report(report: Report) -> bytes:
    """Return the 1184 bytes of a report; the inverse of `parse_report`."""
    major, minor, build = report.current
    committed_major, committed_minor, committed_build = report.committed
    return _LAYOUT.pack(
        report.version, report.guest_svn, report.policy, report.family_id, report.image_id, report.vmpl,
        report.signature_algorithm, report.current_tcb, report.platform_info, report.key_info, 0,
        report.report_data, report.measurement, report.host_data, report.id_key_digest, report.author_key_digest,
        report.report_id, report.report_id_ma, report.reported_tcb, *(report.cpuid or (0, 0, 0)), bytes(21),
        report.chip_id, report.committed_tcb, build, minor, major, 0,
        committed_build, committed_minor, committed_major, 0, report.launch_tcb,
        report.launch_mitigations, report.current_mitigations, bytes(152),
        report.r.to_bytes(COMPONENT_BYTES, "little"), report.s.to_bytes(COMPONENT_BYTES, "little"), bytes(368),
    )  # fmt: skip


def _wrong_length(reason: str, message: str, length: int) -> FormatRefused:
    # The signature would still hold: it does not cover the end of the structure.
    return FormatRefused(f"{CODE}.{reason}", message, expected=f"{SNP_REPORT_BYTES} bytes", actual=f"{length} bytes")


def _malformed(message: str, path: str, actual: str) -> FormatRefused:
    return FormatRefused(f"{CODE}.malformed", message, path=path, expected="zero where reserved", actual=actual)
