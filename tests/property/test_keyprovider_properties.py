"""Key provider protocol: any bytes end in a value or a refusal; what is written is read; a provider survives all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.errors import CloisterError
from cloister.imagetool.keyprovider import OneKey, Provider
from cloister.imagetool.keyprovider.parameters import parse_parameters
from cloister.oci.digest import Digest
from cloister.oci.encryption.keyprovider import (
    CommandEndpoint,
    Endpoint,
    GRPCEndpoint,
    TTRPCEndpoint,
    UnwrapRequest,
    WrapRequest,
    encode_config,
    encode_envelope,
    encode_request,
    encode_unwrap_answer,
    encode_wrap_answer,
    parse_endpoint,
    parse_envelope,
    parse_request,
    parse_unwrap_answer,
    parse_wrap_answer,
)
from cloister.oci.encryption.options import PrivateOptions, encode_private_options
from cloister.oci.encryption.packet import encode_packet, parse_packet, seal_packet

NAME = "attestation-agent"
KEK = bytes(range(32))
OPTIONS = encode_private_options(PrivateOptions(key=b"k" * 32, digest=Digest.of(b"plain"), nonce=b"n" * 16))
PACKET = encode_packet(seal_packet(OPTIONS, kek_id="kbs:///default/image-kek/1", kek=KEK))
PROVIDER = Provider(OneKey(KEK), allow_key_paths=False)
PARAMETERS = {NAME: (b"Enabled",), "pubkeys": (b"pem", b"pem")}
V2 = {**json.loads(PACKET), "version": "0.1.0", "provider": "kbs", "provider_settings": {}, "annotations": {"a": "b"}}

PARSERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "request": (
        parse_request,
        [
            encode_request(WrapRequest(parameters=PARAMETERS, options=OPTIONS)),
            encode_request(UnwrapRequest(parameters=PARAMETERS, annotation=PACKET)),
        ],
    ),
    "answer of the provider": (
        PROVIDER.answer,
        [
            encode_request(WrapRequest(parameters={NAME: (b"keyid=kbs:///a/b/c::sample=false",)}, options=OPTIONS)),
            encode_request(UnwrapRequest(parameters={}, annotation=PACKET)),
        ],
    ),
    "wrap answer": (parse_wrap_answer, [encode_wrap_answer(PACKET), b'{"keywrapresults":{"annotation":"YWI="}}']),
    "unwrap answer": (parse_unwrap_answer, [encode_unwrap_answer(OPTIONS)]),
    "envelope": (lambda data: parse_envelope(data, ceiling=4096), [encode_envelope(PACKET)]),
    "parameters": (parse_parameters, [b"keyid=kbs:///a/b/c::keypath=/k::algorithm=A256GCM::sample=false", b"Enabled"]),
    "packet": (parse_packet, [PACKET, json.dumps(V2).encode()]),
    "configuration": (
        lambda data: parse_endpoint(data, NAME),
        [
            encode_config(NAME, CommandEndpoint(path="/x", arguments=("a",))),
            encode_config(NAME, GRPCEndpoint(address="127.0.0.1:1")),
            encode_config(NAME, TTRPCEndpoint(socket="/x")),
            b'{"key-providers":{"attestation-agent":{"grpc":"kp:1","grpc-tls":{"root-ca-file":"/ca"}}}}',
        ],
    ),
}
names = st.sampled_from(sorted(PARSERS))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.binary(max_size=6).map(bytes.hex)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def attempt(name: str, data: bytes) -> None:
    try:
        PARSERS[name][0](data)
    except CloisterError:
        return


@given(names, st.binary(max_size=200))
@example("request", b"\xff")
def test_any_bytes_end_in_a_value_or_a_refusal(name: str, data: bytes) -> None:
    attempt(name, data)


@given(st.data(), names)
def test_changed_documents_end_in_a_value_or_a_refusal(data: st.DataObject, name: str) -> None:
    raw = bytearray(data.draw(st.sampled_from(PARSERS[name][1])))
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(raw) - 1))
        raw[index] ^= data.draw(st.integers(1, 255))
    attempt(name, bytes(raw))


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `document`."""
    found = []
    children = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, child in children:
        found += [(document, key), *places(child)]
    return found


@given(st.data(), names.filter(lambda name: name not in ("envelope", "parameters")), values)
def test_documents_with_another_value_somewhere(data: st.DataObject, name: str, value: object) -> None:
    document = json.loads(data.draw(st.sampled_from(PARSERS[name][1])))
    container, key = data.draw(st.sampled_from(places(document)))
    container[key] = value
    attempt(name, json.dumps(document).encode())


@pytest.mark.parametrize("name", sorted(set(PARSERS) - {"parameters"}))
def test_a_truncated_document_is_refused(name: str) -> None:
    parse, seeds = PARSERS[name]
    for seed in seeds:
        for length in range(0 if name != "envelope" else 1, len(seed)):
            with pytest.raises(CloisterError):
                parse(seed[:length])


octets = st.binary(min_size=1, max_size=300)
parameters = st.dictionaries(st.text(max_size=20), st.lists(octets, max_size=3).map(tuple), max_size=4)


@given(octets, parameters)
def test_what_is_written_is_read(data: bytes, given_: dict[str, tuple[bytes, ...]]) -> None:
    wrap, unwrap = WrapRequest(parameters=given_, options=data), UnwrapRequest(parameters=given_, annotation=data)
    assert parse_request(encode_request(wrap)) == wrap and parse_request(encode_request(unwrap)) == unwrap
    assert parse_wrap_answer(encode_wrap_answer(data)) == parse_unwrap_answer(encode_unwrap_answer(data)) == data
    assert parse_envelope(encode_envelope(data), ceiling=len(data)) == data


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    words,
    st.one_of(
        st.builds(CommandEndpoint, path=words, arguments=st.lists(words, max_size=3).map(tuple)),
        st.builds(GRPCEndpoint, address=st.integers(0, 65535).map("127.0.0.1:{}".format)),
        st.builds(TTRPCEndpoint, socket=words.map("/{}".format)),
    ),
)
def test_a_configuration_that_is_written_is_read(name: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(encode_config(name, endpoint), name) == endpoint
