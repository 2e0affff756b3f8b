"""Sort files of a user by what is in them: certificates, revocation lists, vendor documents, trust roots. Pure.

File names mean nothing. PEM (RFC 7468) and DER are told apart by content; a PEM file may mix certificates and lists.
Being sorted here makes nothing trusted, with one exception that the caller asks for by name: `parse_trust_roots`.
A file that is none of the known forms is refused, not skipped: a typing error must not become "no revocation data".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from cloister.crypto.ocsp import load_ocsp_response
from cloister.crypto.pem import CERTIFICATE, split_pem
from cloister.crypto.revocation import load_revocation_list
from cloister.crypto.x509path import load_certificate
from cloister.errors import FormatRefused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, TrustedRoot
from cloister.tee.jsonfile import looks_like_json
from cloister.wire.base64 import decode_b64, decode_b64url
from cloister.wire.limits import (
    CERTIFICATE_BYTES,
    COLLATERAL_BYTES,
    COLLATERAL_DOCUMENTS,
    REVOCATION_LIST_BYTES,
    RIM_BYTES,
)
from cloister.wire.strictjson import JSONObject, parse_json_object

_FILE: Final = "collateral.file"
_ROOT: Final = "collateral.root"
_DER_SEQUENCE: Final = 0x30
_DER_LONG_LENGTH: Final = 0x80  # X.690 8.1.3.5; every structure here is longer than 127 bytes, and no text has this bit
_PEM_LABEL: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_CRL: Final = "X509 CRL"
_PUBLIC_KEY: Final = "PUBLIC KEY"
_RIM_ROOT: Final = b"SoftwareIdentity"  # ISO/IEC 19770-2, the root element of every reference integrity manifest
_DCAP_MEMBERS: Final = ({"tcb_info", "qe_identity"}, {"tcbInfo", "signature"}, {"enclaveIdentity", "signature"})
_XML_HEAD_BYTES: Final = 4096
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_RSA_BITS: Final = range(2048, 8193)
_SPKI_BYTES: Final = 2048  # RSA of 8192 bits takes 1062


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedFiles:
    """What a set of files holds; the fields are those of `Endorsements`.

    Attributes:
        certificates: DER, in the order found, each once.
        revocation_lists: DER or PEM CRLs, each once.
        documents: DCAP collateral (JSON), reference integrity manifests (XML), OCSP responses (DER).
        ignored: names of files that are none of these, when the caller allowed them.
    """

    certificates: tuple[bytes, ...] = ()
    revocation_lists: tuple[bytes, ...] = ()
    documents: tuple[Document, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRoots:
    """Trust roots in files, and the certificates beside them that are not trusted by being there."""

    roots: tuple[TrustedRoot, ...]
    certificates: tuple[bytes, ...] = ()


def sort_endorsement_files(files: Sequence[tuple[str, bytes]], *, ignore_unknown: bool = False) -> SortedFiles:
    """Return what `files` hold.

    Args:
        files: (name for messages, content).
        ignore_unknown: list files of no known form in `ignored`, for a directory that holds other things too.

    Raises:
        FormatRefused: too many files or items, a file of no known form (`collateral.file.unknown`), or a damaged one
            (`collateral.file.malformed`, `collateral.file.too_long`).
    """
    if len(files) > COLLATERAL_DOCUMENTS:
        raise _too_many(len(files))
    certificates: dict[bytes, None] = {}
    lists: dict[bytes, None] = {}
    documents: dict[bytes, Document] = {}
    ignored: list[str] = []
    for name, data in files:
        try:
            found = _sort_file(name, data)
        except FormatRefused as err:
            if not (ignore_unknown and err.code == f"{_FILE}.unknown"):
                raise
            ignored.append(name)
            continue
        certificates.update(dict.fromkeys(found.certificates))
        lists.update(dict.fromkeys(found.revocation_lists))
        documents.update({document.data: document for document in found.documents if document.data not in documents})
        total = len(certificates) + len(lists) + len(documents)
        if total > COLLATERAL_DOCUMENTS:
            raise _too_many(total)
    return SortedFiles(
        certificates=tuple(certificates),
        revocation_lists=tuple(lists),
        documents=tuple(documents.values()),
        ignored=tuple(ignored),
    )


def parse_trust_roots(tee: str, level: Level, files: Sequence[tuple[str, bytes]]) -> ParsedRoots:
    """Return the roots an owner names.

    One certificate alone in a file is an anchor, also an intermediate one: that is what was asked for. Of several in
    one file only the self-signed are anchors, the others are untrusted helpers for the path. Raw public keys
    (SubjectPublicKeyInfo in PEM or DER, JWK, JWK set) become roots in SubjectPublicKeyInfo DER.

    Args:
        tee: wire name of the technology the roots are for.
        level: what a chain to them proves.
        files: (name for messages, content).

    Raises:
        FormatRefused: no root in a file (`collateral.root.no_anchor`), or a file that is neither certificate nor
            public key (`collateral.root.malformed`).
    """
    roots: dict[bytes, TrustedRoot] = {}
    certificates: dict[bytes, None] = {}
    for origin, data in files:
        if looks_like_json(data):
            for name, spki in _jwk_keys(data, origin):
                roots[spki] = TrustedRoot(tee=tee, level=level, name=f"{name} ({origin})", der=spki)
            continue
        found, keys = _root_material(data, origin)
        anchors = found if len(found) + len(keys) == 1 else [der for der in found if _is_self_signed(der, origin)]
        if not anchors and not keys:
            raise FormatRefused(
                f"{_ROOT}.no_anchor",
                "none of the certificates of the file is self-signed",
                path=origin,
                expected="a root certificate, or one certificate alone in its file",
                actual=f"{len(found)} certificates of intermediate CAs or devices",
                hint="to trust an intermediate CA by itself, give it in a file of its own",
            )
        for der in anchors:
            subject = _load(der, origin).subject.rfc4514_string() or "certificate without a subject"
            roots[der] = TrustedRoot(tee=tee, level=level, name=f"{subject} ({origin})", der=der)
        for spki in keys:
            roots[spki] = TrustedRoot(tee=tee, level=level, name=f"{_key_name(spki)} ({origin})", der=spki)
        certificates.update(dict.fromkeys(der for der in found if der not in anchors))
    return ParsedRoots(roots=tuple(roots.values()), certificates=tuple(der for der in certificates if der not in roots))


def split_bundle(data: bytes, *, path: str = "") -> SortedFiles:
    """Return the certificates and revocation lists of one file, DER or PEM; `documents` is empty.

    Raises:
        FormatRefused: neither (`collateral.file.unknown`), or damaged (`collateral.file.malformed`).
    """
    found = _sort_file(path, data)
    if found.documents:
        raise _unknown(path, expected="certificates or revocation lists")
    return found


def _sort_file(name: str, data: bytes) -> SortedFiles:
    _check_length(name, data, COLLATERAL_BYTES)
    if _is_der(data):
        return _sort_der(name, data)
    if looks_like_json(data):
        return SortedFiles(documents=(_json_document(name, data),))
    if _is_manifest(data):
        _check_length(name, data, RIM_BYTES)
        return SortedFiles(documents=(Document(name=name, data=data),))
    if _PEM_LABEL.search(data):
        return _sort_pem(name, data)
    raise _unknown(name)


def _is_der(data: bytes) -> bool:
    return len(data) > 1 and data[0] == _DER_SEQUENCE and bool(data[1] & _DER_LONG_LENGTH)


def _sort_pem(name: str, data: bytes) -> SortedFiles:
    labels = {label.decode("ascii") for label in _PEM_LABEL.findall(data)}
    strange = labels - {CERTIFICATE, _CRL}
    if strange:
        raise _unknown(name, expected=f"PEM blocks {CERTIFICATE} or {_CRL}", actual=", ".join(sorted(strange))[:80])
    certificates: list[bytes] = []
    lists: list[bytes] = []
    if CERTIFICATE in labels:
        certificates = split_pem(data, code=_FILE, path=name, ceiling=CERTIFICATE_BYTES)
    if _CRL in labels:
        lists = split_pem(data, code=_FILE, path=name, ceiling=REVOCATION_LIST_BYTES, label=_CRL)
    for der in certificates:
        load_certificate(der, code=_FILE, path=name)
    for der in lists:
        load_revocation_list(der, code=_FILE, path=name)
    return SortedFiles(certificates=tuple(certificates), revocation_lists=tuple(lists))


def _sort_der(name: str, data: bytes) -> SortedFiles:
    """Try the three structures in turn: no bytes are two of them."""
    if len(data) <= CERTIFICATE_BYTES:
        try:
            load_certificate(data, code=_FILE, path=name)
        except FormatRefused:
            pass
        else:
            return SortedFiles(certificates=(data,))
    try:
        load_revocation_list(data, code=_FILE, path=name)
    except FormatRefused:
        pass
    else:
        return SortedFiles(revocation_lists=(data,))
    try:
        load_ocsp_response(data, code=_FILE, path=name)
    except FormatRefused as err:
        raise _unknown(name, actual="DER of another kind, or damaged") from err
    return SortedFiles(documents=(Document(name=name, data=data),))


def _json_document(name: str, data: bytes) -> Document:
    value = _json_object(data, COLLATERAL_BYTES, _FILE, name)
    if any(members <= set(value) for members in _DCAP_MEMBERS):  # the DCAP parser judges them
        return Document(name=name, data=data)
    manifest = value.get("rim")  # NVIDIA's RIM service wraps the XML
    if isinstance(manifest, str):
        rim_id = value.get("id")
        return Document(
            name=rim_id if isinstance(rim_id, str) else name,  # manifests are found by their id
            data=unwrap_manifest(value, path=name),
        )
    raise _unknown(name, actual="JSON with other members")


def unwrap_manifest(value: Mapping[str, Any], *, path: str = "") -> bytes:  # Any: untrusted JSON
    """Return the XML inside an answer of NVIDIA's RIM service (`{"id", "rim", "sha256", ...}`).

    Raises:
        FormatRefused: not that shape, not XML of a manifest, or not the bytes whose hash the answer gives
            (`collateral.file.malformed`).
    """
    text, digest = value.get("rim"), value.get("sha256")
    try:
        data = decode_b64(text if isinstance(text, str) else "", path=path, ceiling=RIM_BYTES)
    except FormatRefused as err:
        raise FormatRefused(f"{_FILE}.malformed", err.message, path=path) from err
    if not _is_manifest(data):
        raise FormatRefused(f"{_FILE}.malformed", "no reference integrity manifest in the answer", path=path)
    if digest is not None and digest != sha256(data).hexdigest():
        raise FormatRefused(f"{_FILE}.malformed", "manifest does not have the hash beside it", path=path)
    return data


def _is_manifest(data: bytes) -> bool:
    head = data.removeprefix(_BYTE_ORDER_MARK).lstrip()[:_XML_HEAD_BYTES]
    return head[:1] == b"<" and _RIM_ROOT in head


def _root_material(data: bytes, origin: str) -> tuple[list[bytes], list[bytes]]:
    """Return the certificates and the public keys (both DER) of one file."""
    _check_length(origin, data, COLLATERAL_BYTES, _ROOT)
    if data[:1] == bytes((_DER_SEQUENCE,)):  # a P-256 key is shorter than 128 bytes; no PEM block begins with a digit
        try:
            _load(data, origin)
        except FormatRefused:
            return [], [_public_key(data, origin)]
        return [data], []
    labels = {label.decode("ascii") for label in _PEM_LABEL.findall(data)}
    if labels - {CERTIFICATE, _PUBLIC_KEY}:
        raise FormatRefused(
            f"{_ROOT}.malformed",
            "file holds other things than certificates and public keys",
            path=origin,
            expected=f"PEM blocks {CERTIFICATE} or {_PUBLIC_KEY}",
            actual=", ".join(sorted(labels))[:80],
        )
    if not labels:
        raise _not_a_root(origin)
    certificates, keys = [], []
    if CERTIFICATE in labels:
        certificates = split_pem(data, code=_ROOT, path=origin, ceiling=CERTIFICATE_BYTES)
    if _PUBLIC_KEY in labels:
        keys = split_pem(data, code=_ROOT, path=origin, ceiling=_SPKI_BYTES, label=_PUBLIC_KEY)
    for der in certificates:
        _load(der, origin)
    return certificates, [_public_key(der, origin) for der in keys]


def _load(der: bytes, origin: str) -> x509.Certificate:
    return load_certificate(der, code=_ROOT, path=origin)


def _is_self_signed(der: bytes, origin: str) -> bool:
    certificate = _load(der, origin)
    if certificate.issuer != certificate.subject:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _public_key(der: bytes, origin: str) -> bytes:
    """Return a SubjectPublicKeyInfo in its one encoding, of the kinds that verify evidence."""
    try:
        key = load_der_public_key(der) if len(der) <= _SPKI_BYTES else None
    except (ValueError, UnsupportedAlgorithm, TypeError) as err:
        raise _not_a_root(origin) from err
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {curve.name for curve in _CURVES.values()}:
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    raise _not_a_root(origin)


def _key_name(spki: bytes) -> str:
    return f"key {sha256(spki).hexdigest()[:16]}"


def _jwk_keys(data: bytes, origin: str) -> list[tuple[str, bytes]]:
    """Return (name, SubjectPublicKeyInfo) of a JWK, or of each key of a JWK set (RFC 7517).

    Private members are not looked at: that somebody keeps a private test key beside its public one is their business.
    """
    value = _json_object(data, COLLATERAL_BYTES, _ROOT, origin)
    keys = value["keys"] if isinstance(value.get("keys"), list) else [value]
    if not 0 < len(keys) <= COLLATERAL_DOCUMENTS:
        raise _not_a_root(origin)
    found = []
    for key in keys:
        spki = _jwk_key(key, origin)
        kid = key.get("kid")
        found.append((f"key {kid[:80]!r}" if isinstance(kid, str) else _key_name(spki), spki))
    return found


def _jwk_key(jwk: object, origin: str) -> bytes:
    members: JSONObject = jwk if isinstance(jwk, dict) else {}
    kind, curve = members.get("kty"), members.get("crv")
    try:
        if kind == "EC" and isinstance(curve, str) and curve in _CURVES:
            width = (_CURVES[curve].key_size + 7) // 8
            x, y = (_number(members, name, width, origin) for name in ("x", "y"))
            public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey = ec.EllipticCurvePublicNumbers(
                x, y, _CURVES[curve]
            ).public_key()
        elif kind == "RSA":
            n, e = (_number(members, name, None, origin) for name in ("n", "e"))
            public = rsa.RSAPublicNumbers(e, n).public_key()
        else:
            raise _not_a_root(origin)
    except ValueError as err:  # not on the curve, no RSA modulus
        raise _not_a_root(origin) from err
    return _public_key(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), origin)


def _number(members: JSONObject, name: str, width: int | None, origin: str) -> int:
    text = members.get(name)
    try:
        data = decode_b64url(text if isinstance(text, str) else "", path=origin, ceiling=_SPKI_BYTES)
    except FormatRefused as err:
        raise _not_a_root(origin) from err
    if not data or (width is not None and len(data) != width):
        raise _not_a_root(origin)
    return int.from_bytes(data, "big")


def _json_object(data: bytes, ceiling: int, code: str, name: str) -> JSONObject:
    try:
        return parse_json_object(data, ceiling=ceiling, code=code, family=FormatRefused)
    except FormatRefused as err:
        raise FormatRefused(f"{code}.malformed", err.message, path=name, expected=err.expected) from err


def _check_length(name: str, data: bytes, ceiling: int, code: str = _FILE) -> None:
    if len(data) > ceiling:
        raise FormatRefused(
            f"{code}.too_long",
            "file is too long",
            path=name,
            expected=f"at most {ceiling} bytes",
            actual=str(len(data)),
        )


def _too_many(count: int) -> FormatRefused:
    return FormatRefused(
        f"{_FILE}.too_many", "too many files", expected=f"at most {COLLATERAL_DOCUMENTS} items", actual=str(count)
    )


def _unknown(name: str, *, expected: str = "", actual: str = "") -> FormatRefused:
    return FormatRefused(
        f"{_FILE}.unknown",
        "file is nothing a vendor publishes about a platform",
        path=name,
        expected=expected or "certificates or revocation lists (PEM, DER), DCAP collateral, a RIM, an OCSP response",
        actual=actual,
    )


def _not_a_root(origin: str) -> FormatRefused:
    return FormatRefused(
        f"{_ROOT}.malformed",
        "file is not a trust root",
        path=origin,
        expected="certificates or public keys (PEM, DER, JWK): EC on P-256, P-384, P-521, or RSA from 2048 bits",
    )
