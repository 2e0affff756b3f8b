"""Whether an image is accepted, and why: one walk over its signatures gives the verdict and the explanation.

Every requirement must be fulfilled by at least one signature (`policy.json` ANDs them); a signature may be over the
manifest itself or over the index that names the manifest by digest. Each signature that does not count has its exact
reason, under a code of the catalogue; none spoils another. The bytes that were judged are in the result: nothing is
fetched again. Pure; trusts the requirements it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from cloister.errors import ImageRefused, Refused
from cloister.oci.digest import Digest
from cloister.oci.manifest import parse_index, parse_manifest
from cloister.oci.signing.referred import NOTATION_COSE, EnvelopeCandidate
from cloister.oci.signing.requirements import AnyCandidate, OpenPGPCandidate, RejectRequirement, Requirement, Signer
from cloister.oci.signing.simplesigning import SignatureCandidate
from cloister.oci.signing.verify import VerifiedManifest, accept_evaluated
from cloister.oci.store import StoredManifest


class ImageBytes(msgspec.Struct, frozen=True):
    """A manifest and, where it was reached through one, the index that names it: each fetched once.

    Raises:
        ImageRefused: `oci.signing.not_in_index`.
    """

    manifest: StoredManifest
    index: StoredManifest | None = None

    def __post_init__(self) -> None:
        if self.index is None:
            return
        digest = Digest.of(self.manifest.raw)
        entries = parse_index(self.index.raw, media_type=self.index.media_type).manifests
        if digest not in [entry.digest for entry in entries]:
            raise ImageRefused("oci.signing.not_in_index", "index does not name the manifest", actual=str(digest))

    @property
    def artifacts(self) -> tuple[bytes, ...]:
        """What may be signed."""
        return (self.manifest.raw,) if self.index is None else (self.manifest.raw, self.index.raw)


class FoundSignature(msgspec.Struct, frozen=True):
    """A signature and the manifest or index it was found for."""

    candidate: AnyCandidate
    artifact: bytes


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one signature under one requirement; `code` is empty for one that counts."""

    place: str
    form: str
    subject: str
    signer: str = ""
    signed_at: datetime | None = None
    code: str = ""
    reason: str = ""


class RequirementResult(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement and what every signature was to it."""

    requirement: str
    fulfilled: bool
    findings: tuple[Finding, ...]
    enforced: bool
    rejects: bool = False


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict with its explanation; `manifest` is there exactly when the image is accepted.

    Attributes:
        digest: of the manifest that was judged.
        results: one per requirement; empty when nothing was required.
        manifest: the verified bytes.
    """

    digest: Digest
    results: tuple[RequirementResult, ...]
    manifest: VerifiedManifest | None

    @property
    def proved(self) -> bool:
        """Whether somebody's signature made the verdict: an image may be accepted because nothing was required."""
        return self.manifest is not None and any(result.enforced for result in self.results)

    def require(self) -> VerifiedManifest:
        """Return the verified manifest.

        Raises:
            ImageRefused: `oci.signing.unsigned`, `oci.signing.rejected`, `oci.signing.no_valid_signature`.
        """
        if self.manifest is not None:
            return self.manifest
        missing = next(result for result in self.results if not result.fulfilled)
        if missing.rejects:
            raise ImageRefused("oci.signing.rejected", "policy rejects every image of this name")
        if not missing.findings:
            raise ImageRefused(
                "oci.signing.unsigned", "image has no signature", expected=missing.requirement[:300], actual="none"
            )
        raise ImageRefused(
            "oci.signing.no_valid_signature",
            "no signature of the image is good",
            expected=missing.requirement[:300],
            actual="; ".join(f"{item.place}: {item.code}" for item in missing.findings)[:1000],
        )


def evaluate(
    image: ImageBytes,
    found: Sequence[FoundSignature],
    requirements: Sequence[Requirement],
    *,
    now: datetime,
    not_before: datetime | None = None,
) -> Evaluation:
    """Judge an image.

    Args:
        image: the bytes.
        found: every signature that was found for them.
        requirements: what must be fulfilled; an empty list (`insecureAcceptAnything` only) accepts.
        now: aware time.
        not_before: aware time; older signatures, and those of which nobody says when they were made, do not count.

    Raises:
        ImageRefused: `not_before` is given and nothing is required that has a time (`oci.signing.age.unproved`).
    """
    if not_before is not None and not any(requirement.enforces for requirement in requirements):
        raise ImageRefused(
            "oci.signing.age.unproved",
            "nothing that is required proves anything, so that nothing says how old it is",
            expected="a requirement of a signature",
            actual="; ".join(requirement.text for requirement in requirements)[:300] or "every image is accepted",
        )
    manifest = parse_manifest(image.manifest.raw, media_type=image.manifest.media_type)
    results = tuple(_result(image, found, requirement, now, not_before) for requirement in requirements)
    if not all(result.fulfilled for result in results):
        return Evaluation(digest=manifest.digest, results=results, manifest=None)
    signers = [next(item.signer for item in result.findings if not item.code) for result in results]
    verified = accept_evaluated(manifest, "; ".join(signers) or "nobody was asked for")
    return Evaluation(digest=manifest.digest, results=results, manifest=verified)


def _result(
    image: ImageBytes,
    found: Sequence[FoundSignature],
    requirement: Requirement,
    now: datetime,
    not_before: datetime | None,
) -> RequirementResult:
    findings = tuple(_finding(image, item, requirement, now, not_before) for item in found)
    fulfilled = any(not finding.code for finding in findings)
    rejects = isinstance(requirement, RejectRequirement)
    return RequirementResult(
        requirement=requirement.text,
        fulfilled=fulfilled,
        findings=findings,
        enforced=requirement.enforces,
        rejects=rejects,
    )


def _finding(
    image: ImageBytes, found: FoundSignature, requirement: Requirement, now: datetime, not_before: datetime | None
) -> Finding:
    candidate = found.candidate
    of_index = image.index is not None and found.artifact == image.index.raw
    about = Finding(
        place=candidate.place,
        form=form_of(candidate),
        subject=f"{'index' if of_index else 'manifest'} {Digest.of(found.artifact)}",
    )
    if found.artifact not in image.artifacts:
        raise RuntimeError("a signature of other bytes than the image's")
    try:
        signer = requirement.judge(candidate, found.artifact, now)
        if not_before is not None:
            _require_age(signer, not_before)
        return msgspec.structs.replace(about, signer=signer.name, signed_at=signer.signed_at)
    except Refused as err:
        detail = f": expected {err.expected or 'nothing'}, got {err.actual or 'nothing'}"
        reason = err.message + (detail if err.expected or err.actual else "")
        return msgspec.structs.replace(about, code=err.code, reason=reason[:600])


def _require_age(signer: Signer, not_before: datetime) -> None:
    expected = f"not before {not_before.isoformat(timespec='seconds')}"
    if signer.signed_at is None:
        raise ImageRefused(
            "oci.signing.age.unknown", "nobody who is trusted says when the signature was made", expected=expected
        )
    if signer.signed_at < not_before:
        raise ImageRefused(
            "oci.signing.age.too_old",
            "signature is older than is accepted",
            expected=expected,
            actual=signer.signed_at.isoformat(timespec="seconds"),
        )


def form_of(candidate: AnyCandidate) -> str:
    """Return the name of a signature's format."""
    if isinstance(candidate, SignatureCandidate):
        return "cosign"
    if isinstance(candidate, OpenPGPCandidate):
        return "simple-signing"
    if isinstance(candidate, EnvelopeCandidate):
        return "notation-cose" if candidate.media_type == NOTATION_COSE else "notation-jws"
    return "bundle"
