"""What CoCo's tools do to a key broker (`kbs-client config ..`), by the shape of their requests. No HTTP here.

    POST, DELETE /kbs/v0/resource/{repository}/{type}/{tag}     octets of the resource
    POST, GET    /kbs/v0/resource-policy                        Rego; it is the release rule of prefix `*`
    POST         /kbs/v0/attestation-policy                     a typed appraisal policy
    POST         /kbs/v0/reference-value                        RVPS message 0.1.0, unsigned
    GET          /kbs/v0/reference-value/{name}                 the values registered under one of CoCo's names

Whoever routes asks `find_action` first and lets nobody in who lacks the permission it names: CoCo's broker lets
everybody in by default, this one nobody. What is done is done by an administration that is given, the same that our own
tools use, so that whatever it demands besides (several approvals, a record of who) is demanded here, too.

Attestation policies in Rego are refused: the service judges by typed policies, which do not forget debug guests as the
shipped Rego ones do; `cloister evidence verify --policy` runs Rego ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from cloister.errors import FormatRefused, Refused, RequestRefused
from cloister.protocol.kbs import PREFIX
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.rats.policy import parse_appraisal_policy
from cloister.rats.reference import ReferenceEntry
from cloister.tee.regopolicy import looks_like_rego
from cloister.trust.keybroker.answers import Answer
from cloister.trust.keybroker.policy import EVERYTHING, ReleaseRules
from cloister.trust.refvalues.rvps import entries_of_rvps, parse_rvps_message, rvps_values
from cloister.wire.base64 import decode_b64url
from cloister.wire.limits import POLICY_BYTES

RESOURCE_POLICY: Final = "resource-policy"  # id of CoCo's one resource policy
_CODE: Final = "trust.coco.malformed"


class Administration(Protocol):
    """What is used of an administration: `cloister.trust.admin.TrustAdmin` is one; each may refuse."""

    def put_resource(self, path: ResourcePath, content: bytes) -> object:
        """Store a resource."""
        ...

    def delete_resource(self, path: ResourcePath) -> object:
        """Delete a resource; raises Refused `trust.resource.missing`."""
        ...

    def put_release_rule(self, prefix: str, text: bytes) -> object:
        """Store a release rule."""
        ...

    def release_rules(self) -> ReleaseRules:
        """Return the release rules in force."""
        ...

    def put_appraisal_policy(self, text: bytes) -> object:
        """Store an appraisal policy."""
        ...

    def add_reference_entries(self, entries: Sequence[ReferenceEntry]) -> object:
        """Register reference values."""
        ...

    def list_reference_entries(self) -> Sequence[ReferenceEntry]:
        """Return all reference values."""
        ...


class _ResourcePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    policy: str


class _AttestationPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    policy: str
    policy_id: str
    type: str = "rego"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoCoAction:
    """One request, recognised.

    Attributes:
        name: in logs and metrics; one of a closed set.
        permission: what who asks must have, verb and noun (`resource:write`).
        rest: of the path.
    """

    name: str
    permission: str
    rest: str = ""


_ACTIONS: Final = {
    ("POST", "resource"): ("coco-resource-put", "resource:write", True),
    ("DELETE", "resource"): ("coco-resource-delete", "resource:delete", True),
    ("POST", "resource-policy"): ("coco-release-put", "policy:write", False),
    ("GET", "resource-policy"): ("coco-release-list", "policy:read", False),
    ("POST", "attestation-policy"): ("coco-appraisal-put", "policy:write", False),
    ("POST", "reference-value"): ("coco-reference-add", "reference:add-unsigned", False),
    ("GET", "reference-value"): ("coco-reference-get", "reference:read", True),
}


def find_action(method: str, path: str) -> CoCoAction | None:
    """Return what a request asks for, None when it is none of CoCo's administration.

    Args:
        method: of the request.
        path: whole, without a tenant before it.
    """
    if not path.startswith(f"{PREFIX}/"):
        return None
    noun, _, rest = path[len(PREFIX) + 1 :].partition("/")
    name, permission, wants_rest = _ACTIONS.get((method, noun), ("", "", False))
    if not name or bool(rest) is not wants_rest:
        return None
    return CoCoAction(name=name, permission=permission, rest=rest)


class CoCoAdministration:
    """Does what was permitted.

    Args:
        administration: of the tenant, in the name of who asks.
        clock: aware UTC now.
        insecure_unsigned_reference_values: whether reference values that nobody signed are taken.
    """

    def __init__(
        self,
        administration: Administration,
        *,
        clock: Callable[[], datetime],
        insecure_unsigned_reference_values: bool,
    ) -> None:
        self._administration = administration
        self._clock = clock
        self._unsigned = insecure_unsigned_reference_values
        self._do: dict[str, Callable[[str, bytes], bytes]] = {
            "coco-resource-put": self._put_resource,
            "coco-resource-delete": self._delete_resource,
            "coco-release-put": self._put_release,
            "coco-release-list": self._list_release,
            "coco-appraisal-put": self._put_appraisal,
            "coco-reference-add": self._add_reference,
            "coco-reference-get": self._get_reference,
        }

    def handle(self, action: CoCoAction, body: bytes) -> Answer:
        """Do it; return the answer in CoCo's shape.

        Raises:
            CloisterError: malformed, missing, or refused by the administration; `error_answer` makes the answer.
        """
        return Answer(status=200, body=self._do[action.name](action.rest, body))

    def _put_resource(self, rest: str, body: bytes) -> bytes:
        self._administration.put_resource(parse_resource_path(rest), body)
        return b""

    def _delete_resource(self, rest: str, body: bytes) -> bytes:
        self._administration.delete_resource(parse_resource_path(rest))
        return b""

    def _put_release(self, rest: str, body: bytes) -> bytes:
        text = _text(_decode(body, _ResourcePolicy).policy)
        if not looks_like_rego(text):
            raise FormatRefused(_CODE, "not a Rego policy", path="policy", expected="package policy")
        self._administration.put_release_rule(EVERYTHING, text)
        return b""

    def _list_release(self, rest: str, body: bytes) -> bytes:
        rules = self._administration.release_rules().rules
        return msgspec.json.encode([RESOURCE_POLICY if prefix == EVERYTHING else prefix for prefix in sorted(rules)])

    def _put_appraisal(self, rest: str, body: bytes) -> bytes:
        wire = _decode(body, _AttestationPolicy)
        text = _text(wire.policy)
        if looks_like_rego(text):
            raise Refused(
                "trust.coco.rego_appraisal",
                "this service does not judge evidence by Rego",
                path="policy",
                expected="a typed appraisal policy",
                hint="write an appraisal policy (TOML or JSON); release rules may be Rego",
            )
        named = parse_appraisal_policy(text).id
        if named != wire.policy_id:
            raise FormatRefused(
                _CODE, "the policy has another id than the request", path="policy_id", expected=named[:80]
            )
        self._administration.put_appraisal_policy(text)
        return b""

    def _add_reference(self, rest: str, body: bytes) -> bytes:
        if not self._unsigned:
            raise Refused(
                "trust.reference.unsigned",
                "reference values that nobody signed are not taken",
                hint="register a signed set; or allow it with `insecure_unsigned_reference_values`, for trying out",
            )
        entries = entries_of_rvps(parse_rvps_message(body), at=self._clock())
        if entries:
            self._administration.add_reference_entries(entries)
        return b""

    def _get_reference(self, rest: str, body: bytes) -> bytes:
        values = rvps_values(self._administration.list_reference_entries(), rest, at=self._clock())
        if not values:
            raise RequestRefused("trust.request.path", "no such reference value", path=rest[:80])
        return msgspec.json.encode(values)


def _decode(body: bytes, kind: Any) -> Any:  # Any: msgspec's type argument and its instance
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_CODE, "not a request of this kind", expected=kind.__name__.lstrip("_")) from err


def _text(encoded: str) -> bytes:
    return decode_b64url(encoded, path="policy", ceiling=POLICY_BYTES)
