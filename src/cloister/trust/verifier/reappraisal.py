"""Judging kept evidence again: which pods would fail under tomorrow's policy, collateral, reference values or date?

Each piece of kept evidence goes through `cloister.trust.verifier.service.judge`, the very code that judged it when it
came, with the binding of its session (nonce, guest key, init data, recovered credential), and with whatever inputs are
asked about. Nothing is written, and no token is made: an answer here releases nothing.

A pod renews its lease with fresh evidence, so that many results may be about one boot of one pod; the newest is the
one that counts (`newest_of_each`). Pure: evidence, inputs and the time come as arguments.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from cloister.errors import CloisterError, FormatRefused, Unavailable
from cloister.protocol.initdata import DIGEST_BYTES
from cloister.rats.result import Question, Severity, Tier
from cloister.trust.roles import AppraisalRequest, Undecided
from cloister.trust.store.evidence import BindingRecord, StoredEvidence
from cloister.trust.store.records import StoredFinding, stored_finding
from cloister.trust.verifier.collateral import CollateralSource
from cloister.trust.verifier.inputs import AppraisalInputs
from cloister.trust.verifier.service import appraisal_record, judge
from cloister.wire.canonicaljson import encode_canonical

NOT_KEPT: Final = "trust.verifier.reappraisal.not_kept"
_DAMAGED: Final = "trust.verifier.reappraisal.damaged"


class Outcome(enum.StrEnum):
    """What a verdict comes to, for a person who asks which pods fail."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNDECIDED = "undecided"  # what would decide it is not had
    UNKNOWN = "unknown"  # what is kept is not enough to judge it again


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingChange:
    """One check whose answer differs.

    Attributes:
        code: of the check.
        before: as it was found then; None when it was not made, or made in other words.
        after: as it is found now; None likewise.
    """

    code: str
    before: StoredFinding | None
    after: StoredFinding | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reappraisal:
    """One kept result, judged again.

    Attributes:
        attestation: id of the result.
        at: when it was judged.
        tee: technology.
        level: what it proved then.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data.
        before: the verdict of then.
        after: the verdict under the candidate.
        changes: the checks whose answers differ, failures first.
        remedy: what gets what is not had, where the verdict is open.
    """

    attestation: str
    at: datetime
    tee: str
    level: str
    instance: str
    init_data: str
    before: Outcome
    after: Outcome
    changes: tuple[FindingChange, ...]
    remedy: str = ""

    @property
    def fails(self) -> bool:
        """Whether a pod that was accepted would not be any more."""
        return self.before is Outcome.ACCEPTED and self.after is not Outcome.ACCEPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What kept evidence is to be judged by.

    Attributes:
        inputs: policy, roots, reference values, advisories.
        source: what vendors publish.
        at: aware UTC; may be in the future.
    """

    inputs: AppraisalInputs
    source: CollateralSource
    at: datetime


@dataclass(frozen=True, slots=True)
class _KeptDigest:
    """Init data by the digest that was kept; implements `cloister.trust.roles.MeasuredText`."""

    digest_text: str
    digest: bytes


def reappraise(kept: StoredEvidence, candidate: Candidate) -> Reappraisal:
    """Judge one piece of kept evidence by `candidate`.

    Raises:
        Unavailable: this build cannot verify the technology, in a way that no evidence is to blame for.
    """
    before = _outcome_of_tier(kept.record.tier)
    found: tuple[StoredFinding, ...]
    remedy = ""
    try:
        results = judge(_request(kept, candidate.at), candidate.inputs, candidate.source)
    except Undecided as err:
        after, remedy = Outcome.UNDECIDED, err.remedy
        found = tuple(stored_finding(finding) for finding in err.findings) or (_failure(err),)
    except CloisterError as err:
        after = Outcome.UNKNOWN if err.code in (NOT_KEPT, _DAMAGED) else Outcome.REFUSED
        if isinstance(err, Unavailable):
            after = Outcome.UNDECIDED
        found = (_failure(err),)
    else:
        judged = appraisal_record(kept.record.id, results)
        after, found = _outcome_of_tier(judged.tier), judged.findings
    return Reappraisal(
        attestation=kept.record.id,
        at=kept.record.at,
        tee=kept.record.tee,
        level=kept.record.level,
        instance=kept.record.instance,
        init_data=kept.record.init_data,
        before=before,
        after=after,
        changes=_changes(kept.record.findings, found),
        remedy=remedy,
    )


def newest_of_each(kept: Iterable[StoredEvidence]) -> list[StoredEvidence]:
    """Return the newest evidence of each boot of each pod, in order.

    A boot is known by chip or vTPM, init data and the guest's key, which is made anew at each start.
    """
    newest: dict[tuple[str, str, str, bytes], StoredEvidence] = {}
    for item in kept:
        record, binding = item.record, item.binding
        # Without a binding nobody can tell boots apart: each result stands for itself.
        key = encode_canonical(binding.runtime_data.tee_pubkey) if binding is not None else record.id.encode()
        newest[record.tee, record.instance, record.init_data, key] = item
    return sorted(newest.values(), key=lambda item: item.sequence)


def _request(kept: StoredEvidence, at: datetime) -> AppraisalRequest:
    if kept.binding is None:
        raise FormatRefused(
            NOT_KEPT,
            "what this evidence was bound to is not kept",
            hint="it was kept by an older version; the pod's next renewal can be judged again",
        )
    try:
        body: Any = msgspec.json.decode(kept.body)  # Any: JSON of the technology's own shape
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_DAMAGED, "kept evidence is not JSON", hint="restore a backup") from err
    return AppraisalRequest(
        tee=kept.record.tee,
        evidence=body,
        additional_evidence=kept.binding.additional_evidence,
        runtime_data=kept.binding.runtime_data,
        init_data=_digest_of(kept.binding),
        session_secret=kept.binding.session_secret,
        version=kept.binding.version,
        at=at,
    )


def _digest_of(binding: BindingRecord) -> _KeptDigest | None:
    """Return the digest of the init data that the guest sent, None when it sent none."""
    if not binding.init_data:
        return None
    algorithm, _, digits = binding.init_data.partition(":")
    try:
        digest = bytes.fromhex(digits)
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_BYTES.get(algorithm, -1):
        raise FormatRefused(_DAMAGED, "the kept digest of the init data is none", hint="restore a backup")
    return _KeptDigest(binding.init_data, digest)


def _outcome_of_tier(tier: str) -> Outcome:
    """Return what a tier means for a release: affirming and nothing else."""
    return Outcome.ACCEPTED if tier == Tier.AFFIRMING else Outcome.REFUSED


def _failure(err: CloisterError) -> StoredFinding:
    return StoredFinding(
        code=err.code,
        question=Question.AUTHENTIC.value,
        ok=False,
        message=err.message,
        expected=err.expected,
        actual=err.actual,
        hint=err.hint,
        path=err.path,
        severity=Severity.UNAVAILABLE.value if isinstance(err, Unavailable) else Severity.ERROR.value,
    )


def _changes(before: Sequence[StoredFinding], after: Sequence[StoredFinding]) -> tuple[FindingChange, ...]:
    """Return the checks whose answers differ: now failing, failing in another way, or failing no more.

    A check is known by code, place and how many of that code and place came before it. One that held then and was not
    made now is no change by itself: what stopped the verification is among the failures.
    """
    old, new = _numbered(before), _numbered(after)
    changes = []
    for key, finding in new.items():
        was = old.get(key)
        if _answer(was) != _answer(finding):
            changes.append(FindingChange(code=finding.code, before=was, after=finding))
    gone = [finding for key, finding in old.items() if key not in new and not finding.ok]
    changes += [FindingChange(code=finding.code, before=finding, after=None) for finding in gone]
    return tuple(sorted(changes, key=lambda change: change.after is None or change.after.ok))


def _numbered(findings: Sequence[StoredFinding]) -> dict[tuple[str, str, int], StoredFinding]:
    counts: dict[tuple[str, str], int] = {}
    numbered = {}
    for finding in findings:
        key = (finding.code, finding.path)
        counts[key] = counts.get(key, 0) + 1
        numbered[*key, counts[key]] = finding
    return numbered


def _answer(finding: StoredFinding | None) -> str:
    """Return what a finding comes to; a check that was not made comes to the same as one that held."""
    if finding is None or finding.ok:
        return ""
    return finding.severity or Severity.ERROR.value
