"""Parsers of evidence: any bytes give a value or a typed refusal, and a value has exactly one encoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.x509path import load_certificate
from cloister.errors import Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.insecure import abi as simulated
from cloister.tee.tpm import abi, commands, eventlog, gotpm, instanceinfo, quote, tpm2tools
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.credential import ak_name
from cloister.tee.tpm.endorsements import parse_tpm_roots
from cloister.tee.verification import verify_evidence
from cloister.tee.verification import verify_evidence as verify_simulated
from cloister.testing.eventlog import build_event_log, event
from cloister.testing.tpm import INIT_DATA_DIGEST, NOW, REPORT_DATA, EndorsementCA, FakeTPM, run_session
from cloister.wire import protobuf
from cloister.wire.base64 import decode_b64

short = st.binary(max_size=40)
u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
hashes = st.sampled_from([c.ALG_SHA1, c.ALG_SHA256, c.ALG_SHA384])

eccs = st.builds(abi.ECCUnique, curve=u16, x=short, y=short)
rsas = st.builds(abi.RSAUnique, bits=u16, exponent=st.integers(1, 2**32 - 1), modulus=st.binary(max_size=256))
schemes = st.one_of(
    st.tuples(st.sampled_from([c.ALG_NULL, c.ALG_RSAES]), st.just(c.ALG_NULL)),
    st.tuples(st.sampled_from([c.ALG_ECDSA, c.ALG_RSASSA, c.ALG_RSAPSS, c.ALG_OAEP, c.ALG_ECDH]), u16),
)
publics = st.builds(
    lambda scheme, **members: abi.Public(scheme=scheme[0], scheme_hash=scheme[1], **members),
    scheme=schemes,
    name_algorithm=hashes,
    attributes=u32,
    policy=short,
    symmetric=st.none() | st.tuples(st.just(c.ALG_AES), u16, u16),
    unique=eccs | rsas,
)
selections = st.builds(abi.PCRSelection, algorithm=hashes, bitmap=st.binary(max_size=4))
attests = st.builds(
    abi.QuoteAttest,
    qualified_signer=short,
    extra_data=short,
    clock=u64,
    reset_count=u32,
    restart_count=u32,
    safe=st.booleans(),
    firmware_version=u64,
    selections=st.lists(selections, max_size=16).map(tuple),
    pcr_digest=short,
)
signatures = st.builds(
    abi.Signature, algorithm=st.just(c.ALG_ECDSA), hash_algorithm=u16, values=st.tuples(short, short)
) | st.builds(
    abi.Signature,
    algorithm=st.sampled_from([c.ALG_RSASSA, c.ALG_RSAPSS]),
    hash_algorithm=u16,
    values=st.tuples(st.binary(max_size=512)),
)
STRUCTURES: dict[str, tuple[Any, Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "public": (publics, abi.encode_public, abi.parse_public),
    "attest": (attests, abi.encode_quote_attest, abi.parse_quote_attest),
    "signature": (signatures, abi.encode_signature, abi.parse_signature),
}


@pytest.mark.parametrize("kind", STRUCTURES)
@given(data=st.data())
def test_structures_read_back(kind: str, data: st.DataObject) -> None:
    values, encode, parse = STRUCTURES[kind]
    value = data.draw(values)
    assert parse(encode(value)) == value


@pytest.mark.parametrize("kind", STRUCTURES)
@given(data=st.data())
def test_no_two_texts_mean_the_same_structure(kind: str, data: st.DataObject) -> None:
    values, encode, parse = STRUCTURES[kind]
    text = bytearray(encode(data.draw(values)))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = parse(bytes(text))
    except Refused:
        return
    assert encode(value) == bytes(text)


@given(
    items=st.lists(st.tuples(st.integers(0, 23), u32, st.binary(max_size=64)), max_size=12),
    banks=st.sampled_from([("sha256",), ("sha1", "sha256"), ("sha256", "sha384", "sha512")]),
    fill=st.sampled_from([b"", bytes(32), b"\xff" * 32]),
)
def test_logs_read_back(items: list[tuple[int, int, bytes]], banks: tuple[str, ...], fill: bytes) -> None:
    events = tuple(
        event(register, kind, data, algorithms=banks) for register, kind, data in items if (register, kind) != (0, 0)
    )
    assert eventlog.parse_event_log(build_event_log(events, algorithms=banks, fill=fill)) == events


@given(
    registers=st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32), min_size=1),
    texts=st.lists(st.binary(min_size=1, max_size=200), min_size=5, max_size=5),
    flip=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 7)),
)
def test_attestations_read_back_and_a_flipped_bit_shows(
    registers: dict[int, bytes], texts: list[bytes], flip: tuple[int, int] | None
) -> None:
    ak_public, message, signature, log, certificate = texts
    data = gotpm.encode_attestation(
        ak_public=ak_public,
        message=message,
        signature=signature,
        values=registers,
        event_log=log,
        ak_certificate=certificate,
    )
    body = gotpm.parse_attestation(data)
    assert decode_b64(body["ak_public"], ceiling=400)[2:] == ak_public
    assert body["tpm_quote"]["pcrs"] == [registers[index].hex() for index in sorted(registers)]
    assert [decode_b64(body[name], ceiling=400) for name in ("event_log", "ak_certificate")] == [log, certificate]
    if flip is not None:
        at, bit = flip[0] % len(data), flip[1]
        try:
            if gotpm.parse_attestation(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]) == body:
                # The number of a register, in the same order: the verifier has the numbers from what is signed.
                assert data[at - 1] == 8 and data[at] in registers
        except Refused as err:
            assert err.code.startswith("tee.tpm.attestation.")


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=8), st.binary(min_size=32, max_size=32))
def test_replay_is_a_fold(digests: list[bytes], start: bytes) -> None:
    whole = eventlog.replay_digests(digests, start)
    for cut in range(len(digests) + 1):
        assert eventlog.replay_digests(digests[cut:], eventlog.replay_digests(digests[:cut], start)) == whole


PARSERS: dict[str, Callable[[bytes], Any]] = {
    "public": abi.parse_public,
    "attest": abi.parse_quote_attest,
    "attest behind its magic": lambda data: abi.parse_quote_attest(b"\xffTCG\x80\x18" + data),
    "signature": abi.parse_signature,
    "event log": eventlog.parse_event_log,
    "event log behind its header": lambda data: eventlog.parse_event_log(build_event_log([]) + data),
    "certificate": functools.partial(load_certificate, code="x"),
    "attestation": gotpm.parse_attestation,
    "attestation behind its key": lambda data: gotpm.parse_attestation(protobuf.encode_field(1, b"k") + data),
    "attestation's quote": lambda data: gotpm.parse_attestation(
        protobuf.encode_field(1, b"k") + protobuf.encode_field(2, data)
    ),
    "files of tools": lambda data: tpm2tools.join_parts(message=data, signature=data, pcrs=data, ak_public=data),
    "pcr file behind its selection": lambda data: tpm2tools.parse_pcr_file(bytes(132) + b"\1\0\0\0" + data),
    "key": quote.load_attestation_key,
    "instance information": instanceinfo.parse_instance_info,
    "instance information in its sequence": lambda data: instanceinfo.parse_instance_info(
        b"\x30\x82" + len(data).to_bytes(2, "big") + data
    ),
    "roots": functools.partial(parse_tpm_roots, level=Level.MEASURED, origin="any"),
    "roots in PEM": lambda data: parse_tpm_roots(
        b"-----BEGIN CERTIFICATE-----" + data + b"-----END CERTIFICATE-----", level=Level.MEASURED, origin="any"
    ),
    "name": ak_name,
    "response code": commands.response_code,
    "response handle": commands.parse_handle,
    "response key": commands.parse_create_primary,
    "response registers": lambda data: commands.parse_pcr_read(data, range(8)),
    "response index": commands.parse_nv_read_public,
    "response value": commands.parse_sized,
    "response quote": commands.parse_quote,
}


@pytest.mark.parametrize("kind", PARSERS)
@given(data=st.binary(max_size=400))
def test_any_bytes_give_a_value_or_a_refusal(kind: str, data: bytes) -> None:
    try:
        PARSERS[kind](data)
    except Refused as err:
        assert err.code.count(".") >= 1  # the code is what callers key on


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@functools.cache
def _good() -> tuple[Evidence, ExpectedBinding, Endorsements]:
    ca = EndorsementCA()
    tpm = FakeTPM(ca)
    tpm.extend(8, INIT_DATA_DIGEST)
    session = run_session(tpm, report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)
    return session.evidence, session.binding, ca.endorsements()


@given(json_values)
def test_any_json_is_refused_as_evidence(body: Any) -> None:
    _, binding, endorsements = _good()
    for tee, verify in (("tpm", verify_evidence), (simulated.TEE, verify_simulated)):
        with pytest.raises(Refused):
            verify(Evidence(tee=tee, body=body), binding, endorsements, at=NOW)


@given(
    member=st.sampled_from(["ak_public", "ek_certificate", "activation", "event_log", "signature", "message", "pcrs"]),
    value=json_values | st.binary(max_size=300).map(lambda data: __import__("base64").b64encode(data).decode()),
)
def test_any_value_of_one_member_is_refused(member: str, value: Any) -> None:
    evidence, binding, endorsements = _good()
    body = {**evidence.body, "tpm_quote": dict(evidence.body["tpm_quote"])}
    place = body["tpm_quote"] if member in body["tpm_quote"] else body
    if value == place[member]:
        return
    place[member] = value
    with pytest.raises(Refused):
        verify_evidence(Evidence(tee="tpm", body=body), binding, endorsements, at=NOW)
