"""Evidence in and out of any TEE: collect it where there is a device, verify it anywhere.

    from cloister.sdk import verify_evidence
    answer = verify_evidence(Path("report.bin"), platform="snp", report_data=expected, endorsements=[Path("vcek.der")])
    print(answer.verdict, [finding.code for finding in answer.findings if not finding.ok])

The edge around `cloister.tee.verification`: reads files, takes the time, finds the device; decides nothing. Without a
policy the strict default applies: no debug, no migration agent, VMPL 0, TCB status UpToDate only, revocation checked;
critical advisories and provisional firmware are warnings. Nothing is fetched: what the vendor offers comes in
`endorsements` and `collateral`, or leaves the verdict `unavailable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.rats.advisory import Advisory, parse_advisories
from cloister.rats.claims import Claims, Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy, parse_appraisal_policy
from cloister.rats.referenceset import read_reference_values
from cloister.rats.result import (
    AttestationResult,
    Examination,
    Finding,
    Unchecked,
    VerifiedEvidence,
)
from cloister.rats.rules import Handling
from cloister.tee.advisories import shipped_advisories
from cloister.tee.cca.endorsements import is_anchor_store, parse_cca_roots
from cloister.tee.collateral.bundle import BUNDLE_HEAD_BYTES, looks_like_bundle, parse_bundle
from cloister.tee.collateral.files import parse_trust_roots, sort_endorsement_files
from cloister.tee.collateral.load import Loaded, load
from cloister.tee.registry import authenticator_for, claims_reader_for, pins_for, reader_for
from cloister.tee.regopolicy import appraise_with_rego, looks_like_rego, parse_rego_policy
from cloister.tee.verification import appraise_evidence, examination_of, examine_with
from cloister.wire.limits import COLLATERAL_BUNDLE_BYTES, COLLATERAL_BYTES, COLLATERAL_DOCUMENTS, EVIDENCE_FILE_BYTES

PLATFORMS: Final = {
    "snp": "snp",
    "tdx": "tdx",
    "sgx": "sgx",
    "tpm": "tpm",
    "az-snp-vtpm": "az-snp-vtpm",
    "az-tdx-vtpm": "az-tdx-vtpm",
    "nitro": "nitro",
    "cca": "cca",
    "nvidia": "nvidia",
    "simulated": "cloister-simulated",
    "sample": "sample",
    "csv": "csv",
    "se": "se",
}
_NO_FILE: Final = "sdk.evidence.file"
_LEAST_BOUND, _MOST_BOUND, _SIMULATED = 32, 64, 48  # bytes
_NO_NONCE: Final = Unchecked(reason="no nonce and no report data were given to compare with")
_NO_INIT_DATA: Final = Unchecked(reason="no init data was given to compare with")
_NO_REFERENCE: Final = Unchecked(reason="no reference values were given")

Source = bytes | Path


def verify_evidence(
    evidence: Source,
    *,
    platform: str,
    nonce: bytes | None = None,
    report_data: bytes | None = None,
    init_data: bytes | None = None,
    endorsements: Sequence[Source] = (),
    collateral: Sequence[Source] = (),
    trust_roots: Sequence[Source] = (),
    policy: Source | None = None,
    reference: Source | None = None,
    advisories: Source | None = None,
    insecure_no_revocation: bool = False,
    at: datetime | None = None,
) -> Examination:
    """Answer the three questions about evidence: authentic, bound, acceptable.

    Args:
        evidence: raw bytes, or a file: the raw evidence or the JSON a guest sends.
        platform: one of `PLATFORMS`; evidence of another technology is refused.
        nonce: exact freshness bytes of TPM, Azure, Nitro, SPDM, CCA evidence.
        report_data: the 64 bytes of SNP, TDX, SGX evidence; the same argument by another name.
        init_data: raw value of the field or register that holds the init data.
        endorsements: certificates that are not trusted by being given (VCEK, ARK and ASK, device chains).
        collateral: vendor statements: DCAP collateral, CRLs, OCSP responses, RIMs; a directory stands for its files.
        trust_roots: extra roots: certificates, or raw keys where a technology has those.
        policy: appraisal policy (TOML or JSON), or a Rego policy as CoCo's attestation service takes it; the strict
            default without.
        reference: reference values (JSON); without, that measurements are not checked is a warning. For a Rego policy
            the JSON object of values by name.
        advisories: a newer table of advisories (TOML).
        insecure_no_revocation: accept evidence whose revocation could not be checked.
        at: aware time of the verification; now without.

    Raises:
        Refused: no such platform (`sdk.evidence.platform`), or both nonce and report data.
        Unavailable: a file cannot be read (`sdk.evidence.file`).
    """
    tee = tee_of(platform)
    if nonce is not None and report_data is not None:
        raise Refused(
            "sdk.evidence.freshness",
            "a nonce and report data were given, and evidence has only one such field",
            expected="one of them",
            hint="TPM, Azure, Nitro, NVIDIA and CCA evidence have a nonce; SNP, TDX and SGX have report data",
        )
    expected = nonce if nonce is not None else report_data
    binding = ExpectedBinding(
        report_data=_NO_NONCE if expected is None else expected,
        init_data_digest=_NO_INIT_DATA if init_data is None else init_data,
        exact=True,
    )
    form, moment = "unknown form", at or datetime.now(UTC)
    try:
        trusted = _endorsements(tee, endorsements, collateral, trust_roots)
        table = shipped_advisories() if advisories is None else parse_advisories(_read(advisories, COLLATERAL_BYTES))
        base, judge = _judge(tee, policy, reference, table, moment, insecure_no_revocation=insecure_no_revocation)
        found = reader_for(tee)(_read(evidence, EVIDENCE_FILE_BYTES), tee=tee)
        form, item = found.form, Evidence(tee=tee, body=found.body)
        trusted = replace(trusted, grace=base.grace)
        answer = examine_with(authenticator_for(tee), item, binding, trusted, judge, at=moment)
    except (Refused, Unavailable) as err:
        if err.code == _NO_FILE:
            raise
        answer = examination_of(err, binding)
    return replace(answer, form=form)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What evidence says, verified or not.

    Attributes:
        form: what the file was.
        claims: None when it does not even parse.
        findings: checks of authenticity that were made.
        problem: why it is not authentic; None when it is.
    """

    form: str
    claims: Claims | None
    findings: tuple[Finding, ...]
    problem: CloisterError | None


def describe_file(
    evidence: Source,
    *,
    platform: str,
    endorsements: Sequence[Source] = (),
    collateral: Sequence[Source] = (),
    trust_roots: Sequence[Source] = (),
    at: datetime,
) -> Described:
    """Return what evidence says, for people to look at; nothing may be decided by it.

    Raises:
        Refused: no such platform.
        Unavailable: a file cannot be read.
    """
    tee = tee_of(platform)
    form, claims = "unknown form", None
    try:
        found = reader_for(tee)(_read(evidence, EVIDENCE_FILE_BYTES), tee=tee)
        form, item = found.form, Evidence(tee=tee, body=found.body)
        claims = claims_reader_for(tee)(item).claims
        trusted = _endorsements(tee, endorsements, collateral, trust_roots)
        authentic = authenticator_for(tee)(item, trusted, at=at)
    except (Refused, Unavailable) as err:
        if err.code == _NO_FILE:
            raise
        return Described(form=form, claims=claims, findings=(), problem=err)
    return Described(form=form, claims=authentic.claims, findings=authentic.findings, problem=None)


def tee_of(platform: str) -> str:
    """Return the wire name of a platform as users name it.

    Raises:
        Refused: unknown (`sdk.evidence.platform`).
    """
    if platform not in PLATFORMS:
        raise Refused(
            "sdk.evidence.platform",
            "no such platform",
            path="platform",
            expected=", ".join(PLATFORMS),
            actual=platform[:40],
            hint="name the technology the evidence is of",
        )
    return PLATFORMS[platform]


def strict_policy(tee: str, *, insecure_no_revocation: bool = False) -> AppraisalPolicy:
    """Return the policy that applies when none is given.

    It takes the word of whoever names the platform for the level: a vTPM is `measured` and accepted as that, a
    simulation never.
    """
    return AppraisalPolicy(
        id="strict",
        tees=frozenset({tee}),
        levels=frozenset({Level.HARDWARE, Level.MEASURED}),
        accept_debug=False,
        digest="",
        advisories=Handling.WARN,
        accept_unchecked_revocation=insecure_no_revocation,
    )


Judge = Callable[[VerifiedEvidence], AttestationResult]


def _judge(
    tee: str,
    policy: Source | None,
    reference: Source | None,
    advisories: Sequence[Advisory],
    at: datetime,
    *,
    insecure_no_revocation: bool,
) -> tuple[AppraisalPolicy, Judge]:
    """Return the typed policy, and how verified evidence is judged: by it, or by a Rego policy on top of it."""
    base = strict_policy(tee, insecure_no_revocation=insecure_no_revocation)
    text = b"" if policy is None else _read(policy, COLLATERAL_BYTES)
    values = b"" if reference is None else _read(reference, COLLATERAL_BYTES)
    if looks_like_rego(text):
        rego = parse_rego_policy(text, values or b"{}")
        return base, lambda verified: appraise_with_rego(
            verified, rego, base, init_data_digest="", at=at, input_claims={}, advisories=advisories
        )
    if policy is not None:
        base = parse_appraisal_policy(text)
        base = replace(base, accept_unchecked_revocation=base.accept_unchecked_revocation or insecure_no_revocation)
    if base.rego:
        own = parse_rego_policy(base.rego.encode(), values or b"{}")
        return base, lambda verified: appraise_with_rego(
            verified, own, base, init_data_digest="", at=at, input_claims={}, advisories=advisories
        )
    references = read_reference_values(values) if reference is not None else _NO_REFERENCE
    return base, lambda verified: appraise_evidence(
        verified, base, references, init_data_digest="", at=at, advisories=advisories
    )


def _endorsements(
    tee: str, endorsements: Sequence[Source], collateral: Sequence[Source], trust_roots: Sequence[Source]
) -> Endorsements:
    files = [*_files(endorsements), *_files(collateral)]
    given = sort_endorsement_files([(name, data) for name, data in files if not looks_like_bundle(data)])
    bundled = _bundled([(name, data) for name, data in files if looks_like_bundle(data)])
    # Anchors of CCA may come in a store that names the platform of each; everything else is read the same for all.
    stores, others = _split_stores(_files(trust_roots)) if tee == PLATFORMS["cca"] else ([], _files(trust_roots))
    named = parse_trust_roots(tee, _root_level(tee), others)
    anchors = [parse_cca_roots(data, level=_root_level(tee), origin=origin) for origin, data in stores]
    return Endorsements(
        roots=(*named.roots, *chain.from_iterable(anchors)),
        pins=pins_for(tee),
        certificates=(*given.certificates, *named.certificates, *bundled.certificates),
        revocation_lists=(*given.revocation_lists, *bundled.revocation_lists),
        documents=(*given.documents, *bundled.documents),
    )


def _split_stores(files: list[tuple[str, bytes]]) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    stores = [item for item in files if is_anchor_store(item[1])]
    return stores, [item for item in files if item not in stores]


def _bundled(files: Sequence[tuple[str, bytes]]) -> Loaded:
    """Return what bundles of collateral hold; their age is the verifier's to judge, at the time of verification."""
    now = datetime.now(UTC)
    entries = {entry.item: entry for name, data in files for entry in parse_bundle(data, at=now, origin=name)}
    return load(tuple(entries), entries.get)


def _root_level(tee: str) -> Level:
    """Return what a root that a user names by hand proves: a TPM's maker does not keep the machine's root out."""
    if tee == PLATFORMS["simulated"]:
        return Level.SIMULATED
    return Level.MEASURED if tee == "tpm" else Level.HARDWARE


def _files(sources: Sequence[Source]) -> list[tuple[str, bytes]]:
    """Return name and bytes of every file; a directory stands for the files in it, in order of their names."""
    found: list[tuple[str, bytes]] = []
    for number, source in enumerate(sources):
        if isinstance(source, bytes):
            found.append((f"given {number}", source))
            continue
        paths = sorted(item for item in source.iterdir() if item.is_file()) if source.is_dir() else [source]
        found.extend((str(path), _read(path, _ceiling_of(path))) for path in paths)
        if len(found) > COLLATERAL_DOCUMENTS:
            raise Refused(
                "sdk.evidence.too_many_files",
                "more files than any evidence needs",
                path=str(source),
                expected=f"at most {COLLATERAL_DOCUMENTS}",
                actual=str(len(found)),
            )
    return found


def _ceiling_of(path: Path) -> int:
    """Return how much of a file to read: a bundle holds many documents."""
    return COLLATERAL_BUNDLE_BYTES if looks_like_bundle(_read(path, BUNDLE_HEAD_BYTES)) else COLLATERAL_BYTES


def _read(source: Source, ceiling: int) -> bytes:
    """Return the bytes of a source; one more than `ceiling` at most, so that the reader's own ceiling refuses it."""
    if isinstance(source, bytes):
        return source
    try:
        with source.open("rb") as file:
            return file.read(ceiling + 1)
    except OSError as err:
        raise Unavailable(_NO_FILE, f"cannot read: {err.strerror}", path=str(source)) from err


def attest(report_data: bytes, *, platform: str = "", root: Path = Path("/")) -> tuple[str, dict[str, Any]]:
    """Collect evidence of this machine that binds `report_data`.

    Args:
        report_data: what to bind, 32 to 64 bytes. A technology with a shorter field cuts it, one with a longer field
            pads it with zeros on the right, as CoCo's guests do.
        platform: one of `PLATFORMS`; the first whose device is here, without.
        root: where the device tree begins, for tests.

    Returns:
        The platform, and the evidence as the JSON object a guest sends. Which device was found says nothing about
        trust: only verification does.

    Raises:
        Refused: no such platform, or data of another length (`sdk.evidence.*`).
        Unavailable: no TEE device here, or it does not answer (`sdk.evidence.no_device`, `tee.*`).
    """
    from cloister.sdk.devices import detect_platform, open_attester

    if not _LEAST_BOUND <= len(report_data) <= _MOST_BOUND:
        raise Refused(
            "sdk.evidence.report_data",
            "report data of another length",
            expected=f"{_LEAST_BOUND} to {_MOST_BOUND} bytes",
            actual=str(len(report_data)),
            hint="bind a digest over your nonce and key: 32 bytes and more cannot be guessed",
        )
    chosen = platform or detect_platform(root)
    tee = tee_of(chosen)
    if tee == PLATFORMS["simulated"]:
        report_data = report_data.ljust(_SIMULATED, b"\0")[:_SIMULATED]
    with open_attester(chosen, root) as attester:
        return chosen, attester.attest(report_data, b"")
