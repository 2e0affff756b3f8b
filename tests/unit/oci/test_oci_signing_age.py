"""How old a signature is, by whose word, and that older ones do not count where that is asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pysequoia
import pytest

from cloister.crypto.openpgpverify import parse_keyring
from cloister.crypto.signer import ECDSAP256Signer
from cloister.oci.digest import Digest
from cloister.oci.manifest import OCI_MANIFEST
from cloister.oci.signing.evaluate import Evaluation, FoundSignature, ImageBytes, evaluate
from cloister.oci.signing.keys import load_public_key
from cloister.oci.signing.notation import TargetArtifact, sign_envelope
from cloister.oci.signing.referred import NOTATION_COSE, NOTATION_JWS, EnvelopeCandidate
from cloister.oci.signing.requirements import (
    KeylessRequirement,
    KeyRequirement,
    OpenPGPCandidate,
    OpenPGPRequirement,
    RejectRequirement,
)
from cloister.oci.signing.simplesigning import ATOMIC_TYPE, SignatureCandidate, Statement, encode_payload
from cloister.oci.signing.trustpolicy import NotationRequirement, TrustPolicy, parse_trust_policy
from cloister.oci.signing.verify import BundleCandidate, ExactRepository
from cloister.oci.store import StoredManifest
from signing_world import (
    MANIFEST,
    NOW,
    REPOSITORY,
    classic_keyless,
    keyless_bundle,
    notation_signer,
    refused,
    sigstore,
    trust,
)

RULE = ExactRepository(REPOSITORY)
SIGNER = ECDSAP256Signer.generate()
LATER = NOW + timedelta(hours=1)


def by_key(seconds: int | None) -> tuple[Any, Any]:
    payload = encode_payload(Statement(REPOSITORY, Digest.of(MANIFEST)), seconds=seconds)
    needed = KeyRequirement(keys=(load_public_key(SIGNER.public_key.pem()),), repository=RULE)
    return SignatureCandidate(payload, SIGNER.sign(payload)), needed


def keyless(classic: bool) -> tuple[Any, Any]:
    needed = KeylessRequirement(trust=trust(sigstore()), repository=RULE)
    return classic_keyless(sigstore()) if classic else BundleCandidate(raw=keyless_bundle(sigstore())), needed


def notation(media_type: str) -> tuple[Any, Any]:
    signer = notation_signer()
    target = TargetArtifact(media_type=OCI_MANIFEST, digest=Digest.of(MANIFEST), size=len(MANIFEST))
    raw = sign_envelope(target, signer.key, signer.chain, media_type=media_type, at=NOW)
    (policy,) = parse_trust_policy(
        b'{"version":"1.0","trustPolicies":[{"name":"a","registryScopes":["*"],"signatureVerification":'
        b'{"level":"strict"},"trustStores":["ca:a"],"trustedIdentities":["*"]}]}'
    )
    assert isinstance(policy, TrustPolicy)
    needed = NotationRequirement(policy=policy, stores={"ca:a": (signer.chain[-1],)})
    return EnvelopeCandidate(media_type=media_type, raw=raw), needed


def judged(candidate: Any, *requirements: Any, not_before: datetime | None = None, now: datetime = LATER) -> Evaluation:
    image = ImageBytes(StoredManifest(MANIFEST, OCI_MANIFEST))
    return evaluate(image, [FoundSignature(candidate, MANIFEST)], requirements, now=now, not_before=not_before)


WAYS = {
    "key": lambda: by_key(int(NOW.timestamp())),
    "keyless bundle": lambda: keyless(classic=False),
    "keyless classic": lambda: keyless(classic=True),
    "notation-jws": lambda: notation(NOTATION_JWS),
    "notation-cose": lambda: notation(NOTATION_COSE),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_form_says_when_it_was_made(way: str) -> None:
    candidate, needed = WAYS[way]()
    (finding,) = judged(candidate, needed, not_before=NOW).results[0].findings
    assert finding.signed_at == NOW and finding.code == ""
    (finding,) = judged(candidate, needed, not_before=NOW + timedelta(seconds=1)).results[0].findings
    assert finding.code == "oci.signing.age.too_old" and finding.signed_at is None
    assert NOW.isoformat() in finding.reason


def test_simple_signing_says_when_it_was_made() -> None:
    owner = pysequoia.Tsk.generate("owner <owner@example.test>")
    payload = encode_payload(Statement(REPOSITORY, Digest.of(MANIFEST)), kind=ATOMIC_TYPE)
    candidate = OpenPGPCandidate(raw=bytes(pysequoia.sign(owner.signer(), payload, armor=False)))
    needed = OpenPGPRequirement(keyring=parse_keyring(bytes(owner.extract_certificate())), repository=RULE)
    made = datetime.now(UTC)
    (finding,) = judged(candidate, needed, not_before=made - timedelta(minutes=5), now=made).results[0].findings
    assert finding.signed_at is not None and abs(finding.signed_at - made) < timedelta(minutes=1)
    late = judged(candidate, needed, not_before=made + timedelta(minutes=5), now=made)
    assert late.results[0].findings[0].code == "oci.signing.age.too_old"


def test_without_a_time_nothing_is_young_enough() -> None:
    candidate, needed = by_key(None)
    assert judged(candidate, needed).proved
    refusal = judged(candidate, needed, not_before=NOW - timedelta(days=10_000))
    assert refusal.results[0].findings[0].code == "oci.signing.age.unknown"
    assert refused(refusal.require) == "oci.signing.no_valid_signature"


def test_nothing_that_proves_anything_has_no_age() -> None:
    candidate, _ = by_key(int(NOW.timestamp()))
    assert judged(candidate).manifest is not None
    assert refused(lambda: judged(candidate, not_before=NOW)) == "oci.signing.age.unproved"
    assert refused(judged(candidate, RejectRequirement(), not_before=NOW).require) == "oci.signing.rejected"
