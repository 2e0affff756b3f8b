"""The plan of one pod: pod policy, init data, and what the owner approves for it. Pure, and complete before anything
is launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloister.podpolicy.generate import generate_pod_policy
from cloister.podpolicy.model import PodPolicy, encode_pod_policy
from cloister.protocol.initdata import (
    AGENT_ENTRY,
    POLICY_ENTRY,
    BrokerAddress,
    InitData,
    broker_entry,
    build_initdata,
)
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.owner import SealedReference


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRequest:
    """What the user said about the process, in the words of `docker run`.

    Attributes:
        args: replace the image's cmd.
        entrypoint: replaces the image's entrypoint and cmd.
        env: set over the image's environment; kept by the key broker, so that the host does not read the values.
        workdir: working directory.
        user: user.
        stdin: keep standard input open.
        terminal: give the process a terminal.
        resources: what the workload may fetch from the key broker.
        secret_files: secret files by absolute path: content the key broker is to keep (bytes), or `kbs:///...` of what
            it has, or a sealed secret (text).
        sealing_keys: keys of sealed secrets in environment or files, as `ContainerPolicy.sealing_keys`.
        unseal: what those sealed secrets may name.
    """

    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    stdin: bool = False
    terminal: bool = False
    resources: tuple[ResourcePath, ...] = ()
    secret_files: Mapping[str, bytes | str] = field(default_factory=dict)
    sealing_keys: Mapping[str, str] = field(default_factory=dict)
    unseal: tuple[ResourcePath, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlan:
    """Everything that is decided before launch.

    Attributes:
        policy: the pod policy.
        init_data: what will be measured; names the broker and holds the policy.
        released: the resources this init data may have.
        own_files: those among them that hold secret files of this pod alone.
    """

    policy: PodPolicy
    init_data: InitData
    released: tuple[ResourcePath, ...]
    own_files: tuple[ResourcePath, ...] = ()


def plan_pod(
    *,
    name: str,
    image: SealedReference,
    signature_key: str,
    workload: WorkloadRequest,
    broker: BrokerAddress,
    stream_key: ResourcePath,
    env_resource: ResourcePath | None = None,
    files: Mapping[str, ResourcePath] | None = None,
    lease_seconds: int = 0,
) -> PodPlan:
    """Derive the plan of a pod with the one container `app`; `files` says where the broker keeps its secret files.

    Raises:
        FormatRefused: a value the pod policy refuses, or nothing to run.
    """
    files = files or {}
    policy = generate_pod_policy(
        pod=name,
        image_digest=str(image.digest),
        repository=image.repository,
        signature_key=signature_key,
        image=image.defaults,
        args=workload.args,
        command=workload.entrypoint,
        env_resource=env_resource,
        cwd=workload.workdir,
        user=workload.user,
        terminal=workload.terminal,
        stdin=workload.stdin,
        resources=workload.resources,
        files={
            path: files[path].uri if isinstance(source, bytes) else source
            for path, source in workload.secret_files.items()
        },
        sealing_keys=workload.sealing_keys,
        unseal=workload.unseal,
        stream_key=stream_key,
        lease_seconds=lease_seconds,
    )
    init_data = build_initdata({AGENT_ENTRY: broker_entry(broker), POLICY_ENTRY: encode_pod_policy(policy).decode()})
    secret_env = (env_resource,) if env_resource else ()
    secrets = (*secret_env, *workload.resources, *policy.containers[0].prepared)
    return PodPlan(
        policy=policy,
        init_data=init_data,
        released=(*image.kek, stream_key, *secrets),
        own_files=tuple(files.values()),
    )
