"""Evidence on its way through verification: as received, what it must be bound to, and once it is authentic.

Binding is judged in one place (`cloister.rats.binding`), from the two fields every technology names here: what a
verifier does not report cannot be compared, so none can forget to compare it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cloister.rats.claims import Claims
from cloister.rats.result import Finding, Unchecked

if TYPE_CHECKING:
    from cloister.rats.reference import ReferenceEntry  # nothing a guest needs

_REGISTER_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence of one technology, not yet verified.

    Attributes:
        tee: wire name of the technology.
        body: the JSON object the attester sent, in the shape CoCo's attester for that technology sends.
    """

    tee: str
    body: Mapping[str, Any]  # Any: untrusted JSON, typed by the technology's own parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A field of evidence that holds what the evidence is bound to.

    Attributes:
        name: the specification's name (`REPORT_DATA`, `MRCONFIGID`, `PCR 8`).
        value: what it holds.
        size: bytes the field always has; a shorter digest is padded with zeros on the right. None when the field has
            the length of what was put in.
        padded: whether a shorter digest is padded; otherwise it does not fit.
        cut: whether a longer digest is cut to `size`; otherwise it does not fit.
        extended: whether it is a register: it then holds SHA-256 over 32 zero bytes and the digest.
        path: place in the evidence.
        insecure_unchecked: why the field is not compared although a value is expected; only for evidence that nobody
            signed, where a comparison would prove nothing.
    """

    name: str
    value: bytes
    size: int | None = None
    padded: bool = True
    cut: bool = False
    extended: bool = False
    path: str = ""
    insecure_unchecked: str = ""

    def fit(self, digest: bytes) -> bytes | None:
        """Return what the field holds when `digest` was put in, None when that digest does not fit.

        An empty digest fits nowhere: nothing is bound by nothing.
        """
        if not digest:
            return None
        if self.extended:
            if len(digest) != _REGISTER_BYTES:
                return None
            return hashlib.sha256(bytes(_REGISTER_BYTES) + digest).digest()
        if self.size is None:
            return digest
        if (len(digest) > self.size and not self.cut) or (len(digest) < self.size and not self.padded):
            return None
        return digest[: self.size].ljust(self.size, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedBinding:
    """What evidence must be bound to, computed by the verifier from its own session state.

    Attributes:
        report_data: digest over nonce, TEE key and additional evidence (48 bytes, SHA-384), to be fitted to the
            technology's field; or why it is not asked for.
        init_data_digest: digest of the init data text, by the algorithm the text names; or why it is not asked for.
        session_secret: what credential activation must have recovered; empty where the technology has no activation.
        exact: the two values are the whole content of the fields, not digests to be fitted.
    """

    report_data: bytes | Unchecked
    init_data_digest: bytes | Unchecked
    session_secret: bytes = b""
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedClaims:
    """What evidence says before anybody checked who signed it: for people to look at, never to decide by."""

    claims: Claims


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticEvidence:
    """Evidence whose signature chain a `cloister.tee.*.verifier` verified; not yet known to be of this session.

    Attributes:
        claims: what it says.
        findings: every check of authenticity; none refuses, because one that does raises instead.
        unchecked: what was deliberately not checked.
        freshness: the field that holds the nonce, or the digest over nonce and key.
        init_data: the field that holds the init data digest; None when the technology has none.
        facts: what the technology's own appraisal rules judge, typed by its package.
    """

    claims: Claims
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]
    freshness: Slot
    init_data: Slot | None
    facts: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticDevice:
    """One device of evidence that holds several, authentic and not yet known to be of this session.

    Attributes:
        kind: class of the device, which names its submodule (`gpu`, `switch`).
        evidence: what it says; its facts know all devices that were attested with it.
        references: what its vendor publishes that it may run, from signed statements that were verified with it; empty
            when not all that is needed was given.
    """

    kind: str
    evidence: AuthenticEvidence
    references: tuple[ReferenceEntry, ...] = ()
