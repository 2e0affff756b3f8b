"""Signs image manifests as skopeo's `--sign-by` does (containers-signature(5)): an OpenPGP message in a lookaside
directory, which `policy.json`'s `signedBy` accepts.

Lookaside directories are static files that a web server or a mount publishes; `registries.d` of whoever verifies names
them. The message says digest and name of the image, with its tag where it has one, as skopeo writes them.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cloister.crypto.openpgpsign import MessageSigner
from cloister.crypto.openpgpverify import SigningKey, verify_message
from cloister.errors import ImageRefused, Refused, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.manifest import is_index
from cloister.oci.reference import OCIReference
from cloister.oci.signing.lookaside import signature_paths
from cloister.oci.signing.simplesigning import ATOMIC_TYPE, Statement, encode_payload, parse_payload
from cloister.oci.store import ImageSource, read_manifest
from cloister.wholefile import READABLE, write_whole
from cloister.wire.limits import IMAGE_SIGNATURES, OPENPGP_MESSAGE_BYTES


def sign_simple(
    source: ImageSource,
    selector: str | Digest,
    signer: MessageSigner,
    *,
    identity: OCIReference,
    lookaside: Path,
    at: datetime,
) -> tuple[Digest, SigningKey, Path]:
    """Sign the manifest or index under `selector` and store the signature in a lookaside directory.

    Args:
        source: where the image is; nothing is written there.
        selector: the image, by tag or digest.
        signer: holds the secret key.
        identity: what the signature names: the reference that whoever verifies will pull, with its tag.
        lookaside: the directory; made where it is not there.
        at: aware time of the signature.

    Returns:
        The digest that was signed, by which key, and the file. A signature by the same key that says the same is
        replaced.

    Raises:
        ImageRefused: `oci.signing.too_many`, `<store>.manifest_missing`, `oci.manifest.*`.
        Refused: the key does not sign (`crypto.openpgp.*`).
        Unavailable: the source cannot be read, or the directory not written (`imagetool.simplesign.write`).
    """
    stored = read_manifest(source, selector)
    is_index(stored.raw, media_type=stored.media_type)  # refuses what is neither manifest nor index
    digest = Digest.of(stored.raw)
    statement = Statement(f"{identity.name}:{identity.tag}" if identity.tag else identity.name, digest)
    message, key = signer.sign(encode_payload(statement, kind=ATOMIC_TYPE, seconds=int(at.timestamp())))
    try:
        for text in signature_paths(f"file://{lookaside.absolute()}", identity, digest):
            path = Path(text)
            if _is_free_or_ours(path, signer, statement, at):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, message, mode=READABLE)
                return digest, key, path
    except OSError as err:
        raise Unavailable(
            "imagetool.simplesign.write",
            "lookaside directory cannot be written",
            path=str(lookaside),
            actual=str(err.strerror or err)[:120],
        ) from err
    raise ImageRefused("oci.signing.too_many", "image has too many signatures", expected=f"at most {IMAGE_SIGNATURES}")


def _is_free_or_ours(path: Path, signer: MessageSigner, statement: Statement, at: datetime) -> bool:
    try:
        with path.open("rb") as file:
            raw = file.read(OPENPGP_MESSAGE_BYTES + 1)
    except FileNotFoundError:
        return True
    try:
        found = verify_message(raw, signer.keyring, now=at)
        return parse_payload(found.content, (ATOMIC_TYPE,)) == statement
    except Refused:
        return False  # somebody else's
