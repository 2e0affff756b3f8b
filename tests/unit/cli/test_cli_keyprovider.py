"""`cloister keyprovider` as a container tool calls it: one request in, one answer or one refusal out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cloister.cli.app import app
from cloister.cli.keyprovider import ProviderOptions
from cloister.errors import CloisterError
from cloister.oci.digest import Digest
from cloister.oci.encryption.keyprovider import (
    CommandEndpoint,
    GRPCEndpoint,
    TLSFiles,
    UnwrapRequest,
    WrapRequest,
    encode_request,
    parse_endpoint,
    parse_unwrap_answer,
    parse_wrap_answer,
)
from cloister.oci.encryption.options import PrivateOptions, encode_private_options
from cloister.oci.encryption.packet import open_packet, parse_packet

NAME = "attestation-agent"
OPTIONS = encode_private_options(PrivateOptions(key=b"k" * 32, digest=Digest.of(b"plain"), nonce=b"n" * 16))
KEK_ID = "kbs:///default/image-kek/cli"


def run(*words: str, input: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["keyprovider", *words], input=input)


def code_of(result: Result) -> str:
    assert isinstance(result.exception, CloisterError), result.output
    return result.exception.code


def wrap(parameters: str = f"keyid={KEK_ID}", name: str = NAME) -> bytes:
    return encode_request(WrapRequest(parameters={name: (parameters.encode(),)}, options=OPTIONS))


def unwrap(annotation: bytes) -> bytes:
    return encode_request(UnwrapRequest(parameters={NAME: (b"Enabled",)}, annotation=annotation))


def test_a_key_is_made_in_the_trust_service_and_found_there(tmp_path: Path, quick_administration: None) -> None:
    state = ("--state", str(tmp_path / "state"))
    made = parse_wrap_answer(run(*state, input=wrap()).stdout_bytes)
    assert parse_packet(made).kek_id == KEK_ID
    assert parse_unwrap_answer(run(*state, input=unwrap(made)).stdout_bytes) == OPTIONS
    again = parse_wrap_answer(run(*state, input=wrap()).stdout_bytes)
    listed = CliRunner().invoke(app, ["secret", "list", "--output", "json", *state])
    assert [item["version"] for item in json.loads(listed.stdout)["resources"]] == [1]
    out = tmp_path / "kek"
    assert CliRunner().invoke(app, ["secret", "get", KEK_ID, "--out", str(out), *state]).exit_code == 0
    assert open_packet(parse_packet(again), out.read_bytes()) == OPTIONS


def test_a_key_file_needs_no_trust_service(tmp_path: Path, private_home: Path) -> None:
    (tmp_path / "kek").write_bytes(bytes(range(32)))
    file = ("--key-file", str(tmp_path / "kek"))
    made = parse_wrap_answer(run(*file, input=wrap()).stdout_bytes)
    assert parse_unwrap_answer(run(*file, input=unwrap(made)).stdout_bytes) == OPTIONS
    assert not private_home.exists()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"", "oci.keyprovider.not_json"),
        (wrap("sample=true"), "imagetool.keyprovider.sample"),
        (wrap("nonsense"), "imagetool.keyprovider.parameters"),
        (wrap(name="other"), "imagetool.keyprovider.recipients"),
    ],
)
def test_a_refusal_leaves_standard_output_empty(tmp_path: Path, request_: bytes, code: str) -> None:
    result = run("--state", str(tmp_path / "state"), input=request_)
    assert code_of(result) == code and result.exit_code != 0 and result.stdout_bytes == b""


def test_keys_are_in_one_place(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(32))
    result = run("--key-file", str(tmp_path / "f"), "--init-data", str(tmp_path / "f"), input=wrap())
    assert result.exit_code == 2 and "exclude" in result.output


def test_init_data_that_cannot_be_read(tmp_path: Path) -> None:
    result = run("--init-data", str(tmp_path / "none"), "--platform", "simulated", input=wrap())
    assert code_of(result) == "imagetool.keyprovider.init_data"


def test_the_configuration_calls_this_program_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(
        "config", "--server", "https://trust:7070", "--token-file", "token", "--ca", "/ca.pem", "--tenant", "t"
    )
    endpoint = parse_endpoint(result.stdout_bytes, NAME)
    assert isinstance(endpoint, CommandEndpoint) and Path(endpoint.path).is_absolute()
    assert endpoint.arguments[-9:] == (
        "keyprovider",
        *("--server", "https://trust:7070", "--token-file", str(tmp_path / "token"), "--ca", "/ca.pem"),
        *("--tenant", "t"),
    )
    renamed = parse_endpoint(run("config", "--name", "mine").stdout_bytes, "mine")
    assert isinstance(renamed, CommandEndpoint) and renamed.arguments[-2:] == ("--name", "mine")


def test_the_configuration_of_a_service() -> None:
    socket = parse_endpoint(run("config", "--grpc", "unix:///run/kp.sock").stdout_bytes, NAME)
    assert socket == GRPCEndpoint(address="unix:///run/kp.sock")
    words = ("--root-ca", "/ca", "--client-cert", "/cert", "--client-key", "/key")
    tls = parse_endpoint(run("config", "--grpc", "kp:1", *words).stdout_bytes, NAME)
    files = TLSFiles(root_ca_file="/ca", certificate_file="/cert", key_file="/key")
    assert tls == GRPCEndpoint(address="kp:1", tls=files)
    assert code_of(run("config", "--grpc", "kp:1")) == "oci.keyprovider.config.plain_network"


def test_a_service_refuses_before_it_listens(tmp_path: Path) -> None:
    assert code_of(run("serve", "--listen", "127.0.0.1:0")) == "imagetool.keyprovider.listen"
    result = run("serve", "--listen", "127.0.0.1:0", "--tls-cert", str(tmp_path / "c"))
    assert result.exit_code == 2 and "belong together" in result.output
    files = [word for flag in ("--tls-cert", "--tls-key", "--client-ca") for word in (flag, str(tmp_path / "none"))]
    assert code_of(run("serve", "--listen", "127.0.0.1:0", *files)) == "cli.file.unreadable"


def test_the_options_are_those_of_a_command_line() -> None:
    assert ProviderOptions().words() == []
    with pytest.raises(typer.BadParameter):
        ProviderOptions(key_file=Path("a"), init_data=Path("b"))
