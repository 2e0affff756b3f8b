"""Carry out the run that docs/explanation/life-of-a-confidential-pod.md follows, and write its output into that page.

Everything happens in a new directory with a new owner: the commands are those of the page, the app is the demo's.
Needs what `cloister demo` needs; takes a minute or two.

    python tools/life.py            run and rewrite the page
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from docs import with_block

from cloister.cli.demo.appimage import build_app_image, find_busybox, model
from cloister.protocol.launch import parse_launch_blob
from cloister.sdk.bundle import build_bundle
from cloister.sdk.home import Home
from cloister.sdk.owner import Owner

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/explanation/life-of-a-confidential-pod.md"
MODEL = "default/model/digits"
LEASE_SECONDS = 6
WATCHED_SECONDS = 5.0  # between the app's answer and the revocation: more than a third of the lease, so it is renewed
START_SECONDS = 300.0
_LONG = 76


class Life:
    """One run from image to revocation.

    Args:
        directory: empty directory; everything is kept in it.
        cache: the shared cache with the pod-VM image.
    """

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory = directory
        self.work = directory / "work"
        self.work.mkdir()
        self.home = Home(root=directory / "home", cache=cache)
        (self.home.root / "owner").mkdir(mode=0o700, parents=True)
        self.home.root.chmod(0o700)
        self.environment = {
            **os.environ,
            "CLOISTER_HOME": str(self.home.root),
            "CLOISTER_CACHE": str(cache),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }
        self.blocks: dict[str, str] = {}

    def play(self) -> Mapping[str, str]:
        """Return the content of every block by name."""
        self.owner_prepares()
        self.pod_lives_and_is_revoked()
        return self.blocks

    # -- the owner, before -------------------------------------------------------------------------------------

    def owner_prepares(self) -> None:
        """The pod-VM image, the app, and what the owner does to it."""
        bundle = build_bundle(self.home)
        build_app_image(self.work / "digit", find_busybox(self.home, bundle))
        inspected = self.cloister("podvm", "inspect")
        wanted = re.compile(r"pod-VM image|root hash|(vmlinuz|initrd|cmdline|bios-256k|linuxboot)\S* |2 vCPU   512")
        self.show("podvm", "podvm inspect", "\n".join(filter(wanted.search, inspected.splitlines())))
        self.run("plain", "image", "inspect", "oci:digit:1")
        kek = "kbs:///default/image-kek/digit"
        self.run("encrypt", "image", "encrypt", "oci:digit:1", "oci:sealed:1", "--recipient", kek)
        self.run("sign", "image", "sign", "oci:sealed:1", "--repository", "cloister.local/sealed")
        self.run("sealed", "image", "inspect", "oci:sealed:1")
        (self.work / "model.txt").write_bytes(model())
        self.run("put", "secret", "put", f"kbs:///{MODEL}", "--file", "model.txt")

    # -- the pod -----------------------------------------------------------------------------------------------

    def pod_lives_and_is_revoked(self) -> None:
        """Run it, wait for its answer, let it renew its lease, withdraw the approval, and see what the record says."""
        words = ["run", "--name", "digit", "--resource", MODEL, "--lease", str(LEASE_SECONDS), "oci:sealed:1", "stay"]
        said, status = self.interrupted(words)
        self.show("run", " ".join(words), f"{said}\n$ echo $?\n{status}")
        (record,) = self.work.glob("cloister-run-*")
        self.describe_record(record)
        audit = self.read_json(record / "audit.json")
        denial = next(row["denial_id"] for row in audit if row["denial_id"])
        self.run("denial", "explain", denial)

    def interrupted(self, words: list[str]) -> tuple[str, int]:
        """Run a pod, revoke it after its answer; return everything that was printed, in order, and the exit status."""
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        command = [sys.executable, "-m", "cloister", *words]
        with subprocess.Popen(
            command, cwd=self.work, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as child:
            stream = child.stdout
            if stream is None:
                raise RuntimeError("no pipe")

            def read() -> None:
                for line in stream:
                    lines.put(line)
                lines.put(None)

            threading.Thread(target=read, daemon=True).start()
            said = _until(lines, lambda line: line is None or line.startswith(b"digit = "), START_SECONDS)
            try:
                said += _until(lines, lambda line: line is None, WATCHED_SECONDS)
            except TimeoutError as still_running:
                said += still_running.args[0]
            with Owner(self.home).admin() as admin:
                digest = admin.release_rules().rules[str(MODEL)].init_data[-1]
            self.run("revoke", "policy", "revoke", digest)
            said += [f"(the owner revokes {digest[:19]}..)\n".encode()]
            said += _until(lines, lambda line: line is None, START_SECONDS)
        return b"".join(said).decode().rstrip(), child.returncode

    def describe_record(self, record: Path) -> None:
        """Fill the blocks that show files of the run's directory."""
        summary = self.read_json(record / "run.json")
        audit = self.read_json(record / "audit.json")
        launch = parse_launch_blob((record / "launch.json").read_bytes())
        self.blocks["identity"] = _code(
            "\n".join(f"{name:<16} {value}" for name, value in summary["identity"].items() if name != "launched")
        )
        self.blocks["policy"] = _code(_pretty(self.read_json(record / "pod-policy.json")), "json")
        text = (record / "initdata.toml").read_text("utf-8")
        self.blocks["initdata"] = _code("\n".join(_cut(line) for line in text.strip().splitlines()), "toml")
        self.blocks["qemu"] = _code(re.sub(r" (?=-)", " \\\n  ", summary["identity"]["launched"]))
        self.blocks["launch"] = _code(
            f"{_pretty(json.loads(launch.blob()))}\n\n"
            f"digest of the statement    {launch.digest()}\n"
            f"PCR 0 before SeaBIOS runs  {launch.hcrtm_start_value().hex()}\n"
            f"PCR 0 in the end           {launch.pcr0_seabios().hex()}"
        )
        evidence = self.read_json(record / "evidence.json")
        self.blocks["evidence"] = _code(_pretty(evidence), "json")
        findings = self.read_json(record / "findings.json")
        self.blocks["findings"] = _code(
            "\n".join(f"{'ok' if item['ok'] else 'no'}  {item['question']:<11}{item['message']}" for item in findings)
        )
        rows = [
            f"{row['id']:>3}  {row['decision']:<8}{row['path']:<40}{row['code'] or '-'} {row['denial_id']}".rstrip()
            for row in audit
        ]
        last = audit[-1]
        names = (("init data", "init_data"), ("PCR 0", "pcr00"), ("level", "level"), ("instance", "instance"))
        whole = [f"{shown:<10}{last[name]}" for shown, name in names]
        self.blocks["audit"] = _code("\n".join([*rows, "", *whole]))

    # -- commands ----------------------------------------------------------------------------------------------

    def cloister(self, *words: str) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "cloister", *words],
            cwd=self.work,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"cloister {' '.join(words)} gave {done.returncode}:\n{done.stdout}")
        return done.stdout

    def run(self, block: str, *words: str) -> None:
        """Run a command and keep its output as a block."""
        self.show(block, " ".join(words), self.cloister(*words))

    def show(self, block: str, words: str, output: str) -> None:
        """Keep a command and its output as a block."""
        lines = "\n".join(line.rstrip() for line in output.rstrip().splitlines())
        self.blocks[block] = _code(f"$ cloister {words}\n{lines}", "console")

    def clean(self, text: str) -> str:
        """Return text with the places of this machine named as a reader's would be."""
        names = {
            str(self.home.root): "~/.local/share/cloister",
            str(self.home.cache): "~/.cache/cloister",
            str(self.work): "~/pods",
            str(ROOT): "~/cloister",
        }
        for place, name in names.items():
            text = text.replace(place, name)
        return re.sub(r"/tmp/cloister-\w+", "/tmp/cloister-RUN", text)  # noqa: S108  # a name in a text

    @staticmethod
    def read_json(path: Path) -> Any:  # Any: JSON
        return json.loads(path.read_bytes())


def _until(
    lines: queue.SimpleQueue[bytes | None], wanted: Callable[[bytes | None], bool], seconds: float
) -> list[bytes]:
    """Return the lines up to the wanted one, with it. Raises TimeoutError, with the lines so far, when none comes."""
    found: list[bytes] = []
    while True:
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(found) from None
        if line is not None:
            found.append(line)
        if wanted(line):
            return found


def _code(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


def _cut(text: str) -> str:
    """Shorten a long line in its middle; digests stay whole."""
    return text if len(text) <= 2 * _LONG else f"{text[:_LONG]} .. {text[-24:]}"


def _pretty(value: Any) -> str:  # Any: JSON
    """Return JSON to read, with long texts cut and lists of texts on one line."""

    def shorten(item: Any) -> Any:  # Any: JSON
        if isinstance(item, str):
            return item if len(item) <= _LONG else f"{item[:40]}.. ({len(item)} characters)"
        if isinstance(item, list):
            values = [shorten(value) for value in item]
            return values if len(values) < 12 else [*values[:1], f".. ({len(values)} values)"]
        if isinstance(item, dict):
            return {name: shorten(value) for name, value in item.items()}
        return item

    def join(found: re.Match[str]) -> str:
        return "[" + ", ".join(part.strip().rstrip(",") for part in found[1].splitlines()) + "]"

    text = json.dumps(shorten(value), indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", join, text)


def main() -> int:
    """Run and rewrite; return the exit code."""
    cache = Path(os.environ.get("CLOISTER_CACHE") or Path.home() / ".cache/cloister")
    directory = Path(tempfile.mkdtemp(prefix="cloister-life-"))
    try:
        life = Life(directory, cache)
        blocks = life.play()
        text = PAGE.read_text("utf-8")
        for name, content in blocks.items():
            text = with_block(text, f"<!-- life:{name} -->", life.clean(content))
        PAGE.write_text(text, "utf-8")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
