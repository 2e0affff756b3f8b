"""`cloister image sign` and `verify`: every way to trust, over layouts, with the reasons they print."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pysequoia
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from cloister.cli.app import app
from cloister.crypto.openpgpverify import parse_keyring
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from cloister.imagetool.keyless import SigstoreServices, sign_keyless
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document
from cloister.oci.layout import OCILayout
from cloister.oci.location import parse_location
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cloister.oci.reference import parse_reference
from cloister.oci.signing.collect import collect_signatures, read_image
from cloister.oci.signing.evaluate import ImageBytes, evaluate
from cloister.oci.signing.identity import IdentityRule, MatchRepository
from cloister.oci.signing.keys import load_public_key
from cloister.oci.signing.lookaside import parse_lookaside
from cloister.oci.signing.requirements import KeyRequirement, OpenPGPRequirement
from cloister.oci.signing.simplesigning import ATOMIC_TYPE, Statement, encode_payload
from cloister.oci.signing.trustedroot import parse_trusted_root
from cloister.oci.signing.verify import ExactRepository
from cloister.oci.store import StoredManifest, read_manifest
from cloister.sdk.imagesignature import (
    describe_signatures,
    lookaside_reader,
    policy_requirements,
    verify_signatures,
)
from cloister.testing.sigstore import TestSigstore, test_token
from signing_world import NOW, REPOSITORY, manifest_bytes, notation_signer, refused
from unit.oci.builders import Built, InProcessResponse, archive, build_layout, client_over, file

NAME = ("--repository", REPOSITORY)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "image", archive(file(b"a", b"x")))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signer = ECDSAP256Signer.generate()
    (tmp_path / "key.pem").write_bytes(signer.private_pem())
    (tmp_path / "key.pub").write_bytes(signer.public_key.pem())
    return tmp_path / "key.pem"


def run(verb: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["image", verb, *words])


def verify(built: Built, *words: str) -> tuple[str, dict[str, Any]]:
    """Return the code of the refusal (empty for an accepted image) and the report."""
    result = run("verify", f"oci:{built.path}:v1", *words, "--output", "json")
    code = result.exception.code if isinstance(result.exception, CloisterError) else ""
    if not code:
        assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.stdout)
    assert report["accepted"] == (not code)
    return code, report


def signatures(report: dict[str, Any]) -> list[dict[str, Any]]:
    return report["requirements"][0]["signatures"]


@pytest.mark.parametrize("form", ["cosign", "bundle"])
def test_what_is_signed_with_a_key_verifies_with_its_public_half(built: Built, key: Path, form: str) -> None:
    public = str(key.with_suffix(".pub"))
    assert verify(built, "--key", public, *NAME)[0] == "oci.signing.unsigned"
    assert run("sign", f"oci:{built.path}:v1", "--key", str(key), "--format", form, *NAME).exit_code == 0
    code, report = verify(built, "--key", public, *NAME)
    assert code == "" and report["proved"] and report["digest"] == str(built.digest)
    assert [item["format"] for item in signatures(report)] == [form]
    other = ECDSAP256Signer.generate()
    key.with_suffix(".pub").write_bytes(other.public_key.pem())
    code, report = verify(built, "--key", public, *NAME)
    assert code == "oci.signing.no_valid_signature" and not report["proved"]
    assert signatures(report)[0]["code"] == "oci.signing.bad_signature"
    text = run("verify", f"oci:{built.path}:v1", "--key", public, *NAME)
    assert "REFUSED" in text.stdout and "oci.signing.bad_signature" in text.stdout


def test_another_repository_is_told(built: Built, key: Path) -> None:
    run("sign", f"oci:{built.path}:v1", "--key", str(key), *NAME)
    _, report = verify(built, "--key", str(key.with_suffix(".pub")), "--repository", "images.test/other")
    assert signatures(report)[0]["code"] == "oci.signing.other_repository"
    assert refused(lambda: raised(run("verify", f"oci:{built.path}:v1", "--key", str(key.with_suffix(".pub"))))) == (
        "cli.image.repository"
    )


def raised(result: Result) -> None:
    if result.exception is not None:
        raise result.exception


def test_keyless(built: Built, tmp_path: Path) -> None:
    services = TestSigstore(at=datetime.now(UTC).replace(microsecond=0))
    client = SigstoreServices(fulcio="https://fulcio.test", rekor="https://rekor.test", transport=services.transport())
    root = parse_trusted_root(services.trusted_root())
    token = test_token("https://ci.test/build", "https://login.test")
    digest, identity = sign_keyless(built.layout, "v1", client, token=token, root=root, repository=REPOSITORY)
    assert digest == built.digest and str(identity) == "https://ci.test/build by https://login.test"
    (tmp_path / "root.json").write_bytes(services.trusted_root())
    words = ["--certificate-identity", "https://ci.test/build", "--certificate-oidc-issuer", "https://login.test"]
    trusted = ["--trusted-root", str(tmp_path / "root.json"), *NAME]
    code, report = verify(built, *words, *trusted)
    assert code == "" and signatures(report)[0]["signer"] == str(identity)
    words[1] = "https://ci.test/other"
    code, report = verify(built, *words, *trusted)
    assert signatures(report)[0]["code"] == "oci.signing.fulcio.identity"
    assert run("verify", f"oci:{built.path}:v1", *words, *NAME).exit_code == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda s: {"token": "no token"}, "imagetool.keyless.token"),
        (
            lambda s: {"root": parse_trusted_root(TestSigstore(at=s.now).trusted_root())},
            "oci.signing.rekor.unknown_log",
        ),
    ],
)
def test_a_keyless_signature_that_does_not_verify_is_not_stored(
    built: Built, change: Callable[[TestSigstore], dict[str, Any]], code: str
) -> None:
    services = TestSigstore(at=NOW)
    client = SigstoreServices(fulcio="https://fulcio.test", rekor="https://rekor.test", transport=services.transport())
    words = {"token": test_token("a", "b"), "root": parse_trusted_root(services.trusted_root()), **change(services)}
    assert refused(lambda: sign_keyless(built.layout, "v1", client, repository=REPOSITORY, **words)) == code
    assert collect_signatures(built.layout, read_image(built.layout, "v1", "linux/amd64")) == ()


def test_services_that_do_not_answer(built: Built) -> None:
    services = TestSigstore(at=NOW)
    client = SigstoreServices(fulcio="https://nowhere.test", rekor="https://rekor.test", transport=services.transport())
    words = {"token": test_token("a", "b"), "root": parse_trusted_root(services.trusted_root())}
    assert refused(lambda: sign_keyless(built.layout, "v1", client, repository=REPOSITORY, **words)) == (
        "imagetool.keyless.service"
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"no JSON",
        b"{}",
        b'{"signedCertificateEmbeddedSct":{"chain":{"certificates":[]}}}',
        b'{"signedCertificateEmbeddedSct":{"chain":{"certificates":["no PEM"]}}}',
        b" " * 3_000_000,
    ],
)
def test_answers_of_an_authority_that_are_none(built: Built, answer: bytes) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(201, content=answer))
    client = SigstoreServices(fulcio="https://fulcio.test", rekor="https://rekor.test", transport=transport)
    words = {"token": test_token("a", "b"), "root": parse_trusted_root(TestSigstore(at=NOW).trusted_root())}
    code = refused(lambda: sign_keyless(built.layout, "v1", client, repository=REPOSITORY, **words))
    assert code.startswith("imagetool.keyless.answer")


@pytest.mark.parametrize("form", ["notation-jws", "notation-cose"])
def test_notation(built: Built, tmp_path: Path, form: str) -> None:
    now = datetime.now(UTC)
    signer = notation_signer(begin=now - timedelta(days=1), end=now + timedelta(days=1))
    pem = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "n.pem").write_bytes(pem)
    (tmp_path / "chain.pem").write_bytes(b"".join(item.public_bytes(Encoding.PEM) for item in signer.chain))
    words = ["--key", str(tmp_path / "n.pem"), "--certificate-chain", str(tmp_path / "chain.pem"), *NAME]
    raised(run("sign", f"oci:{built.path}:v1", "--format", form, *words))
    store = tmp_path / "notation" / "truststore" / "x509" / "ca" / "acme"
    store.mkdir(parents=True)
    policy = {
        "name": "acme",
        "registryScopes": [REPOSITORY],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:acme"],
        "trustedIdentities": ["*"],
    }
    trust_file = tmp_path / "notation" / "trustpolicy.json"
    trust_file.write_text(json.dumps({"version": "1.0", "trustPolicies": [policy]}))
    place = ["--notation-policy", str(tmp_path / "notation"), *NAME]
    result = run("verify", f"oci:{built.path}:v1", *place)
    assert refused(lambda: raised(result)) == "oci.signing.trust_policy.stores"
    (store / "root.crt").write_bytes(signer.chain[-1].public_bytes(Encoding.PEM))
    code, report = verify(built, *place)
    assert code == "" and report["proved"] and signatures(report)[0]["format"] == form
    skip = {**policy, "signatureVerification": {"level": "skip"}, "trustStores": [], "trustedIdentities": []}
    trust_file.write_text(json.dumps({"version": "1.0", "trustPolicies": [skip]}))
    code, report = verify(built, *place)
    assert code == "" and not report["proved"]
    assert "NOT VERIFIED" in run("verify", f"oci:{built.path}:v1", *place).stdout


def test_one_way_to_trust_is_given(built: Built, key: Path) -> None:
    assert run("verify", f"oci:{built.path}:v1").exit_code == 2
    assert run("verify", f"oci:{built.path}:v1", "--key", str(key), "--policy", str(key)).exit_code == 2
    assert run("sign", f"oci:{built.path}:v1", "--format", "notation-jws", *NAME).exit_code == 2
    assert run("sign", f"oci:{built.path}:v1", "--identity-token", str(key), *NAME).exit_code == 2
    missing = run("verify", f"oci:{built.path}:v1", "--key", "/nowhere", *NAME)
    assert refused(lambda: raised(missing)) == "oci.signing.file"


# -- policy.json ----------------------------------------------------------------------------------------------------


def test_policies(built: Built, key: Path, tmp_path: Path) -> None:
    """Requirements are ANDed: a key that signed, and one that did not."""
    path = tmp_path / "policy.json"
    run("sign", f"oci:{built.path}:v1", "--key", str(key), *NAME)
    other = tmp_path / "other.pub"
    other.write_bytes(ECDSAP256Signer.generate().public_key.pem())
    identity = {"type": "exactRepository", "dockerRepository": REPOSITORY}
    good = {"type": "sigstoreSigned", "keyPath": str(key.with_suffix(".pub")), "signedIdentity": identity}
    anything = {"type": "insecureAcceptAnything"}

    def judged(*requirements: Any, scope: str = "") -> tuple[str, dict[str, Any]]:
        document: dict[str, Any] = {"default": [{"type": "reject"}]}
        document["transports"] = {"oci": {scope or str(built.path): list(requirements)}}
        path.write_text(json.dumps(document))
        return verify(built, "--policy", str(path))

    code, report = judged(good)
    assert code == "" and report["proved"] and report["scope"] == f"transports.oci.{built.path}"
    assert judged(good, scope=str(tmp_path))[0] == ""
    assert judged(good, {**good, "keyPath": str(other)})[0] == "oci.signing.no_valid_signature"
    assert judged({**good, "keyPath": None, "keyPaths": [str(other), str(key.with_suffix(".pub"))]})[0] == ""
    pem = key.with_suffix(".pub").read_text()
    assert judged({**good, "keyPath": None, "keyData": pem})[0] == ""
    code, report = judged({**good, "signedIdentity": None})
    assert code == "oci.signing.no_valid_signature"
    assert signatures(report)[0]["code"] == "oci.signing.other_repository"
    code, report = judged(anything)
    assert code == "" and not report["proved"] and report["requirements"] == []
    assert judged(anything, good)[0] == ""
    assert judged(anything, {"type": "reject"})[0] == "oci.signing.rejected"
    assert judged(good, scope=f"{tmp_path}/elsewhere")[0] == "oci.signing.rejected"


def test_simple_signing_from_a_store(built: Built, tmp_path: Path) -> None:
    """As skopeo does it: `dir:` and `oci:` have no names, so the identity must be exact; the store is by the name."""
    owner = pysequoia.Tsk.generate("owner <owner@example.test>")
    keyring = tmp_path / "ring.gpg"
    keyring.write_bytes(bytes(owner.extract_certificate()))
    reference = parse_reference(f"{REPOSITORY}:v1")
    folder = tmp_path / "sigs" / f"team/app@sha256={built.digest.hex}"
    folder.mkdir(parents=True)

    def sign(number: int, statement: Statement, kind: str = ATOMIC_TYPE) -> None:
        message = pysequoia.sign(owner.signer(), encode_payload(statement, kind=kind), armor=False)
        (folder / f"signature-{number}").write_bytes(bytes(message))

    sign(1, Statement(f"{REPOSITORY}:v2", built.digest))
    sign(2, Statement(f"{REPOSITORY}:v1", Digest.of(b"other")))
    sign(3, Statement(f"{REPOSITORY}:v1", built.digest), kind="cosign container image signature")
    (folder / "signature-4").write_bytes(b"text")
    policy = {"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(keyring)}]}
    _, requirements = policy_requirements(
        json.dumps(policy).encode(), parse_location(f"docker://{reference}"), lambda path: Path(path).read_bytes()
    )
    config = parse_lookaside([f"docker:\n  images.test:\n    lookaside: file://{tmp_path}/sigs\n".encode()])
    more = lookaside_reader(config, reference)
    judged = verify_signatures(built.layout, "v1", requirements, platform="linux/amd64", more=more)
    assert [finding.code for finding in judged.results[0].findings] == [
        "oci.signing.other_repository",
        "oci.signing.other_image",
        "oci.signing.payload.unknown_type",
        "crypto.openpgp.malformed",
    ]
    assert refused(judged.require) == "oci.signing.no_valid_signature"
    sign(5, Statement(f"{REPOSITORY}:v1", built.digest))
    judged = verify_signatures(built.layout, "v1", requirements, platform="linux/amd64", more=more)
    assert judged.require().digest == built.digest and "OpenPGP key" in judged.require().signer
    nothing = lookaside_reader(parse_lookaside([]), reference)
    assert verify_signatures(built.layout, "v1", requirements, platform="a/b", more=nothing).results[0].findings == ()


def simple_policy(tmp_path: Path, owner: Any) -> tuple[str, ...]:
    (tmp_path / "ring.gpg").write_bytes(bytes(owner.extract_certificate()))
    identity = {"type": "exactReference", "dockerReference": f"{REPOSITORY}:v1"}
    signed = {
        "type": "signedBy",
        "keyType": "GPGKeys",
        "keyPath": str(tmp_path / "ring.gpg"),
        "signedIdentity": identity,
    }
    (tmp_path / "policy.json").write_text(json.dumps({"default": [signed]}))
    return "--policy", str(tmp_path / "policy.json")


def test_simple_signatures_that_we_write(built: Built, tmp_path: Path) -> None:
    owner = pysequoia.Tsk.generate("owner <owner@example.test>")
    (tmp_path / "secret.pgp").write_bytes(bytes(owner))
    key = f"{tmp_path}/secret.pgp"
    words = ("--format", "simple", "--lookaside", str(tmp_path / "sigs"), "--repository", f"{REPOSITORY}:v1")
    place = f"oci:{built.path}:v1"
    folder = tmp_path / "sigs" / f"team/app@sha256={built.digest.hex}"
    other = pysequoia.Tsk.generate("other <other@example.test>")
    folder.mkdir(parents=True)
    theirs = bytes(pysequoia.sign(other.signer(), b"something", armor=False))
    (folder / "signature-1").write_bytes(theirs)
    for _ in range(2):  # the second time it is only made anew
        answer = json.loads(run("sign", place, "--key", key, *words, "--output", "json").stdout)
        assert answer["file"] == str(folder / "signature-2") and answer["digest"] == str(built.digest)
    assert sorted(path.name for path in folder.iterdir()) == ["signature-1", "signature-2"]
    assert (folder / "signature-1").read_bytes() == theirs
    more = lookaside_of(tmp_path)
    _, needed = policy_requirements(
        Path(simple_policy(tmp_path, owner)[1]).read_bytes(),
        parse_location(place),
        lambda path: Path(path).read_bytes(),
    )
    judged = verify_signatures(built.layout, "v1", needed, platform="linux/amd64", more=more)
    assert judged.require().digest == built.digest
    assert judged.results[0].findings[1].signed_at is not None
    moved = (*words[:-1], f"{REPOSITORY}:v2")  # another name is another statement, beside the first
    assert json.loads(run("sign", place, "--key", key, *moved, "--output", "json").stdout)["file"].endswith("-3")


def lookaside_of(tmp_path: Path) -> Any:
    config = parse_lookaside([f"docker:\n  images.test:\n    lookaside: file://{tmp_path}/sigs\n".encode()])
    return lookaside_reader(config, parse_reference(f"{REPOSITORY}:v1"))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("no key", "crypto.openpgp.no_secret"),
        ("public key", "crypto.openpgp.no_secret"),
        ("password of an open key", "crypto.openpgp.password"),
        ("no directory", "imagetool.simplesign.write"),
        ("no image", "oci.layout.manifest_missing"),
    ],
)
def test_simple_signatures_that_cannot_be_written(built: Built, tmp_path: Path, kind: str, code: str) -> None:
    owner = pysequoia.Tsk.generate("owner <owner@example.test>")
    content = {"no key": b"text", "public key": bytes(owner.extract_certificate())}.get(kind, bytes(owner))
    (tmp_path / "secret.pgp").write_bytes(content)
    (tmp_path / "file").write_text("")
    lookaside = tmp_path / ("file" if kind == "no directory" else "sigs")
    place = f"oci:{built.path}:{'none' if kind == 'no image' else 'v1'}"
    key_text = f"{tmp_path}/secret.pgp" + (":word" if kind.startswith("password") else "")
    words = ("--key", key_text, "--lookaside", str(lookaside), *NAME)
    assert refused(lambda: raised(run("sign", place, "--format", "simple", *words))) == code
    assert not (tmp_path / "sigs").exists()
    for wrong in (("--format", "simple"), ("--format", "simple", "--lookaside", "d"), words, (*words[2:4],)):
        assert run("sign", place, *wrong, *NAME).exit_code == 2


def test_an_image_is_signed_simply_where_nothing_can_be_written(built: Built, tmp_path: Path) -> None:
    """`dir:` has no room for a signature beside the image, and needs none."""
    (tmp_path / "secret.pgp").write_bytes(bytes(pysequoia.Tsk.generate("owner <owner@example.test>")))
    assert run("copy", f"oci:{built.path}:v1", f"dir:{tmp_path}/d").exit_code == 0
    before = sorted(path.name for path in (tmp_path / "d").iterdir())
    words = ("--format", "simple", "--key", f"{tmp_path}/secret.pgp", "--lookaside", f"{tmp_path}/sigs", *NAME)
    result = run("sign", f"dir:{tmp_path}/d", *words)
    assert result.exit_code == 0, result.exception
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == before
    assert (tmp_path / "sigs" / f"team/app@sha256={built.digest.hex}" / "signature-1").exists()


# -- indexes and second fetches -------------------------------------------------------------------------------------


def index_of(built: Built) -> bytes:
    raw = read_manifest(built.layout, "v1").raw
    entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(raw)), "size": len(raw)}
    platform = {"os": "linux", "architecture": "amd64"}
    return encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**entry, "platform": platform}]})


@pytest.mark.parametrize("what", ["index", "manifest"])
def test_a_signature_over_the_index_or_over_the_manifest_counts(built: Built, key: Path, what: str) -> None:
    built.layout.write_manifest(index_of(built), OCI_INDEX, "multi")
    signed = "multi" if what == "index" else "v1"
    run("sign", f"oci:{built.path}:{signed}", "--key", str(key), *NAME)
    words = ["--key", str(key.with_suffix(".pub")), "--platform", "linux/amd64", *NAME, "--output", "json"]
    result = run("verify", f"oci:{built.path}:multi", *words)
    report = json.loads(result.stdout)
    assert report["accepted"] and report["digest"] == str(built.digest)
    assert signatures(report)[0]["over"].startswith(what)


def test_an_index_that_does_not_name_the_manifest_covers_nothing(built: Built) -> None:
    index = StoredManifest(index_of(built), OCI_INDEX)
    assert refused(lambda: ImageBytes(StoredManifest(manifest_bytes(3), OCI_MANIFEST), index)) == (
        "oci.signing.not_in_index"
    )


def test_a_tag_that_moves_while_it_is_verified_changes_nothing(built: Built, key: Path) -> None:
    """Two answers for one tag: what was judged is what is in the result, and is fetched once."""

    class Moving(OCILayout):
        asked: ClassVar[list[str]] = []

        def get_manifest(self, selector: str) -> StoredManifest | None:
            self.asked.append(selector)
            if self.asked.count("v1") > 1:
                return StoredManifest(manifest_bytes(9), OCI_MANIFEST)
            return super().get_manifest(selector)

    run("sign", f"oci:{built.path}:v1", "--key", str(key), *NAME)
    layout = Moving(built.path)
    public = load_public_key(key.with_suffix(".pub").read_bytes())
    needed = [KeyRequirement(keys=(public,), repository=ExactRepository(REPOSITORY))]
    verified = verify_signatures(layout, "v1", needed, platform="linux/amd64").require()
    assert verified.digest == built.digest and layout.asked.count("v1") == 1
    image = ImageBytes(StoredManifest(manifest_bytes(9), OCI_MANIFEST))
    stale = collect_signatures(built.layout, read_image(built.layout, "v1", "linux/amd64"))
    with pytest.raises(RuntimeError):
        evaluate(image, stale, needed, now=NOW)


def test_signatures_are_described_without_being_believed(built: Built, key: Path) -> None:
    run("sign", f"oci:{built.path}:v1", "--key", str(key), *NAME)
    run("sign", f"oci:{built.path}:v1", "--key", str(key), "--format", "bundle", *NAME)
    described = describe_signatures(built.layout, read_image(built.layout, "v1", "linux/amd64"))
    assert [(item["form"], item["over"], item["repository"]) for item in described] == [
        ("cosign", "manifest", REPOSITORY),
        ("bundle", "manifest", REPOSITORY),
    ]


def test_simple_signing_that_the_registry_keeps(built: Built) -> None:
    """The registry's own extension is asked only where such a signature can count, and its answer is a stranger's."""
    owner = pysequoia.Tsk.generate("owner <owner@example.test>")
    statement = encode_payload(Statement(f"{REPOSITORY}:v1", built.digest), kind=ATOMIC_TYPE)
    message = bytes(pysequoia.sign(owner.signer(), statement, armor=False))
    entry = {"schemaVersion": 2, "name": f"{built.digest}@1", "type": "atomic"}
    answers = {
        f"/extensions/v2/team/app/signatures/{built.digest}": encode_document(
            {"signatures": [{**entry, "content": base64.b64encode(message).decode()}]}
        ),
        f"/v2/team/app/manifests/{built.digest}": read_manifest(built.layout, "v1").raw,
    }
    transport = Answering(answers)
    client = client_over(transport)
    rule = IdentityRule(MatchRepository(), parse_reference(REPOSITORY))
    keyring = parse_keyring(bytes(owner.extract_certificate()))
    needed = [OpenPGPRequirement(keyring=keyring, repository=rule)]
    judged = verify_signatures(client, str(built.digest), needed, platform="linux/amd64")
    assert judged.require().digest == built.digest
    transport.asked.clear()
    public = load_public_key(ECDSAP256Signer.generate().public_key.pem())
    verify_signatures(
        client, str(built.digest), [KeyRequirement(keys=(public,), repository=rule)], platform="linux/amd64"
    )
    assert not [path for path in transport.asked if "extensions" in path]


class Answering:
    """A transport that answers by path and says 404 to everything else."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def open(self, method: str, url: str, headers: Any, body: bytes | None = None) -> InProcessResponse:
        path = "/" + url.partition("://")[2].partition("/")[2]
        self.asked.append(path)
        found = self._answers.get(path)
        status = 404 if found is None else 200
        return InProcessResponse([{"status": status, "headers": []}, {"body": found or b""}])


def test_inspect_tells_who_says_that_he_signed(built: Built, key: Path) -> None:
    assert "signature  none" in run("inspect", f"oci:{built.path}:v1").stdout
    run("sign", f"oci:{built.path}:v1", "--key", str(key), *NAME)
    run("sign", f"oci:{built.path}:v1", "--key", str(key), "--format", "bundle", *NAME)
    text = run("inspect", f"oci:{built.path}:v1").stdout
    assert f"signature  cosign, over the manifest, by a key, names {REPOSITORY}  (not verified here)" in text
    assert "signature  bundle, over the manifest, by key " in text
