"""Targets of images: every parser of what a registry, an archive or a stranger's key file says.

What comes from a registry is parsed before anything is verified; what is wrapped for a key is parsed before it is
known whose it is.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import pysequoia
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloister.crypto import openpgp, openpgpkeys, sealedsecret
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import Unavailable
from cloister.oci import credentials, inflate, location, manifest, mirrors, reference
from cloister.oci.archive import DockerArchive, OCIArchive
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.document import Members, encode_document, parse_document
from cloister.oci.encryption import (
    annotations,
    jwe,
    keyfiles,
    keyprovider,
    options,
    packet,
    pgp,
    pkcs7,
    pkcs11,
    recipients,
)
from cloister.oci.layer import DeviceNodes, LayerUnpacker, UnpackOptions
from cloister.oci.layout import check_layout_marker, select_entry
from cloister.oci.referrers import list_referrers
from cloister.oci.rootfs import RootDirectory
from cloister.oci.signing import simplesigning
from cloister.oci.store import checked_blob, resolve_platform
from cloister.oci.tar import TarReader
from cloister.protocol.resourceuri import ResourcePath
from cloister.wire import limits
from fuzz.target import Target, each, same, seeds, target_of
from hostile_archives import CASES
from unit.oci.builders import KEK, KEK_ID, archive, client_over, directory, file, gnu, pax, symlink

_DIGEST: Final = Digest.of(b"plain")
_OPTIONS: Final = options.encode_private_options(options.PrivateOptions(key=b"k" * 32, digest=_DIGEST, nonce=b"n" * 16))
_PUBLIC: Final = options.encode_public_options(options.PublicOptions(b"m" * 32))
_DESCRIPTION: Final = {
    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
    "digest": str(_DIGEST),
    "size": 5,
    "annotations": {"org.example": "x"},
}
_PLATFORMED: Final = {
    "mediaType": manifest.OCI_MANIFEST,
    "digest": str(_DIGEST),
    "size": 5,
    "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
    "annotations": {"org.opencontainers.image.ref.name": "v1"},
}


# -- documents ------------------------------------------------------------------------------------------------------


def _manifest(data: bytes) -> None:
    each(
        lambda: manifest.is_index(data),
        lambda: manifest.parse_either(data),
        lambda: manifest.describe_referrer(manifest.parse_either(data)),
        lambda: manifest.parse_index(data, media_type=manifest.OCI_INDEX),
        lambda: select_entry(manifest.parse_index(data), "v1"),
        lambda: _layer_types(manifest.parse_manifest(data)),
        lambda: check_layout_marker(data),
    )


def _layer_types(image: manifest.ImageManifest) -> None:
    for layer in image.layers:
        each(
            lambda one=layer: manifest.parse_layer_type(one.media_type),  # type: ignore[misc]  # bound now
            lambda one=layer: annotations.parse_layer_encryption(one),  # type: ignore[misc]  # bound now
        )


def _manifests() -> list[bytes]:
    config = {"mediaType": manifest.OCI_CONFIG, "digest": str(_DIGEST), "size": 5}
    image = {"schemaVersion": 2, "mediaType": manifest.OCI_MANIFEST, "config": config, "layers": [_DESCRIPTION]}
    return [
        encode_document(image),
        encode_document({**image, "artifactType": "application/x", "subject": config, "annotations": {"a": "b"}}),
        encode_document({"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [_PLATFORMED]}),
        encode_document({"schemaVersion": 2, "manifests": [_PLATFORMED, {**_PLATFORMED, "artifactType": "x"}]}),
        b'{"imageLayoutVersion":"1.0.0"}',
    ]


def _config(data: bytes) -> None:
    manifest.parse_config(data)


def _configs() -> list[bytes]:
    run = {
        "Env": ["PATH=/bin", "A="],
        "Entrypoint": ["/run"],
        "Cmd": None,
        "User": "1000:1000",
        "WorkingDir": "/app",
        "StopSignal": "SIGTERM",
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"a": "b"},
    }
    top = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [str(_DIGEST)]}}
    return [encode_document({**top, "config": run, "history": [{"created_by": "x"}]}), encode_document(top)]


def _payload(data: bytes) -> None:
    statement = simplesigning.parse_payload(data)
    same(simplesigning.parse_payload(simplesigning.encode_payload(statement)), statement)


def _payloads() -> list[bytes]:
    return [simplesigning.encode_payload(simplesigning.Statement("example.org/app", _DIGEST))]


# -- encryption -----------------------------------------------------------------------------------------------------


def _annotations(data: bytes) -> None:
    """Annotations as a manifest holds them: a JSON object of text."""
    members = parse_document(data, ceiling=limits.ANNOTATION_BYTES, code="fuzz")
    texts = {key: value for key, value in members.items() if isinstance(value, str)}
    layer = manifest.Descriptor(media_type=str(_DESCRIPTION["mediaType"]), digest=_DIGEST, size=5, annotations=texts)
    found = annotations.parse_layer_encryption(layer)
    each(found.packets, lambda: recipients.describe_recipients(found))
    same(
        annotations.parse_layer_encryption(
            manifest.Descriptor(
                media_type=layer.media_type,
                digest=_DIGEST,
                size=5,
                annotations=annotations.encryption_annotations(found.public, found.wrapped),
            )
        ),
        found,
    )


def _annotation_files() -> list[bytes]:
    sealed = packet.encode_packet(packet.seal_packet(_OPTIONS, kek_id=KEK_ID, kek=KEK))
    public = options.parse_public_options(_PUBLIC)
    wrapped = {annotations.PACKET_SCHEME: (sealed, sealed), "jwe": (b"one", b"two"), "pgp": (b"three",)}
    real = {
        "jwe": tuple(_jwes()),
        "pkcs7": (pkcs7.PKCS7Wrapper([_certificate()]).wrap(_OPTIONS),),
        "pkcs11": tuple(_pkcs11_files()[:1]),
        "provider.other": (b"x",),
    }
    return [json.dumps(annotations.encryption_annotations(public, some)).encode() for some in (wrapped, real)]


def _options(data: bytes) -> None:
    each(
        lambda: options.agreed_nonce(
            options.parse_public_options(data), options.parse_private_options(_OPTIONS), path="layers[0]"
        ),
        lambda: options.agreed_nonce(
            options.parse_public_options(_PUBLIC), options.parse_private_options(data), path="layers[0]"
        ),
        lambda: same(options.parse_private_options(data).wipe(), None),
        lambda: same("k" * 8 in repr(options.parse_private_options(data)), False),
    )


def _packet(data: bytes) -> None:
    found = packet.parse_packet(data)
    each(lambda: found.kek_path, lambda: packet.unwrap_private_options(found, KEK))


def _packets() -> list[bytes]:
    return [packet.encode_packet(packet.seal_packet(_OPTIONS, kek_id=KEK_ID, kek=KEK))]


@cache
def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def _curve() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def _certificate() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "recipient")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(_rsa().public_key())
    made = made.serial_number(7).not_valid_before(now).not_valid_after(now + timedelta(days=9))
    return made.sign(_rsa(), SHA256())


@cache
def _pgp_key() -> Any:  # Any: of an optional library without types
    return pysequoia.Tsk.generate("Recipient <r@example.org>", profile=pysequoia.Profile.RFC4880)


def _jwe(data: bytes) -> None:
    each(
        lambda: jwe.JWEUnwrapper(keyfiles.OpeningKey(key=_curve())).unwrap(data),
        lambda: jwe.JWEUnwrapper(keyfiles.OpeningKey(key=_rsa())).unwrap(data),
    )


def _jwes() -> list[bytes]:
    keys = [
        keyfiles.RecipientKey(key=_curve().public_key()),
        keyfiles.RecipientKey(key=_rsa().public_key(), key_id="1"),
    ]
    return [jwe.JWEWrapper(some).wrap(_OPTIONS) for some in (keys, keys[:1], keys[1:])]


def _pkcs7(data: bytes) -> None:
    pkcs7.PKCS7Unwrapper(_rsa()).unwrap(data)


def _pkcs11(data: bytes) -> None:
    policy = pkcs11.ModulePolicy(module_directories=("/nowhere",), allowed_module_paths=("/nowhere",))
    each(lambda: pkcs11.parse_blobs(data), lambda: pkcs11.parse_token_key(data, policy))


def _pkcs11_files() -> list[bytes]:
    uri = "pkcs11:token=t;object=o?pin-value=1234&module-path=/nowhere/m.so"
    return [
        pkcs11.PKCS11Wrapper([_rsa().public_key()] * 2, hash_name="sha1").wrap(_OPTIONS),
        f"pkcs11:\n  uri: {uri}\nmodule:\n  env:\n    A: b\n".encode(),
        b"pkcs11: {uri: 'pkcs11:slot-id=1;id=%01?module-name=m'}\n",
    ]


@cache
def _keyring() -> pgp.PGPUnwrapper:
    return pgp.PGPUnwrapper(keyfiles.SecretKeyring(data=_secret_keyring()))


def _secret_keyring() -> bytes:
    return bytes(_pgp_key())


def _pgp(data: bytes) -> None:
    _keyring().unwrap(data)


def _pgp_messages() -> list[bytes]:
    recipient = bytes(_pgp_key().extract_certificate())
    return [pgp.PGPWrapper(["r@example.org"] * count, recipient).wrap(_OPTIONS) for count in (1, 2)]


def _pgp_keyring(data: bytes) -> None:
    openpgp.split_user_id(data.decode(errors="replace")[:200])
    each(lambda: openpgpkeys.open_secret_keyring(data), lambda: openpgp.find_recipients(data, ["r@example.org"]))


def _key_file(data: bytes) -> None:
    keyfiles.describe_content(data)
    each(
        lambda: keyfiles.parse_key_file(data),
        lambda: keyfiles.parse_key_file(data, b"password"),
        lambda: keyfiles.parse_recipient_key(data),
        lambda: keyfiles.parse_certificate(data),
        lambda: keyfiles.is_token_key(data),
    )


def _key_files() -> list[bytes]:
    public = _curve().public_key()
    numbers = public.public_numbers()
    word = [base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode() for n in (numbers.x, numbers.y)]
    jwk = {"kty": "EC", "crv": "P-256", "x": word[0], "y": word[1], "kid": "1", "alg": "ECDH-ES+A256KW"}
    secret = _curve().private_numbers().private_value.to_bytes(32, "big")
    spki = PublicFormat.SubjectPublicKeyInfo
    return [
        json.dumps(jwk).encode(),
        json.dumps({**jwk, "d": base64.urlsafe_b64encode(secret).rstrip(b"=").decode()}).encode(),
        _curve().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        _rsa().private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        *(public.public_bytes(encoding, spki) for encoding in (Encoding.PEM, Encoding.DER)),
        _certificate().public_bytes(Encoding.PEM),
        _certificate().public_bytes(Encoding.DER),
        bytes(32),
        *_pkcs11_files()[1:2],
    ]


@cache
def _sealer() -> ECDSAP256Signer:
    return ECDSAP256Signer.generate()


def _sealed_secret(data: bytes) -> None:
    text = data.decode(errors="replace")
    sealedsecret.is_sealed(text)
    each(
        lambda: sealedsecret.read_key_id(text),
        lambda: sealedsecret.verify_sealed_secret(text, {KEK_ID: _sealer().public_key}),
        lambda: sealedsecret.parse_sealing_key(data),
    )


def _sealed_secrets() -> list[bytes]:
    name = ResourcePath("default", "secret", "one")
    envelope = sealedsecret.seal_envelope_secret(b"x", _sealer(), kid=KEK_ID, key_id=name, kek=KEK)
    return [sealedsecret.seal_vault_secret(name, _sealer(), kid=KEK_ID).encode(), envelope.encode(), *_key_files()[:1]]


def _key_provider(data: bytes) -> None:
    def again() -> None:
        request = keyprovider.parse_request(data)
        same(keyprovider.parse_request(keyprovider.encode_request(request)), request)

    each(
        again,
        lambda: keyprovider.parse_wrap_answer(data),
        lambda: keyprovider.parse_unwrap_answer(data),
        lambda: keyprovider.parse_envelope(data, ceiling=4096),
        lambda: keyprovider.encode_config("one", keyprovider.parse_endpoint(data, "one")),
        lambda: keyprovider.parse_endpoint(data, "two"),
    )


def _key_provider_messages() -> list[bytes]:
    parameters = {"one": (b"kbs:///a/b/c",)}
    wrap = keyprovider.encode_request(keyprovider.WrapRequest(parameters=parameters, options=_OPTIONS))
    return [
        wrap,
        keyprovider.encode_request(keyprovider.UnwrapRequest(parameters=parameters, annotation=b"wrapped")),
        keyprovider.encode_wrap_answer(b"wrapped"),
        keyprovider.encode_unwrap_answer(_OPTIONS),
        b'{"keywrapresults":{"annotation":"d3JhcHBlZA=="}}',
        keyprovider.encode_envelope(wrap),
        json.dumps(
            {
                "key-providers": {
                    "one": {"cmd": {"path": "/bin/one", "args": ["a"]}},
                    "two": {"grpc": "127.0.0.1:50051"},
                }
            }
        ).encode(),
        b'{"key-providers":{"one":{"ttrpc":"unix:///run/a.sock"},"two":{"grpc":"unix:///run/b.sock"}}}',
    ]


# -- archives -------------------------------------------------------------------------------------------------------


def _tar(data: bytes) -> None:
    reader = TarReader([data[:700], data[700:]])
    for entry in reader.entries():
        entry.place.encode()
        for _ in reader.data():
            pass


def _tars() -> list[bytes]:
    good = archive(
        directory(b"d"),
        pax([(b"path", b"d/f"), (b"mtime", b"1.5"), (b"uid", b"7"), (b"SCHILY.xattr.user.x", b"y")]) + file(b"f", b"1"),
        gnu(b"L", b"d/" * 60 + b"g") + file(b"g", b"2" * 600),
        symlink(b"l", b"d"),
    )
    return [good, *(layer for name in list(CASES)[::9] for layer in CASES[name].layers if len(layer) < 9_000)]


_BELOW: Final = archive(
    *(directory(name) for name in (b"d", b"d/sub", b"a")), *(file(name, b"1") for name in (b"top", b"d/f", b"f", b"l"))
)


def _layer(data: bytes) -> None:
    """Into a directory that is removed again: what is beside it is watched by the property tests."""
    limit = UnpackOptions(
        ownership=False, devices=DeviceNodes.SKIP_BELOW_DEV, bytes_ceiling=1 << 20, entries_ceiling=200
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place, RootDirectory(place) as root:
        unpacker = LayerUnpacker(root, limit)
        unpacker.apply([_BELOW])
        unpacker.apply([data])


def _compressed(data: bytes) -> None:
    for compression in ("gzip", "zstd", ""):
        each(lambda how=compression: sum(map(len, inflate.inflate([data[:99], data[99:]], how, ceiling=1 << 20))))  # type: ignore[misc]  # bound now


def _compressed_files() -> list[bytes]:
    import zstandard

    text = b"text " * 3000
    return [
        gzip.compress(text, mtime=0),
        gzip.compress(b"", mtime=0) + gzip.compress(text, mtime=0),
        zstandard.compress(text),
        zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(text)
        + zstandard.compress(b"x"),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(text),
    ]


def _archive(data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir="/dev/shm")
    with open(descriptor, "wb") as file_:
        file_.write(data)
    try:
        each(lambda: _walk(OCIArchive(name), "v1"), lambda: _walk(DockerArchive(name), "x:v1"))
    finally:
        os.unlink(name)


def _walk(source: Any, selector: str) -> None:  # Any: either archive
    try:
        stored = resolve_platform(source, selector, "linux/amd64")
        image = manifest.parse_manifest(stored.raw, media_type=stored.media_type)
        for described in (image.config, *image.layers):
            each(lambda one=described: sum(map(len, checked_blob(source, one))))  # type: ignore[misc]  # bound now
    finally:
        source.close()


def _archives() -> list[bytes]:
    config, layer = _configs()[1], gzip.compress(_tars()[0], mtime=0)
    image = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_MANIFEST,
            "config": {"mediaType": manifest.OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": str(Digest.of(layer)),
                    "size": len(layer),
                }
            ],
        }
    )
    entry = {
        "mediaType": manifest.OCI_MANIFEST,
        "digest": str(Digest.of(image)),
        "size": len(image),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }
    index = encode_document({"schemaVersion": 2, "manifests": [entry]})
    blobs = [file(b"blobs/sha256/" + Digest.of(blob).hex.encode(), blob) for blob in (config, layer, image)]
    saved = json.dumps([{"Config": "c.json", "RepoTags": ["x:v1"], "Layers": ["a/layer.tar"]}]).encode()
    return [
        archive(file(b"oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), file(b"index.json", index), *blobs),
        archive(file(b"manifest.json", saved), file(b"c.json", config), file(b"a/layer.tar", _tars()[0])),
    ]


# -- names and registries -------------------------------------------------------------------------------------------


def _name(data: bytes) -> None:
    text = data.decode(errors="replace")

    def parsed_again() -> None:
        found = reference.parse_reference(text)
        same(reference.parse_reference(str(found)), found)

    each(
        parsed_again,
        lambda: location.parse_location(text),
        lambda: parse_digest(text),
        lambda: manifest.parse_layer_type(text),
    )


def _registries_conf(data: bytes) -> None:
    rules = mirrors.parse_rules(data)
    for text in ("example.org/team/app:v1", "docker.io/library/busybox", "sub.example.org/a"):
        each(lambda one=text: rules.places(reference.parse_reference(one)))  # type: ignore[misc]  # bound now


_REGISTRIES_CONF: Final = (
    b'unqualified-search-registries = ["docker.io"]\n'
    b'[[registry]]\nprefix = "example.org/team"\nlocation = "inner.example.org/x"\ninsecure = true\n'
    b'[[registry.mirror]]\nlocation = "mirror.example.org"\ninsecure = false\n'
    b'[[registry]]\nprefix = "*.example.org"\nblocked = true\n'
)


def _docker_config(data: bytes) -> None:
    top = Members(parse_document(data, ceiling=limits.MIB, code="fuzz"), path="", code="fuzz")
    credentials.parse_auths(top, "config.json", ["example.org/team", "example.org", "other.example.org"])


_DOCKER_CONFIG: Final = (
    b'{"auths":{"example.org":{"auth":"bmFtZTpwYXNzd29yZA=="},"other.example.org":{"identitytoken":"x"},'
    b'"https://index.docker.io/v1/":{"username":"a","password":"b"}},"credsStore":"pass","credHelpers":{"a":"b"}}'
)


class _Answer:
    """One answer of a registry."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self._headers = headers
        self._body = io.BytesIO(body)

    def header(self, name: str) -> str:
        return self._headers.get(name.lower(), "")

    def read(self, count: int) -> bytes:
        return self._body.read(count)

    def close(self) -> None:
        """Nothing is open."""


class _Transport:
    """Answers each request with the next part of the input: status, headers, an empty line, a body."""

    def __init__(self, data: bytes) -> None:
        self._parts = data.split(b"\n--\n")[:20]

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> _Answer:
        if not self._parts:
            raise Unavailable("oci.transport.unreachable", "no more answers")
        head, _, rest = self._parts.pop(0).partition(b"\n\n")
        first, *lines = head.decode("latin-1").split("\n")
        fields = dict(line.lower().split(":", 1) if ":" in line else (line.lower(), "") for line in lines)
        status = int(first) if first.isdigit() and len(first) == 3 and first.isascii() else 500
        return _Answer(status, {name: value.strip() for name, value in fields.items()}, rest)


def _registry(data: bytes) -> None:
    def client() -> RegistryClient:
        return client_over(_Transport(data), "app")

    blob = manifest.Descriptor(media_type="application/x", digest=Digest.of(b"blob"), size=4)
    each(
        lambda: client().get_manifest("v1"),
        lambda: sum(map(len, checked_blob(client(), blob))),
        lambda: list_referrers(client(), _DIGEST),
        lambda: client().write_blob([b"blob"]),
        lambda: simplesigning.read_candidates(client(), _DIGEST),
    )


def _registry_answers() -> list[bytes]:
    challenge = b'401\nwww-authenticate: Bearer realm="http://images.test/token",service="s",scope="a:b"\n\n'
    described = b"200\ncontent-type: application/vnd.oci.image.manifest.v1+json\n\n" + _manifests()[0]
    return [
        b"\n--\n".join(parts)
        for parts in (
            [described],
            [challenge, b'200\n\n{"token":"abc"}', described],
            [b"206\ncontent-range: bytes 0-3/4\n\nblob"],
            [b"503\n\n", b"200\n\nbl", b"206\ncontent-range: bytes 2-3/4\n\nob"],
            [b"200\ncontent-type: application/vnd.oci.image.index.v1+json\n\n" + _manifests()[2]],
            [b"202\nlocation: /v2/app/blobs/uploads/1\n\n", b"202\nlocation: /v2/app/u/1\nrange: 0-3\n\n", b"201\n\n"],
            [b"307\nlocation: http://images.test/x\n\n", b"200\n\nblob"],
            [b'429\n\n{"errors":[{"code":"TOOMANYREQUESTS"}]}'],
        )
    ]


def _names() -> Iterable[bytes]:
    yield b"docker://example.org:5000/team/app:v1@sha256:" + b"ab" * 32
    yield b"example.org/team/app:v1"
    yield b"oci:/path:v1"
    yield b"docker-archive:/path:app:v1"
    yield b"dir:/path"
    yield b"sha512:" + b"ab" * 64
    yield b"application/vnd.docker.image.rootfs.diff.tar.gzip"


_E: Final = "oci.encryption"
TARGETS: Final[Mapping[str, Target]] = {
    "image/manifest": target_of(
        _manifest, seeds(_manifests), limits.MANIFEST_BYTES, "oci.manifest", "oci.document", "oci.digest"
    ),
    "image/config": target_of(_config, seeds(_configs), limits.IMAGE_CONFIG_BYTES, "oci.manifest"),
    "image/payload": target_of(_payload, seeds(_payloads), limits.SIGNATURE_PAYLOAD_BYTES, "oci.signing.simplesigning"),
    "image/annotations": target_of(
        _annotations,
        seeds(_annotation_files),
        limits.ANNOTATION_BYTES,
        f"{_E}.annotations",
        f"{_E}.recipients",
    ),
    "image/options": target_of(_options, seeds(lambda: [_OPTIONS, _PUBLIC]), 4096, f"{_E}.options"),
    "image/packet": target_of(_packet, seeds(_packets), limits.ANNOTATION_BYTES, f"{_E}.packet"),
    "image/jwe": target_of(_jwe, seeds(_jwes), limits.ANNOTATION_BYTES, f"{_E}.jwe"),
    "image/pkcs7": target_of(
        _pkcs7,
        seeds(lambda: [pkcs7.PKCS7Wrapper([_certificate()] * n).wrap(_OPTIONS) for n in (1, 2)]),
        limits.ANNOTATION_BYTES,
        f"{_E}.pkcs7",
    ),
    "image/pkcs11": target_of(_pkcs11, seeds(_pkcs11_files), limits.ANNOTATION_BYTES, f"{_E}.pkcs11"),
    "image/pgp": target_of(
        _pgp, seeds(_pgp_messages), limits.ANNOTATION_BYTES, f"{_E}.pgp", "crypto.openpgp", "crypto.openpgppackets"
    ),
    "image/pgp-keyring": target_of(
        _pgp_keyring,
        seeds(lambda: [_secret_keyring(), bytes(_pgp_key().extract_certificate())]),
        64 * 1024,
        "crypto.openpgpkeys",
        "crypto.openpgppackets",
    ),
    "image/key-provider": target_of(
        _key_provider, seeds(_key_provider_messages), limits.KEY_PROVIDER_ANSWER_BYTES, f"{_E}.keyprovider"
    ),
    "image/sealed-secret": target_of(
        _sealed_secret, seeds(_sealed_secrets), limits.ANNOTATION_BYTES, "crypto.sealedsecret"
    ),
    "image/key-file": target_of(_key_file, seeds(_key_files), 64 * 1024, f"{_E}.keyfiles"),
    "image/tar": target_of(_tar, seeds(_tars), limits.MIB, "oci.tar"),
    "image/layer": target_of(_layer, seeds(_tars), limits.MIB, "oci.layer", "oci.rootfs"),
    "image/compressed": target_of(_compressed, seeds(_compressed_files), limits.MIB, "oci.inflate"),
    "image/archive": target_of(_archive, seeds(_archives), limits.MIB, "oci.archive"),
    "image/name": target_of(_name, seeds(_names), 4096, "oci.reference", "oci.location", "oci.digest"),
    "image/docker-config": target_of(_docker_config, seeds(lambda: [_DOCKER_CONFIG]), limits.MIB, "oci.credentials"),
    "image/registries-conf": target_of(
        _registries_conf, seeds(lambda: [_REGISTRIES_CONF]), limits.MIB // 4, "oci.mirrors"
    ),
    "image/registry": target_of(
        _registry,
        seeds(_registry_answers),
        limits.MIB,
        "oci.distribution",
        "oci.session",
        "oci.referrers",
        "oci.signing.simplesigning",
    ),
}

NOT_PARSERS: Final[Mapping[str, str]] = {
    f"cloister.oci.{name}": reason
    for name, reason in {
        "attributes": "keeps what other modules read",
        "dmverity": "writes only",
        "encryption.providerclient": "sockets and processes: their answers are read by keyprovider",
        "erofs": "writes only",
        "network": "reads certificates and the environment of the owner's machine",
        "transfer": "copies and compares what other modules read",
        "rootimage": "reads back what cloister.oci.layer wrote",
        "ahead": "hands chunks from one thread to another",
        "archivefile": "writes only",
        "directory": "a place of the owner's: its documents are read by the parsers of manifests",
        "layout": "a place of the owner's: its documents are read by the parsers of manifests",
        "encryption.authenticate": "two passes over bytes that other modules read",
        "encryption.wrapping": "asks the schemes, each a target of its own",
        "signing.verify": "compares what other modules read",
        "spool": "reads back what this process wrote",
        "store": "compares what other modules read",
        "transport": "sockets: its answers are read by cloister.wire.http1",
        "unpack": "makes a directory and hands it to cloister.oci.layer",
    }.items()
}
