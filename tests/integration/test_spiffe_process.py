"""Identities from a real service: attested over TLS, verified by what the service publishes, used for mutual TLS."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from cloister.client.identity import X509SVID, fetch_jwt_svid, fetch_x509_svid
from cloister.errors import KeyReleaseDenied, Refused
from identity_world import AUDIENCE, grant, policy
from trust_process import Owner, Running, make_owner, running

DOMAIN = "prod.example.org"
ISSUER = "https://trust.example.org"


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    made = make_owner(tmp_path)
    with made.admin() as admin:
        admin.put_identity_policy(policy(grant(made.data)))
    return made


def published(service: Running) -> list[x509.Certificate]:
    status, headers, body = service.request("GET", "/spiffe/bundle")
    assert status == 200 and headers["content-type"] == "application/json"
    keys = [key for key in json.loads(body)["keys"] if key["use"] == "x509-svid"]
    return [x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0])) for key in keys]


def speak(directory: Path, client: X509SVID, server: X509SVID) -> tuple[str, str]:
    """Do mutual TLS over a socket; return the names that server and client saw."""
    contexts = []
    for name, svid, side in (("c", client, ssl.PROTOCOL_TLS_CLIENT), ("s", server, ssl.PROTOCOL_TLS_SERVER)):
        (directory / name).write_bytes(svid.certificate_pem + svid.key_pem)
        context = ssl.SSLContext(side)
        context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
        context.load_cert_chain(directory / name)
        context.load_verify_locations(cadata=svid.bundle_pem.decode())
        contexts.append(context)
    seen = []
    one, two = socket.socketpair()

    def serve() -> None:
        with contexts[1].wrap_socket(two, server_side=True) as end:
            seen.append(str(end.getpeercert()["subjectAltName"]))  # type: ignore[index]  # verified, so it is there
            end.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    with contexts[0].wrap_socket(one) as end:
        assert end.recv(5) == b"hello"
        name = str(end.getpeercert()["subjectAltName"])  # type: ignore[index]  # verified, so it is there
    thread.join(10)
    return seen[0], name


def identity(service: Running, owner: Owner) -> X509SVID:
    """What a pod of its own gets."""
    client = service.client(owner)
    try:
        return fetch_x509_svid(client)
    finally:
        client.wipe()


def test_two_pods_attest_and_speak_mutual_tls(owner: Owner, tmp_path: Path) -> None:
    arguments = ("--trust-domain", DOMAIN, "--identity-issuer", ISSUER)
    with running(owner.state, *arguments) as service:
        web, db = identity(service, owner), identity(service, owner)
        assert speak(tmp_path, web, db) == (f"(('URI', '{db.spiffe_id}'),)", f"(('URI', '{web.spiffe_id}'),)")
        [authority] = published(service)
        x509.load_pem_x509_certificate(web.certificate_pem).verify_directly_issued_by(authority)
        client = service.client(owner)
        assert fetch_jwt_svid(client, AUDIENCE).svid
        with pytest.raises(KeyReleaseDenied) as denial:
            fetch_jwt_svid(client, "https://other.example.org")
        client.wipe()
        status, _, body = service.request("GET", "/.well-known/openid-configuration")
        assert status == 200 and json.loads(body)["jwks_uri"] == ISSUER + "/spiffe/keys"
    with owner.admin() as admin:
        assert [row.code for row in admin.list_audit() if row.decision == "released"] == ["trust.identity.issued"] * 3
        assert admin.get_denial(denial.value.path).code == "trust.identity.audience_granted"
    text = service.log.read_text()
    assert "PRIVATE" not in text and "trust.identity" in text


def test_a_service_without_a_trust_domain_issues_nothing(owner: Owner) -> None:
    with running(owner.state) as service:
        with pytest.raises(Refused) as refusal:
            identity(service, owner)
        assert refusal.value.code == "client.resource_not_found"
        assert service.request("GET", "/spiffe/bundle")[0] == 404
