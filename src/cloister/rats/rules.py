"""What an owner may demand of a platform, one section per technology: the typed part of an appraisal policy.

A type catalogue: no code. Every default is the strict one; what weakens it begins with `insecure_`. The findings are
made by `cloister.tee.<tech>.appraisal`, one per rule, with the value found.
"""

from __future__ import annotations

import enum

import msgspec


class Handling(enum.StrEnum):
    """What a finding that is not a fault by itself means for the verdict."""

    ACCEPT = "accept"
    WARN = "warn"
    REFUSE = "refuse"


class SNPRules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """AMD SEV-SNP.

    Attributes:
        vmpls: privilege levels the report may come from; 0 is the guest's most privileged.
        insecure_accept_migration_agent: accept guests whose memory a migration agent may take elsewhere.
        migration_agents: accepted migration agents, by report id, hex.
        accept_smt: accept simultaneous multithreading.
        require_single_socket: refuse guests that may span sockets.
        require_chip_id: refuse reports with a masked chip id.
        minimum_abi: least firmware ABI, `[major, minor]`.
        minimum_guest_svn: least security version of the guest.
        minimum_tcb: least version by component (`fmc`, `bootloader`, `tee`, `snp`, `microcode`), for the reported,
            the current and the committed TCB.
        minimum_launch_tcb: the same for the TCB the guest was started under.
        required_mitigations: bits that the launch mitigation vector must have (report version 5).
        required_current_mitigations: the same for the mitigation vector of now.
        provisional_firmware: what firmware that runs but is not committed means.
        platform_info: states of the platform that are demanded, by name (`alias_check_complete`, `tsme_enabled`).
        signing_keys: kinds of key accepted (`VCEK`, `VLEK`); empty accepts both.
        products: product lines accepted (`Milan`, `Genoa`, `Turin`); empty accepts all known.
        id_key_digests: accepted digests of the ID key, hex; empty asks for none.
        author_key_digests: accepted digests of the author key, hex; empty asks for none.
    """

    vmpls: tuple[int, ...] = (0,)
    insecure_accept_migration_agent: bool = False
    migration_agents: tuple[str, ...] = ()
    accept_smt: bool = True
    require_single_socket: bool = False
    require_chip_id: bool = False
    minimum_abi: tuple[int, int] = (0, 0)
    minimum_guest_svn: int = 0
    minimum_tcb: dict[str, int] = msgspec.field(default_factory=dict)
    minimum_launch_tcb: dict[str, int] = msgspec.field(default_factory=dict)
    required_mitigations: int = 0
    required_current_mitigations: int = 0
    provisional_firmware: Handling = Handling.WARN
    platform_info: dict[str, bool] = msgspec.field(default_factory=dict)
    signing_keys: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    id_key_digests: tuple[str, ...] = ()
    author_key_digests: tuple[str, ...] = ()


class TDXRules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Intel TDX.

    Attributes:
        tcb_statuses: accepted words of Intel for the platform's TCB; `Revoked` is never accepted.
        insecure_accept_sept_ve: accept TDs that the host can interrupt by unmapped pages (SEPT_VE_DISABLE clear).
        insecure_accept_migration: accept TDs that may be migrated.
        minimum_evaluation_number: least `tcbEvaluationDataNumber` of the collateral.
        denied_advisories: advisories that refuse although the status is accepted.
        mr_signer_seams: accepted signers of the TDX module, hex; empty accepts Intel's (all zero).
        mr_service_tds: accepted service TDs, hex; empty accepts none (all zero).
    """

    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    insecure_accept_sept_ve: bool = False
    insecure_accept_migration: bool = False
    minimum_evaluation_number: int = 0
    denied_advisories: tuple[str, ...] = ()
    mr_signer_seams: tuple[str, ...] = ()
    mr_service_tds: tuple[str, ...] = ()


class SGXRules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Intel SGX.

    Attributes:
        tcb_statuses: accepted words of Intel for the platform's TCB; `Revoked` is never accepted.
        minimum_evaluation_number: least `tcbEvaluationDataNumber` of the collateral.
        denied_advisories: advisories that refuse although the status is accepted.
        minimum_isv_svn: least security version of the enclave.
        insecure_accept_provisioning_key: accept enclaves that may derive the provisioning key.
    """

    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    minimum_evaluation_number: int = 0
    denied_advisories: tuple[str, ...] = ()
    minimum_isv_svn: int = 0
    insecure_accept_provisioning_key: bool = False


class TPMRules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """TPM 2.0.

    Attributes:
        require_event_log: refuse evidence without a log that replays to the quoted registers.
        minimum_firmware_version: least firmware version of the TPM, as it reports it.
        insecure_accept_empty_nonce: accept quotes that were made without a nonce.
    """

    require_event_log: bool = False
    minimum_firmware_version: int = 0
    insecure_accept_empty_nonce: bool = False


class AzureRules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Azure confidential VMs (paravisor and vTPM); the sections `snp` or `tdx` apply besides.

    Attributes:
        console: what an enabled serial console means.
        require_secure_boot: refuse VMs without secure boot.
        sept_ve: what a TD without SEPT_VE_DISABLE means; Azure has no others.
        require_fresh_hardware: refuse a hardware report that was not made for the nonce, but only the quote.
        insecure_accept_empty_nonce: accept quotes that were made without a nonce.
    """

    console: Handling = Handling.WARN
    require_secure_boot: bool = False
    sept_ve: Handling = Handling.WARN
    require_fresh_hardware: bool = False
    insecure_accept_empty_nonce: bool = False


class NitroRules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """AWS Nitro Enclaves.

    Attributes:
        longest_age_seconds: how old the document's own timestamp may be.
    """

    longest_age_seconds: int = 3 * 3600


class CCARules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Arm CCA.

    Attributes:
        platform_profiles: accepted profiles; empty accepts all known.
        insecure_accept_unsecured: accept platforms outside the `secured` lifecycle.
    """

    platform_profiles: tuple[str, ...] = ()
    insecure_accept_unsecured: bool = False


class NVIDIARules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """NVIDIA GPUs and switches.

    Attributes:
        missing_reference: what a device without its driver and VBIOS reference manifests means.
        driver_versions: accepted drivers; empty accepts all.
        vbios_versions: accepted VBIOS versions; empty accepts all.
    """

    missing_reference: Handling = Handling.WARN
    driver_versions: tuple[str, ...] = ()
    vbios_versions: tuple[str, ...] = ()


class PlatformRules(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The sections of an appraisal policy, by technology."""

    snp: SNPRules = SNPRules()
    tdx: TDXRules = TDXRules()
    sgx: SGXRules = SGXRules()
    tpm: TPMRules = TPMRules()
    azure: AzureRules = AzureRules()
    nitro: NitroRules = NitroRules()
    cca: CCARules = CCARules()
    nvidia: NVIDIARules = NVIDIARules()
