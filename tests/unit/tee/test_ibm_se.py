"""IBM Secure Execution: strict reading, a verifier that accepts nothing, and host key documents under a test CA."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused, Unavailable
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Severity, Unchecked, Verdict
from cloister.rats.rules import PlatformRules
from cloister.tee.ibm_se import abi
from cloister.tee.ibm_se.appraisal import appraise_platform
from cloister.tee.ibm_se.attester import ATTESTER
from cloister.tee.ibm_se.endorsements import HostKey, verify_host_key_document
from cloister.tee.ibm_se.evidence import parse_evidence, read_evidence
from cloister.tee.ibm_se.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import SE_BYTES, SE_KEY_SLOTS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SLOT = abi.KeySlot(host_key_hash=b"h" * 32, wrapped=b"w" * 32, tag=b"t" * 16)
REQUEST = abi.Request(
    iv=b"i" * 12,
    flags=0x7,
    algorithm=1,
    customer_key=b"c" * 160,
    slots=(SLOT, SLOT),
    encrypted=b"e" * 80,
    tag=b"T" * 16,
)
HEADER = abi.ImageHeader(
    iv=b"i" * 12,
    pages=9,
    flags=1,
    customer_key=b"c" * 160,
    page_digest=b"p" * 64,
    address_digest=b"a" * 64,
    tweak_digest=b"t" * 64,
    slots=(SLOT,),
    encrypted=b"e" * 128,
    tag=b"T" * 16,
)
EXCHANGE = abi.Exchange(
    request=b"r" * 16, measurement=b"m" * 64, additional=b"", user_data=b"u", configuration_id=b"c" * 16
)
STRUCTURES: list[tuple[Any, Any, Any]] = [
    (REQUEST, abi.encode_request, abi.parse_request),
    (HEADER, abi.encode_image_header, abi.parse_image_header),
    (EXCHANGE, abi.encode_exchange, abi.parse_exchange),
    (SLOT, abi.encode_key_slot, abi.parse_key_slot),
]


@pytest.mark.parametrize(("value", "encode", "parse"), STRUCTURES)
def test_structures_read_back_and_nothing_else_does(value: Any, encode: Any, parse: Any) -> None:
    data = encode(value)
    assert parse(data) == value
    for cut in range(len(data)):
        with pytest.raises(FormatRefused):
            parse(data[:cut])
    with pytest.raises(FormatRefused):
        parse(data + b"\0")


@pytest.mark.parametrize(
    ("data", "offset", "value"),
    [
        (abi.encode_request(REQUEST), 0, b"X"),  # no magic
        (abi.encode_request(REQUEST), 8, b"\0\0\2\0"),  # version
        (abi.encode_request(REQUEST), 28, b"\1"),  # reserved
        (abi.encode_request(REQUEST), 32, b"\xff"),  # slots
        (abi.encode_request(REQUEST), 32, bytes(8)),  # none
        (abi.encode_request(REQUEST), 40, b"\xff"),  # encrypted area
        (abi.encode_request(REQUEST), 59, b"\2"),  # algorithm
        (abi.encode_request(REQUEST), 60, b"\1"),  # reserved
        (abi.encode_image_header(HEADER), 0, b"X"),
        (abi.encode_image_header(HEADER), 28, b"\1"),
        (abi.encode_exchange(EXCHANGE), 16, b"\1"),
        (abi.encode_exchange(EXCHANGE), 28, b"\0\0\0\x44"),  # first member elsewhere
        (abi.encode_exchange(EXCHANGE), 44, b"\0\0\0\x44"),  # an empty member somewhere
    ],
)
def test_other_structures_are_refused(data: bytes, offset: int, value: bytes) -> None:
    parse = {b"\0": abi.parse_request, b"I": abi.parse_image_header, b"p": abi.parse_exchange}[data[:1]]
    with pytest.raises(FormatRefused) as caught:
        parse(data[:offset] + value + data[offset + len(value) :])
    assert caught.value.code.endswith(".malformed")


def test_lengths_have_ceilings() -> None:
    with pytest.raises(FormatRefused) as caught:
        abi.parse_request(bytes(SE_BYTES + 1))
    assert caught.value.code == "tee.ibm_se.request.too_long"
    assert SE_KEY_SLOTS * abi.SLOT_BYTES < SE_BYTES


def body(**changes: Any) -> dict[str, Any]:
    members = {"measurement": bytes(64), "additional_data": bytes(64), "user_data": b"u", "cuid": b"c" * 16}
    return {name: encode_b64(value) for name, value in members.items()} | changes


def test_it_accepts_nothing_and_says_what_is_missing() -> None:
    for found in (body(), read_evidence(abi.encode_exchange(EXCHANGE), tee="se").body):
        result = examine_evidence(
            Evidence(tee="se", body=found),
            ExpectedBinding(report_data=b"u", init_data_digest=Unchecked(reason="-")),
            Endorsements(roots=()),
            AppraisalPolicy(
                id="test", tees=frozenset({"se"}), levels=frozenset(Level), accept_debug=True, digest="",
                accept_unchecked_revocation=True,
            ),
            Unchecked(reason="-"),
            at=NOW,
        )  # fmt: skip
        assert (result.verdict, result.authentic, result.acceptable) == (Verdict.UNAVAILABLE, False, False)
        (finding,) = result.findings
        assert (finding.code, finding.severity) == ("tee.ibm_se.cannot_verify", Severity.UNAVAILABLE)
        assert finding.hint


@pytest.mark.parametrize(
    "found",
    [
        {},
        body(more=1),
        body(measurement=1),
        body(measurement="?"),
        body(measurement=encode_b64(bytes(32))),
        body(cuid=encode_b64(b"")),
        body(image_hdr_tags=encode_b64(bytes(207))),
        body(encr_request_nonce="?"),
    ],
)
def test_other_bodies_are_refused(found: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        authenticate(Evidence(tee="se", body=found), Endorsements(roots=()), at=NOW)
    assert caught.value.code == "tee.ibm_se.malformed"


def test_the_rest_of_the_package_says_no() -> None:
    assert parse_evidence(Evidence(tee="se", body=body(image_hdr_tags=encode_b64(bytes(208))))).image_tags == bytes(208)
    with pytest.raises(EvidenceError):
        authenticate(Evidence(tee="csv", body=body()), Endorsements(roots=()), at=NOW)
    with pytest.raises(Unavailable) as caught:
        ATTESTER()
    assert caught.value.code == "tee.ibm_se.no_attester"
    with pytest.raises(TypeError):
        appraise_platform(None, PlatformRules(), at=NOW)
    with pytest.raises(Refused):
        read_evidence(b"no file of any kind", tee="se")


# Host key documents.


def name(unit: str, *, locality: str = "Poughkeepsie", extra: str = "") -> x509.Name:
    ibm = "International Business Machines Corporation"
    attributes = [
        (NameOID.COUNTRY_NAME, "US"),
        (NameOID.ORGANIZATION_NAME, ibm),
        (NameOID.COMMON_NAME, ibm),
        (NameOID.STATE_OR_PROVINCE_NAME, "New York"),
        (NameOID.LOCALITY_NAME, locality),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
    ]
    if extra:
        attributes.append((NameOID.ORGANIZATIONAL_UNIT_NAME, extra))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


SERVICE = name("IBM Z Host Key Signing Service")
AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "commercial CA")])
KEYS = {kind: rsa.generate_private_key(public_exponent=65537, key_size=2048) for kind in ("root", "service", "other")}
HOST = ec.generate_private_key(ec.SECP521R1())


@dataclass(frozen=True, kw_only=True)
class World:
    """A document and what surrounds it; each member can be another."""

    document: bytes
    service: bytes
    root: bytes
    service_list: bytes
    root_list: bytes

    def verify(self, **changes: Any) -> HostKey:
        return verify_host_key_document(
            self.document,
            certificates=[self.service],
            revocation_lists=changes.get("lists", [self.service_list, self.root_list]),
            roots=[self.root],
            at=changes.get("at", NOW),
            grace=changes.get("grace", timedelta()),
        )


def certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    signer: Any,
    *,
    ca: bool | None = None,
    digest: Any = None,
    agreement: bool = False,
    signature: bool = False,
    days: int = 30,
    serial: int = 7,
) -> bytes:
    usage = x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=not (signature or agreement or ca),
        data_encipherment=False,
        key_agreement=agreement,
        key_cert_sign=bool(ca),
        crl_sign=bool(ca),
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + days * DAY)
        .add_extension(usage, critical=True)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(signer, digest or SHA512()).public_bytes(Encoding.PEM)


def revocation_list(issuer: x509.Name, signer: Any, *serials: int, until: timedelta = DAY) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(NOW - DAY).next_update(NOW + until)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer, SHA256()).public_bytes(Encoding.DER)


def service_certificate(subject: x509.Name = SERVICE, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {"ca": False, "signature": True, "serial": 8} | changes
    return certificate(subject, AUTHORITY, KEYS["service"], KEYS["root"], **arguments)


def document(issuer: x509.Name = SERVICE, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {"agreement": True, "key": HOST, "signer": KEYS["service"]} | changes
    return certificate(name("IBM Z Host Key"), issuer, arguments.pop("key"), arguments.pop("signer"), **arguments)


@pytest.fixture(scope="module")
def world() -> World:
    return World(
        document=document(),
        service=service_certificate(),
        root=certificate(AUTHORITY, AUTHORITY, KEYS["root"], KEYS["root"], ca=True, serial=9),
        service_list=revocation_list(SERVICE, KEYS["service"]),
        root_list=revocation_list(AUTHORITY, KEYS["root"]),
    )


def test_a_good_document_gives_its_key(world: World) -> None:
    key = world.verify()
    numbers = HOST.public_key().public_numbers()
    point = numbers.x.to_bytes(80, "big") + numbers.y.to_bytes(80, "big")
    assert key.usable
    assert key.key_hash == hashlib.sha256(point).digest()
    der = x509.load_pem_x509_certificate(world.document).public_bytes(Encoding.DER)
    assert replace(world, document=der).verify().usable


def test_the_newer_locality_is_known(world: World) -> None:
    newer = name("IBM Z Host Key Signing Service", locality="Armonk")
    lists = [revocation_list(newer, KEYS["service"]), world.root_list]
    assert replace(world, service=service_certificate(newer), document=document(newer)).verify(lists=lists).usable


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        # 1
        ({"service": service_certificate(name("Key Signing Service Invalid"))}, "tee.ibm_se.signer.untrusted"),
        (
            {"service": service_certificate(name("Key Signing Service", locality="Paris"))},
            "tee.ibm_se.signer.untrusted",
        ),
        ({"service": service_certificate(name("x", extra="Key Signing Service"))}, "tee.ibm_se.signer.untrusted"),
        ({"document": document(name("Host Key Signing Service", locality="Armonk"))}, "tee.ibm_se.signer.untrusted"),
        # 2
        ({"service": service_certificate(ca=True)}, "tee.ibm_se.signer.leaf_is_ca"),
        ({"service": service_certificate(days=0)}, "tee.ibm_se.signer.expired"),
        ({"service": service_certificate(signature=False)}, "tee.ibm_se.signer.key_usage"),
        (
            {"root": certificate(AUTHORITY, AUTHORITY, KEYS["other"], KEYS["other"], ca=True)},
            "tee.ibm_se.signer.untrusted",
        ),
        # 3
        ({"document": document(signer=KEYS["other"])}, "tee.ibm_se.host_key.signature"),
        # 4
        ({"document": document(days=0)}, "tee.ibm_se.host_key.expired"),
        # 5
        ({"service_list": revocation_list(SERVICE, KEYS["service"], 7)}, "tee.ibm_se.revocation.revoked"),
        ({"root_list": revocation_list(AUTHORITY, KEYS["root"], 8)}, "tee.ibm_se.revocation.revoked"),
        ({"service_list": revocation_list(SERVICE, KEYS["root"])}, "tee.ibm_se.revocation.crl_signature"),
        ({"service_list": b"no list"}, "tee.ibm_se.revocation.malformed"),
        # 6
        ({"document": document(key=ec.generate_private_key(ec.SECP256R1()))}, "tee.ibm_se.host_key.key"),
        ({"document": document(agreement=False)}, "tee.ibm_se.host_key.key"),
        # what does not parse
        ({"document": b"no certificate"}, "tee.ibm_se.host_key.malformed"),
        ({"service": service_certificate() * 2}, "tee.ibm_se.signer.malformed"),
        ({"root": b"no certificate"}, "tee.ibm_se.root.malformed"),
    ],
)
def test_each_fault_is_refused_with_its_code(world: World, changes: dict[str, bytes], code: str) -> None:
    at = NOW + timedelta(seconds=1) if code.endswith(".expired") else NOW
    with pytest.raises((EndorsementError, FormatRefused)) as caught:
        replace(world, **changes).verify(at=at)
    assert caught.value.code == code


def test_a_document_of_the_future_and_a_weak_signature_are_refused(world: World) -> None:
    with pytest.raises(EndorsementError) as caught:
        world.verify(at=NOW - 2 * DAY)
    assert caught.value.code == "tee.ibm_se.signer.not_yet_valid"
    elliptic = ec.generate_private_key(ec.SECP256R1())
    service = certificate(SERVICE, AUTHORITY, elliptic, KEYS["root"], ca=False, signature=True)
    with pytest.raises(EndorsementError) as caught:
        replace(world, service=service, document=document(signer=elliptic, digest=SHA256())).verify()
    assert caught.value.code == "tee.ibm_se.host_key.algorithm"


@pytest.mark.parametrize("missing", ["service_list", "root_list"])
def test_a_missing_or_stale_list_leaves_it_open(world: World, missing: str) -> None:
    kept = world.root_list if missing == "service_list" else world.service_list
    open_key = world.verify(lists=[kept])
    assert not open_key.usable
    stale = (
        revocation_list(SERVICE, KEYS["service"], until=-timedelta(hours=1))
        if missing == "service_list"
        else revocation_list(AUTHORITY, KEYS["root"], until=-timedelta(hours=1))
    )
    assert not world.verify(lists=[kept, stale]).usable
    within = world.verify(lists=[kept, stale], grace=DAY)
    assert within.usable
    assert any(not finding.ok for finding in within.findings)  # a warning that it was used


def test_claims_are_shown_although_nobody_can_check_them() -> None:
    claims = read_claims(Evidence(tee="se", body=body())).claims
    assert (claims.level, claims.instance_id, claims.report_data) == (Level.SIMULATED, (b"c" * 16).hex(), b"u")
