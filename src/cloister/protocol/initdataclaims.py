"""What a result shows of a guest's init data, under CoCo's names. Pure.

`aa.toml` and `cdh.toml` are shown as JSON; `policy.rego`, the Kata agent's policy, as `agent_policy_claims`: the JSON
object after `policy_data :=`, which stands at its end. Other entries are texts. An entry that does not parse is left
out, and so is a text that would make the whole too long: a policy that looks for it finds nothing.

Source: trustee, kbs/docs/initdata.md and attestation-service (init_data_claims, ear.trustee.identifiers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused
from cloister.protocol.initdata import AGENT_ENTRY, InitData
from cloister.wire.limits import INITDATA_BYTES, KIB
from cloister.wire.strictjson import parse_json_object
from cloister.wire.stricttoml import parse_toml

AGENT_POLICY_ENTRY: Final = "policy.rego"
AGENT_POLICY_CLAIMS: Final = "agent_policy_claims"
IDENTIFIERS: Final = "ear.trustee.identifiers"
SHOWN_BYTES: Final = 16 * KIB  # of JSON: a token travels in a header
IDENTIFIERS_MOST: Final = 64
_PARSED: Final = (AGENT_ENTRY, "cdh.toml")
_CODE: Final = "protocol.initdata.malformed"
_DATA: Final = "policy_data :="


def init_data_claims(init_data: InitData) -> dict[str, Any]:  # Any: JSON
    """Return the entries as a result shows them, at most `SHOWN_BYTES` of JSON; parsed ones come first."""
    found: dict[str, Any] = {}  # Any: JSON
    left = SHOWN_BYTES
    parsed = (*_PARSED, AGENT_POLICY_ENTRY)
    for name in (*parsed, *(name for name in init_data.entries if name not in parsed)):
        text = init_data.entries.get(name)
        shown = None if text is None else _shown(name, text)
        if shown is None:
            continue
        name = AGENT_POLICY_CLAIMS if name == AGENT_POLICY_ENTRY else name
        size = len(msgspec.json.encode({name: shown}))
        if size <= left:
            found[name] = shown
            left -= size
    return found


def identifiers(claims: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return what says which workload it is, by the agent policy among the claims: its images and user ids.

    Empty when the policy names none; at most `IDENTIFIERS_MOST` of each.
    """
    policy = claims.get(AGENT_POLICY_CLAIMS)
    containers = policy.get("containers") if isinstance(policy, dict) else None
    listed = containers if isinstance(containers, list) else []
    places = {
        "container_images": ("OCI", "Annotations", "io.kubernetes.cri.image-name"),
        "container_uids": ("OCI", "Process", "User", "UID"),
    }
    validated = {}
    for name, place in places.items():
        values = [value for value in (_at(item, place) for item in listed) if isinstance(value, str | int)]
        if values:
            validated[name] = values[:IDENTIFIERS_MOST]
    return {"validated": validated}


def _shown(name: str, text: str) -> Any:  # Any: JSON
    try:
        if name in _PARSED:
            document = parse_toml(text.encode(), ceiling=INITDATA_BYTES, code=_CODE, path=name)
            return msgspec.to_builtins(document)
        if name == AGENT_POLICY_ENTRY:
            before, found, data = text.rpartition(_DATA)
            del before
            if not found:
                return None
            return parse_json_object(data.strip().encode(), ceiling=INITDATA_BYTES, code=_CODE, family=FormatRefused)
    except FormatRefused:
        return None
    return text


def _at(item: Any, place: tuple[str, ...]) -> Any:  # Any: JSON
    for name in place:
        item = item.get(name) if isinstance(item, dict) else None
    return item
