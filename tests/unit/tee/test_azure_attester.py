"""The guest's side on Azure, over a fake virtual TPM and a fake metadata service; and the real service's absence."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Generator, Mapping
from typing import Any

import pytest

from cloister.errors import EvidenceError, Unavailable
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.azure import attester as module
from cloister.tee.azure.attester import AK_HANDLE, ATTESTER, REPORT_INDEX, USER_DATA_INDEX, AzureAttester, fetch_imds
from cloister.tee.registry import attester_for
from cloister.tee.verification import verify_evidence
from cloister.testing.azure import INIT_DATA_DIGEST, NONCE, NOW, FakeParavisor, FakeVTPM


@pytest.fixture(params=["on_snp", "on_tdx"])
def machine(request: pytest.FixtureRequest) -> FakeParavisor:
    """One VM on each hardware."""
    found: FakeParavisor = request.getfixturevalue(request.param)
    return found


def attester(vtpm: FakeVTPM, *, waits: list[float] | None = None, **changes: Any) -> AzureAttester:
    return AzureAttester(
        transport=vtpm, **{"fetch": vtpm.imds, "sleep": (waits if waits is not None else []).append, **changes}
    )


def test_what_it_collects_verifies(machine: FakeParavisor) -> None:
    vtpm = FakeVTPM(machine)
    with attester(vtpm) as tpm:
        assert tpm.enrol() is None
        assert tpm.read_pcrs() == machine.tpm.read_pcrs()
        body = tpm.attest(NONCE, b"")
    assert vtpm.closed
    assert body["version"] == 2
    assert json.loads(json.dumps(body)) == body
    result = verify_evidence(
        Evidence(tee=machine.tee, body=body),
        ExpectedBinding(report_data=NONCE, init_data_digest=INIT_DATA_DIGEST),
        machine.endorsements(),
        at=NOW,
    )
    assert result.claims.native["user_data"] == NONCE.ljust(64, b"\0").hex()


def test_the_names_of_azures_documentation() -> None:
    assert (REPORT_INDEX, USER_DATA_INDEX, AK_HANDLE) == (0x01400001, 0x01400002, 0x81000003)
    assert ATTESTER is AzureAttester
    assert attester_for("az-snp-vtpm") is attester_for("az-tdx-vtpm") is AzureAttester


def test_it_waits_for_a_report_of_this_session(machine: FakeParavisor) -> None:
    waits: list[float] = []
    with attester(FakeVTPM(machine, stale=3), waits=waits) as tpm:
        assert tpm.attest(NONCE, b"")["version"] == 2
    assert len(waits) == 3
    with attester(FakeVTPM(machine, stale=99), waits=waits) as tpm, pytest.raises(Unavailable) as caught:
        tpm.attest(NONCE, b"")
    assert caught.value.code == "tee.azure.user_data_stale"
    assert sum(waits) < 10


def test_an_older_paravisor_gives_version_1(machine: FakeParavisor) -> None:
    with attester(FakeVTPM(machine, knows_user_data=False)) as tpm:
        body = tpm.attest(NONCE, b"")
    assert body["version"] == 1


def test_an_index_that_somebody_else_defined(machine: FakeParavisor) -> None:
    with attester(FakeVTPM(machine, user_data_size=48)) as tpm:
        assert tpm.attest(NONCE, b"")["version"] == 2
    with attester(FakeVTPM(machine, user_data_size=32)) as tpm, pytest.raises(Unavailable) as caught:
        tpm.attest(NONCE, b"")
    assert caught.value.code == "tee.azure.user_data_size"


def test_a_machine_that_is_not_azures(machine: FakeParavisor) -> None:
    with attester(FakeVTPM(machine, has_report=False)) as tpm, pytest.raises(Unavailable) as caught:
        tpm.attest(NONCE, b"")
    assert caught.value.code == "tee.azure.no_report"


@pytest.mark.parametrize("size", [0, 65])
def test_report_data_that_do_not_fit_are_our_mistake(size: int, machine: FakeParavisor) -> None:
    with attester(FakeVTPM(machine)) as tpm, pytest.raises(RuntimeError):
        tpm.attest(bytes(size), b"")


def test_there_is_nothing_to_activate(machine: FakeParavisor) -> None:
    with attester(FakeVTPM(machine)) as tpm, pytest.raises(EvidenceError) as caught:
        tpm.activate(b"", b"")
    assert caught.value.code == "tee.azure.no_activation"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"vcekCert":7,"quote":7}',
        b'{"vcekCert":"\\u00e4","quote":"+/"}',
        b'{"vcekCert":"no certificate","quote":"A"}',
        b'{"a":1,"a":2}',
    ],
)
def test_answers_of_no_use(answer: bytes, machine: FakeParavisor) -> None:
    def fetch(method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        return answer

    with attester(FakeVTPM(machine), fetch=fetch) as tpm, pytest.raises(Unavailable) as caught:
        tpm.attest(NONCE, b"")
    assert caught.value.code == "tee.azure.imds.answer"


def test_no_tpm_at_all(tmp_path: Any) -> None:
    with pytest.raises(Unavailable) as caught:
        AzureAttester(tmp_path)
    assert (caught.value.code, caught.value.path) == ("tee.tpm.device", str(tmp_path / "dev" / "tpmrm0"))


# The real way to the service, to a server of this test


class Service(http.server.BaseHTTPRequestHandler):
    """Answers with the status and body that the path says, and what it was asked."""

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        _, status, size = self.path.split("/")
        text = json.dumps({"asked": body.decode(), "metadata": self.headers.get("Metadata")}).encode().ljust(int(size))
        self.send_response(int(status))
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:  # the library's name
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """A server at the place of the metadata service."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(module, "IMDS", f"127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_of_the_real_fetcher(service: None) -> None:
    got = json.loads(fetch_imds("GET", "/200/0", headers={"Metadata": "true"}))
    assert got == {"asked": "", "metadata": "true"}
    assert json.loads(fetch_imds("POST", "/200/0", headers={}, body=b"x"))["asked"] == "x"
    for path in ("/429/0", "/500/0", "/301/0", f"/200/{300 * 1024}"):
        with pytest.raises(Unavailable) as caught:
            fetch_imds("GET", path, headers={})
        assert caught.value.code == "tee.azure.imds.status"


def test_no_service_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMDS", "127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        fetch_imds("GET", "/200/0", headers={})
    assert caught.value.code == "tee.azure.imds.unreachable"
