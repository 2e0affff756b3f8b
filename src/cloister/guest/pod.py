"""The pod: what each call of the host does, after the measured policy allowed it.

Every call passes `podpolicy.enforce.decide` on the pod's state before anything happens, and the state changes only by
its answer. What runs comes from `resolve_process` over the verified image config and the policy; the host's claim is
compared and then thrown away. The host's identifier for a container is a name in our tables and nothing else: file
names and control groups use the policy's own name.

`create` may arrive before attestation ended. It then fetches and verifies what is public, and waits at the first key.
Creates are done one after the other, which is their order in the policy anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cloister import __version__
from cloister.errors import CloisterError, PodPolicyRefused, RequestRefused
from cloister.guest import images
from cloister.guest.process import PodProcess, StreamSetup
from cloister.guest.report import Reporter, Stopwatch
from cloister.podpolicy.enforce import (
    Create,
    Delete,
    Exec,
    Exited,
    FetchResource,
    Inspect,
    Life,
    PodRequest,
    Resize,
    Signal,
    Start,
    decide,
    decide_claim,
    initial_state,
)
from cloister.podpolicy.model import (
    SEALED_PREFIX,
    ContainerPolicy,
    ImageDefaults,
    PodPolicy,
    ProcessSpec,
    resolve_process,
    with_secret_env,
)
from cloister.protocol.guestapi import (
    Call,
    ContainerParams,
    CreateParams,
    Done,
    ExecParams,
    InfoResult,
    KillParams,
    NoParams,
    PidsResult,
    ProcessClaim,
    ResizeParams,
    StartResult,
    StateResult,
    StatsResult,
    StreamsResult,
    WaitResult,
    WholeContainerParams,
)
from cloister.wire.limits import GUESTAPI_EXECS

if TYPE_CHECKING:
    from cloister.guest.attest import KeySource
    from cloister.guest.oci_spec import ContainerSetup
    from cloister.guest.platform import Platform
    from cloister.guest.runtime import Runtime
    from cloister.guest.users import Identity
    from cloister.oci.rootfs import RootDirectory
    from cloister.oci.signing.verify import VerifiedImage
    from cloister.oci.store import ImageSource
    from cloister.protocol.initdata import InitData
    from cloister.protocol.resourceuri import ResourcePath

_SIGKILL: Final = 9


class _Container:
    """A created container."""

    __slots__ = ("execs", "identity", "name", "paused", "process", "root", "spec", "stdin")

    def __init__(self, policy: ContainerPolicy, spec: ProcessSpec, identity: Identity, root: str) -> None:
        self.name = policy.name
        self.stdin = policy.stdin
        self.spec = spec
        self.identity = identity
        self.root = root
        self.paused = False
        self.process: PodProcess
        self.execs: dict[str, tuple[PodProcess, ProcessSpec]] = {}


class Pod:
    """All containers of the pod and the calls on them; methods run on any thread.

    Args:
        policy: the measured pod policy.
        init_data: the measured init data.
        platform: where the agent runs.
        keys: the key broker.
        reporter: events to the host.
        wait_registry: returns when a registry can be read.
        wait_libraries: returns when the rest is loaded that making a container takes.
    """

    def __init__(
        self,
        policy: PodPolicy,
        init_data: InitData,
        platform: Platform,
        keys: KeySource,
        reporter: Reporter,
        wait_registry: Callable[[], None],
        wait_libraries: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._init_data = init_data
        self._platform = platform
        self._keys = keys
        self._reporter = reporter
        self._wait_registry = wait_registry
        self._wait_libraries = wait_libraries
        self._state = initial_state(policy)
        self._state_lock = threading.Lock()
        self._create_lock = threading.Lock()
        self._containers: dict[str, _Container] = {}
        self._ready = threading.Event()
        self._streams: StreamSetup
        self._runtime: Runtime
        self._calls: dict[str, Callable[[Any], msgspec.Struct]] = {  # Any: each takes its own parameters' type
            "info": self._info,
            "create": self._create,
            "start": self._start,
            "exec": self._exec,
            "kill": self._kill,
            "wait": self._wait,
            "state": self._state_of,
            "pids": self._pids,
            "stats": self._stats,
            "resize": self._resize,
            "close_io": self._close_io,
            "pause": self._pause,
            "resume": self._resume,
            "delete": self._delete,
            "shutdown": self._shutdown,
        }

    def handle(self, call: Call) -> msgspec.Struct:
        """Answer a call.

        Raises:
            CloisterError: the refusal, or what stood in the way.
        """
        return self._calls[call.name](call.params)

    def become_ready(self, streams: StreamSetup, runtime: Runtime) -> None:
        """Let creates go on: attestation succeeded and the streams can be carried."""
        self._streams = streams
        self._runtime = runtime
        self._ready.set()

    @property
    def init_data(self) -> str:
        """Digest of the measured init data."""
        return self._init_data.digest_text

    @property
    def init_data_text(self) -> bytes:
        """The measured init data itself."""
        return self._init_data.text

    # -- for the secrets service -------------------------------------------------------------------------------

    def containers_of_process(self, pid: int) -> list[str]:
        """Return the policy names of the running containers that process `pid` is in: one, or none."""
        return [item.name for item in self._running() if self._runtime.owns(item.name, pid)]

    def running_processes(self) -> list[int]:
        """Return the ids of all processes of all running containers."""
        return [pid for item in self._running() for pid in self._runtime.pids(item.name)]

    def fetch(self, name: str, path: ResourcePath) -> bytes:
        """Return resource `path` for container `name`.

        Raises:
            PodPolicyRefused: the policy does not give it to this container.
            KeyReleaseDenied, Unavailable: the broker's answer.
        """
        self._decide(FetchResource(name=name, path=path))
        with self._keys.resource(path) as secret:
            return bytes(secret)

    def _running(self) -> list[_Container]:
        with self._state_lock:
            return [item for item in self._containers.values() if self._state.life[item.name] is Life.RUNNING]

    # -- end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill and remove everything."""
        import shutil

        for item in list(self._containers.values()):
            try:
                self._runtime.delete(item.name)
            except CloisterError:
                continue  # the machine ends with us
            finally:
                shutil.rmtree(item.root, ignore_errors=True)

    # -- calls -------------------------------------------------------------------------------------------------

    def _info(self, _: NoParams) -> InfoResult:
        return InfoResult(
            agent=__version__,
            platform=self._platform.tee,
            init_data=self.init_data,
            pod=self._policy.pod,
            containers=[item.name for item in self._policy.containers],
        )

    def _create(self, params: CreateParams) -> StreamsResult:
        with self._create_lock:
            request = Create(container=params.container, name=params.name)
            with self._state_lock:
                decide(self._policy, self._state, request).require()
            policy = self._policy.container(params.name)
            if policy is None:
                raise RuntimeError("an allowed container is not in its policy")
            container = self._build(policy, params)
            self._decide(request)
            self._containers[params.container] = container
            return container.process.streams()

    def _start(self, params: ContainerParams) -> StartResult:
        if params.exec:
            return self._start_exec(params)
        self._decide(Start(container=params.container))
        container = self._containers[params.container]
        watch = Stopwatch()
        pid = container.process.launch(
            lambda io, ended: self._runtime.start(container.name, io, ended),
            lambda status: self._exited(params.container, status),
        )
        self._reporter.phase("start", watch.ms(), params.container)
        return StartResult(pid=pid)

    def _start_exec(self, params: ContainerParams) -> StartResult:
        container = self._known(params.container)
        process, spec = self._exec_of(container, params.exec)
        container.process.require_running()
        if process.pid or process.exited:
            raise PodPolicyRefused("podpolicy.start.twice", "exec was started before", path="params.exec")
        pid = process.launch(
            lambda io, ended: self._runtime.exec(container.name, params.exec, spec, container.identity, io, ended),
            lambda status: self._reporter.exit(params.container, params.exec, status),
        )
        return StartResult(pid=pid)

    def _exec(self, params: ExecParams) -> StreamsResult:
        request = Exec(
            container=params.container,
            args=tuple(params.args),
            env=tuple(params.env),
            cwd=params.cwd,
            user=params.user,
            terminal=params.terminal,
        )
        with self._state_lock:
            self._state = decide(self._policy, self._state, request).require()
            container = self._containers[params.container]
            if not params.exec or params.exec in container.execs or len(container.execs) >= GUESTAPI_EXECS:
                raise RequestRefused(
                    "guest.pod.exec_identifier",
                    "exec needs a fresh identifier, and there are only so many",
                    path="params.exec",
                    expected=f"at most {GUESTAPI_EXECS} at a time",
                )
            own = container.spec
            spec = ProcessSpec(args=request.args, env=own.env, cwd=own.cwd, user=own.user, terminal=False)
            process = self._process(container, terminal=False)
            container.execs[params.exec] = (process, spec)
        return process.streams()

    def _kill(self, params: KillParams) -> Done:
        self._decide(Signal(container=params.container, signal=params.signal))
        container = self._containers[params.container]
        if params.all:
            self._runtime.signal_all(container.name, params.signal)
            return Done()
        process = self._process_of(container, params.exec)
        process.require_running()
        self._runtime.signal(container.name, process.pid, params.signal)
        return Done()

    def _wait(self, params: ContainerParams) -> WaitResult:
        return WaitResult(status=self._process_of(self._known(params.container), params.exec).wait())

    def _state_of(self, params: ContainerParams) -> StateResult:
        container = self._known(params.container)
        process = self._process_of(container, params.exec)
        if process.exited:
            return StateResult(status="stopped", pid=process.pid, exit_status=process.status)
        if not process.pid:
            return StateResult(status="created", pid=0)
        return StateResult(status="paused" if container.paused else "running", pid=process.pid)

    def _pids(self, params: WholeContainerParams) -> PidsResult:
        container = self._known(params.container)
        return PidsResult(pids=self._runtime.pids(container.name))

    def _stats(self, params: WholeContainerParams) -> StatsResult:
        container = self._known(params.container)
        usage = self._runtime.usage(container.name)
        return StatsResult(cpu_usec=usage.cpu_usec, memory_bytes=usage.memory_bytes, pids=usage.pids)

    def _resize(self, params: ResizeParams) -> Done:
        self._decide(Resize(container=params.container))
        self._process_of(self._containers[params.container], params.exec).resize(params.width, params.height)
        return Done()

    def _close_io(self, params: ContainerParams) -> Done:
        self._process_of(self._known(params.container), params.exec).close_input()
        return Done()

    def _pause(self, params: WholeContainerParams) -> Done:
        container = self._known(params.container)
        container.process.require_running()
        self._runtime.pause(container.name)
        container.paused = True
        return Done()

    def _resume(self, params: WholeContainerParams) -> Done:
        container = self._known(params.container)
        self._runtime.resume(container.name)
        container.paused = False
        return Done()

    def _delete(self, params: ContainerParams) -> WaitResult:
        import shutil

        if params.exec:
            return self._delete_exec(params)
        self._decide(Delete(container=params.container))
        container = self._containers.pop(params.container)
        self._runtime.delete(container.name)
        shutil.rmtree(container.root, ignore_errors=True)
        for process, _ in container.execs.values():
            process.dispose()
        container.process.dispose()
        return WaitResult(status=max(0, container.process.status))

    def _delete_exec(self, params: ContainerParams) -> WaitResult:
        container = self._known(params.container)
        process, _ = self._exec_of(container, params.exec)
        if process.running:
            raise PodPolicyRefused("podpolicy.delete.running", "exec is running", path="params.exec")
        del container.execs[params.exec]
        process.dispose()
        return WaitResult(status=max(0, process.status))

    def _shutdown(self, _: NoParams) -> Done:
        return Done()  # the server ends the pod once this answer is out

    # -- creation ----------------------------------------------------------------------------------------------

    def _build(self, policy: ContainerPolicy, params: CreateParams) -> _Container:
        """Pull, verify, decrypt, unpack and make ready; on an error nothing of it remains."""
        address = images.parse_registry(params.registry, allow_loopback=not self._platform.in_vm)
        self._wait_registry()

        def connect() -> ImageSource:
            return images.open_registry(address, policy.repository, allow_loopback=not self._platform.in_vm)

        source = connect()
        watch = Stopwatch()
        stored = images.read_named_manifest(source, policy)
        pull: list[int] = []
        fetch = images.LayerFetch(connect, stored, self._platform.spool, pull.append)
        try:
            self._wait_libraries()
            image = images.verify_image(source, policy, stored)
            self._reporter.phase("verify", watch.ms(), params.container)
            self._check_claim(policy, image, params.claim)
        except BaseException:
            fetch.abandon()
            raise
        pulled = fetch.finish(image)
        root = f"{self._platform.work}/root-{policy.name}"
        try:
            self._keys.wait_attested()
            self._ready.wait()
            watch = Stopwatch()
            took: list[int] = []
            images.unpack(pulled, self._keys, root, ownership=self._platform.in_vm, decrypted=took.append)
            for milliseconds in pull:  # the layers arrived while they were unpacked
                self._reporter.phase("pull", milliseconds, params.container)
            self._reporter.phase("decrypt", took[0], params.container)
            self._reporter.phase("unpack", watch.ms() - took[0], params.container)
            spec = _process_spec(self._with_secrets(policy), image)
            return self._prepare(policy, self._unsealed(policy, spec), root)
        except BaseException:
            import shutil

            shutil.rmtree(root, ignore_errors=True)
            raise
        finally:
            pulled.close()

    def _check_claim(self, policy: ContainerPolicy, image: VerifiedImage, claim: ProcessClaim | None) -> None:
        """Compare the host's claim with what everybody may know; secret variables are not in the comparison, because
        a refusal shows both sides."""
        spec = _process_spec(policy, image)
        if claim is not None:
            claimed = ProcessSpec(
                args=tuple(claim.args), env=tuple(claim.env), cwd=claim.cwd, user=claim.user, terminal=spec.terminal
            )
            decide_claim(policy, spec, claimed).require()

    def _with_secrets(self, policy: ContainerPolicy) -> ContainerPolicy:
        if policy.env_resource is None:
            return policy
        with self._keys.resource(policy.env_resource) as secret:
            return with_secret_env(policy, secret)

    def _unsealed(self, policy: ContainerPolicy, spec: ProcessSpec) -> ProcessSpec:
        if not any(SEALED_PREFIX in item for item in spec.env):
            return spec
        from cloister.guest.sealed import unseal_environment

        return unseal_environment(policy, spec, self._keys)

    def _place_secrets(self, policy: ContainerPolicy, tree: RootDirectory, identity: Identity) -> None:
        if not policy.files:
            return
        from cloister.guest.rootfiles import place_secrets
        from cloister.guest.sealed import read_secret_files

        owner = (identity.uid, identity.gid) if self._platform.in_vm else None
        place_secrets(tree, read_secret_files(policy, self._keys), owner)

    def _prepare(self, policy: ContainerPolicy, spec: ProcessSpec, root: str) -> _Container:
        from cloister.guest.oci_spec import ContainerSetup
        from cloister.guest.rootfiles import make_working_directory, place_files
        from cloister.guest.users import resolve_identity
        from cloister.oci.rootfs import RootDirectory

        with RootDirectory(root) as tree:
            identity = resolve_identity(tree, spec.user)
            place_files(tree, self._policy.pod, self._platform.resolv_conf())
            make_working_directory(tree, spec.cwd)
            self._place_secrets(policy, tree, identity)
        container = _Container(policy, spec, identity, root)
        setup: ContainerSetup = ContainerSetup(
            identifier=policy.name, process=spec, identity=identity, hostname=self._policy.pod, root=root
        )
        self._runtime.create(setup)
        container.process = self._process(container, terminal=spec.terminal)
        return container

    def _process(self, container: _Container, *, terminal: bool) -> PodProcess:
        def broken() -> None:
            threading.Thread(target=self._runtime.signal_all, args=(container.name, _SIGKILL), daemon=True).start()

        return PodProcess(self._streams, terminal=terminal, stdin=container.stdin, on_broken=broken)

    # -- state -------------------------------------------------------------------------------------------------

    def _decide(self, request: PodRequest) -> None:
        with self._state_lock:
            self._state = decide(self._policy, self._state, request).require()

    def _known(self, container: str) -> _Container:
        self._decide(Inspect(container=container))
        return self._containers[container]

    def _process_of(self, container: _Container, exec_id: str) -> PodProcess:
        return self._exec_of(container, exec_id)[0] if exec_id else container.process

    def _exec_of(self, container: _Container, exec_id: str) -> tuple[PodProcess, ProcessSpec]:
        found = container.execs.get(exec_id)
        if found is None:
            raise RequestRefused("guest.pod.unknown_exec", "no such exec", path="params.exec", actual=exec_id[:40])
        return found

    def _exited(self, container: str, status: int) -> None:
        self._decide(Exited(container=container, status=status))
        self._reporter.exit(container, "", status)


def _process_spec(policy: ContainerPolicy, image: VerifiedImage) -> ProcessSpec:
    config = image.config
    return resolve_process(
        policy,
        ImageDefaults(
            entrypoint=config.entrypoint,
            cmd=config.command,
            env=config.environment,
            cwd=config.working_directory,
            user=config.user,
        ),
    )
