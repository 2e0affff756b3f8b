"""What CoCo's tools do to a key broker (`kbs-client config ..`), by the shape of their requests. No HTTP here.

    POST, DELETE /kbs/v0/resource/{repository}/{type}/{tag}     octets of the resource
    POST, GET    /kbs/v0/resource-policy                        Rego; it is the release rule of prefix `*`
    POST         /kbs/v0/attestation-policy                     Rego, or a typed appraisal policy
    POST         /kbs/v0/reference-value                        RVPS message 0.1.0, unsigned
    GET          /kbs/v0/reference-value/{name}                 the value registered under one of CoCo's names

Whoever routes asks `find_action` first and lets nobody in who lacks the permission it names: CoCo's broker lets
everybody in by default, this one nobody. What is done is done by an office of the one administration, the same that our
own tools use, so that whatever it demands besides (several approvals, a record of who) is demanded here, too.

CoCo names attestation policies by id and class of device, `default_cpu`. The class `cpu` is the policy of that id here.
Policies of other classes are refused: devices are judged by their vendors' manifests, or the owner's reference values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.protocol.kbs import PREFIX
from cloister.protocol.resourceuri import parse_resource_path
from cloister.tee.regopolicy import looks_like_rego
from cloister.trust.access import Permission
from cloister.trust.administration import Office
from cloister.trust.keybroker.answers import Answer
from cloister.trust.keybroker.policy import EVERYTHING
from cloister.wire.base64 import decode_b64url
from cloister.wire.limits import POLICY_BYTES

RESOURCE_POLICY: Final = "resource-policy"  # id of CoCo's one resource policy
_CODE: Final = "trust.coco.malformed"
_CLASSES: Final = ("gpu", "switch", "ppcie", "dcu", "dpu")  # of devices that are not the CPU


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
        permission: what who asks must have.
        rest: of the path.
    """

    name: str
    permission: Permission
    rest: str = ""


# Method and first segment to name, permission, and whether more of the path must follow.
ACTIONS: Final = {
    ("POST", "resource"): ("coco-resource-put", Permission.RESOURCE_WRITE, True),
    ("DELETE", "resource"): ("coco-resource-delete", Permission.RESOURCE_DELETE, True),
    ("POST", "resource-policy"): ("coco-release-put", Permission.POLICY_WRITE, False),
    ("GET", "resource-policy"): ("coco-release-list", Permission.POLICY_READ, False),
    ("POST", "attestation-policy"): ("coco-appraisal-put", Permission.POLICY_WRITE, False),
    ("POST", "reference-value"): ("coco-reference-add", Permission.REFERENCE_ADD_UNSIGNED, False),
    ("GET", "reference-value"): ("coco-reference-get", Permission.REFERENCE_READ, True),
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
    found = ACTIONS.get((method, noun))
    if found is None or bool(rest) is not found[2]:
        return None
    return CoCoAction(name=found[0], permission=found[1], rest=rest)


class CoCoAdministration:
    """Does what was permitted.

    Args:
        office: of who asks, in the tenant.
        insecure_unsigned_reference_values: whether reference values that nobody signed are taken.
    """

    def __init__(self, office: Office, *, insecure_unsigned_reference_values: bool) -> None:
        self._office = office
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
        self._office.resources.put(parse_resource_path(rest), body)
        return b""

    def _delete_resource(self, rest: str, body: bytes) -> bytes:
        self._office.resources.delete(parse_resource_path(rest))
        return b""

    def _put_release(self, rest: str, body: bytes) -> bytes:
        text = _text(_decode(body, _ResourcePolicy).policy)
        if not looks_like_rego(text):
            raise FormatRefused(_CODE, "not a Rego policy", path="policy", expected="package policy")
        self._office.rules.put(EVERYTHING, text)
        return b""

    def _list_release(self, rest: str, body: bytes) -> bytes:
        rules = self._office.rules.rules().rules
        return msgspec.json.encode([RESOURCE_POLICY if prefix == EVERYTHING else prefix for prefix in sorted(rules)])

    def _put_appraisal(self, rest: str, body: bytes) -> bytes:
        wire = _decode(body, _AttestationPolicy)
        name, _, device = wire.policy_id.rpartition("_")
        if name and device in _CLASSES:
            raise Refused(
                "trust.coco.policy_class",
                "only the CPU's evidence is judged by a policy of its own",
                path="policy_id",
                expected="an id, or an id and _cpu",
                actual=wire.policy_id[:80],
                hint="devices are judged by their vendors' manifests, or by reference values that you register",
            )
        self._office.appraisal.put(_text(wire.policy), name=name if name and device == "cpu" else wire.policy_id)
        return b""

    def _add_reference(self, rest: str, body: bytes) -> bytes:
        if not self._unsigned:
            raise Refused(
                "trust.reference.unsigned",
                "reference values that nobody signed are not taken",
                hint="register a signed set; or allow it with `insecure_unsigned_reference_values`, for trying out",
            )
        self._office.references.add_named(body)
        return b""

    def _get_reference(self, rest: str, body: bytes) -> bytes:
        return msgspec.json.encode(self._office.references.named(rest))


def _decode(body: bytes, kind: Any) -> Any:  # Any: msgspec's type argument and its instance
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_CODE, "not a request of this kind", expected=kind.__name__.lstrip("_")) from err


def _text(encoded: str) -> bytes:
    return decode_b64url(encoded, path="policy", ceiling=POLICY_BYTES)
