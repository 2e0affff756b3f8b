"""Generate the pod policy of a single-container pod from the image and the words of `cloister run`.

The generator only writes down; it grants nothing that was not asked for: no exec, no extra container, no resource,
and sealed streams.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cloister.podpolicy.model import (
    ContainerPolicy,
    ImageDefaults,
    PodPolicy,
    StreamsPolicy,
    encode_pod_policy,
    parse_pod_policy,
    resolve_process,
)
from cloister.protocol.resourceuri import ResourcePath


def generate_pod_policy(
    *,
    pod: str,
    image_digest: str,
    repository: str,
    signature_key: str,
    image: ImageDefaults,
    args: Sequence[str] = (),
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    env_resource: ResourcePath | None = None,
    cwd: str | None = None,
    user: str | None = None,
    terminal: bool = False,
    stdin: bool = False,
    resources: Sequence[ResourcePath] = (),
    files: Mapping[str, str] | None = None,
    sealing_keys: Mapping[str, str] | None = None,
    unseal: Sequence[ResourcePath] = (),
    stream_key: ResourcePath | None = None,
    lease_seconds: int = 0,
) -> PodPolicy:
    """Return the policy for one container named `app`.

    Args:
        pod: pod name; made a DNS label.
        image_digest: digest of the sealed image's manifest.
        repository: repository the signature names.
        signature_key: PEM public key of the signer.
        image: defaults of the image config, to find out now whether there is something to run.
        args: replaces the image's cmd when not empty.
        command: replaces the image's entrypoint and cmd when not empty.
        env: set over the image's environment.
        env_resource: where the key broker keeps further variables.
        cwd: working directory.
        user: user.
        terminal: whether the process has a terminal.
        stdin: whether the process has standard input.
        resources: what the container may fetch.
        files: secret files, as `ContainerPolicy.files`.
        sealing_keys: keys of sealed secrets, as `ContainerPolicy.sealing_keys`.
        unseal: what sealed secrets may name.
        stream_key: seals the streams when given, else streams are dropped.
        lease_seconds: how long the pod may run on one attestation; 0 is no lease.

    Raises:
        FormatRefused: a value the policy format refuses, or nothing to run.
    """
    container = ContainerPolicy(
        name="app",
        kind="app",
        image_digest=image_digest,
        repository=repository,
        signature_keys=(signature_key,),
        command=tuple(command) or None,
        args=tuple(args) or None,
        env=dict(env or {}),
        env_resource=env_resource,
        cwd=cwd,
        user=user,
        terminal=terminal,
        stdin=stdin,
        resources=tuple(resources),
        files=dict(files or {}),
        sealing_keys=dict(sealing_keys or {}),
        unseal=tuple(unseal),
    )
    resolve_process(container, image)
    streams = StreamsPolicy(mode="sealed", key=stream_key) if stream_key else StreamsPolicy(mode="none")
    policy = PodPolicy(pod=pod_label(pod), containers=(container,), streams=streams, lease_seconds=lease_seconds)
    return parse_pod_policy(encode_pod_policy(policy))


def pod_label(text: str) -> str:
    """Return `text` as a DNS label: lower case, other characters as `-`, at most 63."""
    label = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:63].strip("-")
    return label or "pod"
