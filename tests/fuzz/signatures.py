"""Targets of image signatures: bundles, envelopes, policies, and the files that say whom to trust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import pysequoia
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.crypto import openpgpverify
from cloister.crypto.signer import ECDSAP256Signer
from cloister.oci.digest import Digest
from cloister.oci.manifest import OCI_MANIFEST
from cloister.oci.reference import parse_reference
from cloister.oci.signing import (
    bundle,
    fulcio,
    keys,
    lookaside,
    notation,
    policyjson,
    rekor,
    timestamp,
    trustedroot,
    trustpolicy,
)
from cloister.oci.signing.referred import NOTATION_COSE, NOTATION_JWS
from cloister.wire import limits
from fuzz.target import Target, each, same, seeds, target_of
from signing_world import MANIFEST, NOW, REPOSITORY, keyless_bundle, notation_signer, sigstore

_TARGET: Final = notation.TargetArtifact(media_type=OCI_MANIFEST, digest=Digest.of(MANIFEST), size=len(MANIFEST))


@cache
def _signer() -> ECDSAP256Signer:
    return ECDSAP256Signer.generate()


def _bundle(data: bytes) -> None:
    found = bundle.parse_bundle(data)
    same(bundle.parse_bundle(bundle.encode_bundle(found)), found)


def _bundles() -> list[bytes]:
    return [keyless_bundle(sigstore(), stamped=True), keyless_bundle(sigstore())]


def _statement(data: bytes) -> None:
    found = bundle.parse_statement(data)
    each(lambda: bundle.require_sign_predicate(found), lambda: bundle.names_of(found, _TARGET.digest))


def _envelope(data: bytes) -> None:
    each(*(lambda kind=kind: notation.verify_envelope(data, kind) for kind in (NOTATION_JWS, NOTATION_COSE)))  # type: ignore[misc]  # bound now


def _envelopes() -> list[bytes]:
    by = notation_signer()
    return [
        notation.sign_envelope(_TARGET, by.key, by.chain, media_type=kind, at=NOW, expires=NOW + timedelta(days=1))
        for kind in (NOTATION_JWS, NOTATION_COSE)
    ]


def _policies() -> list[bytes]:
    signed = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/keys/a.gpg"}
    fulcio_rule = {"caPath": "/ca.pem", "oidcIssuer": "https://iss", "subjectEmail": "a@b.test"}
    scopes: dict[str, list[dict[str, Any]]] = {
        "": [{"type": "reject"}],
        "example.org": [signed, {"type": "insecureAcceptAnything"}],
        "example.org/team": [
            {"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchRepository"}}
        ],
        "example.org/fulcio": [{"type": "sigstoreSigned", "fulcio": fulcio_rule, "rekorPublicKeyPath": "/r.pub"}],
        "*.example.org": [
            {
                "type": "sigstoreSigned",
                "keyData": "AAAA",
                "signedIdentity": {"type": "remapIdentity", "prefix": "a.test", "signedPrefix": "b.test"},
            }
        ],
    }
    return [json.dumps({"default": [{"type": "reject"}], "transports": {"docker": scopes, "oci": {}}}).encode()]


def _trust_policy(data: bytes) -> None:
    found = trustpolicy.parse_trust_policy(data)
    each(lambda: trustpolicy.select_policy(found, parse_reference(f"{REPOSITORY}:1")))


def _trust_policies() -> list[bytes]:
    policy = {
        "name": "acme",
        "registryScopes": [REPOSITORY],
        "signatureVerification": {"level": "strict", "override": {"expiry": "log"}},
        "trustStores": ["ca:acme"],
        "trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme"],
    }
    every = {**policy, "name": "all", "registryScopes": ["*"], "trustedIdentities": ["*"]}
    return [json.dumps({"version": "1.0", "trustPolicies": [policy, every]}).encode()]


def _lookaside(data: bytes) -> None:
    each(lambda: lookaside.parse_lookaside([data]), lambda: lookaside.parse_extension(data))


_LOOKASIDE: Final = (
    b"default-docker:\n  lookaside: https://sigs.example.org/\n"
    b"docker:\n  example.org/team:\n    lookaside: file:///var/sigs\n    use-sigstore-attachments: true\n"
)
_EXTENSION: Final = b'{"signatures":[{"schemaVersion":2,"name":"a@b","type":"atomic","content":"AAAA"}]}'


def _leaf(data: bytes) -> None:
    leaf = fulcio.load_leaf(data)
    each(lambda: fulcio.read_identity(leaf), lambda: fulcio.verify_transparency(leaf, sigstore().ca, ()))


def _leaves() -> list[bytes]:
    made = sigstore().certificate(_curve().public_key())
    return [made.public_bytes(Encoding.DER), sigstore().ca.public_bytes(Encoding.DER)]


@cache
def _curve() -> Any:  # Any: of cryptography, either kind of key
    return notation_signer().key


def _trusted_root(data: bytes) -> None:
    trustedroot.parse_trusted_root(data)


def _timestamp(data: bytes) -> None:
    timestamp.verify_timestamp(data, b"signature", trustedroot.parse_trusted_root(sigstore().trusted_root()))


def _set(data: bytes) -> None:
    rekor.parse_set_annotation(data.decode(errors="replace"))


def _sets() -> list[bytes]:
    return [
        b'{"SignedEntryTimestamp":"AAAA","Payload":{"body":"e30=","integratedTime":1700000000,"logIndex":3,'
        b'"logID":"' + b"ab" * 32 + b'"}}'
    ]


@cache
def _pgp() -> tuple[bytes, bytes]:
    """A keyring, and a message signed by its key."""
    key = pysequoia.Tsk.generate("Signer <s@example.org>", profile=pysequoia.Profile.RFC4880)
    return bytes(key.extract_certificate()), bytes(pysequoia.sign(key.signer(), b"payload"))


def _signed_message(data: bytes) -> None:
    openpgpverify.verify_message(data, openpgpverify.parse_keyring(_pgp()[0]), now=datetime.now(UTC))


_S: Final = "oci.signing"
TARGETS: Final[Mapping[str, Target]] = {
    "signature/bundle": target_of(_bundle, seeds(_bundles), limits.MIB, f"{_S}.bundle"),
    "signature/statement": target_of(
        _statement,
        seeds(lambda: [bundle.encode_statement(_TARGET.digest, repository=REPOSITORY)]),
        limits.MIB,
        f"{_S}.bundle",
    ),
    "signature/notation": target_of(_envelope, seeds(_envelopes), limits.MIB, f"{_S}.notation"),
    "signature/policy": target_of(policyjson.parse_policy, seeds(_policies), limits.MIB, f"{_S}.policyjson"),
    "signature/trust-policy": target_of(_trust_policy, seeds(_trust_policies), limits.MIB, f"{_S}.trustpolicy"),
    "signature/lookaside": target_of(
        _lookaside, seeds(lambda: [_LOOKASIDE, _EXTENSION]), limits.MIB, f"{_S}.lookaside"
    ),
    "signature/certificate": target_of(_leaf, seeds(_leaves), limits.CERTIFICATE_BYTES, f"{_S}.fulcio"),
    "signature/trusted-root": target_of(
        _trusted_root, seeds(lambda: [sigstore().trusted_root()]), limits.MIB, f"{_S}.trustedroot"
    ),
    "signature/timestamp": target_of(
        _timestamp, seeds(lambda: [sigstore().stamp(b"signature")]), 64 * 1024, f"{_S}.timestamp"
    ),
    "signature/promise": target_of(_set, seeds(_sets), 64 * 1024, f"{_S}.rekor"),
    "signature/pgp": target_of(_signed_message, seeds(lambda: [_pgp()[1]]), 64 * 1024, "crypto.openpgpverify"),
    "signature/pgp-keyring": target_of(
        openpgpverify.parse_keyring, seeds(lambda: [_pgp()[0]]), 64 * 1024, "crypto.openpgpverify"
    ),
    "signature/key": target_of(
        keys.load_public_key, seeds(lambda: [_signer().public_key.pem()]), 64 * 1024, f"{_S}.keys"
    ),
}

NOT_PARSERS: Final[Mapping[str, str]] = {
    "cloister.crypto.openpgpsign": "writes only",
    "cloister.crypto.pae": "writes only",
} | {
    f"cloister.oci.signing.{name}": reason
    for name, reason in {
        "collect": "fetches what other modules read",
        "evaluate": "compares what other modules read",
        "identity": "compares names",
        "keyless": "compares what other modules read",
        "referred": "fetches what other modules read",
        "requirements": "the owner's own files, read by other modules",
    }.items()
}
