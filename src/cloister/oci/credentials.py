"""Credentials for registries as docker, podman and skopeo keep them (docker's `config.json`; containers-auth.json(5)).

Looked for in `$REGISTRY_AUTH_FILE` alone if it is set; else in `$XDG_RUNTIME_DIR/containers/auth.json`,
`~/.config/containers/auth.json`, and `config.json` in `$DOCKER_CONFIG` or `~/.docker`; the first that has something
decides. In a file, `credHelpers` goes before `auths`, and `auths` before `credsStore`; of several names in `auths` the
longest that leads to the repository. A helper is run without a shell, for a bounded time and a bounded answer.

For the owner's tools; not in the pod VM. Files and helpers are the user's own; their mistakes are told, and their
secrets are in no message.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloister.errors import FormatRefused, ImageRefused, Unavailable
from cloister.oci.document import Members, parse_document
from cloister.oci.reference import DEFAULT_REGISTRY, OCIReference
from cloister.oci.session import Credentials
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import KIB, MIB

FILE_BYTES: Final = 1 * MIB
HELPER_SECONDS: Final = 30.0  # it may ask its user
HELPER_BYTES: Final = 64 * KIB
_CODE: Final = "oci.credentials"
_ENTRIES: Final = 10_000
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_IDENTITY_USER: Final = "<token>"
_HUB: Final = "https://index.docker.io/v1/"
_HUB_NAMES: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_NOT_FOUND: Final = b"credentials not found"


def credential_files(environment: Mapping[str, str]) -> list[Path]:
    """Return the places to look, in order."""
    if environment.get("REGISTRY_AUTH_FILE"):
        return [Path(environment["REGISTRY_AUTH_FILE"])]
    home = Path(environment.get("HOME") or "/")
    runtime = environment.get("XDG_RUNTIME_DIR")
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    files = [Path(runtime) / "containers" / "auth.json"] if runtime else []
    return [*files, config / "containers" / "auth.json", docker / "config.json"]


def find_credentials(
    reference: OCIReference, environment: Mapping[str, str], *, helper_seconds: float = HELPER_SECONDS
) -> Credentials | None:
    """Return the credentials for a repository, or None for anonymous use.

    Args:
        reference: names registry and repository.
        environment: says where files are; passed on to helpers.
        helper_seconds: how long a helper may take.

    Raises:
        ImageRefused: `oci.credentials.*`: a file is not what it should be.
        Unavailable: `oci.credentials.unreadable`, `oci.credentials.helper`.
    """
    for path in credential_files(environment):
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            raise Unavailable(
                f"{_CODE}.unreadable", "cannot read a file of credentials", path=str(path), actual=str(err.strerror)
            ) from err
        found = _find_in_file(raw, str(path), reference, environment, helper_seconds)
        if found is not None:
            return found
    return None


def _find_in_file(
    raw: bytes, path: str, reference: OCIReference, environment: Mapping[str, str], seconds: float
) -> Credentials | None:
    top = Members(parse_document(raw, ceiling=FILE_BYTES, code=_CODE), path="", code=_CODE)
    names = _names_of(reference)
    helpers = top.text_map("credHelpers", ceiling=_ENTRIES, value_ceiling=KIB)
    by_host = {_normalised(name): helper for name, helper in helpers.items()}
    for name in names:
        if by_host.get(name):
            return _ask_helper(by_host[name], _server_of(reference), environment, seconds)
    found = parse_auths(top, path, names)
    if found is not None:
        return found
    store = top.text("credsStore", "")
    return _ask_helper(store, _server_of(reference), environment, seconds) if store else None


def parse_auths(top: Members, path: str, names: Sequence[str]) -> Credentials | None:
    """Return the entry of `auths` for the first of `names` that has one with something in it.

    Raises:
        ImageRefused: `oci.credentials.malformed`, `oci.credentials.wrong_type`.
    """
    if "auths" not in top:
        return None
    auths = top.members("auths")
    entries = {_normalised(name): name for name in top.raw_members("auths")}
    for name in names:
        if name not in entries:
            continue
        entry = auths.members(entries[name])
        encoded, identity = entry.text("auth", ""), entry.text("identitytoken", "")
        username, password = entry.text("username", ""), entry.text("password", "")
        if encoded:
            username, password = _decode_auth(encoded, f"{path}: auths.{name}")
        if username or identity:
            return Credentials(username, password, identity_token=identity)
    return None


def _decode_auth(encoded: str, place: str) -> tuple[str, str]:
    try:
        username, colon, password = decode_b64(encoded, ceiling=FILE_BYTES).decode("utf-8").partition(":")
    except (FormatRefused, UnicodeDecodeError):
        colon = ""
    if not colon or not username:
        raise ImageRefused(
            f"{_CODE}.malformed", "not a name and a password", path=place, expected="base64 of name:password"
        )
    return username, password.strip("\0")  # docker pads with them


def _names_of(reference: OCIReference) -> list[str]:
    """Return what an entry for `reference` may be called, most specific first."""
    parts = reference.repository.split("/")
    names = ["/".join([reference.registry, *parts[:count]]) for count in range(len(parts), 0, -1)]
    names.append(reference.registry)
    if reference.registry == DEFAULT_REGISTRY:
        names += sorted(_HUB_NAMES - {DEFAULT_REGISTRY})
    return names


def _normalised(name: str) -> str:
    """Return the name of an entry without scheme and API version: `https://index.docker.io/v1/`."""
    return re.sub(r"/v[12]/?$", "", re.sub(r"^https?://", "", name)).rstrip("/")


def _server_of(reference: OCIReference) -> str:
    return _HUB if reference.registry == DEFAULT_REGISTRY else reference.registry


# -- helpers --------------------------------------------------------------------------------------------------------


def _ask_helper(name: str, server: str, environment: Mapping[str, str], seconds: float) -> Credentials | None:
    """Ask `docker-credential-<name>` (docker-credential-helpers, "get")."""
    if not _HELPER.fullmatch(name):
        raise ImageRefused(f"{_CODE}.helper_name", "not the name of a credential helper", actual=name[:80])
    program = f"docker-credential-{name}"
    status, answer = _run_bounded([program, "get"], server.encode(), environment, seconds)
    if status != 0:
        if _NOT_FOUND in answer.lower():
            return None
        raise _helper_failed(program, f"exit code {status}")
    try:
        members = Members(parse_document(answer, ceiling=HELPER_BYTES, code=f"{_CODE}.helper"), path="", code=_CODE)
        username, secret = members.text("Username"), members.text("Secret")
    except (ImageRefused, FormatRefused) as err:
        raise _helper_failed(program, "no answer of a helper") from err
    if username == _IDENTITY_USER:
        return Credentials(username, "", identity_token=secret)
    return Credentials(username, secret)


def _run_bounded(
    command: list[str], question: bytes, environment: Mapping[str, str], seconds: float
) -> tuple[int, bytes]:
    """Run a program and return its exit code and output; it and its children end when the time is over.

    Raises:
        Unavailable: `oci.credentials.helper`.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as err:
        raise _helper_failed(command[0], str(err.strerror or err)) from err
    with process:
        try:
            return _converse(process, command[0], question, time.monotonic() + seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _converse(process: subprocess.Popen[bytes], program: str, question: bytes, deadline: float) -> tuple[int, bytes]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a program without pipes")
    with contextlib.suppress(BrokenPipeError):  # it may answer without having asked
        process.stdin.write(question)  # fits into a pipe
        process.stdin.close()
    answer = b""
    while len(answer) <= HELPER_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise _helper_failed(program, "no answer in time")
        piece = os.read(process.stdout.fileno(), HELPER_BYTES)
        if not piece:
            try:
                return process.wait(max(0.0, deadline - time.monotonic())), answer
            except subprocess.TimeoutExpired as err:
                raise _helper_failed(program, "no end in time") from err
        answer += piece
    raise _helper_failed(program, f"more than {HELPER_BYTES} bytes")


def _helper_failed(program: str, reason: str) -> Unavailable:
    return Unavailable(
        f"{_CODE}.helper",
        "credential helper gave no credentials",
        path=program,
        actual=reason[:120],
        hint="run it by hand, or log in again with `skopeo login`",
    )
