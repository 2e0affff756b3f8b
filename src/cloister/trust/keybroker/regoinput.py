"""What a Rego rule sees of a guest: the claims of its token, and the summary that CoCo's newer policies read. Pure."""

from __future__ import annotations

from typing import Any

from cloister.rats.ear import PRIMARY
from cloister.rats.result import Tier
from cloister.trust.keybroker.token import VerifiedToken


def rego_input(token: VerifiedToken) -> dict[str, Any]:  # Any: JSON
    """Return the `input` of a rule.

    The claims stand at the top, as CoCo's key broker gives them, and again in `trust_context`, as its newer ones do
    (trustee, kbs/sample_policies/default.rego); there `verification_result` is whether the evidence was affirmed.
    """
    claims = dict(token.claims)
    submodules: dict[str, Any] = claims.get("submods", {})  # Any: JSON
    primary = submodules.get(PRIMARY, {}).get("ear.veraison.annotated-evidence", {})
    runtime = primary.get("runtime_data_claims", {})
    summary = {
        "tee_type": [token.tee],
        "policy_ids": [token.policy_id],
        "issuer": claims.get("iss", ""),
        "verification_result": token.tier is Tier.AFFIRMING,
        "claims": claims,
    }
    context = {"attestation_summary": summary, "tee_pubkey": runtime.get("tee-pubkey", {}), "custom_claims": {}}
    return {**claims, "trust_context": context}
