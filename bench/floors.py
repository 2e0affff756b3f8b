"""The bare cryptography of each kind of evidence: the signatures on its bytes, checked with `cryptography` and no more.

Everything is parsed beforehand; a floor only verifies. `warm` are the signatures that are new with each piece of
evidence, `cold` all there are between it and the root, of certificates, revocation lists and vendor statements too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.crypto.cose import Algorithm, Sign1, algorithm_of, parse_ec2_key, parse_point, signed_bytes
from cloister.crypto.revocation import load_revocation_list
from cloister.crypto.x509path import load_certificate
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.tee.azure.abi import parse_runtime_claims
from cloister.tee.azure.evidence import parse_evidence as parse_azure
from cloister.tee.cca.evidence import parse_evidence as parse_cca
from cloister.tee.dcap.abi import Quote, parse_quote
from cloister.tee.dcap.chain import parse_quote_chain
from cloister.tee.dcap.collateral import gather_collateral
from cloister.tee.insecure import abi as insecure
from cloister.tee.nitro.evidence import parse_evidence as parse_nitro
from cloister.tee.nvidia_gpu.abi import signed_part
from cloister.tee.nvidia_gpu.evidence import parse_evidence as parse_nvidia
from cloister.tee.sev_snp.abi import SIGNED_BYTES, parse_report
from cloister.tee.sev_snp.evidence import parse_evidence as parse_snp
from cloister.tee.sgx.evidence import parse_evidence as parse_sgx
from cloister.tee.tdx.evidence import parse_evidence as parse_tdx
from cloister.tee.tpm import quote as tpm_quote
from cloister.tee.tpm.evidence import parse_evidence as parse_tpm
from cloister.wire.base64 import decode_b64

Check = Callable[[], object]


@dataclass(frozen=True)
class Floor:
    """What must be verified, as calls that raise."""

    warm: tuple[Check, ...]
    cold: tuple[Check, ...]


def floor_of(evidence: Evidence, endorsements: Endorsements) -> Floor:
    """Return the floor of `evidence`; raise when one of its signatures does not hold."""
    made: Floor = _KINDS[evidence.tee](evidence, endorsements)
    for check in made.cold:
        check()
    return made


def _snp(evidence: Evidence, endorsements: Endorsements) -> Floor:
    parsed = parse_snp(evidence)
    return _snp_report(parsed.report, (*parsed.certificates, *endorsements.certificates), endorsements)


def _snp_report(data: bytes, carried: Iterable[bytes], endorsements: Endorsements) -> Floor:
    report = parse_report(data)
    pool = _pool(carried, endorsements)
    signature = encode_dss_signature(report.r, report.s)
    for vek in pool:
        check = _ecdsa(vek.public_key(), signature, data[:SIGNED_BYTES], SHA384())
        if _holds(check):
            return Floor((check,), (check, *_chain(vek, pool, endorsements.revocation_lists)))
    raise SystemExit("no certificate signed the report")


def _tdx(evidence: Evidence, endorsements: Endorsements) -> Floor:
    return _dcap(parse_tdx(evidence).quote, endorsements)


def _sgx(evidence: Evidence, endorsements: Endorsements) -> Floor:
    return _dcap(parse_sgx(evidence).quote, endorsements)


def _dcap(quote: Quote, endorsements: Endorsements) -> Floor:
    data, collateral = quote.data, gather_collateral(endorsements)
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + data.attestation_key)
    check = _ecdsa(key, _dss(data.signature), quote.signed, SHA256())
    certificates = parse_quote_chain(data.certification)
    pool = _unique((*certificates, *_pool(collateral.certificates, endorsements)))
    report = _ecdsa(certificates[0].public_key(), _dss(data.qe_signature), data.qe_report, SHA256())
    seen: set[object] = set()
    cold = [check, report, *_chain(certificates[0], pool, collateral.revocation_lists, seen)]
    for statement in (*collateral.tcb_infos, *collateral.qe_identities):
        signed = [_ecdsa(item.public_key(), _dss(statement.signature), statement.text, SHA256()) for item in pool]
        number, found = next((number, item) for number, item in enumerate(signed) if _holds(item))
        cold += [found, *_chain(pool[number], pool, collateral.revocation_lists, seen)]
    return Floor((check,), tuple(cold))


def quote_signature(evidence: Evidence, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> Check:
    """Return the check of a quote by an AK that no certificate names: it is known by its activation."""
    parsed = parse_tpm(evidence)
    return _tpm_signature(key, parsed.signature.values, parsed.message)


def _tpm(evidence: Evidence, endorsements: Endorsements) -> Floor:
    parsed = parse_tpm(evidence)
    key = load_certificate(parsed.ak_certificate, code="bench").public_key()
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise SystemExit("AK of an unknown kind")
    check = _tpm_signature(key, parsed.signature.values, parsed.message)
    leaf = load_certificate(parsed.ak_certificate, code="bench")
    return Floor(
        (check,), (check, *_chain(leaf, _pool(parsed.ak_intermediates, endorsements), endorsements.revocation_lists))
    )


def _azure(evidence: Evidence, endorsements: Endorsements) -> Floor:
    parsed = parse_azure(evidence)
    runtime = parse_runtime_claims(parsed.hcl.variable)
    check = _tpm_signature(tpm_quote.rsa_key(runtime.modulus, runtime.exponent), (parsed.signature,), parsed.message)
    if parsed.td_quote:
        hardware = _dcap(parse_quote(parsed.td_quote), endorsements)
    else:
        hardware = _snp_report(parsed.hcl.hardware, (parsed.vcek,), endorsements)
    return Floor((check, *hardware.warm), (check, *hardware.cold))


def _nitro(evidence: Evidence, endorsements: Endorsements) -> Floor:
    parsed = parse_nitro(evidence)
    leaf = load_certificate(parsed.document.certificate, code="bench")
    check = _cose(parsed.message, leaf.public_key())
    return Floor(
        (check,), (check, *_chain(leaf, _pool(parsed.document.bundle, endorsements), endorsements.revocation_lists))
    )


def _cca(evidence: Evidence, endorsements: Endorsements) -> Floor:
    token = parse_cca(evidence)
    realm = token.realm_claims
    key = parse_ec2_key(realm.public_key, code="bench") if realm.profile else _point(realm.public_key)
    anchors = [load_der_public_key(root.der) for root in endorsements.roots]
    platform = next(check for check in (_cose(token.platform, anchor) for anchor in anchors) if _holds(check))
    checks = (platform, _cose(token.realm, key))
    return Floor(checks, checks)


def _nvidia(evidence: Evidence, endorsements: Endorsements) -> Floor:
    warm: list[Check] = []
    cold: list[Check] = []
    seen: set[object] = set()
    for device in parse_nvidia(evidence):
        pool = _pool(device.certificates, endorsements)
        data = signed_part(device.data, device.report)
        checks = [(item, _ecdsa(item.public_key(), _dss(device.report.signature), data, SHA384())) for item in pool]
        leaf, check = next(pair for pair in checks if _holds(pair[1]))
        warm.append(check)
        cold += (check, *_chain(leaf, pool, endorsements.revocation_lists, seen))
    return Floor(tuple(warm), tuple(cold))


def _simulated(evidence: Evidence, endorsements: Endorsements) -> Floor:
    wire = insecure.parse_evidence(evidence)
    key = load_der_public_key(endorsements.roots[0].der)
    signed = insecure.signed_bytes(public_key=wire.public_key, registers=wire.registers, report_data=wire.report_data)
    check = _ecdsa(key, decode_b64(wire.signature, path="signature", ceiling=200), signed, SHA256())
    return Floor((check,), (check,))


_KINDS: dict[str, Callable[[Evidence, Endorsements], Floor]] = {
    "snp": _snp,
    "tdx": _tdx,
    "sgx": _sgx,
    "tpm": _tpm,
    "az-snp-vtpm": _azure,
    "az-tdx-vtpm": _azure,
    "nitro": _nitro,
    "cca": _cca,
    "nvidia": _nvidia,
    "cloister-simulated": _simulated,
}


def _pool(carried: Iterable[bytes], endorsements: Endorsements) -> list[x509.Certificate]:
    roots = [root.der for root in endorsements.roots if root.der[:1] == b"\x30"]
    found = []
    for der in dict.fromkeys((*carried, *endorsements.certificates, *roots)):
        found.append(load_certificate(der, code="bench"))
    return found


def _unique(certificates: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    return list(dict.fromkeys(certificates))


def _chain(
    leaf: x509.Certificate,
    pool: Sequence[x509.Certificate],
    lists: Iterable[bytes],
    seen: set[object] | None = None,
) -> list[Check]:
    """Return the checks of the certificates from `leaf` up, and of the lists of their issuers; none twice."""
    parsed = [load_revocation_list(data, code="bench") for data in lists]
    seen = set() if seen is None else seen
    checks: list[Check] = []
    while leaf.issuer != leaf.subject:
        certificate = leaf
        found = [(issuer, _issued(certificate, issuer)) for issuer in pool if issuer.subject == certificate.issuer]
        leaf, check = next(pair for pair in found if _holds(pair[1]))
        new = [(certificate, check)] + [
            (item, _listed(item.parsed, leaf.public_key())) for item in parsed if item.parsed.issuer == leaf.subject
        ]
        checks += [check for key, check in new if key not in seen]
        seen |= {key for key, _ in new}
    return checks


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> Check:
    return lambda: certificate.verify_directly_issued_by(issuer)


def _listed(item: x509.CertificateRevocationList, key: Any) -> Check:  # Any: either kind of key
    def check() -> None:
        if not item.is_signature_valid(key):
            raise InvalidSignature

    return check


def _ecdsa(key: object, signature: bytes, data: bytes, digest: SHA256 | SHA384) -> Check:
    algorithm = ec.ECDSA(digest)

    def check() -> None:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(signature, data, algorithm)

    return check


def _tpm_signature(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, values: Sequence[bytes], message: bytes) -> Check:
    if isinstance(key, ec.EllipticCurvePublicKey):
        r, s = (int.from_bytes(value, "big") for value in values)
        return _ecdsa(key, encode_dss_signature(r, s), message, SHA256())
    scheme, digest = padding.PKCS1v15(), SHA256()
    return lambda: key.verify(values[0], message, scheme, digest)


def _cose(message: Sign1, key: object) -> Check:
    algorithm = algorithm_of(key) if isinstance(key, ec.EllipticCurvePublicKey) else None
    if algorithm is None:
        raise SystemExit("key of an unknown kind")
    digest = SHA384() if algorithm.name == "ES384" else SHA256()
    return _ecdsa(key, _dss(message.signature), signed_bytes(message.protected, message.payload), digest)


def _point(data: bytes) -> ec.EllipticCurvePublicKey:
    return parse_point(data, Algorithm.ES384, code="bench")


def _dss(raw: bytes) -> bytes:
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def _holds(check: Check) -> bool:
    try:
        check()
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
