"""What every evidence verifier must refuse, tried on any of them: the contract of `cloister.tee.*.verifier`.

A verifier is handed one good piece of evidence and then the same with one thing changed at a time. `violations` lists
every change it let pass, every refusal without a code of its own area, and every exception that is no refusal. A
verifier that reports another nonce, other init data or other roots than the evidence has cannot come through, nor one
that forgets debug, revocation or the age of its collateral.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from cloister.errors import EvidenceError, Refused
from cloister.rats.binding import INIT_DATA
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy, appraise
from cloister.rats.result import AttestationResult, Finding, Question, Unchecked, Verdict, VerifiedEvidence
from cloister.tee.registry import Authenticate, appraiser_for
from cloister.tee.verification import examine_with, verify_with
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import KBS_REQUEST_BYTES

# What a careless parser lets out. Any other exception that is no refusal leaves `violations` itself, as loudly.
_ESCAPES: Final = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, Warning)
_WRONG_TYPES: Final[tuple[Any, ...]] = (None, 7, 1.5, True, "?", ["x"], {"x": "y"})
_BOUND_BYTES: Final = 32  # an SPDM nonce, the shortest there is
_BINDING_CODES: Final = "evidence."
HEX: Final = "hex"
BASE64URL: Final = "base64url"
_URL_SAFE: Final = str.maketrans("+/", "-_")
_STANDARD: Final = str.maketrans("-_", "+/")
NO_INIT_DATA: Final = f"{INIT_DATA}.not_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A piece of evidence, or its surroundings, that must not be accepted although its signature is good.

    Attributes:
        code: of the finding that says so.
        verdict: what it must come to.
        evidence: that of the case when absent.
        endorsements: those of the case when absent.
        at: the time of the case when absent.
    """

    code: str
    verdict: Verdict = Verdict.REFUSE
    evidence: Evidence | None = None
    endorsements: Endorsements | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractCase:
    """One good piece of evidence of a technology, and what surrounds it.

    Attributes:
        evidence: accepted with the next three.
        binding: what it is bound to; `Unchecked` init data where the technology has no field for it.
        endorsements: who endorses it.
        at: when.
        level: what its root proves.
        foreign: roots of the same technology and names, but other keys.
        code_prefix: what every refusal's code begins with.
        codes: exact code for each named change; `CHANGES` lists the names.
        binary_members: dotted paths of binary members, in base64 where `encodings` does not say otherwise; a number
            stands for an item of a list.
        encodings: `hex`, or `base64url` with padding, by path.
        unauthenticated: those of them in which a flipped bit or a trailing zero may go unnoticed, because nothing is
            read from there; their own tests flip the rest.
        optional: members that may be left out, or null.
        labels: members that only say what another one is, and that nothing is decided by.
        padded: binary members behind which zeros are padding; other bytes there must not be accepted, by verification
            or by the strict default policy.
        variants: for each of `VARIANTS`, the piece that must not be accepted, or why there cannot be one.
    """

    evidence: Evidence
    binding: ExpectedBinding
    endorsements: Endorsements
    at: datetime
    level: Level
    foreign: Endorsements
    code_prefix: str
    codes: Mapping[str, str]
    binary_members: tuple[str, ...]
    encodings: Mapping[str, str] = field(default_factory=dict)
    unauthenticated: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    padded: frozenset[str] = frozenset()
    variants: Mapping[str, Variant | str] = field(default_factory=dict)


CHANGES: Final = (
    "other_report_data",
    "no_report_data",
    "other_init_data",
    "no_init_data",
    "long_init_data",
    "no_roots",
    "foreign_roots",
    "roots_of_another_technology",
    "another_technology",
    "unknown_member",
)


VARIANTS: Final = ("debug", "stale", "revoked")


def violations(authenticate: Authenticate, case: ContractCase) -> list[str]:
    """Return every way in which a verifier breaks the contract; empty when it keeps it."""
    return list(find_violations(authenticate, case))


def find_violations(authenticate: Authenticate, case: ContractCase) -> Iterator[str]:
    """Yield the same one by one, the cheap trials first."""
    given = copy.deepcopy(dict(case.evidence.body))
    yield from _check_accepts(authenticate, case)
    yield from _check_variants(authenticate, case)
    for name, (evidence, binding, endorsements) in _named_changes(case).items():
        yield from _check_refuses(authenticate, case, name, evidence, binding, endorsements, case.codes[name])
    if case.binding.session_secret:
        for name, secret in (("no session secret", b""), ("other session secret", bytes(32))):
            binding = replace(case.binding, session_secret=secret)
            yield from _check_refuses(authenticate, case, name, case.evidence, binding, case.endorsements)
    for name, body in itertools.chain(_changed_members(case), _changed_bytes(case)):
        evidence = replace(case.evidence, body=body)
        yield from _check_refuses(authenticate, case, name, evidence, case.binding, case.endorsements)
    yield from _check_padding(authenticate, case)
    if case.evidence.body != given:
        yield "the evidence was written to"


def _check_accepts(authenticate: Authenticate, case: ContractCase) -> Iterator[str]:
    try:
        result = verify_with(authenticate, case.evidence, case.binding, case.endorsements, at=case.at)
    except Refused as err:
        yield f"good evidence refused: {err}"
        return
    if result.claims.level is not case.level:
        yield f"level is not the root's: {result.claims.level}"
    if result.claims.tee != case.evidence.tee or not result.claims.report_data or not result.claims.instance_id:
        yield "claims lack technology, report data or instance"
    bound = authenticate(
        case.evidence, case.endorsements, at=case.at, session_secret=case.binding.session_secret
    ).freshness.value
    if len(bound) < _BOUND_BYTES:
        yield f"only {len(bound)} bytes of the session are bound"
    unasked = isinstance(case.binding.init_data_digest, Unchecked)
    if not all(finding.ok or (unasked and finding.code == NO_INIT_DATA) for finding in result.findings):
        yield "good evidence has a finding that does not hold"
    if {finding.question for finding in result.findings} < {Question.AUTHENTIC, Question.BOUND}:
        yield "no finding says that the evidence is authentic and bound"


def _check_variants(authenticate: Authenticate, case: ContractCase) -> Iterator[str]:
    """Try debug, stale and revoked; and good evidence without any reference value, which accepts nothing."""
    judge = _judge(case, (), case.at)
    for name in VARIANTS:
        variant = case.variants.get(name, "")
        if isinstance(variant, str):
            if not variant:
                yield f"{name}: the case neither has a variant nor says why there is none"
            continue
        result = examine_with(
            authenticate,
            variant.evidence or case.evidence,
            case.binding,
            variant.endorsements or case.endorsements,
            _judge(case, (), variant.at or case.at),
            at=variant.at or case.at,
        )
        told = any(finding.code == variant.code and not finding.ok for finding in result.findings)
        if result.verdict is not variant.verdict or not told:
            codes = ", ".join(finding.code for finding in result.findings if not finding.ok)
            found = f"{result.verdict.value} with {codes or 'nothing'}"
            yield f"{name}: {found}, not {variant.verdict.value} with {variant.code}"
    empty = examine_with(authenticate, case.evidence, case.binding, case.endorsements, judge, at=case.at)
    if empty.acceptable or "appraisal.reference_values.empty" not in {finding.code for finding in empty.findings}:
        yield "no reference values: accepted"


def _check_padding(authenticate: Authenticate, case: ContractCase) -> Iterator[str]:
    """Try zeros, and zeros with another byte behind them, after each padded member."""
    for path in sorted(case.padded):
        data = _decode(case, path)
        for tail, wanted in ((bytes(7), True), (bytes(7) + b"\x01", False)):
            body = _with(case.evidence.body, path, _encode(case, path, data + tail))
            result = examine_with(
                authenticate,
                replace(case.evidence, body=body),
                case.binding,
                case.endorsements,
                _judge(case, Unchecked(reason="the contract asks for no measurements"), case.at),
                at=case.at,
            )
            if (result.verdict is Verdict.ACCEPT) is not wanted:
                yield f"{path} with {len(tail)} bytes of tail: {result.verdict.value}"


def _judge(
    case: ContractCase, references: tuple[()] | Unchecked, at: datetime
) -> Callable[[VerifiedEvidence], AttestationResult]:
    """Return the strict policy's judgement, on any level."""
    policy = AppraisalPolicy(
        id="contract", tees=frozenset({case.evidence.tee}), levels=frozenset(Level), accept_debug=False, digest=""
    )

    def judge(verified: VerifiedEvidence) -> AttestationResult:
        platform = _platform_findings(case.evidence.tee, verified, policy, at)
        return appraise(verified, policy, references, init_data_digest="", at=at, platform=platform)

    return judge


def _platform_findings(
    tee: str, verified: VerifiedEvidence, policy: AppraisalPolicy, at: datetime
) -> tuple[Finding, ...]:
    """Return what the technology's own rules say; nothing of one that is only about to be registered."""
    try:
        rules = appraiser_for(tee)
    except EvidenceError:
        return ()
    return rules(verified.facts, policy.rules, at=at)


def _named_changes(case: ContractCase) -> dict[str, tuple[Evidence, ExpectedBinding, Endorsements]]:
    evidence, binding, endorsements = case.evidence, case.binding, case.endorsements
    if not isinstance(binding.report_data, bytes):
        raise TypeError("a case is bound to a session")
    # A technology without a field for init data must refuse every digest, so any will do here.
    digest = bytes(32) if isinstance(binding.init_data_digest, Unchecked) else binding.init_data_digest
    flipped = bytes([binding.report_data[0] ^ 1]) + binding.report_data[1:]
    other_roots = Endorsements(roots=tuple(replace(root, tee="another") for root in endorsements.roots))
    return {
        "other_report_data": (evidence, replace(binding, report_data=flipped), endorsements),
        "no_report_data": (evidence, replace(binding, report_data=b""), endorsements),
        "other_init_data": (
            evidence,
            replace(binding, init_data_digest=bytes(len(digest))),
            endorsements,
        ),
        "no_init_data": (evidence, replace(binding, init_data_digest=b""), endorsements),
        "long_init_data": (
            evidence,
            replace(binding, init_data_digest=digest + bytes(64)),
            endorsements,
        ),
        "no_roots": (evidence, binding, Endorsements(roots=())),
        "foreign_roots": (evidence, binding, case.foreign),
        "roots_of_another_technology": (evidence, binding, other_roots),
        "another_technology": (replace(evidence, tee="another"), binding, endorsements),
        "unknown_member": (replace(evidence, body={**evidence.body, "extra": ""}), binding, endorsements),
    }


def _changed_members(case: ContractCase) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield evidence with one member left out, or of another type."""
    for path in _paths(case.evidence.body):
        if path not in case.optional:
            yield f"{path} left out", _with(case.evidence.body, path, None, remove=True)
        for value in _WRONG_TYPES if path not in case.labels else ():
            if value != _get(case.evidence.body, path) and not (value is None and path in case.optional):
                yield f"{path} = {value!r}", _with(case.evidence.body, path, value)


def _changed_bytes(case: ContractCase) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield evidence with one binary member cut at each offset, lengthened, or with one bit of each byte flipped."""
    for path in case.binary_members:
        data = _decode(case, path)
        changed = [
            (f"{path} cut at {offset}", data[:offset]) for offset in range(1 if path in case.optional else 0, len(data))
        ]
        if path not in case.unauthenticated:
            if path not in case.padded:
                changed.append((f"{path} with a trailing byte", data + b"\x00"))
            for offset, byte in enumerate(data):
                flipped = data[:offset] + bytes([byte ^ (1 << offset % 8)]) + data[offset + 1 :]
                changed.append((f"{path} with a bit of byte {offset} flipped", flipped))
        for name, value in changed:
            yield name, _with(case.evidence.body, path, _encode(case, path, value))


def _decode(case: ContractCase, path: str) -> bytes:
    text: str = _get(case.evidence.body, path)
    if case.encodings.get(path) == HEX:
        return bytes.fromhex(text)
    if case.encodings.get(path) == BASE64URL:
        text = text.translate(_STANDARD)
    return decode_b64(text, path=path, ceiling=KBS_REQUEST_BYTES)


def _encode(case: ContractCase, path: str, data: bytes) -> str:
    if case.encodings.get(path) == HEX:
        return data.hex()
    text = encode_b64(data)
    return text.translate(_URL_SAFE) if case.encodings.get(path) == BASE64URL else text


def _check_refuses(
    authenticate: Authenticate,
    case: ContractCase,
    name: str,
    evidence: Evidence,
    binding: ExpectedBinding,
    endorsements: Endorsements,
    code: str = "",
) -> Iterator[str]:
    try:
        verify_with(authenticate, evidence, binding, endorsements, at=case.at)
    except Refused as err:
        own = err.code.startswith((case.code_prefix, _BINDING_CODES))
        if (code and err.code != code) or not own:
            yield f"{name}: refused with {err.code}, not {code or case.code_prefix}"
    except _ESCAPES as err:
        yield f"{name}: {type(err).__name__} escaped: {err}"
    else:
        yield f"{name}: accepted"


def _paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every member, those of objects in lists too."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in members:
        yield f"{prefix}{key}"
        if isinstance(child, (dict, list)):
            yield from _paths(child, f"{prefix}{key}.")


def _get(body: Mapping[str, Any], path: str) -> Any:
    value: Any = body
    for key in path.split("."):
        value = value[int(key) if isinstance(value, list) else key]
    return value


def _with(body: Mapping[str, Any], path: str, value: Any, *, remove: bool = False) -> Mapping[str, Any]:
    """Return `body` with one member changed; the rest is shared, for it is large and changed thousands of times."""
    changed: dict[str, Any] = dict(body)
    place: Any = changed
    *parents, last = path.split(".")
    for name in parents:
        key = int(name) if isinstance(place, list) else name
        place[key] = copy.copy(place[key])
        place = place[key]
    key = int(last) if isinstance(place, list) else last
    if remove:
        del place[key]
    else:
        place[key] = value
    return changed
