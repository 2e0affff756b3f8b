"""Signatures between Cloister and cosign 2.5, skopeo 1.18, notation 1.3, GnuPG and sigstore-python.

Keyless signatures are the test Sigstore's; that cosign and sigstore-python accept them, offline, is what says that its
structures are real. Classic key signatures are in `test_cosign_images`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sigstore.errors import Error as SigstoreError
from sigstore.models import Bundle as SigstoreBundle
from sigstore.models import TrustedRoot as SigstoreRoot
from sigstore.verify import Verifier
from sigstore.verify.policy import Identity

import signing_world
from cloister.crypto.openpgpsign import MessageSigner
from cloister.crypto.openpgpverify import parse_keyring, verify_message
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import ImageRefused, Refused
from cloister.imagetool.keyless import SigstoreServices, sign_keyless
from cloister.imagetool.notation import NotationKey, sign_notation
from cloister.imagetool.sign import sign_bundle, sign_image
from cloister.imagetool.simplesign import sign_simple
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.layout import OCILayout
from cloister.oci.location import parse_location
from cloister.oci.manifest import OCI_MANIFEST, parse_manifest
from cloister.oci.reference import parse_reference
from cloister.oci.signing.bundle import parse_bundle
from cloister.oci.signing.keyless import keyless_of_bundle, verify_keyless
from cloister.oci.signing.keys import load_public_key
from cloister.oci.signing.lookaside import parse_lookaside
from cloister.oci.signing.referred import NOTATION_COSE, NOTATION_JWS, read_bundles
from cloister.oci.signing.requirements import KeylessRequirement, KeyRequirement
from cloister.oci.signing.simplesigning import encode_signatures, signature_tag
from cloister.oci.signing.trustedroot import parse_trusted_root
from cloister.oci.signing.verify import ExactRepository
from cloister.oci.store import copy_blob, read_manifest
from cloister.oci.transport import HTTPTransport
from cloister.sdk.imagesignature import lookaside_reader, notation_requirements, policy_requirements, verify_signatures
from cloister.testing.sigstore import TestSigstore, test_token
from conformance.registry_process import RegistryProcess
from conformance.tools import require_go_program, require_tool, skip_or_fail
from signing_world import keyless_bundle, trust
from tampering import flipped
from unit.oci.builders import Built, archive, build_layout, file

SIGN_TYPE = "https://sigstore.dev/cosign/sign/v1"
SUBJECT, ISSUER = "https://ci.test/build", "https://login.test"


class Program:
    """Runs cosign or skopeo in `folder`, without their public services."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self.environment = {**os.environ, "COSIGN_PASSWORD": "", "HOME": str(folder)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._program, *arguments]
        return subprocess.run(
            command, cwd=self._folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def do(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout


class Pushed(NamedTuple):
    """An image in a registry."""

    client: RegistryClient
    name: str
    digest: Digest
    raw: bytes

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.digest}"


def push(client: RegistryClient, name: str, built: Built) -> Pushed:
    raw = read_manifest(built.layout, built.digest).raw
    manifest = parse_manifest(raw)
    for descriptor in (manifest.config, *manifest.layers):
        copy_blob(built.layout, client, descriptor)
    client.write_manifest(raw, manifest.media_type, "v1")
    return Pushed(client, name, built.digest, raw)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "plain", archive(file(b"a", b"x")))


@pytest.fixture(params=["ours", "docker-registry"])
def pushed(request: pytest.FixtureRequest, tmp_path: Path, built: Built) -> Iterator[Pushed]:
    """The image in our registry, and in one without the referrers API."""
    if request.param == "ours":
        with RegistryProcess(tmp_path / "registry") as registry:
            yield push(registry.client("team/app"), f"{registry.address}/team/app", built)
        return
    with DockerRegistry(tmp_path) as address, closing(HTTPTransport()) as transport:
        reference = parse_reference(f"{address}/team/app")
        yield push(RegistryClient(transport, reference, plain_http=True, other_origins=False), reference.name, built)


class DockerRegistry:
    """Debian's docker-registry on a free port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> str:
        program = require_tool("docker-registry")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = self._folder / "registry.yml"
        storage = f"storage: {{filesystem: {{rootdirectory: {self._folder}/docker-registry}}}}"
        config.write_text(f"version: 0.1\nlog: {{level: error}}\n{storage}\nhttp: {{addr: '127.0.0.1:{port}'}}\n")
        self._process = subprocess.Popen(
            [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"127.0.0.1:{port}"
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError("docker-registry did not start")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture
def cosign(tmp_path: Path) -> Program:
    return Program(require_tool("cosign", minimum=(2, 5)), tmp_path)


@pytest.fixture
def skopeo(tmp_path: Path) -> Program:
    return Program(require_tool("skopeo", minimum=(1, 18)), tmp_path)


@pytest.fixture
def services(tmp_path: Path, request: pytest.FixtureRequest) -> TestSigstore:
    """The test Sigstore, and its keys where cosign looks for them."""
    made = TestSigstore(at=datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1))
    (tmp_path / "root.json").write_bytes(made.trusted_root())
    (tmp_path / "ca.pem").write_bytes(made.root.public_bytes(Encoding.PEM) + made.ca.public_bytes(Encoding.PEM))
    for name, key in (("rekor.pub", made.log_key), ("ct.pub", made.ct_key)):
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / name).write_bytes(pem)
    if "cosign" in request.fixturenames:
        request.getfixturevalue("cosign").environment.update(
            SIGSTORE_ROOT_FILE=str(tmp_path / "ca.pem"),
            SIGSTORE_REKOR_PUBLIC_KEY=str(tmp_path / "rekor.pub"),
            SIGSTORE_CT_LOG_PUBLIC_KEY_FILE=str(tmp_path / "ct.pub"),
        )
    return made


def by_key(pushed: Pushed, pem: bytes, predicate_type: str = SIGN_TYPE) -> list[str]:
    """Return the code of each signature under a key, empty for the ones that count."""
    rule = ExactRepository(pushed.name, allow_unnamed=True)
    needed = [KeyRequirement(keys=(load_public_key(pem),), repository=rule, predicate_type=predicate_type)]
    judged = verify_signatures(pushed.client, str(pushed.digest), needed, platform="linux/amd64")
    return [finding.code for finding in judged.results[0].findings]


def cosign_verifies_bundle(cosign: Program, pushed: Pushed, *options: str) -> bool:
    words = ["verify-attestation", "--new-bundle-format", "--trusted-root", "root.json", "--type", SIGN_TYPE]
    return cosign.run(*words, "--allow-http-registry", *options, pushed.reference).returncode == 0


@pytest.mark.tool
def test_bundles_by_key_both_ways(cosign: Program, services: TestSigstore, pushed: Pushed, tmp_path: Path) -> None:
    """Also where a registry has no referrers API, and cosign lists its bundle under another type."""
    signer = ECDSAP256Signer.generate()
    (tmp_path / "ours.pub").write_bytes(signer.public_key.pem())
    sign_bundle(pushed.client, pushed.digest, signer, repository=pushed.name)
    assert cosign_verifies_bundle(cosign, pushed, "--key", "ours.pub", "--insecure-ignore-tlog=true")
    assert not cosign_verifies_bundle(cosign, pushed, "--key", "ct.pub", "--insecure-ignore-tlog=true")
    cosign.do("generate-key-pair")
    (tmp_path / "predicate.json").write_text("{}")
    words = [
        "attest",
        "--new-bundle-format",
        "--key",
        "cosign.key",
        "--tlog-upload=false",
        "-y",
        "--allow-http-registry",
    ]
    cosign.do(*words, "--type", SIGN_TYPE, "--predicate", "predicate.json", pushed.reference)
    theirs = (tmp_path / "cosign.pub").read_bytes()
    assert sorted(by_key(pushed, theirs)) == ["", "oci.signing.bad_signature"]
    cosign.do(*words, "--type", "https://scan.test/v1", "--predicate", "predicate.json", pushed.reference)
    assert sorted(by_key(pushed, theirs)) == ["", "oci.signing.bad_signature", "oci.signing.statement.predicate"]
    assert by_key(pushed, theirs, "https://scan.test/v1").count("") == 1


@pytest.mark.tool
def test_keyless_bundles_of_ours_verify_in_cosign(
    cosign: Program, services: TestSigstore, pushed: Pushed, tmp_path: Path
) -> None:
    client = SigstoreServices(fulcio="https://fulcio.test", rekor="https://rekor.test", transport=services.transport())
    root = parse_trusted_root(services.trusted_root())
    token = test_token(SUBJECT, ISSUER)
    sign_keyless(pushed.client, pushed.digest, client, token=token, root=root, repository=pushed.name)
    words = ["--certificate-identity", SUBJECT, "--certificate-oidc-issuer", ISSUER]
    assert cosign_verifies_bundle(cosign, pushed, *words)
    words[1] = "https://ci.test/other"
    assert not cosign_verifies_bundle(cosign, pushed, *words)


@pytest.mark.tool
def test_classic_keyless_signatures_verify_in_cosign_and_here(
    cosign: Program, services: TestSigstore, pushed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_world, "REPOSITORY", pushed.name)
    candidate = signing_world.classic_keyless(services, pushed.raw)
    manifest, config = encode_signatures([candidate])
    for blob in (config, candidate.payload):
        pushed.client.write_blob([blob])
    pushed.client.write_manifest(manifest, OCI_MANIFEST, signature_tag(pushed.digest))
    subject, issuer = services.identity
    words = ["verify", "--offline=true", "--allow-http-registry", "--certificate-oidc-issuer", issuer]
    cosign.do(*words, "--certificate-identity", subject, pushed.reference)
    assert cosign.run(*words, "--certificate-identity", "other@example.test", pushed.reference).returncode
    needed = [KeylessRequirement(trust=trust(services), repository=ExactRepository(pushed.name))]
    assert verify_signatures(pushed.client, "v1", needed, platform="linux/amd64").require().digest == pushed.digest


# -- skopeo and GnuPG -----------------------------------------------------------------------------------------------


def write_policy(folder: Path, **requirement: Any) -> bytes:
    document = {"default": [{"type": "reject"}], "transports": {"docker": {"": [requirement]}}}
    text = json.dumps(document)
    (folder / "policy.json").write_text(text)
    return text.encode()


def verdicts(skopeo: Program, pushed: Pushed, folder: Path, **requirement: Any) -> tuple[bool, bool]:
    """Return whether skopeo and whether we accept the image under one requirement."""
    policy = write_policy(folder, **requirement)
    host = pushed.name.partition("/")[0]
    stores = f"docker:\n  {host}:\n    lookaside: file://{folder}/sigs\n    use-sigstore-attachments: true\n"
    (folder / "registries.d").mkdir(exist_ok=True)
    (folder / "registries.d" / "a.yaml").write_text(stores)
    words = ["--policy", "policy.json", "--registries.d", "registries.d", "copy", "--src-tls-verify=false"]
    shutil.rmtree(folder / "copied", ignore_errors=True)
    result = skopeo.run(*words, "--remove-signatures", f"docker://{pushed.name}:v1", f"oci:{folder}/copied:v1")
    place = parse_location(f"docker://{pushed.name}:v1")
    _, needed = policy_requirements(policy, place, lambda path: Path(path).read_bytes())
    more = lookaside_reader(parse_lookaside([stores.encode()]), place.reference)
    judged = verify_signatures(pushed.client, "v1", needed, platform="linux/amd64", more=more)
    return result.returncode == 0, judged.manifest is not None


@pytest.mark.tool
def test_policies_over_cosign_signatures_give_skopeos_verdicts(
    skopeo: Program, services: TestSigstore, tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = ECDSAP256Signer.generate()
    (tmp_path / "ours.pub").write_bytes(signer.public_key.pem())
    signed = {"type": "sigstoreSigned", "keyPath": str(tmp_path / "ours.pub")}
    fulcio = {"caPath": str(tmp_path / "ca.pem"), "oidcIssuer": services.identity[1]}
    with RegistryProcess(tmp_path / "registry") as registry:
        name = f"{registry.address}/team/app"
        pushed = push(registry.client("team/app"), name, built)
        monkeypatch.setattr(signing_world, "REPOSITORY", name)
        candidate = signing_world.classic_keyless(services, pushed.raw)
        manifest, config = encode_signatures([candidate])
        for blob in (config, candidate.payload):
            pushed.client.write_blob([blob])
        pushed.client.write_manifest(manifest, OCI_MANIFEST, signature_tag(pushed.digest))
        sign_image(pushed.client, pushed.digest, signer, repository=name)
        rekor = {"rekorPublicKeyPath": str(tmp_path / "rekor.pub")}
        subject = services.identity[0]
        any_tag = {"type": "matchRepository"}
        cases: list[tuple[dict[str, Any], bool]] = [
            ({**signed, "signedIdentity": any_tag}, True),
            (signed, False),
            ({**signed, "signedIdentity": {"type": "matchExact"}}, False),
            ({**signed, "signedIdentity": {"type": "exactRepository", "dockerRepository": name}}, True),
            ({**signed, "signedIdentity": {"type": "exactRepository", "dockerRepository": "a.test/b"}}, False),
            ({**signed, "keyPath": str(tmp_path / "ct.pub"), "signedIdentity": any_tag}, False),
            ({**signed, **rekor, "signedIdentity": any_tag}, False),
            (
                {
                    "type": "sigstoreSigned",
                    "fulcio": {**fulcio, "subjectEmail": subject},
                    **rekor,
                    "signedIdentity": any_tag,
                },
                True,
            ),
            (
                {
                    "type": "sigstoreSigned",
                    "fulcio": {**fulcio, "subjectEmail": "other@example.test"},
                    **rekor,
                    "signedIdentity": any_tag,
                },
                False,
            ),
        ]
        for requirement, expected in cases:
            assert verdicts(skopeo, pushed, tmp_path, **requirement) == (expected, expected), requirement


@pytest.fixture
def gpg(tmp_path: Path) -> Iterator[Program]:
    """GnuPG with a home of its own, whose agent ends with the test."""
    program = Program(require_tool("gpg"), tmp_path)
    (tmp_path / "gnupg").mkdir(mode=0o700)
    program.environment["GNUPGHOME"] = str(tmp_path / "gnupg")
    yield program
    gpg_agent = shutil.which("gpgconf")
    if gpg_agent:
        subprocess.run([gpg_agent, "--kill", "all"], env=program.environment, check=False)


@pytest.mark.tool
def test_a_key_of_gnupg_that_has_a_password_signs_simply(gpg: Program, tmp_path: Path) -> None:
    loopback = ("--batch", "--pinentry-mode", "loopback", "--passphrase", "word")
    made = gpg.run(*loopback, "--quick-gen-key", "me <me@example.test>", "ed25519", "sign", "never")
    if made.returncode:
        skip_or_fail(f"gpg makes no key: {made.stderr[-200:]}")
    gpg.do(*loopback, "--output", "secret.gpg", "--export-secret-keys")
    secret = (tmp_path / "secret.gpg").read_bytes()
    message, key = MessageSigner(secret, "word").sign(b"content")
    (tmp_path / "message").write_bytes(message)
    assert gpg.run("--verify", "message").returncode == 0
    gpg.do("--batch", "--output", "ring.gpg", "--export")
    keyring = parse_keyring((tmp_path / "ring.gpg").read_bytes())
    assert verify_message(message, keyring, now=datetime.now(UTC)).key == key
    for wrong in (None, "other"):
        with pytest.raises(Refused) as caught:
            MessageSigner(secret, wrong).sign(b"content")
        assert caught.value.code == "crypto.openpgp.password"


@pytest.mark.tool
def test_simple_signatures_of_skopeo(skopeo: Program, gpg: Program, tmp_path: Path, built: Built) -> None:
    skopeo.environment["GNUPGHOME"] = gpg.environment["GNUPGHOME"]
    generate = gpg.run(
        "--batch", "--passphrase", "", "--quick-gen-key", "me <me@example.test>", "rsa3072", "sign", "never"
    )
    if generate.returncode:
        skip_or_fail(f"gpg makes no key: {generate.stderr[-200:]}")
    listed = gpg.do("--list-keys", "--with-colons").splitlines()
    fingerprint = next(line.split(":")[9] for line in listed if line.startswith("fpr"))
    gpg.do("--export", "--output", "ring.gpg", fingerprint)
    with RegistryProcess(tmp_path / "registry") as registry:
        name = f"{registry.address}/team/app"
        pushed = push(registry.client("team/app"), name, built)
        (tmp_path / "manifest.json").write_bytes(pushed.raw)
        skopeo.do("standalone-sign", "manifest.json", f"{name}:v1", fingerprint, "-o", "signature")
        raw = (tmp_path / "signature").read_bytes()
        keyring = parse_keyring((tmp_path / "ring.gpg").read_bytes())
        assert verify_message(raw, keyring, now=datetime.now(UTC)).key.fingerprint == fingerprint
        store = tmp_path / "sigs" / f"team/app@sha256={pushed.digest.hex}"
        store.mkdir(parents=True)
        signed = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(tmp_path / "ring.gpg")}
        assert verdicts(skopeo, pushed, tmp_path, **signed) == (False, False)
        (store / "signature-1").write_bytes(raw)
        assert verdicts(skopeo, pushed, tmp_path, **signed) == (True, True)
        other = {"type": "exactReference", "dockerReference": f"{name}:v2"}
        assert verdicts(skopeo, pushed, tmp_path, **signed, signedIdentity=other) == (False, False)
        # What we write, by the same key: skopeo accepts it, refuses it under another tag, and reads what it says.
        (store / "signature-1").unlink()
        gpg.do("--batch", "--output", "secret.gpg", "--export-secret-keys", fingerprint)
        signer = MessageSigner((tmp_path / "secret.gpg").read_bytes())
        reference, at = parse_reference(f"{name}:v1"), datetime.now(UTC)
        _, key, path = sign_simple(pushed.client, "v1", signer, identity=reference, lookaside=tmp_path / "sigs", at=at)
        assert (path, key.fingerprint) == (store / "signature-1", fingerprint)
        assert verdicts(skopeo, pushed, tmp_path, **signed) == (True, True)
        assert verdicts(skopeo, pushed, tmp_path, **signed, signedIdentity=other) == (False, False)
        said = skopeo.do("standalone-verify", "manifest.json", f"{name}:v1", fingerprint, str(path))
        assert str(pushed.digest) in said and fingerprint in said
        middle = len(raw) // 2  # the last bits may be padding of the compression, which GnuPG does not look at
        (store / "signature-1").write_bytes(flipped(raw, middle))
        assert verdicts(skopeo, pushed, tmp_path, **signed) == (False, False)


# -- sigstore-python as the oracle ----------------------------------------------------------------------------------


def theirs(raw: bytes, services: TestSigstore, folder: Path) -> bool:
    """Whether sigstore-python accepts a bundle for the services' identity."""
    path = folder / "trusted.json"
    path.write_bytes(services.trusted_root())
    subject, issuer = services.identity
    try:
        verifier = Verifier(trusted_root=SigstoreRoot.from_file(str(path)))
        verifier.verify_dsse(SigstoreBundle.from_json(raw), Identity(identity=subject, issuer=issuer))
    except SigstoreError:
        return False
    return True


def ours(raw: bytes, services: TestSigstore) -> bool:
    try:
        verify_keyless(keyless_of_bundle(parse_bundle(raw), signing_world.MANIFEST), trust(services))
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    ("options", "good"),
    [
        ({}, True),
        ({"stamped": True}, True),
        ({"promise": False, "stamped": True}, True),
        ({"promise": False}, False),
        ({"proof": False}, False),
        ({"sct": False}, False),
        ({"logged": False}, False),
    ],
)
def test_sigstore_python_gives_the_same_verdicts(options: dict[str, bool], good: bool, tmp_path: Path) -> None:
    services = TestSigstore(at=datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1))
    raw = keyless_bundle(services, **options)
    assert (ours(raw, services), theirs(raw, services, tmp_path)) == (good, good)
    services.identity = ("other@example.test", services.identity[1])
    assert (ours(raw, services), theirs(raw, services, tmp_path)) == (False, False)


def test_a_layout_holds_what_a_registry_holds(built: Built) -> None:
    signer = ECDSAP256Signer.generate()
    sign_bundle(built.layout, built.digest, signer, repository="a.test/b")
    (found,) = read_bundles(OCILayout(built.path), built.digest)
    needed = KeyRequirement(keys=(load_public_key(signer.public_key.pem()),), repository=ExactRepository("a.test/b"))
    raw = read_manifest(built.layout, built.digest).raw
    assert needed.judge(found, raw, datetime.now(UTC))
    with pytest.raises(ImageRefused):
        needed.judge(found, raw + b" ", datetime.now(UTC))


# -- Notation -------------------------------------------------------------------------------------------------------

NOTATION = ("github.com/notaryproject/notation", "v1.3.2", "./cmd/notation")
PLAIN_HTTP = "--insecure-registry"


class Notation(Program):
    """The notation command with a directory of configuration of its own, which Cloister reads as well."""

    def __init__(self, folder: Path) -> None:
        super().__init__(require_go_program(*NOTATION), folder)
        self.environment["XDG_CONFIG_HOME"] = str(folder)
        self.directory = folder / "notation"

    def add_key(self, signer: signing_world.Signer) -> None:
        """Have it sign with this key."""
        keys = self.directory / "localkeys"
        keys.mkdir(parents=True)
        private = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (keys / "test.key").write_bytes(private)
        (keys / "test.crt").write_bytes(b"".join(item.public_bytes(Encoding.PEM) for item in signer.chain))
        entry = {"name": "test", "keyPath": str(keys / "test.key"), "certPath": str(keys / "test.crt")}
        (self.directory / "signingkeys.json").write_text(json.dumps({"default": "test", "keys": [entry]}))

    def trust(self, root: x509.Certificate, **policy: Any) -> None:
        """Have it, and us, trust what this authority certified."""
        store = self.directory / "truststore" / "x509" / "ca" / "acme"
        store.mkdir(parents=True, exist_ok=True)
        (store / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
        entry = {
            "name": "acme",
            "registryScopes": ["*"],
            "signatureVerification": {"level": "strict"},
            "trustStores": ["ca:acme"],
            "trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme"],
            **policy,
        }
        (self.directory / "trustpolicy.json").write_text(json.dumps({"version": "1.0", "trustPolicies": [entry]}))

    def verdicts(self, pushed: Pushed) -> tuple[bool, bool]:
        """Return whether notation accepts the image, and whether we do, with the same configuration."""
        theirs = self.run("verify", PLAIN_HTTP, pushed.reference)
        required = notation_requirements(self.directory, parse_reference(pushed.reference))
        found = verify_signatures(pushed.client, str(pushed.digest), required, platform="linux/amd64")
        return theirs.returncode == 0, found.proved


def current_signer(key: Any = None, **options: Any) -> signing_world.Signer:
    """Return a signer whose certificate is valid now, by the clock that notation has."""
    now = datetime.now(UTC).replace(microsecond=0)
    times = {"begin": now - timedelta(days=1), "end": now + timedelta(days=2), **options}
    return signing_world.notation_signer(key, **times)


@pytest.fixture
def notation(tmp_path: Path) -> Notation:
    return Notation(tmp_path)


@pytest.mark.parametrize("media_type", [NOTATION_JWS, NOTATION_COSE])
@pytest.mark.parametrize("kind", ["ec256", "ec384", "ec521", "rsa2048", "rsa3072"])
def test_notation_verifies_what_we_sign(pushed: Pushed, notation: Notation, media_type: str, kind: str) -> None:
    curves = {"ec256": ec.SECP256R1, "ec384": ec.SECP384R1, "ec521": ec.SECP521R1}
    key = ec.generate_private_key(curves[kind]()) if kind in curves else rsa.generate_private_key(65537, int(kind[3:]))
    signer = current_signer(key)
    notation.trust(signer.chain[-1])
    assert notation.verdicts(pushed) == (False, False)  # there is no signature
    sign_notation(pushed.client, pushed.digest, NotationKey(key=key, chain=signer.chain), media_type=media_type)
    assert notation.verdicts(pushed) == (True, True)
    notation.trust(signer.chain[-1], trustedIdentities=["x509.subject: C=US, ST=WA, O=other"])
    assert notation.verdicts(pushed) == (False, False)


@pytest.mark.parametrize("form", ["jws", "cose"])
@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_we_verify_what_notation_signs(pushed: Pushed, notation: Notation, form: str, kind: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    signer = current_signer(key)
    notation.add_key(signer)
    notation.trust(signer.chain[-1])
    notation.do("sign", PLAIN_HTTP, "--signature-format", form, "--user-metadata", "team=app", pushed.reference)
    assert notation.verdicts(pushed) == (True, True)
    stranger = x509.load_pem_x509_certificate(unrelated_root())
    notation.trust(stranger)
    assert notation.verdicts(pushed) == (False, False)


def test_expiry_and_certificate_times_are_judged_alike(pushed: Pushed, notation: Notation) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    signer = current_signer(begin=now - timedelta(days=9), end=now - timedelta(days=1))
    notation.trust(signer.chain[-1])
    key = NotationKey(key=signer.key, chain=signer.chain)
    sign_notation(pushed.client, pushed.digest, key, media_type=NOTATION_JWS, clock=lambda: now - timedelta(days=2))
    assert notation.verdicts(pushed) == (False, False)
    good = current_signer()
    expired = NotationKey(key=good.key, chain=good.chain)
    sign_notation(
        pushed.client, pushed.digest, expired, media_type=NOTATION_COSE, expires=now - timedelta(hours=1),
        clock=lambda: now - timedelta(hours=2),
    )  # fmt: skip
    assert notation.verdicts(pushed) == (False, False)
    sign_notation(pushed.client, pushed.digest, expired, media_type=NOTATION_COSE)
    assert notation.verdicts(pushed) == (True, True)


def unrelated_root() -> bytes:
    """Return a root certificate like the test's, of another key."""
    key = ec.generate_private_key(ec.SECP384R1())
    now = datetime.now(UTC)
    name = signing_world.name_of("root")
    built = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(key.public_key())
        .serial_number(9)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(signing_world.usage(key_cert_sign=True), critical=True)
    )
    return built.sign(key, SHA256()).public_bytes(Encoding.PEM)
