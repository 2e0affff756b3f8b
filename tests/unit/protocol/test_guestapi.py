"""The host-to-guest API: a closed schema. Each call with each unknown field, and frames that cannot be followed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cloister.errors import FormatRefused, PodPolicyRefused, Refused, RequestRefused, Unavailable
from cloister.protocol import guestapi
from cloister.protocol.guestapi import (
    CALLS,
    FrameSplitter,
    StreamFrame,
    StreamKind,
    StreamSplitter,
    decode_call,
    decode_from_guest,
    decode_result,
    encode_call,
    encode_event,
    encode_refusal,
    encode_reply,
    pack_frame,
    pack_stream_frame,
    peek_call_id,
)
from cloister.wire.limits import GUESTAPI_FRAME_BYTES, GUESTAPI_ID_CHARS, STREAM_FRAME_BYTES

CLAIM = {"args": ["/bin/sh"], "env": ["A=1"], "cwd": "/", "user": "0"}
CONTAINER = {"container": "c1"}
VALID: dict[str, dict[str, Any]] = {
    "info": {},
    "create": {"container": "c1", "name": "app", "registry": "http://10.0.2.2:5000", "claim": CLAIM},
    "start": CONTAINER,
    "exec": {"container": "c1", "exec": "e1", "args": ["id"], "env": [], "cwd": "/", "user": "0", "terminal": False},
    "kill": {"container": "c1", "signal": 15, "exec": "", "all": False},
    "wait": {"container": "c1", "exec": "e1"},
    "state": CONTAINER,
    "pids": CONTAINER,
    "stats": CONTAINER,
    "resize": {"container": "c1", "width": 80, "height": 24, "exec": ""},
    "close_io": CONTAINER,
    "pause": CONTAINER,
    "resume": CONTAINER,
    "delete": CONTAINER,
    "shutdown": {},
}
# What hosts of other systems send: files, hooks, mounts, whole specifications. None of it exists here.
FOREIGN_FIELDS = [
    "oci", "OCI", "spec", "hooks", "guest_hook_path", "storages", "mounts", "devices", "rootfs", "image", "digest",
    "annotations", "labels", "sandbox_pidns", "shared_mounts", "copy_file", "path", "file_mode", "data", "policy",
    "env_file", "capabilities", "privileged", "seccomp", "namespaces", "sysctl", "stdin_port", "string_user", "v", "",
]  # fmt: skip


def frame(call: str, params: object, **changes: object) -> bytes:
    return json.dumps({"v": 1, "id": 7, "call": call, "params": params, **changes}).encode()


def refused(data: bytes) -> RequestRefused:
    with pytest.raises(RequestRefused) as refusal:
        decode_call(data)
    assert refusal.value.code.startswith("guestapi.")
    return refusal.value


# --- calls ---


def test_every_call_is_covered_here() -> None:
    """A new call must come with its refusals."""
    assert set(VALID) == set(CALLS)


def test_the_list_of_calls_is_closed() -> None:
    """Adding a call widens what a hostile host can ask: it is a visible change of this list."""
    assert " ".join(CALLS) == (
        "info create start exec kill wait state pids stats resize close_io pause resume delete shutdown"
    )


@pytest.mark.parametrize("call", VALID)
def test_each_call_decodes_and_encodes(call: str) -> None:
    decoded = decode_call(frame(call, VALID[call]))
    assert (decoded.id, decoded.name) == (7, call)
    assert isinstance(decoded.params, CALLS[call][0])
    assert decode_call(encode_call(7, call, decoded.params)) == decoded


@pytest.mark.parametrize("field", FOREIGN_FIELDS)
@pytest.mark.parametrize("call", VALID)
def test_each_call_with_each_unknown_field_is_refused(call: str, field: str) -> None:
    assert refused(frame(call, {**VALID[call], field: ""})).code == "guestapi.schema"


@pytest.mark.parametrize("field", FOREIGN_FIELDS)
def test_unknown_fields_of_the_claim_are_refused(field: str) -> None:
    params = {**VALID["create"], "claim": {**CLAIM, field: ""}}
    assert refused(frame("create", params)).code == "guestapi.schema"


@pytest.mark.parametrize("field", ["method", "token", "Call", "V", "event", "stream"])
def test_unknown_fields_of_the_envelope_are_refused(field: str) -> None:
    assert refused(frame("info", {}, **{field: 1})).code == "guestapi.schema"


@pytest.mark.parametrize("call", VALID)
def test_each_field_with_another_type_is_refused(call: str) -> None:
    for field, value in VALID[call].items():
        wrong: list[object] = [None, {}, 1.5] if field != "claim" else [{}, 1.5, "text", []]
        if not isinstance(value, (bool, int)):
            wrong += [1, True]
        if not isinstance(value, str):
            wrong.append("text")
        for other in wrong:
            assert refused(frame(call, {**VALID[call], field: other})).code == "guestapi.schema", (field, other)


@pytest.mark.parametrize("call", [call for call, params in VALID.items() if params])
def test_required_fields_are_required(call: str) -> None:
    required = [field.name for field in msgspec.structs.fields(CALLS[call][0]) if field.required]
    assert "container" in required
    for field in required:
        params = {name: value for name, value in VALID[call].items() if name != field}
        assert refused(frame(call, params)).code == "guestapi.schema"


@pytest.mark.parametrize(
    "call",
    [
        "",
        "Create",
        "CREATE",
        "create ",
        "copy_file",
        "set_policy",
        "add_swap",
        "mem_hotplug",
        "update_routes",
        "call\0",
    ],
)
def test_calls_that_do_not_exist_are_refused(call: str) -> None:
    refusal = refused(frame(call, {}))
    assert refusal.code == "guestapi.unknown_call"
    assert (refusal.path, refusal.actual) == ("call", call)
    assert refusal.hint


def test_long_names_are_shortened_in_the_refusal() -> None:
    assert len(refused(frame("x" * 10_000, {})).actual) <= 40


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_other_versions_are_refused(version: int) -> None:
    assert refused(frame("info", {}, v=version)).code in ("guestapi.version", "guestapi.schema")


def test_no_parameters_is_the_same_as_empty_parameters() -> None:
    assert decode_call(b'{"v":1,"id":1,"call":"info"}') == decode_call(b'{"v":1,"id":1,"call":"info","params":{}}')
    assert refused(b'{"v":1,"id":1,"call":"start"}').code == "guestapi.schema"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"1", b"\xff", b'{"v":1,"id":1,"call":"info"} x', b"[" * 100_000, b"\0" * 100],
    ids=["empty", "cut", "list", "null", "number", "not utf-8", "tail", "deep", "zeros"],
)
def test_bytes_outside_the_schema_are_refused(data: bytes) -> None:
    assert refused(data).code == "guestapi.schema"


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_parameters_are_refused(depth: int) -> None:
    data = b'{"v":1,"id":1,"call":"start","params":' + b"[" * depth + b"]" * depth + b"}"
    assert refused(data).code == "guestapi.schema"


@pytest.mark.parametrize(
    "identifier",
    [
        "../x",
        "a/b",
        ".",
        "..",
        ".a",
        "-rf",
        "--root",
        "a b",
        "a\n",
        "a\0",
        "é",
        "a\u0661",
        "a" * (GUESTAPI_ID_CHARS + 1),
    ],
)
@pytest.mark.parametrize(("call", "field"), [("create", "container"), ("create", "name"), ("exec", "exec")])
def test_identifiers_have_a_small_alphabet(call: str, field: str, identifier: str) -> None:
    """They become path and cgroup names in the guest."""
    refusal = refused(frame(call, {**VALID[call], field: identifier}))
    assert refusal.code == "guestapi.identifier"
    assert refusal.path == f"params.{field}"


@pytest.mark.parametrize("identifier", ["a", "A0-_.z", "0", "_", "a" * GUESTAPI_ID_CHARS])
def test_identifiers_inside_the_alphabet(identifier: str) -> None:
    assert decode_call(frame("start", {"container": identifier})).params == guestapi.ContainerParams(
        container=identifier
    )


@pytest.mark.parametrize(("call", "field"), [("create", "container"), ("create", "name"), ("start", "container")])
def test_required_identifiers_are_not_empty(call: str, field: str) -> None:
    assert refused(frame(call, {**VALID[call], field: ""})).code == "guestapi.identifier"


def test_exec_needs_a_name_of_its_own() -> None:
    """An empty exec identifier would mean the container's first process."""
    assert refused(frame("exec", {**VALID["exec"], "exec": ""})).code == "guestapi.identifier"


@pytest.mark.parametrize("signal", [0, -1, 65, 1000, 2**31])
def test_signals_are_linux_signals(signal: int) -> None:
    assert refused(frame("kill", {**VALID["kill"], "signal": signal})).code == "guestapi.schema"


@pytest.mark.parametrize(("field", "value"), [("width", -1), ("height", -1), ("width", 65536), ("height", 2**40)])
def test_terminal_sizes_fit_the_kernels_structure(field: str, value: int) -> None:
    assert refused(frame("resize", {**VALID["resize"], field: value})).code == "guestapi.schema"


def test_id_of_a_malformed_call_is_found_when_it_is_there() -> None:
    assert peek_call_id(b'{"id":9,"call":3,"x":[]}') == 9
    for data in (b"", b"{}", b'{"id":"9"}', b"[9]", b"\xff", b'{"id":9', b"[" * 100_000):
        assert peek_call_id(data) is None


# --- replies and events ---

RESULTS = {
    "info": guestapi.InfoResult(agent="0.1", platform="tpm", init_data="sha256:00", pod="p", containers=["app"]),
    "create": guestapi.StreamsResult(stdin=0, stdout=1, stderr=2, salt="AA=="),
    "start": guestapi.StartResult(pid=12),
    "exec": guestapi.StreamsResult(stdin=3, stdout=4, stderr=5),
    "kill": guestapi.Done(),
    "wait": guestapi.WaitResult(status=137),
    "state": guestapi.StateResult(status="running", pid=12),
    "pids": guestapi.PidsResult(pids=[12, 13]),
    "stats": guestapi.StatsResult(cpu_usec=1, memory_bytes=2, pids=3),
    "resize": guestapi.Done(),
    "close_io": guestapi.Done(),
    "pause": guestapi.Done(),
    "resume": guestapi.Done(),
    "delete": guestapi.WaitResult(status=0),
    "shutdown": guestapi.Done(),
}
EVENTS = [
    guestapi.HelloEvent(agent="0.1", platform="tpm"),
    guestapi.PhaseEvent(name="attest", uptime_ms=5, took_ms=1),
    guestapi.ReadyEvent(init_data="sha256:00"),
    guestapi.FailedEvent(error={"code": "a.b", "message": "m"}),
    guestapi.ExitEvent(container="c1", exec="", status=0),
]


@pytest.mark.parametrize("call", CALLS)
def test_each_result_round_trip(call: str) -> None:
    reply = decode_from_guest(encode_reply(7, RESULTS[call]))
    assert isinstance(reply, guestapi.ReplyEnvelope)
    assert reply.id == 7
    assert decode_result(call, reply) == RESULTS[call]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_each_event_round_trip(event: guestapi.Event) -> None:
    envelope = decode_from_guest(encode_event(event))
    assert isinstance(envelope, guestapi.EventEnvelope)
    assert envelope.event == event


def test_every_event_is_covered_here() -> None:
    assert {type(event) for event in EVENTS} == set(guestapi.Event.__args__)


@pytest.mark.parametrize(
    ("error", "family"),
    [
        (PodPolicyRefused("a.b", "m", path="p", expected="e", actual="a", hint="h"), Refused),
        (Unavailable("a.b", "m", path="p", expected="e", actual="a", hint="h"), Unavailable),
    ],
)
def test_refusals_keep_their_family_and_every_text(error: Refused | Unavailable, family: type[Exception]) -> None:
    reply = decode_from_guest(encode_refusal(7, error))
    assert isinstance(reply, guestapi.ReplyEnvelope)
    with pytest.raises(family) as refusal:
        decode_result("start", reply)
    assert refusal.value.as_dict() == error.as_dict()


def test_a_guest_cannot_flood_the_host_with_error_text() -> None:
    error = guestapi.error_from_wire({"code": "c" * 9999, "message": "m" * 9999, "hint": "h" * 9999})
    assert max(map(len, error.as_dict().values())) <= 400


def test_an_error_without_code_still_has_one() -> None:
    assert guestapi.error_from_wire({}).code == "guestapi.unnamed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"v":2,"id":1,"result":{}}',
        b'{"v":1,"id":1,"result":{},"x":1}',
        b'{"v":1,"event":{"kind":"boom"}}',
        b'{"v":1,"event":{"kind":"exit","container":"c","exec":"","status":0,"x":1}}',
        b'{"v":1,"event":{"kind":"hello"}}',
        b'{"v":1,"event":7}',
    ],
)
def test_what_no_guest_says_is_refused(data: bytes) -> None:
    with pytest.raises(RequestRefused):
        decode_from_guest(data)


@pytest.mark.parametrize("result", [b"{}", b'{"pid":"1"}', b"[]", b"null"])
def test_results_of_another_shape_are_refused(result: bytes) -> None:
    with pytest.raises(RequestRefused):
        decode_result("start", guestapi.ReplyEnvelope(v=1, id=1, result=msgspec.Raw(result)))


# --- control frames ---


def test_frames_are_cut_at_any_place() -> None:
    stream = pack_frame(b"one") + pack_frame(b"two") + pack_frame(b"x" * 1000)
    for cut in range(len(stream)):
        splitter = FrameSplitter()
        assert splitter.feed(stream[:cut]) + splitter.feed(stream[cut:]) == [b"one", b"two", b"x" * 1000]


def test_an_unfinished_frame_is_kept_back() -> None:
    splitter = FrameSplitter()
    assert splitter.feed(pack_frame(b"frame")[:-1]) == []
    assert splitter.feed(b"e") == [b"frame"]


@pytest.mark.parametrize("length", [0, GUESTAPI_FRAME_BYTES + 1, 2**31, 2**32 - 1])
def test_frame_lengths_out_of_bounds_are_refused_from_the_header_alone(length: int) -> None:
    with pytest.raises(FormatRefused) as refusal:
        FrameSplitter().feed(length.to_bytes(4, "big"))
    assert refusal.value.code == "guestapi.frame"


def test_largest_frame() -> None:
    body = b"x" * GUESTAPI_FRAME_BYTES
    assert FrameSplitter().feed(pack_frame(body)) == [body]
    with pytest.raises(RuntimeError):
        pack_frame(body + b"x")


# --- stream frames ---


@pytest.mark.parametrize(
    "sent",
    [
        StreamFrame(1, StreamKind.DATA, b"hello"),
        StreamFrame(2**32 - 1, StreamKind.DATA, b"x" * STREAM_FRAME_BYTES),
        StreamFrame(0, StreamKind.DATA, b""),
        StreamFrame(3, StreamKind.EOF),
        StreamFrame(3, StreamKind.WINDOW, (4096).to_bytes(4, "big")),
    ],
    ids=["data", "largest", "empty", "eof", "window"],
)
def test_stream_frames_round_trip_one_byte_at_a_time_or_whole(sent: StreamFrame) -> None:
    data = pack_stream_frame(sent)
    assert StreamSplitter().feed(data) == [sent]
    splitter = StreamSplitter()
    assert [frame for byte in data[:64] for frame in splitter.feed(bytes((byte,)))] + splitter.feed(data[64:]) == [sent]


def header(stream: int = 1, kind: int = 0, reserved: bytes = b"\0\0\0", length: int = 0) -> bytes:
    return stream.to_bytes(4, "big") + bytes((kind,)) + reserved + length.to_bytes(4, "big")


@pytest.mark.parametrize(
    "data",
    [
        header(kind=3),
        header(kind=255),
        header(reserved=b"\1\0\0"),
        header(reserved=b"\0\0\1"),
        header(length=STREAM_FRAME_BYTES + 1),
        header(length=2**32 - 1),
        header(kind=StreamKind.EOF, length=1) + b"x",
        header(kind=StreamKind.WINDOW, length=0),
        header(kind=StreamKind.WINDOW, length=8) + bytes(8),
    ],
    ids=[
        "kind 3",
        "kind 255",
        "reserved first",
        "reserved last",
        "too long",
        "length wraps",
        "eof with payload",
        "window without payload",
        "window too long",
    ],
)
def test_other_stream_frames_are_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused) as refusal:
        StreamSplitter().feed(data)
    assert refusal.value.code == "guestapi.stream_frame"


def test_truncation_of_a_stream_frame_gives_nothing() -> None:
    data = pack_stream_frame(StreamFrame(1, StreamKind.DATA, b"hello"))
    for length in range(len(data)):
        assert StreamSplitter().feed(data[:length]) == []


def test_our_own_stream_frames_are_bounded() -> None:
    with pytest.raises(RuntimeError):
        pack_stream_frame(StreamFrame(1, StreamKind.DATA, b"x" * (STREAM_FRAME_BYTES + 1)))


@pytest.mark.parametrize("call", ["pids", "stats", "pause", "resume"])
def test_what_is_about_a_whole_container_names_no_process(call: str) -> None:
    """A field that is taken and ignored would be a way to believe something else than what happens."""
    assert refused(frame(call, {"container": "c1", "exec": "e1"})).code == "guestapi.schema"
