"""Our key provider: what it wraps and opens, with which key, what it refuses, and its gRPC service."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.errors import CloisterError, ImageRefused, Refused, Unavailable
from cloister.imagetool.keyprovider import AdministeredKeys, KEKStore, OneKey, Provider, ReleasedKeys, read_key
from cloister.imagetool.keyprovider.parameters import KeyParameters, parse_parameters
from cloister.imagetool.keyprovider.service import ServerTLS, serving
from cloister.oci.digest import Digest
from cloister.oci.encryption.keyprovider import (
    GRPCEndpoint,
    TLSFiles,
    UnwrapRequest,
    WrapRequest,
    encode_request,
    parse_unwrap_answer,
    parse_wrap_answer,
)
from cloister.oci.encryption.options import PrivateOptions, encode_private_options
from cloister.oci.encryption.packet import encode_packet, open_packet, parse_packet, seal_packet
from cloister.oci.encryption.providerclient import KeyProvider, connect
from cloister.protocol.resourceuri import ResourcePath
from tampering import flipped

NAME = "attestation-agent"
KEK = bytes(range(32))
PATH = ResourcePath("default", "image-kek", "a")
SAMPLE_KEK = bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea")
OPTIONS = encode_private_options(PrivateOptions(key=b"k" * 32, digest=Digest.of(b"plain"), nonce=b"n" * 16))


class Keys:
    """A store in memory."""

    def __init__(self, **keys: bytes) -> None:
        self.held = {ResourcePath("default", "image-kek", tag): key for tag, key in keys.items()}

    def existing(self, path: ResourcePath) -> bytes:
        if path not in self.held:
            raise Refused("trust.resource.missing", "no such resource", path=str(path))
        return self.held[path]

    def obtain(self, path: ResourcePath) -> bytes:
        return self.held.setdefault(path, bytes([len(self.held)]) * 32)


def provider(keys: KEKStore | None = None, **more: Any) -> Provider:
    return Provider(keys or Keys(a=KEK), **{"allow_key_paths": True, **more})


def wrap_request(parameters: str = "Enabled", *, name: str = NAME, options: bytes = OPTIONS) -> bytes:
    return encode_request(WrapRequest(parameters={name: (parameters.encode(),)}, options=options))


def unwrap_request(annotation: bytes, parameters: str = "Enabled") -> bytes:
    return encode_request(UnwrapRequest(parameters={NAME: (parameters.encode(),)}, annotation=annotation))


def packet(kek: bytes = KEK, path: ResourcePath = PATH) -> bytes:
    return encode_packet(seal_packet(OPTIONS, kek_id=path.uri, kek=kek))


def refused(work: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        work()
    return caught.value


# -- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", KeyParameters()),
        ("Enabled", KeyParameters()),
        ("keyid=kbs:///default/image-kek/a", KeyParameters(kek=PATH)),
        ("keypath=/k=1", KeyParameters(key_path="/k=1")),
        ("sample=false::keyid=kbs:///default/image-kek/a::keypath=/k", KeyParameters(kek=PATH, key_path="/k")),
        ("keyid=kbs:///default/image-kek/a::algorithm=A256GCM", KeyParameters(kek=PATH)),
    ],
)
def test_parameters_are_read_as_cocos_provider_reads_them(text: str, expected: KeyParameters) -> None:
    assert parse_parameters(text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "enabled",
        "keyid",
        "keyid=",
        "keyid=a/b/c",
        "keyid=kbs://host/a/b/c",
        "keyid=kbs:///a/b",
        "keyid=kbs:///a/b/c:keypath=/k",
        "keyid=kbs:///a/b/c::keyid=kbs:///a/b/d",
        "keyid=kbs:///a/b/c::",
        "algorithm=A256CTR",
        "kms=kbs",
        "keypath=/k\n",
        "keypath=/" + "k" * 9000,
    ],
)
def test_other_parameters_are_refused(text: str) -> None:
    assert refused(lambda: parse_parameters(text.encode())).code == "imagetool.keyprovider.parameters"


def test_parameters_are_text() -> None:
    assert refused(lambda: parse_parameters(b"keypath=\xff")).code == "imagetool.keyprovider.parameters"


def test_the_sample_key_is_refused_by_its_name_and_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "kek").write_bytes(SAMPLE_KEK)
    asked = wrap_request("sample=true")
    assert refused(lambda: provider().answer(asked)).code == "imagetool.keyprovider.sample"
    for request in (
        wrap_request(f"keypath={tmp_path}/kek"),
        unwrap_request(packet(), f"keypath={tmp_path}/kek"),
    ):
        assert refused(lambda request=request: provider().answer(request)).code == "oci.encryption.sample_kek"
    for request in (wrap_request("keyid=kbs:///default/image-kek/a"), unwrap_request(packet())):
        held = provider(Keys(a=SAMPLE_KEK))
        assert refused(lambda request=request, held=held: held.answer(request)).code == "oci.encryption.sample_kek"


# -- wrapping and opening ---------------------------------------------------------------------------------------------


def test_a_named_key_wraps_and_opens() -> None:
    told: list[tuple[str, ResourcePath]] = []
    held = provider(report=lambda operation, path: told.append((operation, path)))
    made = parse_wrap_answer(held.answer(wrap_request(f"keyid={PATH.uri}")))
    assert parse_packet(made).kek_path == PATH and open_packet(parse_packet(made), KEK) == OPTIONS
    assert b'"version"' not in made  # version 1, which everybody reads
    assert parse_unwrap_answer(held.answer(unwrap_request(made))) == OPTIONS
    assert told == [("wrap", PATH), ("unwrap", PATH)]


def test_without_a_name_every_layer_has_a_key_of_its_own() -> None:
    keys = Keys()
    made = [parse_packet(parse_wrap_answer(provider(keys).answer(wrap_request()))) for _ in range(2)]
    assert made[0].kek_path != made[1].kek_path and {item.kek_path for item in made} == set(keys.held)
    assert made[0].kek_path.repository == "default" and made[0].kek_path.type == "image-kek"


def test_a_key_in_a_file_is_used_and_not_stored(tmp_path: Path) -> None:
    (tmp_path / "kek").write_bytes(KEK)
    keys = Keys()
    made = parse_wrap_answer(provider(keys).answer(wrap_request(f"keyid={PATH.uri}::keypath={tmp_path}/kek")))
    assert open_packet(parse_packet(made), KEK) == OPTIONS and keys.held == {}
    opened = provider(keys).answer(unwrap_request(made, f"keypath={tmp_path}/kek"))
    assert parse_unwrap_answer(opened) == OPTIONS
    one = provider(OneKey(read_key(tmp_path / "kek")))
    assert parse_unwrap_answer(one.answer(unwrap_request(made))) == OPTIONS


@pytest.mark.parametrize("content", [b"", KEK[:-1], KEK + b"\n"])
def test_a_key_file_has_32_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kek").write_bytes(content)
    assert refused(lambda: read_key(tmp_path / "kek")).code == "oci.encryption.kek_length"


def test_a_key_file_that_is_missing_is_unavailable(tmp_path: Path) -> None:
    error = refused(lambda: read_key(tmp_path / "kek"))
    assert isinstance(error, Unavailable) and error.code == "imagetool.keyprovider.key_file"


def test_a_service_reads_no_files_for_who_asks(tmp_path: Path) -> None:
    (tmp_path / "kek").write_bytes(KEK)
    for request in (wrap_request(f"keypath={tmp_path}/kek"), unwrap_request(packet(), f"keypath={tmp_path}/kek")):
        held = provider(allow_key_paths=False)
        assert refused(lambda request=request, held=held: held.answer(request)).code == "imagetool.keyprovider.key_path"


def test_another_key_and_a_changed_packet_do_not_open() -> None:
    made = json.loads(packet())
    made["wrapped_data"] = base64.b64encode(flipped(base64.b64decode(made["wrapped_data"]), 0)).decode()
    for annotation, keys in ((packet(), Keys(a=bytes(32))), (json.dumps(made).encode(), Keys(a=KEK))):
        held = provider(keys)
        error = refused(lambda annotation=annotation, held=held: held.answer(unwrap_request(annotation)))
        assert error.code == "oci.encryption.unwrap_failed"


def test_a_key_that_is_not_there_is_refused_on_opening() -> None:
    assert refused(lambda: provider(Keys()).answer(unwrap_request(packet()))).code == "trust.resource.missing"


def test_nothing_but_layer_keys_is_wrapped_or_opened() -> None:
    secret = b'{"password":"of somebody"}'
    error = refused(lambda: provider().answer(wrap_request(f"keyid={PATH.uri}", options=secret)))
    assert error.code == "oci.encryption.unknown_member" and "somebody" not in str(error)
    other = encode_packet(seal_packet(secret, kek_id=PATH.uri, kek=KEK))
    error = refused(lambda: provider().answer(unwrap_request(other)))
    assert error.code == "oci.encryption.unknown_member" and "somebody" not in str(error)


def test_a_request_names_this_provider_once() -> None:
    two = encode_request(WrapRequest(parameters={NAME: (b"keyid=a", b"keyid=b")}, options=OPTIONS))
    for request in (two, wrap_request(name="other"), encode_request(WrapRequest(parameters={}, options=OPTIONS))):
        assert refused(lambda request=request: provider().answer(request)).code == "imagetool.keyprovider.recipients"
    named = provider(name="other")
    assert parse_packet(parse_wrap_answer(named.answer(wrap_request(f"keyid={PATH.uri}", name="other"))))
    assert parse_unwrap_answer(provider().answer(encode_request(UnwrapRequest(parameters={}, annotation=packet()))))


def test_a_guest_makes_no_keys() -> None:
    asked: list[ResourcePath] = []

    def release(path: ResourcePath) -> bytes:
        asked.append(path)
        return KEK

    held = provider(ReleasedKeys(release))
    assert parse_unwrap_answer(held.answer(unwrap_request(packet()))) == OPTIONS
    held.answer(wrap_request(f"keyid={PATH.uri}"))
    assert asked == [PATH, PATH]


# -- keys of a trust service ------------------------------------------------------------------------------------------


class Service:
    """The resources of a trust service, as its client shows them; `meanwhile` happens before a key is stored."""

    def __init__(self) -> None:
        self.held: dict[ResourcePath, bytes] = {}
        self.meanwhile: Callable[[], None] = lambda: None

    @contextmanager
    def open(self) -> Iterator[Service]:
        yield self

    def get_resource_content(self, path: ResourcePath) -> bytes:
        if path not in self.held:
            raise Refused("trust.resource.missing", "no such resource")
        return self.held[path]

    def put_resource(self, path: ResourcePath, content: bytes, *, replaces: int | None = None) -> None:
        self.meanwhile()
        if replaces == 0 and path in self.held:
            raise Refused("trust.resource.conflict", "another version is there")
        self.held[path] = content


def administered(service: Service) -> AdministeredKeys:
    return AdministeredKeys(service.open)  # type: ignore[arg-type]  # what it uses of the client


def test_a_key_is_made_once_and_then_found() -> None:
    service = Service()
    key = administered(service).obtain(PATH)
    assert len(key) == 32 and service.held == {PATH: key}
    assert administered(service).obtain(PATH) == administered(service).existing(PATH) == key


def test_of_two_that_make_a_key_at_once_both_use_the_one_that_is_stored() -> None:
    service = Service()
    service.meanwhile = lambda: service.held.update({PATH: KEK})
    assert administered(service).obtain(PATH) == KEK and service.held == {PATH: KEK}


def test_a_service_that_fails_makes_no_key() -> None:
    service = Service()

    def fail() -> None:
        raise Unavailable("client.admin.unreachable", "no answer")

    service.meanwhile = fail
    assert isinstance(refused(lambda: administered(service).obtain(PATH)), Unavailable)
    assert refused(lambda: administered(service).existing(PATH)).code == "trust.resource.missing"


# -- gRPC -------------------------------------------------------------------------------------------------------------


@contextmanager
def served(address: str, keys: KEKStore | None = None, **more: Any) -> Iterator[tuple[str, list[CloisterError]]]:
    complaints: list[CloisterError] = []
    options = {"tls": None, "insecure_any_local_user": False, **more}
    with serving(provider(keys, allow_key_paths=False), address, complain=complaints.append, **options) as where:
        yield where, complaints


def test_a_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    with served(f"unix:{tmp_path}/s") as (where, complaints):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        asked = KeyProvider(NAME, connect(GRPCEndpoint(address=where)), parameters=f"keyid={PATH.uri}")
        made = asked.wrap(OPTIONS)
        assert KeyProvider(NAME, connect(GRPCEndpoint(address=where))).unwrap(made) == OPTIONS
        error = refused(lambda: asked.wrap(b"nothing"))
        assert isinstance(error, ImageRefused) and error.code == "oci.keyprovider.refused"
        assert "oci.encryption.not_json" in error.message and [item.code for item in complaints] == [
            "oci.encryption.not_json"
        ]
    assert not (tmp_path / "s").exists()


def test_an_unavailable_store_is_told_as_such(tmp_path: Path) -> None:
    def fail(path: ResourcePath) -> bytes:
        raise Unavailable("client.admin.unreachable", "no answer")

    with served(f"unix:{tmp_path}/s", ReleasedKeys(fail)) as (where, _):
        error = refused(lambda: KeyProvider(NAME, connect(GRPCEndpoint(address=where))).unwrap(packet()))
        assert isinstance(error, Unavailable) and "client.admin.unreachable" in error.message


def test_what_is_no_request_is_refused_and_the_service_goes_on(tmp_path: Path) -> None:
    with served(f"unix:{tmp_path}/s") as (where, complaints):
        exchange = connect(GRPCEndpoint(address=where))
        for method, request in (("WrapKey", b""), ("WrapKey", b"\xff" * 100), ("UnWrapKey", b"[]")):
            code = refused(lambda method=method, request=request: exchange(method, request)).code
            assert code == "oci.keyprovider.refused"
        assert len(complaints) == 3
        assert "UNIMPLEMENTED" in str(refused(lambda: exchange("Other", b"{}")))
        assert refused(lambda: exchange("WrapKey", bytes(5 << 20))).code == "oci.keyprovider.refused"
        assert KeyProvider(NAME, exchange).unwrap(packet()) == OPTIONS


def test_two_do_not_share_a_socket_and_a_left_one_is_taken(tmp_path: Path) -> None:
    with served(f"unix:{tmp_path}/s"), contextlib.ExitStack() as stack:
        error = refused(lambda: stack.enter_context(served(f"unix:{tmp_path}/s")))
        assert isinstance(error, Unavailable) and error.code == "imagetool.keyprovider.bind"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    with served(f"unix:{tmp_path}/s") as (where, _):
        assert KeyProvider(NAME, connect(GRPCEndpoint(address=where))).unwrap(packet()) == OPTIONS
    (tmp_path / "s").write_text("a file of somebody")
    with contextlib.ExitStack() as stack:
        code = refused(lambda: stack.enter_context(served(f"unix:{tmp_path}/s"))).code
    assert code == "imagetool.keyprovider.bind" and (tmp_path / "s").read_text() == "a file of somebody"


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("127.0.0.1:0", "imagetool.keyprovider.listen"),
        ("localhost:0", "imagetool.keyprovider.listen"),
        ("0.0.0.0:0", "oci.keyprovider.config.plain_network"),
        ("nonsense", "oci.keyprovider.config.address"),
        ("unix:", "oci.keyprovider.config.address"),
    ],
)
def test_a_port_for_everybody_must_be_asked_for(address: str, code: str) -> None:
    with contextlib.ExitStack() as stack:
        assert refused(lambda: stack.enter_context(served(address))).code == code
    with contextlib.ExitStack() as stack:
        if code.startswith("oci."):
            wanted = {"insecure_any_local_user": True}
            assert refused(lambda: stack.enter_context(served(address, **wanted))).code == code


def test_a_local_port_that_was_asked_for() -> None:
    with served("127.0.0.1:0", insecure_any_local_user=True) as (where, _):
        assert not where.endswith(":0")
        assert KeyProvider(NAME, connect(GRPCEndpoint(address=where))).unwrap(packet()) == OPTIONS


def test_many_ask_at_once(tmp_path: Path) -> None:
    keys, made = Keys(), []
    with served(f"unix:{tmp_path}/s", keys) as (where, _):
        asked = KeyProvider(NAME, connect(GRPCEndpoint(address=where)), parameters=f"keyid={PATH.uri}")
        threads = [threading.Thread(target=lambda: made.append(asked.wrap(OPTIONS))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(made) == 8 and all(open_packet(parse_packet(item), keys.held[PATH]) == OPTIONS for item in made)


# -- TLS --------------------------------------------------------------------------------------------------------------


class CA:
    """A certificate authority and the files of what it certified."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._certificate(self.name, self.key.public_key(), is_ca=True))

    def certify(self, name: str) -> tuple[Path, Path]:
        """Return certificate and key of `name` on this machine."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(self._certificate(subject, key.public_key(), is_ca=False))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        private.write_bytes(key.private_bytes(*form))
        return certificate, private

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, is_ca: bool) -> bytes:
        now = datetime.now(UTC)
        here = [x509.DNSName("kp.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        if not is_ca:
            builder = builder.add_extension(x509.SubjectAlternativeName(here), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_port_with_tls_serves_whom_its_ca_knows(tmp_path: Path) -> None:
    ca, stranger = CA(tmp_path, "ca"), CA(tmp_path, "stranger")
    certificate, key = ca.certify("server")
    tls = ServerTLS(certificate=certificate.read_bytes(), key=key.read_bytes(), client_ca=ca.file.read_bytes())
    assert repr(tls) == "ServerTLS()"

    def client(known: CA | None, root: CA = ca, server_name: str = "") -> KeyProvider:
        mine = known.certify("friend" if known is ca else "enemy") if known else ("", "")
        files = TLSFiles(
            root_ca_file=str(root.file),
            server_name=server_name,
            certificate_file=str(mine[0]),
            key_file=str(mine[1]),
        )
        return KeyProvider(NAME, connect(GRPCEndpoint(address=where, tls=files)))

    with served("127.0.0.1:0", tls=tls) as (where, _):
        assert client(ca).unwrap(packet()) == OPTIONS
        assert client(ca, server_name="kp.test").unwrap(packet()) == OPTIONS
        for other in (client(None), client(stranger), client(ca, stranger), client(ca, server_name="other.test")):
            assert refused(lambda other=other: other.unwrap(packet())).code == "oci.keyprovider.unreachable"
        plain = KeyProvider(NAME, connect(GRPCEndpoint(address=where)))
        assert refused(lambda: plain.unwrap(packet())).code == "oci.keyprovider.unreachable"


def test_tls_files_that_are_missing_are_unavailable(tmp_path: Path) -> None:
    files = TLSFiles(root_ca_file=str(tmp_path / "none"))
    asked = KeyProvider(NAME, connect(GRPCEndpoint(address="kp.test:1", tls=files)))
    assert refused(lambda: asked.unwrap(packet())).code == "oci.keyprovider.config.unreadable"
