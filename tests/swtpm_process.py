"""A software TPM under a CA of its own: manufactured by `swtpm_setup`, run by `swtpm` behind a socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister.rats.endorsement import Endorsements
from cloister.tee.tpm.endorsements import read_swtpm_roots

START_SECONDS = 10.0


class SoftwareTPM:
    """One manufactured TPM and the CA that certified its EK."""

    def __init__(self, directory: Path, setup: Path, swtpm: Path) -> None:
        self.state, self.ca = directory / "state", directory / "ca"
        self._swtpm = swtpm
        for path in (self.state, self.ca):
            path.mkdir(parents=True)
        (directory / "localca.conf").write_text(
            f"statedir = {self.ca}\nsigningkey = {self.ca}/signkey.pem\n"
            f"issuercert = {self.ca}/issuercert.pem\ncertserial = {self.ca}/certserial\n"
        )
        (directory / "localca.options").write_text(
            "--platform-manufacturer Cloister\n--platform-version 1\n--platform-model test\n"
        )
        (directory / "setup.conf").write_text(
            f"create_certs_tool = {swtpm.parent}/swtpm_localca\n"
            f"create_certs_tool_config = {directory}/localca.conf\n"
            f"create_certs_tool_options = {directory}/localca.options\n"
        )
        command = [setup, "--tpm2", "--tpmstate", self.state, "--config", directory / "setup.conf"]
        command += ["--create-ek-cert", "--pcr-banks", "sha256", "--lock-nvram", "--logfile", directory / "log"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + (directory / "log").read_text()

    @property
    def endorsements(self) -> Endorsements:
        """The CA of this TPM."""
        return Endorsements(roots=read_swtpm_roots(self.ca))

    @contextmanager
    def powered(self, path: Path) -> Iterator[str]:
        """Run the TPM, started up as firmware would; yield its data socket."""
        address = str(path / f"tpm-{os.urandom(4).hex()}")
        process = subprocess.Popen(
            [
                str(self._swtpm),
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self.state}",
                "--server",
                f"type=unixio,path={address}",
                "--flags",
                "not-need-init,startup-clear",
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(address):
                assert process.poll() is None, "swtpm ended"
                assert time.monotonic() < deadline, "swtpm does not listen"
                time.sleep(0.01)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=10)


def _listens(address: str) -> bool:
    """Whether somebody accepts there: the file is made a moment before that."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
    return True
