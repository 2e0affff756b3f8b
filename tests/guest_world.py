"""An owner, a registry, a trust service, and a host that drives one guest agent over its two ports.

Everything is the real thing: the owner seals and approves, both services are processes, the agent is a process at the
simulated level. `HostDouble` is the hostile side of the protocol: it can say anything, frame by frame.
"""

from __future__ import annotations

import abc
import contextlib
import os
import queue
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import cloister
from cloister.crypto.streamseal import StreamOpener, StreamSealer
from cloister.host.vmm.machine import RunningVM
from cloister.host.vmm.seabios import SeaBIOSLauncher
from cloister.host.vmm.spec import Accelerator, VMSpec
from cloister.host.vtpm import VTPMAuthority, VTPMPool
from cloister.imagetool.podvm import PodVMBundle, Shape
from cloister.podpolicy.generate import generate_pod_policy
from cloister.podpolicy.model import ContainerPolicy, PodPolicy, StreamsPolicy, encode_pod_policy
from cloister.protocol import guestapi
from cloister.protocol.guestapi import HelloEvent
from cloister.protocol.initdata import (
    AGENT_ENTRY,
    POLICY_ENTRY,
    BrokerAddress,
    InitData,
    broker_entry,
    build_initdata,
    pack_device,
)
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry
from cloister.sdk.bundle import launch_files
from cloister.sdk.home import Home
from cloister.sdk.owner import Owner, SealedReference, podvm_references
from cloister.sdk.services import ServiceProcess, start_registry, start_trust_service
from cloister.tee.insecure.abi import launch_digest
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.tee.tpm.endorsements import read_swtpm_roots
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.wire.base64 import decode_b64
from conformance.tools import skip_or_fail

SOURCE = Path(__file__).resolve().parents[1] / "src"
STREAM_KEY = ResourcePath("default", "stream-key", "test")
SECONDS = 60.0
_BOOTS = 3


class HostDouble:
    """The host's end of both ports. What waits fails after `SECONDS`, or once nothing can come any more."""

    def __init__(self, control: socket.socket, streams: socket.socket | _LazySocket, started: float = 0) -> None:
        self.started = started or time.monotonic()
        self.times: list[tuple[float, Any]] = []  # seconds since the launch, event
        self.control = control
        self.streams = streams
        self.control.settimeout(SECONDS)
        self.events: list[Any] = []
        self.output: dict[int, list[bytes]] = {}
        self.ended: dict[int, threading.Event] = {}
        self.grant = True
        self._replies: dict[int, queue.SimpleQueue[guestapi.ReplyEnvelope | None]] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._arrived = threading.Condition()
        self.closed = threading.Event()
        self.streams_closed = threading.Event()
        self._credit: dict[int, int] = {}
        self._readers = [
            threading.Thread(target=target, daemon=True) for target in (self._read_control, self._read_streams)
        ]
        for reader in self._readers:
            reader.start()

    # -- control

    def send(self, body: bytes) -> None:
        with self._lock:
            self.control.sendall(guestapi.pack_frame(body))

    def begin(self, name: str, /, **params: Any) -> int:
        """Send a call and return its number."""
        with self._lock:
            self._next += 1
            number = self._next
        self._replies[number] = queue.SimpleQueue()
        body = msgspec.json.encode({"v": 1, "id": number, "call": name, "params": params})
        self.send(body)
        return number

    def finish(self, number: int) -> guestapi.ReplyEnvelope:
        """Return the reply to a call.

        Raises:
            ConnectionResetError: the guest closed the port without it.
        """
        replies = self._replies.setdefault(number, queue.SimpleQueue())
        if self.closed.is_set():
            replies.put(None)
        reply = replies.get(timeout=SECONDS)
        if reply is None:
            raise ConnectionResetError(f"no reply to call {number}: {self.events}")
        return reply

    def answered(self, number: int) -> bool:
        """Return whether a reply to a call has arrived, which `finish` has not taken."""
        return number in self._replies and not self._replies[number].empty()

    def call(self, name: str, /, **params: Any) -> Any:
        """Return the typed result of a call, or raise the guest's refusal."""
        return guestapi.decode_result(name, self.finish(self.begin(name, **params)))

    def event(self, kind: type) -> Any:
        """Return the first event of a kind, waiting for it."""
        with self._arrived:
            assert self._arrived.wait_for(
                lambda: any(isinstance(item, kind) for item in self.events) or self.closed.is_set(), SECONDS
            )
            found = [item for item in self.events if isinstance(item, kind)]
            assert found, self.events
            return found[0]

    def arrived(self, kind: type) -> bool:
        """Return whether an event of a kind comes before the port closes."""
        with self._arrived:
            self._arrived.wait_for(
                lambda: self.closed.is_set() or any(isinstance(item, kind) for item in self.events), SECONDS
            )
            return any(isinstance(item, kind) for item in self.events)

    def phases(self) -> dict[str, int]:
        return {item.name: item.took_ms for item in self.events if isinstance(item, guestapi.PhaseEvent)}

    def _read_control(self) -> None:
        splitter = guestapi.FrameSplitter()
        with contextlib.suppress(OSError):
            while data := self.control.recv(65536):
                for frame in splitter.feed(data):
                    self._take(guestapi.decode_from_guest(frame))
        with self._arrived:
            self.closed.set()
            self._arrived.notify_all()
        for replies in list(self._replies.values()):
            replies.put(None)

    def _take(self, message: guestapi.ReplyEnvelope | guestapi.EventEnvelope) -> None:
        if isinstance(message, guestapi.EventEnvelope):
            with self._arrived:
                self.events.append(message.event)
                self.times.append((time.monotonic() - self.started, message.event))
                self._arrived.notify_all()
        else:
            self._replies.setdefault(message.id, queue.SimpleQueue()).put(message)

    # -- streams

    def send_frame(self, stream: int, kind: int, payload: bytes = b"") -> None:
        self.send_raw(guestapi.pack_stream_frame(guestapi.StreamFrame(stream, guestapi.StreamKind(kind), payload)))

    def send_raw(self, data: bytes) -> None:
        self.streams.sendall(data)

    def wait_output(self, stream: int, count: int = 1) -> bytes:
        """Return what came of a stream once it is `count` bytes or more, records as they are."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: sum(map(len, self.output.get(stream, []))) >= count, SECONDS), (
                stream,
                self.output,
                self.events,
            )
            return b"".join(self.output[stream])

    def wait_credit(self, stream: int, count: int) -> None:
        """Wait until the guest has given back `count` bytes of a stream's window: so many reached the process.

        The two ports are not ordered: a call sent after a frame may well arrive before it.
        """
        with self._arrived:
            assert self._arrived.wait_for(lambda: self._credit.get(stream, 0) >= count, SECONDS), self._credit

    def read(self, stream: int) -> list[bytes]:
        """Return the payloads of a stream up to its end."""
        assert self.ended.setdefault(stream, threading.Event()).wait(SECONDS), (stream, self.output, self.events)
        return self.output.get(stream, [])

    def _read_streams(self) -> None:
        splitter = guestapi.StreamSplitter()
        with contextlib.suppress(OSError):
            while data := self.streams.recv(65536):
                for frame in splitter.feed(data):
                    self._take_frame(frame)
        self.streams_closed.set()

    def _take_frame(self, frame: guestapi.StreamFrame) -> None:
        if frame.kind is guestapi.StreamKind.DATA:
            with self._arrived:
                self.output.setdefault(frame.stream, []).append(frame.payload)
                self.times.append((time.monotonic() - self.started, f"output {frame.stream}"))
                self._arrived.notify_all()
            if self.grant:
                self.send_frame(frame.stream, guestapi.StreamKind.WINDOW, len(frame.payload).to_bytes(4, "big"))
        elif frame.kind is guestapi.StreamKind.EOF:
            self.ended.setdefault(frame.stream, threading.Event()).set()
        else:
            with self._arrived:
                given = int.from_bytes(frame.payload, "big")
                self._credit[frame.stream] = self._credit.get(frame.stream, 0) + given
                self._arrived.notify_all()

    def close(self) -> None:
        """Close both ports, and leave nobody who reads them. Further calls do nothing more."""
        for connection in (self.control, self.streams):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for reader in self._readers:
            reader.join(SECONDS)
        for connection in (self.control, self.streams):
            connection.close()


@dataclass
class RunningPod(abc.ABC):
    """A pod, and the host's end of its ports."""

    host: HostDouble
    init_data: InitData
    registry: str
    stream_key: bytes

    def create(self, name: str = "app", container: str = "c1", **more: Any) -> guestapi.StreamsResult:
        result = self.host.call("create", container=container, name=name, registry=self.registry, **more)
        assert isinstance(result, guestapi.StreamsResult)
        return result

    def run(self, name: str = "app", container: str = "c1") -> tuple[int, bytes, bytes]:
        """Create, start and wait; return status, standard output, standard error."""
        streams = self.create(name, container)
        self.host.call("start", container=container)
        status = self.host.call("wait", container=container).status
        return status, self.text(streams, "stdout"), self.text(streams, "stderr")

    def text(self, streams: guestapi.StreamsResult, name: str) -> bytes:
        """Return a stream's plain content up to its end, opened when it is sealed."""
        records = self.host.read(getattr(streams, name))
        if not streams.salt:
            return b"".join(records)
        opener = self.opener(streams, name)
        text = b"".join(opener.open(record) for record in records)
        opener.end()
        return text

    def opener(self, streams: guestapi.StreamsResult, name: Any) -> StreamOpener:
        return StreamOpener(self.stream_key, decode_b64(streams.salt, ceiling=32), name)

    def sealer(self, streams: guestapi.StreamsResult) -> StreamSealer:
        return StreamSealer(self.stream_key, decode_b64(streams.salt, ceiling=32), "stdin")

    @abc.abstractmethod
    def end(self) -> int:
        """End it and return a status, 0 for an end in order."""


@dataclass
class ProcessPod(RunningPod):
    """An agent process at the simulated level."""

    process: subprocess.Popen[bytes]
    place: Path

    @property
    def state(self) -> Path:
        return self.place / "state"

    @property
    def console(self) -> str:
        return (self.place / "console").read_text("utf-8", "replace")

    def end(self) -> int:
        """Close the ports and return the agent's exit status."""
        self.host.close()
        try:
            return self.process.wait(SECONDS)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


@dataclass
class VMPod(RunningPod):
    """A measured pod VM."""

    vm: RunningVM

    def end(self) -> int:
        try:
            self.vm.terminate()
        finally:
            self.host.close()
        return 0


@dataclass
class World:
    """Owner and services; `pod` starts agents."""

    directory: Path
    owner: Owner
    registry: ServiceProcess
    trust: ServiceProcess
    pods: list[RunningPod] = field(default_factory=list)
    vm_approved: bool = False

    def seal(self, layout: str) -> SealedReference:
        return self.owner.seal(layout, self.registry.port)

    def publish_plain(self, layout: str) -> tuple[str, str]:
        """Copy an image into the registry as it is, signed; return manifest digest and repository."""
        from cloister.imagetool.sign import sign_image
        from cloister.oci.distribution import RegistryClient
        from cloister.oci.location import open_source, parse_location
        from cloister.oci.manifest import parse_manifest
        from cloister.oci.reference import OCIReference
        from cloister.oci.store import copy_blob, resolve_platform
        from cloister.sdk.owner import open_transport, registry_access

        location = parse_location(layout)
        target = OCIReference(registry=f"127.0.0.1:{self.registry.port}", repository="plain")
        with open_transport() as transport, open_source(location, registry_access(location, transport)) as source:
            store = RegistryClient(transport, target, plain_http=True, other_origins=False)
            stored = resolve_platform(source, location.selector, "linux/amd64")
            manifest = parse_manifest(stored.raw, media_type=stored.media_type)
            for descriptor in (manifest.config, *manifest.layers):
                copy_blob(source, store, descriptor)
            digest = store.write_manifest(stored.raw, stored.media_type, "v1")
            sign_image(store, digest, self.owner.signer(), repository="cloister.local/plain")
        return str(digest), "cloister.local/plain"

    @property
    def signature_key(self) -> str:
        return self.owner.signer().public_key.pem().decode()

    @property
    def key_file(self) -> Path:
        return self.directory / "simulation.key"

    def broker(self, host: str) -> BrokerAddress:
        with self.owner.admin() as admin:
            return BrokerAddress(
                url=f"https://{host}:{self.trust.port}", ca_pem=admin.ca_pem(), release_log=admin.release_log_pins()
            )

    def policy(self, image: SealedReference, *args: str, **changes: Any) -> PodPolicy:
        """Return a policy for one container with sealed streams."""
        changes.setdefault("stream_key", STREAM_KEY)
        return generate_pod_policy(
            pod="test-pod",
            image_digest=str(image.digest),
            repository=image.repository,
            signature_key=self.signature_key,
            image=image.defaults,
            args=args,
            **changes,
        )

    def several(self, *containers: ContainerPolicy, mode: Any = "host") -> PodPolicy:
        return PodPolicy(pod="test-pod", containers=containers, streams=StreamsPolicy(mode=mode))

    def container(self, image: SealedReference, name: str = "app", **fields: Any) -> ContainerPolicy:
        values: dict[str, Any] = {
            "name": name,
            "kind": "app",
            "image_digest": str(image.digest),
            "repository": image.repository,
            "signature_keys": (self.signature_key,),
        }
        return ContainerPolicy(**{**values, **fields})

    def init_data(self, policy: PodPolicy, *, host: str = "127.0.0.1") -> InitData:
        entries = {AGENT_ENTRY: broker_entry(self.broker(host)), POLICY_ENTRY: encode_pod_policy(policy).decode()}
        return build_initdata(entries)

    def approve(self, init_data: InitData, paths: Sequence[ResourcePath]) -> None:
        """Let this init data have these resources."""
        with self.owner.admin() as admin:
            for path in dict.fromkeys(paths):
                admin.add_release_rule(
                    ReleaseRule(
                        prefix=str(path),
                        init_data=(init_data.digest_text,),
                        appraisal_policy="default",
                        insecure_allow_levels=(Level.SIMULATED, Level.MEASURED),
                    )
                )

    def prepare(
        self, policy: PodPolicy, image: SealedReference, *more: ResourcePath, host: str = "127.0.0.1"
    ) -> InitData:
        """Return approved init data for `policy`."""
        init_data = self.init_data(policy, host=host)
        self.approve(init_data, (*image.kek, STREAM_KEY, *more))
        return init_data

    def stream_key(self) -> bytes:
        with self.owner.admin() as admin:
            return admin.get_resource(STREAM_KEY)

    def pod(self, init_data: InitData) -> ProcessPod:
        """Start an agent at the simulated level."""
        key = self.stream_key()
        place = Path(tempfile.mkdtemp(dir=self.directory))
        (place / "initdata").write_bytes(pack_device(init_data))
        with contextlib.ExitStack() as undone:
            streams = _LazySocket(_listen(place / "streams"))
            undone.callback(streams.close)
            with _listen(place / "control") as listener:
                process = start_agent(place, self.key_file)
                undone.callback(process.wait)
                undone.callback(process.kill)
                control, _ = listener.accept()
            undone.pop_all()
        pod = ProcessPod(
            host=HostDouble(control, streams),
            process=process,
            init_data=init_data,
            registry=f"http://127.0.0.1:{self.registry.port}",
            stream_key=key,
            place=place,
        )
        self.pods.append(pod)
        return pod

    def vm_pod(
        self,
        init_data: InitData,
        bundle: PodVMBundle,
        *,
        memory_mib: int = 512,
        change: Callable[[VMSpec], VMSpec] | None = None,
        vtpms: VTPMPool | None = None,
    ) -> VMPod:
        """Boot a measured pod VM, from the files that the owner expects unless they are changed.

        QEMU 7.2 crashes a guest kernel with several processors in one of 25 boots, before anything runs.

        Args:
            init_data: of the pod.
            bundle: the pod-VM image.
            memory_mib: main memory.
            change: what a hostile host launches instead.
            vtpms: where a hostile host takes the TPM from.
        """
        for _ in range(_BOOTS):
            pod = self.boot(init_data, bundle, memory_mib=memory_mib, change=change, vtpms=vtpms)
            if pod.host.arrived(HelloEvent):
                break
            pod.end()
        return pod

    def boot(
        self,
        init_data: InitData,
        bundle: PodVMBundle,
        *,
        memory_mib: int = 512,
        change: Callable[[VMSpec], VMSpec] | None = None,
        vtpms: VTPMPool | None = None,
    ) -> VMPod:
        """Do it once, and do not wait for the guest's first word."""
        home = self.owner.home
        authority = VTPMAuthority(home.vtpm_ca)
        authority.create()
        shape = Shape(vcpus=2, memory_mib=memory_mib)
        if not self.vm_approved:
            self.vm_approved = True
            roots = (*read_swtpm_roots(home.vtpm_ca), read_machine_root(self.key_file))
            self.owner.trust_platform(roots, podvm_references(bundle, shape))
        spec = VMSpec(
            name="test-pod",
            work=Path(tempfile.mkdtemp(dir=self.directory)),
            initdata=init_data.text,
            bundle=launch_files(bundle),
            memory_mib=memory_mib,
            accelerator=Accelerator.TCG,
        )
        key = self.stream_key()
        started = time.monotonic()
        launcher = SeaBIOSLauncher(vtpms or VTPMPool(authority, home.vtpm_pool), home.cache)
        vm = launcher.launch(change(spec) if change else spec)
        pod = VMPod(
            host=HostDouble(vm.control, vm.streams, started=started),
            vm=vm,
            init_data=init_data,
            registry=f"http://10.0.2.2:{self.registry.port}",
            stream_key=key,
        )
        self.pods.append(pod)
        return pod

    def run(self, image: SealedReference, *args: str, **changes: Any) -> tuple[int, bytes, bytes]:
        """Run one container to its end in a fresh pod."""
        policy = self.policy(image, *args, **changes)
        pod = self.pod(self.prepare(policy, image))
        try:
            return pod.run()
        finally:
            pod.end()

    def close(self) -> None:
        with contextlib.ExitStack() as last:  # each is tried, whatever the others do
            last.callback(self.registry.stop)
            last.callback(self.trust.stop)
            for pod in self.pods:
                last.callback(pod.end)


class _LazySocket:
    """A socket that the agent connects only after attestation: waits for it on first use.

    Owns the listener. Whoever waits when it is closed gets `OSError`.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._listener.settimeout(0.02)  # not every kernel wakes an accept when its socket is shut down
        self._socket: socket.socket | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def _get(self) -> socket.socket:
        with self._lock:
            deadline = time.monotonic() + 3 * SECONDS
            while self._socket is None:
                if self._closed.is_set() or time.monotonic() > deadline:
                    raise OSError("nobody connected")
                with contextlib.suppress(TimeoutError):
                    self._socket, _ = self._listener.accept()
            return self._socket

    def recv(self, count: int) -> bytes:
        return self._get().recv(count)

    def sendall(self, data: bytes) -> None:
        self._get().sendall(data)

    def shutdown(self, how: int) -> None:
        self._closed.set()
        with self._lock:
            if self._socket is not None:
                self._socket.shutdown(how)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._listener.close()
            if self._socket is not None:
                self._socket.close()


def start_agent(place: Path, key: Path) -> subprocess.Popen[bytes]:
    """Start the agent as the pod VM does: no site, no environment."""
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {sysconfig.get_path('purelib')!r}]; "
        "from cloister.guest.agent import main; sys.exit(main())"
    )
    options = {
        "control-socket": place / "control",
        "streams-socket": place / "streams",
        "initdata": place / "initdata",
        "simulation-key": key,
        "state": place / "state",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with (place / "console").open("wb") as console:
        return subprocess.Popen(
            [sys.executable, "-ISB", "-c", program, "--platform", "simulated", *words],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={},
        )


@contextlib.contextmanager
def make_world(directory: Path) -> Iterator[World]:
    """Give an owner with running services who believes this machine's simulation key."""
    home = Home(root=directory / "home", cache=directory / "cache")
    for path in (home.root, home.root / "owner", home.cache, home.registry):
        path.mkdir(mode=0o700, parents=True)
    owner = Owner(home)
    key_file = directory / "simulation.key"
    with owner.admin() as admin:
        admin.put_resource(STREAM_KEY, os.urandom(32))
    reference = ReferenceEntry(
        id="agent",
        tee="cloister-simulated",
        registers={"launch": launch_digest(cloister.__version__)},
        not_after=_far_future(),
        origin="test",
    )
    owner.trust_platform([read_machine_root(key_file)], [reference])
    registry = start_registry(home.registry, directory / "registry.log")
    try:
        trust = start_trust_service(home.trust, directory / "trust.log")
    except BaseException:
        registry.stop()
        raise
    world = World(directory=directory, owner=owner, registry=registry, trust=trust)
    try:
        yield world
    finally:
        world.close()


@contextlib.contextmanager
def secrets_port() -> Iterator[None]:
    """Wait until a pod can serve resources: only one on a machine can at the simulated level."""
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 8006))
            break
        if time.monotonic() > deadline:
            skip_or_fail("port 8006 of this machine is in use")
        time.sleep(0.2)
    yield


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(SECONDS)
    return listener


def _far_future() -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) + timedelta(days=1)
