"""CBOR, COSE and what is made of them: any bytes give a value or a typed refusal, and values read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.cose import parse_ec2_key, parse_sign1
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.rats.evidence import Evidence
from cloister.tee.cca import abi as cca_abi
from cloister.tee.cca import claims as cca_claims
from cloister.tee.cca.endorsements import parse_cca_roots
from cloister.tee.hygon_csv import abi as csv_abi
from cloister.tee.ibm_se import abi as se_abi
from cloister.tee.nitro import abi as nitro_abi
from cloister.tee.nitro.verifier import authenticate as authenticate_nitro
from cloister.tee.registry import authenticator_for, reader_for
from cloister.testing.cca import NOW as CCA_NOW
from cloister.testing.cca import FakeCCA
from cloister.testing.nitro import NOW, FakeNSM, NitroCA
from cloister.wire.base64 import encode_b64
from cloister.wire.cbor import Tagged, decode_cbor, encode_cbor
from cloister.wire.limits import COSE_BYTES, NITRO_FIELD_BYTES

keys = st.integers(-(1 << 64), (1 << 64) - 1) | st.text(max_size=8)
scalars = keys | st.binary(max_size=20) | st.booleans() | st.none()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.builds(Tagged, tag=st.integers(0, (1 << 64) - 1), value=inner)
    ),
    max_leaves=12,
)


def decode(data: bytes, *, indefinite: bool = True) -> Any:
    return decode_cbor(data, ceiling=COSE_BYTES, code="t", indefinite=indefinite)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal in types too: True is no 1."""
    return bool(left == right and encode_cbor(left) == encode_cbor(right))


@given(values)
def test_values_read_back(value: Any) -> None:
    assert same(decode(encode_cbor(value), indefinite=False), value)


@given(values)
def test_a_cut_or_longer_value_is_refused(value: Any) -> None:
    data = encode_cbor(value)
    for cut in range(len(data)):
        with pytest.raises(FormatRefused):
            decode(data[:cut])
    with pytest.raises(FormatRefused):
        decode(data + b"\xf6")


@given(st.binary(max_size=200))
def test_any_bytes_are_one_value_or_a_refusal(data: bytes) -> None:
    try:
        value = decode(data)
    except FormatRefused as err:
        assert err.code.startswith("t.")
    else:
        assert same(decode(encode_cbor(value)), value)


CA = NitroCA()
DOCUMENT = FakeNSM(CA).document(nonce=b"n" * 48, user_data=b"u", public_key=b"k")
CCA = FakeCCA()
TOKEN = CCA.token()
SERVICE_PARSERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "sign1": (lambda data: parse_sign1(data, code="t"), DOCUMENT),
    "key": (lambda data: parse_ec2_key(data, code="t"), CCA.realm.public_key),
    "nitro": (nitro_abi.parse_document, parse_sign1(DOCUMENT, code="t").payload),
    "token": (cca_abi.parse_token, TOKEN),
    "platform": (lambda data: cca_claims.validate_platform(decode(data)), cca_abi.encode_platform_claims(CCA.platform)),
    "realm": (lambda data: cca_claims.validate_realm(decode(data)), cca_abi.encode_realm_claims(CCA.realm)),
    "claims JSON": (cca_claims.parse_claims_json, json.dumps({"cca-platform-lifecycle": 12288}).encode()),
    "anchors": (lambda data: parse_cca_roots(data, origin="x"), CCA.root().der),
    "csv report": (csv_abi.parse_report, bytes(csv_abi.DATA_BYTES)),
    "csv root": (csv_abi.parse_root_certificate, bytes(csv_abi.ROOT_BYTES)),
    "request": (se_abi.parse_request, bytes(400)),
    "header": (se_abi.parse_image_header, se_abi.HEADER_MAGIC + bytes(600)),
    "exchange": (se_abi.parse_exchange, se_abi.EXCHANGE_MAGIC + bytes(200)),
    "nitro file": (lambda data: reader_for("nitro")(data, tee="nitro"), DOCUMENT),
    "cca file": (lambda data: reader_for("cca")(data, tee="cca"), TOKEN),
    "csv file": (lambda data: reader_for("csv")(data, tee="csv"), b"{}"),
    "se file": (lambda data: reader_for("se")(data, tee="se"), se_abi.EXCHANGE_MAGIC),
}


@pytest.mark.parametrize("name", SERVICE_PARSERS)
@given(data=st.binary(max_size=300))
def test_parsers_let_only_refusals_out(name: str, data: bytes) -> None:
    parse, _ = SERVICE_PARSERS[name]
    try:
        parse(data)
    except Refused as err:
        assert err.code


@pytest.mark.parametrize("name", SERVICE_PARSERS)
@given(data=st.data())
def test_damaged_structures_let_only_refusals_out(name: str, data: st.DataObject) -> None:
    parse, good = SERVICE_PARSERS[name]
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged))
    except Refused as err:
        assert err.code


registers = st.dictionaries(st.integers(3, 31), st.binary(min_size=48, max_size=48), max_size=6).map(
    lambda found: found | dict.fromkeys(range(3), b"\1" * 48)
)
documents = st.builds(
    nitro_abi.Document,
    module_id=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20),
    timestamp=st.integers(1, (1 << 53) - 1),
    registers=registers,
    certificate=st.binary(min_size=1, max_size=50),
    bundle=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5).map(tuple),
    public_key=st.binary(max_size=50),
    user_data=st.binary(max_size=50),
    nonce=st.binary(max_size=NITRO_FIELD_BYTES),
)


@given(documents)
def test_documents_read_back(document: nitro_abi.Document) -> None:
    encoded = nitro_abi.encode_document(document)
    assert nitro_abi.parse_document(encoded) == document
    assert nitro_abi.parse_document(b"\xbf" + encoded[1:] + b"\xff") == document


digests = st.sampled_from([32, 48, 64]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
components = st.builds(
    cca_claims.Component,
    measurement=digests,
    signer=digests,
    kind=st.sampled_from(["", "BL", "RMM"]),
    version=st.sampled_from(["", "1.0"]),
    algorithm=st.sampled_from(["", "sha-256"]),
)


@given(
    lifecycle=st.sampled_from(list(cca_claims.Lifecycle)),
    low=st.integers(0, 255),
    config=st.binary(min_size=1, max_size=40),
    challenge=digests,
    components=st.lists(components, min_size=1, max_size=5).map(tuple),
    rem=st.lists(digests, min_size=4, max_size=4).map(tuple),
)
def test_claims_read_back(
    lifecycle: cca_claims.Lifecycle, low: int, config: bytes, challenge: bytes, components: Any, rem: Any
) -> None:
    platform = replace(
        CCA.platform,
        lifecycle=lifecycle.value << 8 | low,
        config=config,
        challenge=challenge,
        components=components,
    )
    assert cca_claims.validate_platform(decode(cca_abi.encode_platform_claims(platform))) == platform
    assert platform.state is lifecycle
    realm = replace(CCA.realm, extensible=rem, initial=challenge)
    assert cca_claims.validate_realm(decode(cca_abi.encode_realm_claims(realm))) == realm


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("tee", "names"),
    [
        ("nitro", ["document"]),
        ("cca", ["token"]),
        ("csv", ["attestation_report", "cert_chain", "serial_number", "cc_eventlog"]),
        ("se", ["measurement", "additional_data", "user_data", "cuid", "image_hdr_tags"]),
    ],
)
@given(data=st.data())
def test_verifiers_let_only_refusals_out(tee: str, names: list[str], data: st.DataObject) -> None:
    body = data.draw(st.dictionaries(st.sampled_from([*names, "more"]), json_values, max_size=5))
    with pytest.raises((Refused, Unavailable)) as caught:
        authenticator_for(tee)(Evidence(tee=tee, body=body), CA.endorsements(), at=CCA_NOW)
    assert caught.value.code.startswith("tee.")


@given(st.data())
def test_an_altered_document_is_never_authentic(data: st.DataObject) -> None:
    document = bytearray(DOCUMENT)
    document[data.draw(st.integers(0, len(document) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Refused):
        authenticate_nitro(
            Evidence(tee="nitro", body={"document": encode_b64(bytes(document))}), CA.endorsements(), at=NOW
        )
