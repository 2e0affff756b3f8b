"""Encryption and decryption of images beside skopeo, and beside the bare cryptography on the same bytes.

    python bench/images.py [--runs 5] [--only gzip,text] [--check] [--quick] [--memory]

Each row is one layer of 300 MB between two layouts on disk, encrypted for one RSA-3072 key by JWE. All programs run as
a user runs them, in turn, each run a new process with the files in the page cache: `cloister image ..` and as many
skopeos as are found (the one on PATH, and Debian trixie's). Before anything is timed, every program decrypts what every
other encrypted, and all layer digests must be those of the original: a row without that is not printed.

- `gzip`: random bytes, so that nothing but cryptography matters; `text`: words, which compress to 58 %;
- `plain to gzip`: words in a plain archive, which is compressed on its way, as skopeo does unasked;
- `.., diff_ids`: decryption that also decompresses each layer and compares it with the configuration, which skopeo
  does not.

`floor` is the cryptography alone on the same bytes in memory, in one process that was started before: digest of the
source, AES-256-CTR with HMAC-SHA256, digest of what comes out, on three threads. `in process` is the same work as the
command's between the same files, without starting Python.

Medians of wall time and of CPU time; the machine's other work disturbs wall time far more. With `--check` a missed
target is exit code 1, `--quick` takes 3 MB and asks for no target but equal digests: it is what `make test` runs.
`--guest` shows the guest's side instead, in this process: a sealed layer whose ciphertext is in memory, authenticated,
decrypted and unpacked into a memory file system by the guest's pull, and by the same steps one after the other with
zlib (`stock`); and the whole pull of an encrypted and signed image from a registry into a tree, beside `skopeo copy`
with decryption and `umoci unpack`. Trees are compared before a row is printed.

`--memory` compares the most memory a run had with layers of 30 MB and of 3 GB. No network. Layers are made once and
kept in the cache (`CLOISTER_CACHE`).
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import hmac
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloister.crypto.aead import ctr_stream
from cloister.crypto.signer import ECDSAP256Signer
from cloister.guest.images import LayerFetch, PulledImage, memory_spool, unpack
from cloister.imagetool.compression import compressed
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest, DigestVerifier
from cloister.oci.document import encode_document
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.encryption.packet import unwrap_private_options
from cloister.oci.encryption.wrapping import open_recipients
from cloister.oci.layer import DeviceNodes, LayerUnpacker, UnpackOptions
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST, LayerType, parse_manifest
from cloister.oci.rootfs import RootDirectory
from cloister.oci.store import read_manifest
from cloister.sdk.home import home_from_environment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from conformance.registry_process import RegistryProcess  # noqa: E402
from conformance.tools import ToolMissing, install_from_suite, tool_version  # noqa: E402  # after its place is known
from unit.oci import builders  # noqa: E402

MB: Final = 10**6
MIB: Final = 1 << 20
TAG: Final = "v1"
OLD, NEW, OURS = "skopeo 1.9", "skopeo 1.18", "cloister"
# At least so many times as fast as the program, or this share of the floor's speed.
TARGETS: Final = {OLD: 4.0, NEW: 1.2, "floor": 0.8}
MEMORY_TARGET: Final = 0.10
Run = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Taken:
    """What one run took: seconds, seconds, bytes."""

    wall: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Program:
    """A program that encrypts and decrypts."""

    name: str
    encrypt: Callable[[Path, Path], list[str]]
    decrypt: Callable[[Path, Path], list[str]]


@dataclass(frozen=True)
class Row:
    """One line of the table: what is done to which image."""

    name: str
    layer: str
    verb: str
    options: tuple[str, ...] = ()  # of ours
    same_work: bool = True  # as skopeo's, so that targets apply


ROWS: Final = (
    Row("encrypt gzip", "gzip", "encrypt"),
    Row("encrypt text", "text", "encrypt"),
    Row("encrypt plain to gzip", "plain", "encrypt", ("--compress", "gzip"), same_work=False),
    Row("decrypt gzip", "gzip", "decrypt"),
    Row("decrypt text", "text", "decrypt"),
    Row("decrypt gzip, diff_ids", "gzip", "decrypt", ("--check-diff-ids",), same_work=False),
    Row("decrypt text, diff_ids", "text", "decrypt", ("--check-diff-ids",), same_work=False),
)


# -- what is encrypted


def words(size: int) -> Iterator[bytes]:
    """Yield text of words drawn by chance, always the same."""
    chance = random.Random(1)  # noqa: S311  # content, no secret
    vocabulary = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(20_000)]
    left = size
    while left:
        line = (" ".join(chance.choices(vocabulary, k=20_000)) + "\n").encode()[:left]
        left -= len(line)
        yield line


def noise(size: int) -> Iterator[bytes]:
    """Yield bytes that nothing compresses."""
    for start in range(0, size, MIB):
        yield os.urandom(min(MIB, size - start))


def archive(content: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield a tar archive of one file."""
    entry = tarfile.TarInfo("content")
    entry.size = size
    yield entry.tobuf()
    yield from content
    yield bytes(-size % 512 + 1024)


def make_layout(place: Path, layer: str, size: int) -> None:
    """Write an image of one layer."""
    layout = OCILayout(place, create=True)
    diff_id = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in archive(noise(size) if layer == "gzip" else words(size), size):
            diff_id.update(chunk)
            yield chunk

    compression = "" if layer == "plain" else "gzip"
    digest, stored = layout.write_blob(compressed(hashed(), compression))
    root = {"type": "layers", "diff_ids": [f"sha256:{diff_id.hexdigest()}"]}
    config = encode_document({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]}, "rootfs": root})
    layout.write_blob([config])
    media_type = LayerType(compression, encrypted=False).media_type
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [{"mediaType": media_type, "digest": str(digest), "size": stored}],
    }
    layout.write_manifest(encode_document(manifest), OCI_MANIFEST, TAG)


def cached_layout(layer: str, size: int) -> Path:
    """Return the image of one layer, made if it is not there."""
    place = home_from_environment().cache / "bench-images" / f"{layer}-{size}-1"
    if not place.exists():
        draft = place.with_name(f"{place.name}.{os.getpid()}")
        make_layout(draft, layer, size)
        draft.rename(place)
    return place


def layers_of(place: Path) -> list[Digest]:
    """Return the digests of an image's layers."""
    return [layer.digest for layer in parse_manifest(read_manifest(OCILayout(place), TAG).raw).layers]


# -- who encrypts it


def write_keys(folder: Path) -> None:
    """Write an RSA key pair, as all programs read it."""
    key = rsa.generate_private_key(65537, 3072)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (folder / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}', encoding="ascii")


def skopeo(path: str, name: str, folder: Path) -> Program:
    """Return a skopeo."""
    copy = [path, "--policy", f"{folder}/policy.json", "copy", "--quiet"]
    return Program(
        name,
        lambda source, target: [
            *copy, "--encryption-key", f"jwe:{folder}/key.pub", f"oci:{source}:{TAG}", f"oci:{target}:{TAG}",
        ],
        lambda source, target: [
            *copy, "--decryption-key", f"{folder}/key.pem", f"oci:{source}:{TAG}", f"oci:{target}:{TAG}",
        ],
    )  # fmt: skip


def ours(folder: Path, options: Sequence[str]) -> Program:
    """Return the command of this tree."""
    image = [str(Path(sys.executable).with_name("cloister")), "image"]
    return Program(
        OURS,
        lambda source, target: [
            *image, "encrypt", f"oci:{source}:{TAG}", f"oci:{target}:{TAG}", "--recipient", f"jwe:{folder}/key.pub",
            *options,
        ],
        lambda source, target: [
            *image, "decrypt", f"oci:{source}:{TAG}", f"oci:{target}:{TAG}", "--key", f"{folder}/key.pem", *options,
        ],
    )  # fmt: skip


def rivals(folder: Path) -> tuple[list[Program], list[str]]:
    """Return the skopeos there are, and why others are not."""
    found, missing = [], []
    installed = shutil.which("skopeo")
    if installed and tool_version(installed) < (1, 10):
        found.append(skopeo(installed, OLD, folder))
    else:
        missing.append(f"{OLD}: {installed or 'not on PATH'}")
    try:
        found.append(skopeo(install_from_suite("skopeo"), NEW, folder))
    except (ToolMissing, OSError, subprocess.SubprocessError) as err:
        missing.append(f"{NEW}: {err}")
    return found, missing


# Starts a command from a small process: the most memory of a child counts what its parent had when it was started.
LAUNCHER: Final = """
import os, sys, time
start = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - start
print(os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
"""


def run(command: Sequence[str]) -> Taken:
    """Run a command to its end; exit when it fails."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, text=True, check=True)
    status, wall, cpu, memory = done.stdout.split()
    if int(status):
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-600:]}")
    return Taken(float(wall), float(cpu), int(memory))


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory on the disk that holds the layers."""
    base = home_from_environment().cache / "bench-images"
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield Path(name)


# -- the floor


def floor(chunks: Sequence[bytes]) -> None:
    """Do the cryptography of one layer, a thread for each stream, nothing else."""
    encrypted = hashlib.sha256()
    plain = hashlib.sha256()
    mac = hmac.new(bytes(32), digestmod=hashlib.sha256)
    cipher = Cipher(AES(bytes(32)), CTR(bytes(16))).encryptor()
    buffer = bytearray(MIB)

    def fed(hasher: Callable[[bytes], None]) -> None:
        for chunk in chunks:
            hasher(chunk)

    def encrypt() -> None:
        for chunk in chunks:
            count = cipher.update_into(chunk, buffer)
            mac.update(memoryview(buffer)[:count])

    work = (partial(fed, encrypted.update), partial(fed, plain.update), encrypt)
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def timed(work: Callable[[], None]) -> Taken:
    """Run something in this process; CPU time is with that of processes that ended."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    work()
    return Taken(time.perf_counter() - wall, sum(os.times()[:4]) - cpu, 0)


def in_process(row: Row, folder: Path, source: Path, target: Path) -> None:
    """Do what the command does, here."""
    from cloister.imagetool.compression import Compress
    from cloister.sdk.images import KeyEncryptionKeys, decrypt_between, encrypt_between, parse_places

    places = parse_places(f"oci:{source}:{TAG}", f"oci:{target}:{TAG}")
    if row.verb == "encrypt":
        choice = Compress(row.options[1]) if row.options else Compress.NONE
        encrypt_between(places, [f"jwe:{folder}/key.pub"], keks=KeyEncryptionKeys(), compress=choice)
    else:
        checked = bool(row.options)
        decrypt_between(places, [f"{folder}/key.pem"], keks=KeyEncryptionKeys(), check_diff_ids=checked)


# -- the guest

GUEST_TARGET: Final = 1.5


class Keys:
    """A key broker that is there."""

    def wait_attested(self) -> None:
        """Return."""

    @contextmanager
    def resource(self, path: object) -> Iterator[bytearray]:
        """Give the one key."""
        yield bytearray(builders.KEK)


class GuestImage:
    """An encrypted and signed image in a registry."""

    def __init__(self, layer: str, size: int, folder: Path, registry: RegistryProcess) -> None:
        source = OCILayout(cached_layout(layer, size))
        signer = ECDSAP256Signer.generate()
        self.name = f"bench/{layer}"
        self.registry = registry
        self.client = registry.client(self.name)
        recipients = [*builders.RECIPIENTS, *open_recipients([f"jwe:{folder}/key.pub"])]
        self.digest = encrypt_image(source, TAG, self.client, tag=TAG, recipients=recipients).digest
        sign_image(self.client, self.digest, signer, repository=builders.REFERENCE.name)
        self.stored = read_manifest(self.client, self.digest)
        self.image = builders.verify(self.client, self.digest, signer)

    def fetch(self) -> PulledImage:
        """Begin to fetch."""
        connect = partial(self.registry.client, self.name)
        return LayerFetch(connect, self.stored, memory_spool, lambda _: None).finish(self.image)

    def fetched(self) -> PulledImage:
        """Fetch and wait for all of it."""
        pulled = self.fetch()
        for blob in pulled.blobs:
            blob.wait()
        return pulled

    def stock(self, pulled: PulledImage | None, root: Path) -> None:
        """Authenticate, decrypt, inflate and unpack one after the other, with what Python brings."""
        assert pulled is not None
        root.mkdir()
        with RootDirectory(root) as tree:
            unpacker = LayerUnpacker(tree, UnpackOptions(ownership=False, devices=DeviceNodes.SKIP_BELOW_DEV))
            for index, blob in enumerate(pulled.blobs):
                encryption = parse_layer_encryption(self.image.manifest.layers[index])
                private = unwrap_private_options(encryption.packets()[0], builders.KEK)
                mac = hmac.new(private.key, digestmod=hashlib.sha256)
                for chunk in blob.follow():
                    mac.update(chunk)
                assert mac.digest() == encryption.public.hmac
                nonce = encryption.public.nonce or private.nonce
                assert nonce is not None
                plain = DigestVerifier(private.digest, None, code="bench", path="layer")
                packed = plain.checked(ctr_stream(private.key, nonce, blob.wait().chunks()))
                unpacked = DigestVerifier(self.image.config.diff_ids[index], None, code="bench", path="layer")
                unpacker.apply(unpacked.checked(gunzipped(packed)))
        pulled.close()


def gunzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Inflate one member with zlib."""
    member = zlib.decompressobj(31)
    for chunk in chunks:
        data = chunk
        while data and not member.eof:
            yield member.decompress(data, MIB // 4)
            data = member.unconsumed_tail
    yield member.flush()


def tree_digest(root: Path) -> str:
    """Return a digest of names and contents."""
    names = sorted(path for path in root.rglob("*") if path.is_file())
    content = [f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in names]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def measure_guest(size: int, runs: int, folder: Path, *, judged: bool) -> list[str]:
    """Print the guest's rows; return what missed its target."""
    missed = []
    print("\nGuest: seconds, wall / CPU of this process and its children; medians.\n")
    print("| | guest | stock | x stock | whole pull | skopeo copy + umoci unpack | x |\n|---|---|---|---|---|---|---|")
    skopeo_path = next((found.encrypt(folder, folder)[0] for found in rivals(folder)[0] if found.name == NEW), "")
    with (
        RegistryProcess(folder / "registry") as registry,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,  # as in the guest
    ):
        for layer in ("text", "gzip"):
            image = GuestImage(layer, size, folder, registry)
            work: dict[str, Callable[[PulledImage | None, Path], None]] = {
                "guest": guest_unpack,
                "stock": image.stock,
                "pull": partial(guest_pull, image),
            }
            if skopeo_path:
                work["tools"] = partial(tools_pull, skopeo_path, image, folder)
            taken: dict[str, list[Taken]] = {name: [] for name in work}
            seen = set()
            for _ in range(runs):
                for name, do in work.items():
                    pulled = image.fetched() if name in ("guest", "stock") else None
                    root = Path(memory, "root")
                    taken[name].append(timed(partial(do, pulled, root)))
                    seen.add(tree_digest(root / "rootfs" if name == "tools" else root))
                    shutil.rmtree(root)
            if len(seen) != 1:
                raise SystemExit(f"{layer}: the trees are not the same")
            wall = {name: statistics.median(one.wall for one in results) for name, results in taken.items()}
            cpu = {name: statistics.median(one.cpu for one in results) for name, results in taken.items()}
            cell = {name: f"{wall[name]:.2f} / {cpu[name]:.2f}" for name in wall}
            ratio = wall["stock"] / wall["guest"]
            beside = f"{wall['tools'] / wall['pull']:.1f}" if "tools" in wall else "-"
            print(
                f"| {layer} | {cell['guest']} | {cell['stock']} | {ratio:.2f} | {cell['pull']} "
                f"| {cell.get('tools', 'not here')} | {beside} |",
                flush=True,
            )
            if judged and ratio < GUEST_TARGET:
                missed.append(f"guest unpack {layer}: {ratio:.2f}, target {GUEST_TARGET}")
    return missed


def guest_unpack(pulled: PulledImage | None, root: Path) -> None:
    """Do what the guest does."""
    assert pulled is not None
    unpack(pulled, Keys(), str(root), ownership=False, decrypted=lambda _: None)


def guest_pull(image: GuestImage, _: PulledImage | None, root: Path) -> None:
    """Do what the guest does, from the first byte on."""
    guest_unpack(image.fetch(), root)


def tools_pull(skopeo_path: str, image: GuestImage, folder: Path, _: PulledImage | None, root: Path) -> None:
    """Pull with decryption and unpack, by the tools there are; `root` becomes a bundle."""
    with scratch() as place:
        remote = f"docker://{image.registry.address}/{image.name}:{TAG}"
        copy = [skopeo_path, "--policy", f"{folder}/policy.json", "copy", "--quiet", "--src-tls-verify=false"]
        run([*copy, "--decryption-key", f"{folder}/key.pem", remote, f"oci:{place}/plain:{TAG}"])
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        run(["umoci", "unpack", *rootless, "--image", f"{place}/plain:{TAG}", str(root)])


# -- measurement


def require_same(row: Row, programs: Sequence[Program], source: Path, folder: Path) -> None:
    """Exit unless every program decrypts what every other encrypted to the original's layers."""
    for writer in programs:
        sealed = folder / "sealed"
        run(writer.encrypt(source, sealed))
        opened = []
        for reader in programs:
            run(reader.decrypt(sealed, folder / "opened"))
            opened.append(layers_of(folder / "opened"))
            shutil.rmtree(folder / "opened")
        if row.layer == "plain":  # compressed on the way, by each in its own manner
            same = all(item == opened[0] for item in opened)
        else:
            same = all(item == layers_of(source) for item in opened)
        shutil.rmtree(sealed)
        if not same:
            raise SystemExit(f"{row.name}: what {writer.name} encrypted does not decrypt to the original: {opened}")


def measure(row: Row, size: int, runs: int, folder: Path) -> dict[str, list[Taken]]:
    """Return what each program took, run in turn."""
    source = cached_layout(row.layer, size)
    found, _ = rivals(folder)
    reading = ours(folder, () if row.verb == "encrypt" else row.options)
    writing = ours(folder, row.options if row.verb == "encrypt" else ())
    programs = [*found, Program(OURS, writing.encrypt, reading.decrypt)]
    require_same(row, programs, source, folder)
    if row.verb == "decrypt":
        run(programs[-1].encrypt(source, folder / "encrypted"))
        source = folder / "encrypted"
    blob = OCILayout(source)
    layer = parse_manifest(read_manifest(blob, TAG).raw).layers[0]
    chunks = list(blob.stream_blob(layer))
    taken: dict[str, list[Taken]] = {}
    target = folder / "target"
    for _ in range(runs):
        for program in programs:
            command = program.encrypt if row.verb == "encrypt" else program.decrypt
            taken.setdefault(program.name, []).append(run(command(source, target)))
            shutil.rmtree(target)
        taken.setdefault("in process", []).append(timed(lambda: in_process(row, folder, source, target)))
        shutil.rmtree(target)
        taken.setdefault("floor", []).append(timed(partial(floor, chunks)))
    shutil.rmtree(folder / "encrypted", ignore_errors=True)
    return taken


def medians(taken: Mapping[str, Sequence[Taken]], of: str) -> dict[str, float]:
    """Return the median of one quantity for each program."""
    return {name: statistics.median(getattr(item, of) for item in items) for name, items in taken.items()}


def ratios(taken: Mapping[str, Sequence[Taken]]) -> dict[str, float]:
    """Return how many times as fast ours is: medians of ratios of runs that followed each other.

    Of the floor: what share of its speed the work has in this process.
    """
    found = {
        name: statistics.median(other.wall / mine.wall for other, mine in zip(taken[name], taken[OURS], strict=True))
        for name in (OLD, NEW)
        if name in taken
    }
    pairs = zip(taken["floor"], taken["in process"], strict=True)
    found["floor"] = statistics.median(least.wall / mine.wall for least, mine in pairs)
    return found


def report(row: Row, taken: Mapping[str, Sequence[Taken]], *, judged: bool) -> list[str]:
    """Print one line; return what missed its target."""
    wall, cpu, ratio = medians(taken, "wall"), medians(taken, "cpu"), ratios(taken)
    cells = [f"{wall[name]:.2f} / {cpu[name]:.2f}" if name in wall else "" for name in (OLD, NEW, OURS)]
    cells += [f"{wall['in process']:.2f} / {cpu['in process']:.2f}", f"{wall['floor']:.2f} / {cpu['floor']:.2f}"]
    missed = []
    for name, target in TARGETS.items():
        text = f"{ratio[name]:.2f}" if name in ratio else ""
        if judged and row.same_work and name in ratio:
            met = ratio[name] >= target
            text += f" (>= {target:g}, {'met' if met else '**missed**'})"
            missed += [] if met else [f"{row.name}: {ratio[name]:.2f} of {name}, target {target:g}"]
        cells.append(text)
    memory = medians(taken, "memory")
    cells.append(" / ".join(f"{memory[name] / MIB:.0f}" if name in memory else "-" for name in (OLD, NEW, OURS)))
    print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
    return missed


def measure_memory(folder: Path, runs: int) -> list[str]:
    """Print most memory by size of layer; return what missed its target."""
    print("\n| most memory, MiB | 30 MB | 3 GB | difference |\n|---|---|---|---|", flush=True)
    missed = []
    program = ours(folder, ())
    taken: dict[str, list[float]] = {"encrypt": [], "decrypt": []}
    for size in (30 * MB, 3000 * MB):
        source = cached_layout("gzip", size)
        sealed, opened = folder / "sealed", folder / "opened"
        found: dict[str, list[int]] = {"encrypt": [], "decrypt": []}
        for _ in range(runs):
            found["encrypt"].append(run(program.encrypt(source, sealed)).memory)
            found["decrypt"].append(run(program.decrypt(sealed, opened)).memory)
            shutil.rmtree(sealed)
            shutil.rmtree(opened)
        for verb, items in found.items():
            taken[verb].append(statistics.median(items))
        if size > 1000 * MB:
            shutil.rmtree(source)
    for verb, (small, large) in taken.items():
        difference = large / small - 1
        met = abs(difference) <= MEMORY_TARGET
        words_ = f"{difference:+.1%} (within {MEMORY_TARGET:.0%}, {'met' if met else '**missed**'})"
        print(f"| {verb} | {small / MIB:.0f} | {large / MIB:.0f} | {words_} |", flush=True)
        missed += [] if met else [f"memory of {verb}: {difference:+.1%}"]
    return missed


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each program and row")
    parser.add_argument("--only", default="", help="rows whose name contains one of these")
    parser.add_argument("--size", type=int, default=300, help="MB of each layer")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--quick", action="store_true", help="3 MB, one run, no targets: only that results are equal")
    parser.add_argument("--memory", action="store_true", help="also memory with 30 MB and 3 GB, which takes minutes")
    parser.add_argument("--guest", action="store_true", help="the guest's unpacking and whole pulls instead")
    arguments = parser.parse_args()
    size, runs = (3 * MB, 1) if arguments.quick else (arguments.size * MB, arguments.runs)
    missed: list[str] = []
    compileall.compile_dir(ROOT / "src" / "cloister", quiet=2)  # as an installed command is
    with scratch() as folder:
        write_keys(folder)
        missing = rivals(folder)[1]
        print(
            f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} "
            f"at the start; Python {platform.python_version()}; {size / MB:.0f} MB, {runs} runs; "
            f"{', '.join(missing) or 'all programs there'}"
        )
        if arguments.guest:
            missed = measure_guest(size, runs, folder, judged=not arguments.quick)
            finish(missed, check=arguments.check)
            return
        print("\nWall / CPU seconds; `x` is how many times as fast ours is as the program, or of the floor.\n")
        print(f"| | {OLD} | {NEW} | {OURS} | in process | floor | x {OLD} | x {NEW} | x floor | memory, MiB |")
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for row in ROWS:
            if any(part in row.name for part in arguments.only.split(",")):
                missed += report(row, measure(row, size, runs, folder), judged=not arguments.quick)
        if arguments.memory:
            missed += measure_memory(folder, min(runs, 3))
    finish(missed, check=arguments.check)


def finish(missed: Sequence[str], *, check: bool) -> None:
    """Tell what missed its target; with `check` that is exit code 1."""
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    if check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
