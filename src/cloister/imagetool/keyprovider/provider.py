"""Answers requests of the key provider protocol with CoCo's annotation packets.

Wrapping: the parameters under our own name say which key-encryption key; without an address one is made up, so that
every layer gets a key of its own, as with CoCo's provider. Opening: the packet says which. A refusal answers nothing
but why; neither layer keys nor key-encryption keys are in an error or a report.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.errors import ImageRefused
from cloister.imagetool.keyprovider.keys import KEKStore, read_key
from cloister.imagetool.keyprovider.parameters import KeyParameters, parse_parameters
from cloister.oci.encryption.keyprovider import (
    Parameters,
    UnwrapRequest,
    WrapRequest,
    encode_unwrap_answer,
    encode_wrap_answer,
    parse_request,
)
from cloister.oci.encryption.options import parse_private_options
from cloister.oci.encryption.packet import encode_packet, open_packet, parse_packet, require_kek, seal_packet
from cloister.protocol.resourceuri import ResourcePath

DEFAULT_NAME: Final = "attestation-agent"
_REPOSITORY: Final = "default"
_TYPE: Final = "image-kek"
_TAG_BYTES: Final = 16

Report = Callable[[str, ResourcePath], None]
"""Told of each answer: `wrap` or `unwrap`, and which key it used."""


class Provider:
    """A key provider. `answer` is for several threads at once.

    Args:
        keys: where key-encryption keys are.
        name: what tools call this provider; the guest reads `attestation-agent` only.
        allow_key_paths: whether who asks may name a file of this machine that holds the key.
        report: told of each answer.
    """

    def __init__(
        self,
        keys: KEKStore,
        *,
        allow_key_paths: bool,
        name: str = DEFAULT_NAME,
        report: Report = lambda operation, path: None,
    ) -> None:
        self._keys = keys
        self._name = name
        self._allow_key_paths = allow_key_paths
        self._report = report

    def answer(self, request: bytes) -> bytes:
        """Return the answer to one request.

        Raises:
            ImageRefused: it is not of this protocol (`oci.keyprovider.*`), asks for what is refused
                (`imagetool.keyprovider.*`), or does not open (`oci.encryption.*`).
            Refused: there is no such key, or it is not for us.
            Unavailable: the store of keys cannot be reached.
        """
        parsed = parse_request(request)
        if isinstance(parsed, WrapRequest):
            return self._wrap(parsed)
        return self._unwrap(parsed)

    def _wrap(self, request: WrapRequest) -> bytes:
        parse_private_options(request.options).wipe()  # nothing else is wrapped: no guest could read it
        parameters = self._parameters(request.parameters, required=True)
        path = parameters.kek or ResourcePath(_REPOSITORY, _TYPE, secrets.token_hex(_TAG_BYTES))
        kek = self._file(parameters) or self._keys.obtain(path)
        packet = seal_packet(request.options, kek_id=path.uri, kek=kek)
        self._report("wrap", path)
        return encode_wrap_answer(encode_packet(packet))

    def _unwrap(self, request: UnwrapRequest) -> bytes:
        packet = parse_packet(request.annotation)
        path = packet.kek_path
        parameters = self._parameters(request.parameters, required=False)
        kek = self._file(parameters) or self._keys.existing(path)
        require_kek(kek)
        options = open_packet(packet, kek)
        parse_private_options(options).wipe()  # an owner's key was used for layers only
        self._report("unwrap", path)
        return encode_unwrap_answer(options)

    def _parameters(self, given: Parameters, *, required: bool) -> KeyParameters:
        values = given.get(self._name, ())
        if len(values) > 1 or (required and not values):
            raise ImageRefused(
                "imagetool.keyprovider.recipients",
                "the request is not for one key of this provider",
                path="Parameters",
                expected=f"one value for {self._name}",
                actual=f"{len(values)} for it; there are {', '.join(sorted(given))[:120] or 'none'}",
                hint=f"give one --encryption-key provider:{self._name}:keyid=.."
                if values
                else f"start this provider with --name, or call it {self._name} in the configuration",
            )
        return parse_parameters(values[0]) if values else KeyParameters()

    def _file(self, parameters: KeyParameters) -> bytes | None:
        if not parameters.key_path:
            return None
        if not self._allow_key_paths:
            raise ImageRefused(
                "imagetool.keyprovider.key_path",
                "this provider reads no file for who asks",
                path="keypath",
                hint="store the key with `cloister secret put` and name it with keyid, or use the provider's command",
            )
        return read_key(Path(parameters.key_path))
