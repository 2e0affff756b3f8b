"""Secrets that are in place before a container starts: sealed secrets in its environment, and secret files.

Each one is in the measured pod policy or in the signed image, as ciphertext or as an address. A sealed secret is
verified under a key the policy names, may name only what the policy lists for it, and anything that fails refuses the
whole container: none ever starts with the sealed text in a secret's place. Nothing of a secret is in an error.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from cloister.errors import FormatRefused
from cloister.podpolicy.enforce import decide_unseal
from cloister.podpolicy.model import SEALED_PREFIX, ContainerPolicy, ProcessSpec
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri
from cloister.wire.limits import POLICY_VALUE_BYTES

if TYPE_CHECKING:
    from cloister.crypto.signer import ECDSAP256PublicKey


class Resources(Protocol):
    """Gives resources of the key broker; `cloister.guest.attest.KeySource`."""

    def resource(self, path: ResourcePath) -> AbstractContextManager[bytearray]:
        """Give a resource for the time of a `with` block."""
        ...


def unseal_environment(policy: ContainerPolicy, spec: ProcessSpec, resources: Resources) -> ProcessSpec:
    """Return `spec` with every variable whose value is a sealed secret set to the secret.

    Raises:
        PodPolicyRefused: `podpolicy.unseal.key`, `podpolicy.unseal.resource`.
        Refused, FormatRefused: `crypto.sealed.*`; `guest.sealed.not_text` for a secret that can be no variable.
        KeyReleaseDenied, Unavailable: the key broker's answer.
    """
    values = []
    for item in spec.env:
        name, _, value = item.partition("=")
        if value.startswith(SEALED_PREFIX):
            place = f"env.{name}"
            value = _as_text(_unseal(policy, place, value, resources), f"containers.{policy.name}.{place}")
        values.append(f"{name}={value}")
    return replace(spec, env=tuple(values))


def read_secret_files(policy: ContainerPolicy, resources: Resources) -> dict[str, bytes]:
    """Return the content of the container's secret files by absolute path.

    Raises:
        as `unseal_environment`.
    """
    contents = {}
    for path, source in policy.files.items():
        if source.startswith(SEALED_PREFIX):
            contents[path] = _unseal(policy, f"files.{path}", source, resources)
        else:
            with resources.resource(parse_resource_uri(source)) as secret:
                contents[path] = bytes(secret)
    return contents


def _unseal(policy: ContainerPolicy, place: str, text: str, resources: Resources) -> bytes:
    from cloister.crypto.sealedsecret import EnvelopeSecret, read_key_id, verify_sealed_secret

    kid = read_key_id(text)
    decide_unseal(policy, place, kid, None).require()
    verified = verify_sealed_secret(text, {kid: _sealing_key(policy, kid, resources)})
    decide_unseal(policy, place, kid, verified.resource).require()
    with resources.resource(verified.resource) as content:
        return verified.open(content) if isinstance(verified, EnvelopeSecret) else bytes(content)


def _sealing_key(policy: ContainerPolicy, kid: str, resources: Resources) -> ECDSAP256PublicKey:
    from cloister.crypto.sealedsecret import parse_sealing_key

    key = policy.sealing_keys[kid]
    if key:
        return parse_sealing_key(key.encode())
    with resources.resource(parse_resource_uri(kid)) as content:
        return parse_sealing_key(content)


def _as_text(secret: bytes, path: str) -> str:
    try:
        text = secret.decode()
    except UnicodeDecodeError as err:
        raise _not_text(path) from err
    if "\0" in text or len(text) > POLICY_VALUE_BYTES:
        raise _not_text(path)
    return text


def _not_text(path: str) -> FormatRefused:
    return FormatRefused(
        "guest.sealed.not_text",
        "secret cannot be an environment variable",
        path=path,
        expected=f"UTF-8 text without NUL, at most {POLICY_VALUE_BYTES} characters",
        hint="give it to the container as a secret file",
    )
