"""From attested facts to a SPIFFE ID: templates like `shop/{pod}/{init_data}`.

Only facts that the evidence bound may be in a name: the digest of the init data, what the init data says, which policy
judged, which level was proved. A fact that is not known makes no name, and a fact that is no segment of a path (empty,
`..`, with a slash) makes none either: each segment is checked after it was filled in, before they are joined.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused, Refused
from cloister.podpolicy.model import parse_pod_policy
from cloister.protocol.initdata import CONTRACT_ENTRY, POLICY_ENTRY, parse_initdata
from cloister.protocol.spiffe import SPIFFEID, parse_segment, spiffe_id
from cloister.trust.roles import AttestedGuest

LEVEL: Final = "level"
FACTS: Final = ("init_data", "policy", "contract", "pod", LEVEL, "tee")
TEMPLATE_CHARS: Final = 512
DIGEST_DIGITS: Final = 32  # 128 bits: two init data of one short form cannot be made
_PART: Final = re.compile(r"\{([^{}]*)\}|[^{}]+")
_CONTRACT: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CODE: Final = "trust.identity.template"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedFacts:
    """What is known of a guest.

    Attributes:
        values: by the name that templates use; what is not known is absent.
        contract: id of the contract, `sha256:` and digits, empty when the init data name none or were not shown.
    """

    values: Mapping[str, str]
    contract: str = ""


def attested_facts(token: AttestedGuest, init_data: str) -> AttestedFacts:
    """Return the facts of a guest.

    Args:
        token: its verified Attestation Result.
        init_data: the text it says its evidence bound; empty when it shows none.

    Raises:
        FormatRefused: the text or its pod policy does not parse.
        Refused: it is another text than the evidence bound (`trust.identity.init_data`).
    """
    values = {
        "init_data": token.init_data.partition(":")[2][:DIGEST_DIGITS],
        "policy": token.policy_id,
        LEVEL: token.level.value,
        "tee": token.tee,
    }
    if not init_data:
        return AttestedFacts(values=values)
    try:
        text = init_data.encode()
    except UnicodeEncodeError as err:
        raise FormatRefused("protocol.initdata.malformed", "init data is not text") from err
    parsed = parse_initdata(text)
    if parsed.digest_text != token.init_data:
        raise Refused(
            "trust.identity.init_data",
            "not the init data that the evidence bound",
            expected=token.init_data[:23] + "..",
            actual=parsed.digest_text[:23] + "..",
            hint="send the text that the pod VM was started with",
        )
    if POLICY_ENTRY in parsed.entries:
        values["pod"] = parse_pod_policy(parsed.entries[POLICY_ENTRY].encode()).pod
    contract = parsed.entries.get(CONTRACT_ENTRY, "")
    if contract:
        if not _CONTRACT.fullmatch(contract):
            raise FormatRefused(
                "trust.identity.init_data", "the init data's contract id is none", path=f"data.{CONTRACT_ENTRY}"
            )
        values["contract"] = contract.partition(":")[2]
    return AttestedFacts(values=values, contract=contract)


def check_template(template: str, *, path: str) -> frozenset[str]:
    """Return the facts a template uses.

    Raises:
        FormatRefused: a fact that does not exist, a character or an empty segment that no SPIFFE ID has
            (`trust.identity.template`).
    """
    used: set[str] = set()
    if len(template) > TEMPLATE_CHARS:
        raise FormatRefused(_CODE, "template too long", path=path, expected=f"at most {TEMPLATE_CHARS} characters")
    for segment in template.split("/"):
        names = re.findall(r"\{([^{}]*)\}", segment)
        unknown = [name for name in names if name not in FACTS]
        if unknown:
            raise FormatRefused(
                _CODE, "no such fact", path=path, expected=", ".join(FACTS), actual=unknown[0][:40] or "nothing"
            )
        try:
            parse_segment(re.sub(r"\{[^{}]*\}", "x", segment))
        except FormatRefused as err:
            raise FormatRefused(
                _CODE, "not a template of a SPIFFE path", path=path, expected=err.expected, actual=segment[:80]
            ) from err
        used.update(names)
    return frozenset(used)


def fill_template(template: str, facts: AttestedFacts, *, trust_domain: str, tenant: str) -> SPIFFEID:
    """Return the SPIFFE ID of a guest.

    Raises:
        FormatRefused: a fact is not known, or is no part of a name (`trust.identity.template`); the whole is too
            long (`protocol.spiffe.id`).
    """
    segments = [_fill(segment, facts) for segment in template.split("/")]
    return spiffe_id(trust_domain, tenant, *segments)


def _fill(segment: str, facts: AttestedFacts) -> str:
    filled = ""
    for part in _PART.finditer(segment):
        name = part.group(1)
        if name is None:
            filled += part.group(0)
            continue
        value = facts.values.get(name, "")
        try:
            filled += parse_segment(value)
        except FormatRefused as err:
            raise FormatRefused(
                _CODE,
                f"the guest's {name} cannot be in a name" if value else f"the guest's {name} is not known",
                path=segment,
                expected=err.expected,
                actual=value[:80] or "nothing",
                hint="send the init data with the request; use a fact in the template that every such guest has",
            ) from err
    return parse_segment(filled)
