"""Collateral in the forms it is kept in: one JSON of nine members, or the vendor service's answers. Parser, pure.

- One document: JSON with `pck_crl_issuer_chain`, `root_ca_crl`, `pck_crl`, `tcb_info_issuer_chain`, `tcb_info`,
  `tcb_info_signature`, `qe_identity_issuer_chain`, `qe_identity`, `qe_identity_signature`: chains as PEM text, lists
  and signatures in hex, the two statements as text.
- Answers of Intel's service (API version 4), each a document: `{"tcbInfo": {...}, "signature": "..."}`,
  `{"enclaveIdentity": {...}, "signature": "..."}`. Their issuer chains are PEM documents or certificates beside them,
  the revocation lists are among the endorsements' lists.

A statement is signed over its exact bytes, so these are cut out of the answer, never written again. Documents of other
technologies are passed over. Nothing here is authentic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.crypto.pem import split_pem
from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.endorsement import Document, Endorsements
from cloister.tee.dcap.chain import parse_issuer_chain
from cloister.tee.jsonfile import looks_like_json
from cloister.wire.limits import COLLATERAL_BYTES, COLLATERAL_DOCUMENTS, REVOCATION_LIST_BYTES

_CODE: Final = "tee.dcap.collateral"
_SIGNATURE_BYTES: Final = 64
_CACHED: Final = 64
_BEGIN: Final = b"-----BEGIN "
_MARKS: Final = (b'"tcb_info"', b'"qe_identity"', b'"tcbInfo"', b'"enclaveIdentity"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A signed statement: its exact bytes, and r and s of the signature over them, 64 bytes big endian."""

    text: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Everything of collateral that was given. `certificates` are DER, `revocation_lists` DER or PEM."""

    tcb_infos: tuple[Statement, ...] = ()
    qe_identities: tuple[Statement, ...] = ()
    certificates: tuple[bytes, ...] = ()
    revocation_lists: tuple[bytes, ...] = ()


class _OneWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str
    pck_certificate_chain: str | None = None  # of quotes without one; not used, because those are refused


class _AnswerWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    signature: str
    tcbInfo: msgspec.Raw = msgspec.Raw()
    enclaveIdentity: msgspec.Raw = msgspec.Raw()


def gather_collateral(endorsements: Endorsements) -> Collateral:
    """Return all collateral among `endorsements`.

    Raises:
        EndorsementError: a document is too long, there are too many, or one that looks like DCAP collateral does not
            parse (`tee.dcap.collateral.malformed`).
    """
    if len(endorsements.documents) > COLLATERAL_DOCUMENTS:
        raise _malformed("too many documents", "", expected=f"at most {COLLATERAL_DOCUMENTS}")
    return _merge(
        (
            *(read_collateral(document) for document in endorsements.documents),
            Collateral(certificates=endorsements.certificates, revocation_lists=endorsements.revocation_lists),
        )
    )


def read_collateral(document: Document) -> Collateral:
    """Return what one document holds; nothing of a document of another technology.

    Raises:
        EndorsementError: too long, or it looks like DCAP collateral and does not parse
            (`tee.dcap.collateral.malformed`).
    """
    if len(document.data) > COLLATERAL_BYTES:
        raise _malformed("document too long", document.name, expected=f"at most {COLLATERAL_BYTES} bytes")
    return _read(document.data, document.name)


@lru_cache(maxsize=_CACHED)
def _merge(parts: tuple[Collateral, ...]) -> Collateral:
    return Collateral(
        tcb_infos=_unique(item for part in parts for item in part.tcb_infos),
        qe_identities=_unique(item for part in parts for item in part.qe_identities),
        certificates=_unique(item for part in parts for item in part.certificates),
        revocation_lists=_unique(item for part in parts for item in part.revocation_lists),
    )


def _unique(items: Iterable[object]) -> tuple:  # type: ignore[type-arg]  # of whatever is given
    return tuple(dict.fromkeys(items))


@lru_cache(maxsize=_CACHED)
def _read(data: bytes, name: str) -> Collateral:
    if data.lstrip().startswith(_BEGIN + b"CERTIFICATE"):
        return Collateral(certificates=_certificates(data))
    if data.lstrip().startswith(_BEGIN + b"X509 CRL"):
        return Collateral(revocation_lists=(data,))
    if not looks_like_json(data) or not any(mark in data for mark in _MARKS):
        return Collateral()
    try:
        if _MARKS[0] in data or _MARKS[1] in data:
            return _one(msgspec.json.decode(data, type=_OneWire))
        return _answer(msgspec.json.decode(data, type=_AnswerWire))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _malformed(f"not DCAP collateral: {err}"[:160], name) from err
    except (ValueError, FormatRefused) as err:
        raise _malformed(f"DCAP collateral is malformed: {err}"[:160], name) from err


def _one(wire: _OneWire) -> Collateral:
    chains = (wire.pck_crl_issuer_chain, wire.tcb_info_issuer_chain, wire.qe_identity_issuer_chain)
    return Collateral(
        tcb_infos=(Statement(text=wire.tcb_info.encode(), signature=_signature(wire.tcb_info_signature)),),
        qe_identities=(Statement(text=wire.qe_identity.encode(), signature=_signature(wire.qe_identity_signature)),),
        certificates=tuple(der for chain in chains for der in _certificates(chain.encode())),
        revocation_lists=(_list(wire.root_ca_crl), _list(wire.pck_crl)),
    )


def _answer(wire: _AnswerWire) -> Collateral:
    tcb_info, identity = bytes(wire.tcbInfo), bytes(wire.enclaveIdentity)
    if bool(tcb_info) == bool(identity):
        raise ValueError("neither or both of tcbInfo and enclaveIdentity")
    statement = Statement(text=tcb_info or identity, signature=_signature(wire.signature))
    return Collateral(tcb_infos=(statement,)) if tcb_info else Collateral(qe_identities=(statement,))


def _certificates(pem: bytes) -> tuple[bytes, ...]:
    return tuple(item.public_bytes(Encoding.DER) for item in parse_issuer_chain(pem))


def _list(text: str) -> bytes:
    if text.startswith(_BEGIN.decode()):
        return split_pem(text.encode(), code=_CODE, ceiling=REVOCATION_LIST_BYTES, label="X509 CRL")[0]
    return bytes.fromhex(text)


def _signature(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != _SIGNATURE_BYTES:
        raise ValueError(f"a signature has {_SIGNATURE_BYTES} bytes")
    return value


def _malformed(message: str, path: str, *, expected: str = "") -> EndorsementError:
    return EndorsementError(f"{_CODE}.malformed", message, path=path, expected=expected)
