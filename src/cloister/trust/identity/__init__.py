"""SPIFFE identities: an attested guest gets an X509-SVID and JWT-SVIDs that say what it proved.

Knows grants, names and keys of a trust domain; knows nothing of evidence, resources or releases. It trusts what the
key broker verified, and takes it as `cloister.trust.roles.AttestedGuest`.
"""

from __future__ import annotations

from cloister.trust.identity.documents import PublicDocument, PublicDocuments
from cloister.trust.identity.policy import parse_identity_policy
from cloister.trust.identity.service import IDENTITY_POLICY, PLUGIN, IdentityParts, IdentityService
from cloister.trust.identity.storedauthorities import StoredAuthorities

__all__ = [
    "IDENTITY_POLICY",
    "PLUGIN",
    "IdentityParts",
    "IdentityService",
    "PublicDocument",
    "PublicDocuments",
    "StoredAuthorities",
    "parse_identity_policy",
]
