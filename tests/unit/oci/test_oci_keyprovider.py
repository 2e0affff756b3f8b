"""The key provider protocol: messages, configuration, and the client that speaks it to other people's providers."""

from __future__ import annotations

import base64
import fcntl
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.oci.encryption import providerclient
from cloister.oci.encryption.keyprovider import (
    CommandEndpoint,
    GRPCEndpoint,
    TLSFiles,
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
from cloister.oci.encryption.providerclient import KeyProvider, connect, open_provider
from cloister.oci.encryption.wrapping import open_keys, open_recipients
from cloister.wire.protobuf import encode_field

NAME = "attestation-agent"
SECRET = b"nobody may see this layer key"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def wrap_json(**more: Any) -> dict[str, Any]:
    """As skopeo 1.18 sends it."""
    parameters = {"Parameters": {NAME: [b64(b"Enabled")]}, "DecryptConfig": {"Parameters": {}}}
    base = {
        "op": "keywrap",
        "keywrapparams": {"ec": parameters, "optsdata": b64(SECRET)},
        "keyunwrapparams": {"dc": None, "annotation": None},
    }
    return {**base, **more}


def unwrap_json(**more: Any) -> dict[str, Any]:
    base = {
        "op": "keyunwrap",
        "keywrapparams": {"ec": None, "optsdata": None},
        "keyunwrapparams": {"dc": {"Parameters": {NAME: [b64(b"Enabled")]}}, "annotation": b64(b"packet")},
    }
    return {**base, **more}


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def refused(work: Any) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        work()
    return caught.value


# -- messages ---------------------------------------------------------------------------------------------------------


def test_requests_are_read_and_written_as_skopeo_writes_them() -> None:
    wrap = WrapRequest(parameters={NAME: (b"Enabled",)}, options=SECRET)
    unwrap = UnwrapRequest(parameters={NAME: (b"Enabled",)}, annotation=b"packet")
    assert parse_request(dumped(wrap_json())) == wrap and encode_request(wrap) == compact(wrap_json())
    assert parse_request(dumped(unwrap_json())) == unwrap and encode_request(unwrap) == compact(unwrap_json())


def test_bytes_in_requests_may_be_arrays_and_parameters_absent() -> None:
    body = {"dc": None, "annotation": list(b"packet")}
    assert parse_request(dumped(unwrap_json(keyunwrapparams=body))) == UnwrapRequest(
        parameters={}, annotation=b"packet"
    )
    body = {"ec": {}, "optsdata": list(SECRET)}
    assert parse_request(dumped({"op": "keywrap", "keywrapparams": body})) == WrapRequest(parameters={}, options=SECRET)


def test_parameters_of_other_schemes_are_kept_apart() -> None:
    config = {"Parameters": {"pubkeys": [b64(b"pem")], NAME: [b64(b"a"), b64(b"b")], "x509s": None}}
    parsed = parse_request(dumped(wrap_json(keywrapparams={"ec": config, "optsdata": b64(SECRET)})))
    assert parsed.parameters == {"pubkeys": (b"pem",), NAME: (b"a", b"b"), "x509s": ()}


def test_what_a_request_holds_is_not_shown() -> None:
    assert repr(parse_request(dumped(wrap_json()))) == "WrapRequest()"
    assert repr(parse_request(dumped(unwrap_json()))) == "UnwrapRequest()"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (wrap_json(op="keyrotate"), "oci.keyprovider.operation"),
        (wrap_json(op=None), "oci.keyprovider.missing_member"),
        (wrap_json(more=1), "oci.keyprovider.unknown_member"),
        (wrap_json(keywrapparams=None), "oci.keyprovider.missing_member"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": ""}), "oci.keyprovider.bytes"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": []}), "oci.keyprovider.bytes"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": [256]}), "oci.keyprovider.wrong_type"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": [-1]}), "oci.keyprovider.wrong_type"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": [True]}), "oci.keyprovider.wrong_type"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": ["a"]}), "oci.keyprovider.wrong_type"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": 7}), "oci.keyprovider.wrong_type"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": [0] * 70000}), "oci.keyprovider.too_many"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": "A"}), "wire.base64.malformed"),
        (wrap_json(keywrapparams={"ec": {}, "optsdata": "A" * 90000}), "wire.base64.too_long"),
        (wrap_json(keywrapparams={"ec": {"Parameters": []}, "optsdata": "AA=="}), "oci.keyprovider.wrong_type"),
        (wrap_json(keywrapparams={"ec": {"parameters": {}}, "optsdata": "AA=="}), "oci.keyprovider.unknown_member"),
        (
            wrap_json(keywrapparams={"ec": {"Parameters": {str(n): [] for n in range(65)}}, "optsdata": "AA=="}),
            "oci.keyprovider.too_many",
        ),
        (
            wrap_json(keywrapparams={"ec": {"Parameters": {"n" * 129: []}}, "optsdata": "AA=="}),
            "oci.keyprovider.too_many",
        ),
        (
            wrap_json(keywrapparams={"ec": {"Parameters": {"n": [""] * 65}}, "optsdata": "AA=="}),
            "oci.keyprovider.too_many",
        ),
        (unwrap_json(keyunwrapparams={"dc": None}), "oci.keyprovider.missing_member"),
        (unwrap_json(keyunwrapparams={"dc": {"more": 1}, "annotation": "AA=="}), "oci.keyprovider.unknown_member"),
        ([], "oci.keyprovider.not_json"),
    ],
)
def test_other_requests_are_refused(body: object, code: str) -> None:
    error = refused(lambda: parse_request(dumped(body)))
    assert error.code == code and SECRET.decode() not in str(error) and b64(SECRET) not in str(error)


def test_requests_are_bounded() -> None:
    assert refused(lambda: parse_request(b" " * (4 * 1024 * 1024 + 1))).code == "oci.keyprovider.too_long"


def test_answers_are_written_as_arrays_and_read_as_either() -> None:
    assert encode_wrap_answer(b"ab") == b'{"keywrapresults":{"annotation":[97,98]}}'
    assert encode_unwrap_answer(b"ab") == b'{"keyunwrapresults":{"optsdata":[97,98]}}'
    assert parse_wrap_answer(encode_wrap_answer(b"ab")) == parse_unwrap_answer(encode_unwrap_answer(b"ab")) == b"ab"
    of_go = {"keywrapresults": {"annotation": b64(b"ab")}, "keyunwrapresults": {"optsdata": None}}
    assert parse_wrap_answer(dumped(of_go)) == b"ab"
    assert parse_unwrap_answer(b'{"keywrapresults":null,"keyunwrapresults":{"optsdata":[0,255]}}') == b"\0\xff"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({}, "oci.keyprovider.answer"),
        ({"keywrapresults": {}}, "oci.keyprovider.answer"),
        ({"keywrapresults": {"annotation": None}, "keyunwrapresults": {"optsdata": None}}, "oci.keyprovider.answer"),
        ({"keywrapresults": {"annotation": []}}, "oci.keyprovider.bytes"),
        ({"keyunwrapresults": {"optsdata": [1]}}, "oci.keyprovider.answer"),
        ({"keywrapresults": {"annotation": [1]}, "keyunwrapresults": {"optsdata": [1]}}, "oci.keyprovider.answer"),
        ({"keywrapresults": {"annotation": [1], "more": 1}}, "oci.keyprovider.unknown_member"),
        ({"keywrapresults": {"annotation": [1]}, "error": "x"}, "oci.keyprovider.unknown_member"),
        ({"keywrapresults": "x"}, "oci.keyprovider.wrong_type"),
    ],
)
def test_other_answers_are_refused(answer: object, code: str) -> None:
    assert refused(lambda: parse_wrap_answer(dumped(answer))).code == code


def test_the_envelope_is_one_field() -> None:
    assert encode_envelope(b"ab") == b"\x0a\x02ab"
    assert parse_envelope(encode_envelope(b"ab"), ceiling=2) == b"ab"
    for data in (b"\x0a\x03ab", b"\x12\x02ab", b"\x0a\x02ab\x0a\x02ab", b"\x0a\x02abc", b"\x08\x01"):
        assert refused(lambda data=data: parse_envelope(data, ceiling=8)).code.startswith("oci.keyprovider.envelope.")
    assert (
        refused(lambda: parse_envelope(encode_envelope(b"abc"), ceiling=2)).code == "oci.keyprovider.envelope.too_long"
    )


# -- configuration ----------------------------------------------------------------------------------------------------


def config(**entry: Any) -> bytes:
    return dumped({"key-providers": {NAME: entry, "other": {"nonsense": 1}}})


TLS = TLSFiles(root_ca_file="/ca", certificate_file="/cert", key_file="/key", server_name="kp")


@pytest.mark.parametrize(
    ("data", "endpoint"),
    [
        (config(cmd={"path": "/bin/x", "args": ["a b"]}), CommandEndpoint(path="/bin/x", arguments=("a b",))),
        (config(cmd={"path": "x"}), CommandEndpoint(path="x")),
        (config(cmd={"path": "x", "args": None}), CommandEndpoint(path="x")),
        (config(grpc="127.0.0.1:50000"), GRPCEndpoint(address="127.0.0.1:50000")),
        (config(grpc="[::1]:50000"), GRPCEndpoint(address="[::1]:50000")),
        (config(grpc="localhost:1"), GRPCEndpoint(address="localhost:1")),
        (config(grpc="unix:///run/x"), GRPCEndpoint(address="unix:///run/x")),
        (
            config(
                grpc="kp.example:5",
                **{"grpc-tls": {"root-ca-file": "/ca", "cert-file": "/cert", "key-file": "/key", "server-name": "kp"}},
            ),
            GRPCEndpoint(address="kp.example:5", tls=TLS),
        ),
        (config(grpc="kp.example:5", **{"grpc-tls": {}}), GRPCEndpoint(address="kp.example:5", tls=TLSFiles())),
        (config(ttrpc="unix:///run/cdh.sock"), TTRPCEndpoint(socket="/run/cdh.sock")),
    ],
)
def test_configurations_are_read(data: bytes, endpoint: Any) -> None:
    assert parse_endpoint(data, NAME) == endpoint
    assert parse_endpoint(encode_config(NAME, endpoint), NAME) == endpoint


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{}", "missing_member"),
        (dumped({"key-providers": {}}), "unknown_provider"),
        (dumped({"key-providers": {NAME: None}}), "unknown_provider"),
        (dumped({"key-providers": {}, "more": 1}), "unknown_member"),
        (config(), "transport"),
        (config(path="/bin/x"), "transport"),
        (config(cmd={"path": "x"}, grpc="127.0.0.1:1"), "transport"),
        (config(native="attestation-agent"), "native"),
        (config(cmd={"path": ""}), "command"),
        (config(cmd={"path": "a\0b"}), "command"),
        (config(cmd={"path": "x", "args": ["\0"]}), "command"),
        (config(cmd={"path": "x", "env": {}}), "unknown_member"),
        (config(cmd={"path": "x", "args": ["a"] * 65}), "too_many"),
        (config(cmd={"path": "x"}, more=1), "unknown_member"),
        (config(grpc="kp.example:5"), "plain_network"),
        (config(grpc="10.0.0.1:5"), "plain_network"),
        (config(grpc="0.0.0.0:5"), "plain_network"),
        (config(grpc="127.0.0.1.example:5"), "plain_network"),
        (config(grpc="kp"), "address"),
        (config(grpc="kp:99999"), "address"),
        (config(grpc="kp:٣"), "address"),
        (config(grpc="https://kp:5"), "address"),
        (config(grpc="user@127.0.0.1:5"), "address"),
        (config(grpc="kp:5", **{"grpc-tls": {"insecure-skip-verify": True}}), "unverified"),
        (config(grpc="kp:5", **{"grpc-tls": {"insecure-skip-verify": "no"}}), "wrong_type"),
        (config(grpc="kp:5", **{"grpc-tls": {"cert-file": "/cert"}}), "certificate"),
        (config(grpc="kp:5", **{"grpc-tls": {"ca": "/ca"}}), "unknown_member"),
        (config(ttrpc="/run/x"), "address"),
        (config(ttrpc="vsock://2:5"), "address"),
        (b"{", "not_json"),
        (b" " * 70000, "too_long"),
    ],
)
def test_other_configurations_are_refused(data: bytes, code: str) -> None:
    assert refused(lambda: parse_endpoint(data, NAME)).code == f"oci.keyprovider.config.{code}"


def test_without_a_configuration_the_way_to_one_is_told(tmp_path: Path) -> None:
    error = refused(lambda: open_provider(NAME, environment={}))
    assert error.code == "oci.keyprovider.config.unset" and "cloister keyprovider config" in error.hint
    missing = {"OCICRYPT_KEYPROVIDER_CONFIG": str(tmp_path / "none")}
    assert refused(lambda: open_provider(NAME, environment=missing)).code == "oci.keyprovider.config.unreadable"


# -- command ----------------------------------------------------------------------------------------------------------

ECHO = """
import base64, json, sys
request = json.load(sys.stdin)
if request["op"] == "keywrap":
    told = base64.b64decode(request["keywrapparams"]["ec"]["Parameters"]["attestation-agent"][0])
    print(json.dumps({"keywrapresults": {"annotation": list(told + b"|" +
        base64.b64decode(request["keywrapparams"]["optsdata"]))}}))
else:
    print(json.dumps({"keyunwrapresults": {"optsdata": request["keyunwrapparams"]["annotation"]}}))
"""


def command(program: str) -> CommandEndpoint:
    return CommandEndpoint(path=sys.executable, arguments=("-c", program))


def provider(program: str) -> KeyProvider:
    return KeyProvider(NAME, connect(command(program)))


def test_a_command_wraps_and_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "ocicrypt.conf"
    place.write_bytes(encode_config(NAME, command(ECHO)))
    monkeypatch.setenv("OCICRYPT_KEYPROVIDER_CONFIG", str(place))
    (wrapper,) = open_recipients([f"provider:{NAME}:keyid=kbs:///a/b/c"])
    assert wrapper.scheme == "provider.attestation-agent"
    assert wrapper.wrap(SECRET) == b"keyid=kbs:///a/b/c|" + SECRET
    (unwrapper,) = open_keys([f"provider:{NAME}"])
    assert unwrapper.unwrap(b"element") == b"element"
    assert open_provider(NAME).wrap(SECRET) == b"Enabled|" + SECRET


def test_a_command_that_refuses_is_quoted_and_shows_no_secret() -> None:
    program = "import sys; sys.stdin.read(); sys.stderr.write('no key\\n  for you'); sys.exit(3)"
    error = refused(lambda: provider(program).wrap(SECRET))
    assert isinstance(error, ImageRefused) and error.code == "oci.keyprovider.refused"
    assert error.message.endswith("no key for you") and error.actual == "status 3" and "layer key" not in str(error)


def test_a_command_may_answer_without_having_read() -> None:
    program = 'print(\'{"keyunwrapresults":{"optsdata":[1]}}\')'
    assert provider(program).unwrap(b"x" * 60000) == b"\1"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("print('{}')", "oci.keyprovider.answer"),
        ("pass", "oci.keyprovider.not_json"),
        ("import sys; sys.stdout.write('x' * 600000)", "oci.keyprovider.too_long"),
        ("import sys; sys.stderr.write('x' * 20000)", "oci.keyprovider.too_long"),
    ],
)
def test_what_a_command_says_is_judged(program: str, code: str) -> None:
    assert refused(lambda: provider(program).unwrap(b"element")).code == code


def test_a_command_that_is_missing_or_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = KeyProvider(NAME, connect(CommandEndpoint(path=str(tmp_path / "none"))))
    error = refused(lambda: missing.wrap(SECRET))
    assert isinstance(error, Unavailable) and error.code == "oci.keyprovider.unreachable"
    monkeypatch.setattr(providerclient, "KEY_PROVIDER_SECONDS", 1.0)
    left = "import fcntl, sys, time; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX); time.sleep(600)"
    lock = str(tmp_path / "lock")
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {left!r}, {lock!r}])"
    error = refused(lambda: provider(program).wrap(SECRET))
    assert isinstance(error, Unavailable) and "no answer" in error.message
    with open(lock, "w", encoding="ascii") as file:
        for _ in range(200):  # what it had started is gone, and holds nothing
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        else:
            pytest.fail("what the command had started lives on")


# -- ttrpc ------------------------------------------------------------------------------------------------------------


@contextmanager
def ttrpc_server(place: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answers one connection with fixed bytes and keeps what it was sent."""
    seen: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                head = connection.recv(10, socket.MSG_WAITALL)
                seen.append(head + connection.recv(int.from_bytes(head[:4], "big"), socket.MSG_WAITALL))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield seen
        thread.join(5)


def frame(message: bytes, *, kind: int = 2, stream: int = 1) -> bytes:
    return len(message).to_bytes(4, "big") + stream.to_bytes(4, "big") + bytes([kind, 0]) + message


def test_ttrpc_asks_as_the_protocol_has_it(tmp_path: Path) -> None:
    place = tmp_path / "s"
    payload = encode_field(2, encode_envelope(encode_unwrap_answer(b"options")))
    with ttrpc_server(place, frame(payload)) as seen:
        assert KeyProvider(NAME, connect(TTRPCEndpoint(socket=str(place)))).unwrap(b"element") == b"options"
    request = seen[0][10:]
    assert seen[0][4:10] == b"\0\0\0\1\1\0"  # stream 1, a request, nothing streamed
    assert request.startswith(b"\x0a\x1ekeyprovider.KeyProviderService\x12\x09UnWrapKey\x1a")
    assert b'"op":"keyunwrap"' in request


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (frame(encode_field(1, encode_field(1, 5) + encode_field(2, b"not here"))), "oci.keyprovider.refused"),
        (frame(b""), "oci.keyprovider.not_json"),
        (frame(b"\x1a\x00"), "oci.keyprovider.envelope.unknown_field"),
        (frame(encode_field(2, b"\x12\x00")), "oci.keyprovider.envelope.unknown_field"),
        (frame(b"", kind=3), "oci.keyprovider.envelope.malformed"),
        (frame(b"", stream=3), "oci.keyprovider.envelope.malformed"),
        (b"\x7f\xff\xff\xff\0\0\0\1\2\0", "oci.keyprovider.too_long"),
        (frame(b"abc")[:-1], "oci.keyprovider.unreachable"),
        (b"", "oci.keyprovider.unreachable"),
    ],
)
def test_other_ttrpc_answers_are_refused(tmp_path: Path, answer: bytes, code: str) -> None:
    with ttrpc_server(tmp_path / "s", answer):
        exchange = connect(TTRPCEndpoint(socket=str(tmp_path / "s")))
        assert refused(lambda: KeyProvider(NAME, exchange).unwrap(b"element")).code == code


def test_nobody_at_a_socket_is_unavailable(tmp_path: Path) -> None:
    exchange = connect(TTRPCEndpoint(socket=str(tmp_path / "none")))
    assert refused(lambda: KeyProvider(NAME, exchange).unwrap(b"x")).code == "oci.keyprovider.unreachable"
