"""An Arm CCA platform made of `cryptography`: signs real tokens under a test key, and lies where it is told to.

`FakeCCA` is a platform with its key (what an owner configures as anchor) and one realm on it; its `tsm` stands for the
kernel's configfs, so that `cloister.tee.cca.attester` runs against it. Every deviation a test may want is an argument.
Nothing of it is secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.cca.abi import encode_platform_claims, encode_realm_claims, encode_token
from cloister.tee.cca.attester import PROVIDER
from cloister.tee.cca.claims import PLATFORM_PROFILE, REALM_PROFILE, Component, PlatformClaims, RealmClaims
from cloister.testing.cose import cose_key, sign1
from cloister.testing.tsm import FakeTSM
from cloister.wire.base64 import encode_b64
from cloister.wire.cbor import CBOR, decode_cbor, encode_cbor

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
REPORT_DATA: Final = bytes(range(48))
INIT_DATA_DIGEST: Final = hashlib.sha512(b"init data of the test realm").digest()
BINDING: Final = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)
INSTANCE_ID: Final = b"\x01" + hashlib.sha256(b"test platform").digest()
SECURED: Final = 0x3000
TEE: Final = "cca"


class FakeCCA:
    """A platform and a realm.

    Args:
        curve: of the platform's key.
        legacy: realm claims without a profile, and the platform's profile of before.
    """

    def __init__(self, *, curve: ec.EllipticCurve | None = None, legacy: bool = False) -> None:
        self.platform_key = ec.generate_private_key(curve or ec.SECP384R1())
        self.realm_key = ec.generate_private_key(ec.SECP384R1())
        public = self.realm_key.public_key()
        self.realm = RealmClaims(
            profile="" if legacy else REALM_PROFILE,
            challenge=REPORT_DATA.ljust(64, b"\0"),
            personalization=INIT_DATA_DIGEST,
            initial=hashlib.sha512(b"realm image").digest(),
            extensible=(bytes(64),) * 4,
            algorithm="sha-512",
            public_key=(
                public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
                if legacy
                else encode_cbor(cose_key(public))
            ),
            public_key_algorithm="sha-256",
        )
        self.platform = PlatformClaims(
            profile="http://arm.com/CCA-SSD/1.0.0" if legacy else PLATFORM_PROFILE,
            challenge=hashlib.sha256(self.realm.public_key).digest(),
            implementation_id=bytes(32),
            instance_id=INSTANCE_ID,
            config=b"\xcf" * 4,
            lifecycle=SECURED,
            algorithm="sha-256",
            components=(
                Component(kind="RMM", measurement=b"\x0a" * 32, signer=b"\x0b" * 32, version="1.0"),
                Component(measurement=b"\x0c" * 32, signer=b"\x0d" * 32, algorithm="sha-256"),
            ),
            service="https://verifier.example/v1",
        )

    def root(self, *, level: Level = Level.HARDWARE, instance: str = "") -> TrustedRoot:
        """Return the platform's key as an anchor, for one instance or for any."""
        der = self.platform_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return TrustedRoot(tee=TEE, level=level, name="key of the test platform", der=der, instance=instance)

    def endorsements(self) -> Endorsements:
        """Return `root` as endorsements."""
        return Endorsements(roots=(self.root(),))

    def token(
        self,
        *,
        platform: Mapping[int, CBOR] | None = None,
        realm: Mapping[int, CBOR] | None = None,
        platform_key: ec.EllipticCurvePrivateKey | None = None,
        realm_key: ec.EllipticCurvePrivateKey | None = None,
        platform_header: Mapping[int, CBOR] | None = None,
        platform_unprotected: Mapping[int, CBOR] | None = None,
        challenge: bytes | None = None,
    ) -> bytes:
        """Return a signed token.

        Args:
            platform: platform claims to replace, by label; None as value removes one.
            realm: realm claims to replace, likewise.
            platform_key: signs the platform token instead.
            realm_key: signs the realm token instead.
            platform_header: protected header of the platform token.
            platform_unprotected: its unprotected header.
            challenge: of the realm.
        """
        claims = replace(self.realm, challenge=challenge or self.realm.challenge)
        return encode_token(
            sign1(
                _changed(encode_platform_claims(self.platform), platform),
                platform_key or self.platform_key,
                header=platform_header,
                unprotected=platform_unprotected,
            ),
            sign1(_changed(encode_realm_claims(claims), realm), realm_key or self.realm_key),
        )

    def evidence(self, **changes: Any) -> Evidence:
        """Return evidence with the arguments of `token`, bound to `BINDING` unless they say otherwise."""
        return Evidence(tee=TEE, body={"token": encode_b64(self.token(**changes))})

    def tsm(self, **options: Any) -> FakeTSM:
        """Return the kernel of the realm, with the arguments of `FakeTSM`."""
        return FakeTSM(lambda challenge, _: self.token(challenge=challenge), **{"provider": PROVIDER, **options})


def _changed(encoded: bytes, changes: Mapping[int, CBOR] | None) -> bytes:
    if not changes:
        return encoded
    value = decode_cbor(encoded, ceiling=1 << 20, code="tee.cca.token") | dict(changes)
    return encode_cbor({label: item for label, item in value.items() if item is not None})
