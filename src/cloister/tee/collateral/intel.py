"""Intel's Provisioning Certification Service and caches of it (PCCS): what a DCAP quote is judged by. Pure.

Intel SGX and TDX Provisioning Certification Service API, version 4; PCCS as in SGXDataCenterAttestationPrimitives.
Issuer chains come in headers, URL-encoded. A PCCS sends revocation lists in hexadecimal and labels them as a page.
The four items of a platform are put together into the one JSON of nine members that DCAP verifiers take; the signed
texts are cut out of the answers byte for byte.
"""

from __future__ import annotations

import binascii
import json
from typing import Final
from urllib.parse import unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError
from cloister.rats.endorsement import Document
from cloister.tee.collateral.answers import (
    BINARY_TYPES,
    JSON_TYPES,
    answering,
    certificates_of,
    inspect_list,
    require_same,
)
from cloister.tee.collateral.content import Content
from cloister.tee.collateral.files import split_bundle
from cloister.tee.collateral.item import Item, Kind, make_item
from cloister.tee.collateral.transport import Answer, Request
from cloister.tee.dcap.chain import TCB_SIGNING, common_name
from cloister.tee.dcap.collateral import Statement, read_collateral
from cloister.tee.dcap.statements import QEIdentity, TCBInfo, parse_qe_identity, parse_tcb_info
from cloister.wire.limits import REVOCATION_LIST_BYTES

ROOT: Final = "Intel SGX Root CA"
PCK_CAS: Final = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}
STANDARD: Final = "standard"
_VERSION: Final = "certification/v4"
_PAGE: Final = frozenset({"text/html"})
_TCB_CHAIN: Final = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")
_QE_CHAIN: Final = ("sgx-enclave-identity-issuer-chain",)
_PCK_CRL_CHAIN: Final = ("sgx-pck-crl-issuer-chain",)
_CHAIN_CHARS: Final = 16 * 1024
_HALF: Final = 32  # of a P-256 signature
_PLATFORM_IDS: Final = {"sgx": "SGX", "tdx": "TDX"}
_QE_IDS: Final = {"sgx": "QE", "tdx": "TD_QE"}


def platform_items(tee: str, fmspc: bytes, ca: str, *, update: str = STANDARD) -> tuple[Item, ...]:
    """Return what the quotes of one kind of platform need.

    Args:
        tee: `sgx` or `tdx`.
        fmspc: 6 bytes, of the PCK certificate.
        ca: `platform` or `processor`: who issued it.
        update: Intel's channel: `standard`, or `early`, which raises the bar months before.

    Raises:
        FormatRefused: `collateral.item.malformed`.
    """
    return (
        make_item(Kind.TCB_INFO, tee=tee, fmspc=fmspc.hex(), update=update),
        make_item(Kind.QE_IDENTITY, tee=tee, update=update),
        make_item(Kind.PCK_CRL, ca=ca),
        make_item(Kind.INTEL_ROOT_CRL),
    )


def request_tcb_info(item: Item, mirror: bool) -> Request:
    """Return the request for TCB info."""
    path = f"/{item['tee']}/{_VERSION}/tcb?fmspc={item['fmspc'].upper()}"
    return Request(path=path + ("&update=early" if item["update"] == "early" else ""), types=JSON_TYPES)


def request_qe_identity(item: Item, mirror: bool) -> Request:
    """Return the request for the identity of a quoting enclave."""
    path = f"/{item['tee']}/{_VERSION}/qe/identity"
    return Request(path=path + ("?update=early" if item["update"] == "early" else ""), types=JSON_TYPES)


def request_pck_crl(item: Item, mirror: bool) -> Request:
    """Return the request for the revocation list of a PCK CA."""
    path = f"/sgx/{_VERSION}/pckcrl?ca={item['ca']}&encoding=der"
    return Request(path=path, types=BINARY_TYPES | (_PAGE if mirror else frozenset()))


def request_root_crl(item: Item, mirror: bool) -> Request:
    """Return the request for the root's revocation list."""
    if mirror:
        return Request(path=f"/sgx/{_VERSION}/rootcacrl", types=BINARY_TYPES | _PAGE)
    return Request(path="/IntelSGXRootCA.der", types=BINARY_TYPES)


def unwrap_tcb_info(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the answer and its issuer chain."""
    return answer.body, _chain(item, answer, _TCB_CHAIN)


def unwrap_qe_identity(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the answer and its issuer chain."""
    return answer.body, _chain(item, answer, _QE_CHAIN)


def unwrap_pck_crl(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the list in DER and its issuer chain."""
    return _list(item, answer.body), _chain(item, answer, _PCK_CRL_CHAIN)


def unwrap_root_crl(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the list in DER; its issuer is the root itself."""
    return _list(item, answer.body), ""


def inspect_tcb_info(item: Item, data: bytes, chain: str) -> Content:
    """Return TCB info as content: for that FMSPC and TEE, signed by the first certificate of its chain.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    with answering(item):
        text = _signed_text(item, data, chain)
        parsed = parse_tcb_info(text)
    require_same(item, "TEE", _PLATFORM_IDS[item["tee"]], parsed.id)
    require_same(item, "FMSPC", item["fmspc"], parsed.fmspc.hex())
    return _content(data, chain, parsed)


def inspect_qe_identity(item: Item, data: bytes, chain: str) -> Content:
    """Return the identity of a quoting enclave as content: for that TEE, signed by the first of its chain.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    with answering(item):
        text = _signed_text(item, data, chain)
        parsed = parse_qe_identity(text)
    require_same(item, "enclave", _QE_IDS[item["tee"]], parsed.id)
    return _content(data, chain, parsed)


def inspect_pck_crl(item: Item, data: bytes, chain: str) -> Content:
    """Return the revocation list of a PCK CA as content, signed by the first certificate of its chain.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    content = inspect_list(item, data, chain, PCK_CAS[item["ca"]])
    issuer = _first(item, chain, PCK_CAS[item["ca"]])
    key = issuer.public_key()
    try:
        signed = isinstance(key, ec.EllipticCurvePublicKey) and x509.load_der_x509_crl(data).is_signature_valid(key)
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError) as err:
        raise _unsigned(item) from err
    if not signed:
        raise _unsigned(item)
    return content


def inspect_root_crl(item: Item, data: bytes, chain: str) -> Content:
    """Return the root's revocation list as content.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    return inspect_list(item, data, chain, ROOT)


def assemble(tcb_info: Content, qe_identity: Content, pck_crl: Content, root_crl: Content) -> bytes:
    """Return the four as one JSON of nine members: chains as PEM, lists and signatures in hex, statements as text."""
    tcb, identity = _statement(tcb_info.data), _statement(qe_identity.data)
    members = {
        "pck_crl_issuer_chain": pck_crl.chain,
        "root_ca_crl": root_crl.data.hex(),
        "pck_crl": pck_crl.data.hex(),
        "tcb_info_issuer_chain": tcb_info.chain,
        "tcb_info": tcb.text.decode(),
        "tcb_info_signature": tcb.signature.hex(),
        "qe_identity_issuer_chain": qe_identity.chain,
        "qe_identity": identity.text.decode(),
        "qe_identity_signature": identity.signature.hex(),
    }
    return json.dumps(members, indent=1).encode()


def _content(data: bytes, chain: str, parsed: TCBInfo | QEIdentity) -> Content:
    return Content(
        data=data,
        chain=chain,
        issued=parsed.issued,
        expires=parsed.next_update,
        sequence=parsed.evaluation_number,
    )


def _statement(data: bytes) -> Statement:
    found = read_collateral(Document(name="answer", data=data))
    statements = (*found.tcb_infos, *found.qe_identities)
    if len(statements) != 1:
        raise EndorsementError("collateral.answer.malformed", "answer does not hold one signed statement")
    return statements[0]


def _signed_text(item: Item, data: bytes, chain: str) -> bytes:
    """Return the text of the statement, signed by the first certificate of `chain`; whose that is, is not asked."""
    statement = _statement(data)
    key = _first(item, chain, TCB_SIGNING).public_key()
    r, s = (int.from_bytes(half, "big") for half in (statement.signature[:_HALF], statement.signature[_HALF:]))
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise _unsigned(item)
        key.verify(encode_dss_signature(r, s), statement.text, ec.ECDSA(SHA256()))
    except InvalidSignature as err:
        raise _unsigned(item) from err
    return statement.text


def _first(item: Item, chain: str, name: str) -> x509.Certificate:
    """Return the first certificate of an issuer chain, which must bear `name`."""
    der = certificates_of(item, chain.encode())[0]
    certificate = load_certificate(der, code="collateral.answer.chain", path=item.label)
    require_same(item, "signer", name, common_name(certificate))
    return certificate


def _chain(item: Item, answer: Answer, names: tuple[str, ...]) -> str:
    encoded = next((answer.headers[name] for name in names if name in answer.headers), "")
    chain = unquote(encoded, errors="replace") if encoded.isascii() and len(encoded) <= _CHAIN_CHARS else ""
    if not chain.isascii() or not chain:
        raise EndorsementError(
            "collateral.answer.malformed",
            "answer has no issuer chain",
            path=item.label,
            expected=f"header {names[0]}",
            hint="some proxies drop long headers",
        )
    return chain


def _list(item: Item, body: bytes) -> bytes:
    """Return a revocation list in DER, from DER, PEM or hexadecimal digits."""
    text = body.strip()
    if len(text) <= 2 * REVOCATION_LIST_BYTES and text[:2].lower() == b"30":
        try:
            body = binascii.unhexlify(text)
        except binascii.Error:
            body = text
    with answering(item):
        found = split_bundle(body, path=item.label)
    if found.certificates or len(found.revocation_lists) != 1:
        raise EndorsementError("collateral.answer.malformed", "answer is not one revocation list", path=item.label)
    return found.revocation_lists[0]


def _unsigned(item: Item) -> EndorsementError:
    return EndorsementError(
        "collateral.answer.malformed",
        "answer is not signed by the certificate beside it",
        path=item.label,
        hint="the answer was changed or damaged on its way",
    )
