"""Words of the command line: what is taken, and what is refused with place, expected form and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.options import (
    choose_accelerator,
    choose_backend,
    parse_environment,
    parse_name,
    parse_publish,
    parse_sealing_keys,
    parse_secret_files,
)
from cloister.cli.output import exit_code, print_error, visible
from cloister.crypto.jwt import public_jwk
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.host.vmm.spec import Backend, PortForward


def test_publish() -> None:
    assert parse_publish("8080:80") == PortForward(host_ip="127.0.0.1", host_port=8080, guest_port=80)
    assert parse_publish("0.0.0.0:8080:80/tcp").host_ip == "0.0.0.0"  # noqa: S104  # what the user wrote


@pytest.mark.parametrize("text", ["80", "80:", ":80", "a:b", "1:2:3:4", "80:80/udp", "-1:80", "", "8080:80 "])
def test_publish_refuses(text: str) -> None:
    with pytest.raises(Refused, match=r"cli\.run\.publish") as caught:
        parse_publish(text)
    assert caught.value.path == "--publish" and caught.value.expected and caught.value.hint


@pytest.mark.parametrize("text", ["0:80", "8080:0", "70000:80", "8080:70000", "1.2.3:80:80", "localhost:80:80"])
def test_publish_refuses_what_is_no_address_or_port(text: str) -> None:
    with pytest.raises(Refused, match=r"host\.spec\.port_forward"):
        parse_publish(text)


def test_environment() -> None:
    assert parse_environment(["A=1", "B=", "C=x=y", "A=2"]) == {"A": "2", "B": "", "C": "x=y"}


@pytest.mark.parametrize("text", ["A", "", "=x"])
def test_environment_refuses(text: str) -> None:
    with pytest.raises(Refused, match=r"cli\.run\.env") as caught:
        parse_environment([text])
    assert caught.value.path == "--env" and caught.value.hint


def test_secret_files(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"content")
    words = [f"/a={tmp_path / 'here'}", "/b=kbs:///x/y/z", "/c=sealed.x.y.z"]
    assert parse_secret_files(words) == {"/a": b"content", "/b": "kbs:///x/y/z", "/c": "sealed.x.y.z"}
    (tmp_path / "empty").touch()
    for text in ("", "/a", "/a=", "a=kbs:///x/y/z", "/a=/does/not/exist", f"/a={tmp_path / 'empty'}"):
        with pytest.raises(Refused, match=r"cli\.run\.secret_file") as caught:
            parse_secret_files([text])
        assert caught.value.expected


def test_sealing_keys(tmp_path: Path) -> None:
    key = ECDSAP256Signer.generate().public_key
    (tmp_path / "pem").write_bytes(key.pem())
    (tmp_path / "jwk").write_text(json.dumps(public_jwk(key)))
    words = ["kbs:///x/y/z", f"a={tmp_path / 'pem'}", f"b={tmp_path / 'jwk'}"]
    pem = key.pem().decode()
    assert parse_sealing_keys(words) == {"kbs:///x/y/z": "", "a": pem, "b": pem}
    for text, code in (("a=/does/not/exist", "cli.run.sealing_key"), ("a", "protocol.resource.malformed")):
        with pytest.raises(CloisterError) as caught:
            parse_sealing_keys([text])
        assert caught.value.code == code


def test_name() -> None:
    assert parse_name("") == "" and parse_name("web-1") == "web-1"


@pytest.mark.parametrize(("text", "better"), [("Bad Name", "bad-name"), ("../x", "x"), ("a_b", "a-b"), ("-", "pod")])
def test_name_refuses_and_offers_one(text: str, better: str) -> None:
    with pytest.raises(Refused, match=r"cli\.run\.name") as caught:
        parse_name(text)
    assert caught.value.hint == f"try --name {better}"


def test_backends() -> None:
    assert choose_backend("simulated", "seabios") is Backend.PROCESS
    assert choose_backend("measured", "seabios") is Backend.SEABIOS
    assert choose_backend("measured", "uki") is Backend.OVMF


def test_hardware_is_not_had_by_asking() -> None:
    with pytest.raises(Refused, match=r"cli\.run\.option") as caught:
        choose_backend("hardware", "seabios")
    assert "cloister doctor" in caught.value.hint


@pytest.mark.parametrize(("level", "profile"), [("MEASURED", "seabios"), ("", "seabios"), ("measured", "bios")])
def test_other_words_are_refused(level: str, profile: str) -> None:
    with pytest.raises(Refused, match=r"cli\.run\.option"):
        choose_backend(level, profile)
    with pytest.raises(Refused, match=r"cli\.run\.option"):
        choose_accelerator(level)


def test_error_block_has_cause_place_values_and_fix(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(Refused("podpolicy.claim.env", "env differs", path="p", expected="e", actual="a"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "cloister: error: CLS-P-0117 env differs"
    assert [line.split()[1] for line in lines[1:4]] == ["place:", "expected:", "actual:"]
    assert lines[4].startswith("cloister: hint: Only the owner")  # the catalogue's, as the error had none
    assert lines[5] == "cloister: more: cloister explain CLS-P-0117   (podpolicy.claim.env)"


def test_errors_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(
        Refused("oci.x.y", "m\x1b]0;t\x07", path="[bold]x[/y]\r", actual="\u202eabc\n ok  proved", hint=":smile:")
    )
    out = capsys.readouterr().err
    assert all(char.isprintable() or char == "\n" for char in out)
    assert "[bold]x[/y]" in out and ":smile:" in out and not any(line.startswith(" ok") for line in out.splitlines())


@pytest.mark.parametrize("text", ["plain", "ümlaut", "日本"])
def test_what_is_readable_stays(text: str) -> None:
    assert visible(text) == text


def test_exit_codes() -> None:
    assert exit_code(Refused("x.y", "no")) == 1 and exit_code(Unavailable("x.y", "later")) == 3
