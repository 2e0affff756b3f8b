"""Protocol parsers over arbitrary bytes: a typed value or a refusal, and texts that mean one thing."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatRefused, Refused, RequestRefused
from cloister.protocol import guestapi, kbs
from cloister.protocol.initdata import build_initdata, pack_device, parse_initdata, unpack_device
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
SEGMENT = st.from_regex(r"[a-zA-Z0-9_\-][a-zA-Z0-9_\-.]{0,30}", fullmatch=True)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = [kbs.Request, kbs.Challenge, kbs.Attestation, kbs.AttestAnswer, kbs.SealedResource, kbs.ErrorBody]
IDENTIFIER = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)


def params_of(call: str) -> st.SearchStrategy[msgspec.Struct]:
    """Valid parameters of one call, built from the fields of its type."""
    kind = guestapi.CALLS[call][0]
    by_name: dict[str, st.SearchStrategy[object]] = {
        "container": IDENTIFIER,
        "name": IDENTIFIER,
        "exec": IDENTIFIER,
        "signal": st.integers(1, 64),
        "width": st.integers(0, 65535),
        "height": st.integers(0, 65535),
        "args": st.lists(TEXT, max_size=3),
        "env": st.lists(TEXT, max_size=3),
        "terminal": st.booleans(),
        "all": st.booleans(),
        "claim": st.none()
        | st.builds(guestapi.ProcessClaim, args=st.lists(TEXT), env=st.just([]), cwd=TEXT, user=TEXT),
    }
    return st.builds(kind, **{name: by_name.get(name, TEXT) for name in kind.__struct_fields__})


# --- init data ---


@given(st.dictionaries(TEXT, TEXT, max_size=5), st.sampled_from(["sha256", "sha384", "sha512"]))
def test_init_data_round_trip(entries, algorithm):
    built = build_initdata(entries, algorithm=algorithm)
    assert (dict(built.entries), built.algorithm) == (entries, algorithm)
    assert parse_initdata(built.text) == built
    assert unpack_device(pack_device(built)) == built


@given(st.binary(max_size=400))
def test_init_data_text_never_crashes(data):
    with contextlib.suppress(FormatRefused):
        assert parse_initdata(data).text == data


@given(st.text(st.sampled_from("abv01.\"'=[]{}\n\\# \t"), max_size=120))
def test_init_data_toml_like_text_never_crashes(tail):
    with contextlib.suppress(FormatRefused):
        parse_initdata(b'version = "0.1.0"\nalgorithm = "sha256"\n' + tail.encode())


@given(st.binary(max_size=600), st.booleans(), st.integers(0, 2**64 - 1))
def test_init_data_device_never_crashes(body, compressed, length):
    packed = gzip.compress(body) if compressed else body
    for claimed in (length, len(packed)):
        with contextlib.suppress(FormatRefused):
            unpack_device(b"initdata" + claimed.to_bytes(8, "little") + packed)


@given(st.data())
def test_init_data_device_with_one_flipped_bit_gives_the_same_text_or_a_refusal(data):
    built = build_initdata({"pod-policy.json": data.draw(TEXT)})
    image = bytearray(pack_device(built))
    place = data.draw(st.integers(0, len(image) * 8 - 1))
    image[place // 8] ^= 1 << place % 8
    with contextlib.suppress(FormatRefused):
        assert unpack_device(bytes(image)).text == built.text


# --- key broker ---


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_key_broker_messages_never_crash(kind, data):
    with contextlib.suppress(FormatRefused):
        message = kbs.decode_message(data, kind)
        assert kbs.decode_message(kbs.encode_message(message), kind) == message


@given(JSON_VALUES | st.fixed_dictionaries({kbs.TPM_EXTRA: JSON_VALUES}))
def test_tpm_members_never_crash(extra):
    for parse in (kbs.parse_tpm_enrolment, kbs.parse_tpm_credential):
        with contextlib.suppress(FormatRefused):
            parse(extra)


@given(st.dictionaries(TEXT, TEXT, max_size=5), TEXT, TEXT)
def test_report_data_is_48_bytes_and_binds_the_additional_evidence(key, nonce, additional):
    runtime = kbs.RuntimeData(nonce=nonce, tee_pubkey=key)
    digest = kbs.report_data(runtime, additional)
    assert len(digest) == kbs.REPORT_DATA_BYTES
    assert kbs.report_data(runtime, additional + " ") != digest


@given(st.builds(ResourcePath, SEGMENT, SEGMENT, SEGMENT))
def test_resource_address_round_trip(path):
    assert parse_resource_uri(path.uri) == path


@given(TEXT | TEXT.map(lambda text: "kbs:///" + text))
def test_resource_addresses_mean_one_thing(text):
    with contextlib.suppress(FormatRefused):
        assert parse_resource_uri(text).uri == text


# --- guest API ---


@pytest.mark.parametrize("call", guestapi.CALLS)
@given(data=st.data())
def test_calls_round_trip(call, data):
    params = data.draw(params_of(call))
    number = data.draw(st.integers(0, 2**63 - 1))
    assert guestapi.decode_call(guestapi.encode_call(number, call, params)) == guestapi.Call(number, call, params)


@pytest.mark.parametrize("call", guestapi.CALLS)
@given(data=st.data(), field=TEXT, value=JSON_VALUES)
def test_calls_refuse_any_further_field(call, data, field, value):
    params = json.loads(msgspec.json.encode(data.draw(params_of(call))))
    if field in guestapi.CALLS[call][0].__struct_fields__:
        return
    frame = json.dumps({"v": 1, "id": 1, "call": call, "params": {**params, field: value}}).encode()
    with pytest.raises(RequestRefused):
        guestapi.decode_call(frame)


@given(
    st.binary(max_size=300)
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda call, params: json.dumps({"v": 1, "id": 1, "call": call, "params": params}).encode(),
        st.sampled_from(list(guestapi.CALLS)),
        JSON_VALUES,
    )
)
def test_any_bytes_are_a_call_or_a_refusal(data):
    guestapi.peek_call_id(data)
    with contextlib.suppress(RequestRefused):
        guestapi.decode_call(data)
    with contextlib.suppress(RequestRefused):
        reply = guestapi.decode_from_guest(data)
        if isinstance(reply, guestapi.ReplyEnvelope):
            with contextlib.suppress(Refused):
                guestapi.decode_result("start", reply)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.lists(st.integers(0, 400), max_size=6))
def test_control_frames_survive_any_cutting(bodies, cuts):
    stream = b"".join(map(guestapi.pack_frame, bodies))
    splitter = guestapi.FrameSplitter()
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    parts = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert [frame for part in parts for frame in splitter.feed(part)] == bodies


@given(st.binary(max_size=200))
def test_control_stream_never_crashes(data):
    splitter = guestapi.FrameSplitter()
    with contextlib.suppress(FormatRefused):
        for frame in splitter.feed(data):
            assert frame


STREAM_FRAMES = st.one_of(
    st.builds(
        guestapi.StreamFrame,
        st.integers(0, 2**32 - 1),
        st.just(guestapi.StreamKind.DATA),
        st.binary(max_size=60),
    ),
    st.builds(guestapi.StreamFrame, st.integers(0, 2**32 - 1), st.just(guestapi.StreamKind.EOF)),
    st.builds(
        guestapi.StreamFrame,
        st.integers(0, 2**32 - 1),
        st.just(guestapi.StreamKind.WINDOW),
        st.binary(min_size=4, max_size=4),
    ),
)


@given(st.lists(STREAM_FRAMES, max_size=6), st.lists(st.integers(0, 400), max_size=6))
def test_stream_frames_survive_any_cutting(frames, cuts):
    stream = b"".join(map(guestapi.pack_stream_frame, frames))
    splitter = guestapi.StreamSplitter()
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    parts = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert [frame for part in parts for frame in splitter.feed(part)] == frames


@given(st.binary(max_size=200))
def test_stream_port_never_crashes_and_is_not_malleable(data):
    try:
        frames = guestapi.StreamSplitter().feed(data)
    except FormatRefused:
        return
    assert data.startswith(b"".join(map(guestapi.pack_stream_frame, frames)))
