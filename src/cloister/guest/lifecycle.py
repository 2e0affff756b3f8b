"""The order of events in the life of a pod, once the key process is forked.

 0 key process      forked already (`cloister.guest.agent`); it loads the broker's client, the device makes its key
 1 hello            so that the host sees life before anything heavy loads
 2 init data        into register 8 by the key process, before any call is read; then that process gets the text
 3 policy           parsed from the measured text
 4 network          and libraries, in the background
 5 attestation      ephemeral key, RCAR handshake with the owner's broker, in the key process; a `create` fetches beside
 6 stream key       when the policy seals the streams
 7 ready            containers are created, run, and end
 8 lease        renewed with fresh evidence where policy or key broker set one; its end is the pod's end
 9 wipe             keys overwritten, containers killed; the end of the agent is the end of the VM

Any failure before 7, and the end of the key process, is told once as a `failed` event and ends the pod. The console
gets fixed words only: no argument, no secret, no text of a foreign error.
"""

from __future__ import annotations

import _socket
import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cloister.errors import CloisterError, Unavailable
from cloister.guest.keyprocess import KeyProcess, KeyProxy
from cloister.guest.platform import Platform, choose_platform
from cloister.guest.ports import ControlPort, HostGone
from cloister.guest.report import Reporter, Stopwatch, process_start_ms, uptime_ms

if TYPE_CHECKING:
    from cloister.guest.attest import KeySource
    from cloister.guest.background import Background, Libraries
    from cloister.guest.lease import Lease
    from cloister.guest.pod import Pod
    from cloister.guest.process import StreamSetup
    from cloister.guest.secrets import SecretsServer
    from cloister.podpolicy.model import PodPolicy

_FLUSH_SECONDS: Final = 3.0


def live(arguments: list[str], key_process: int, connection: int, console: Callable[[str], None]) -> int:
    """Live the life of a pod; return the process' exit status.

    Args:
        arguments: the agent's own.
        key_process: process id of the key process, a child.
        connection: descriptor that leads to it.
        console: takes fixed words.
    """
    threading.excepthook = lambda _: console("guest.internal")
    keys = KeyProcess(key_process, KeyProxy(_socket.socket(fileno=connection)))
    try:
        platform = choose_platform(arguments)
        control = platform.open_control()
    except Exception as err:  # noqa: BLE001  # process edge: nobody to tell but the console
        console(err.code if isinstance(err, CloisterError) else "guest.internal")
        return 1
    reporter = Reporter(control.send)
    reporter.hello(platform.tee)
    started = process_start_ms()
    reporter.phase("kernel", started)
    reporter.phase("agent", uptime_ms() - started)
    from cloister.guest.background import PULL_LIBRARIES, Background, Libraries

    pull_libraries = Libraries(PULL_LIBRARIES)
    Background(pull_libraries.wait, "libraries")
    try:
        with keys:
            _Agent(platform, control, reporter, keys, pull_libraries).run()
    except HostGone:
        console("host gone")
    except CloisterError as err:
        reporter.failed(err)
        console(err.code)
        return 1
    except Exception as err:  # noqa: BLE001  # process edge
        reporter.failed(Unavailable("guest.internal", type(err).__name__))
        console("guest.internal")
        return 1
    return 0


class _Agent:
    """One pod, from init data to the end."""

    def __init__(
        self,
        platform: Platform,
        control: ControlPort,
        reporter: Reporter,
        key_process: KeyProcess,
        pull_libraries: Libraries,
    ) -> None:
        self._platform = platform
        self._control = control
        self._reporter = reporter
        self._key_process = key_process
        self._pull_libraries = pull_libraries
        self._over = threading.Event()
        self._reason: BaseException | None = None
        self._streams: StreamSetup | None = None
        self._secrets: SecretsServer | None = None
        self._lease: Lease | None = None

    def run(self) -> None:
        """Return when the host asked for the end.

        Raises:
            HostGone: the host left.
            CloisterError: why the pod cannot run.
        """
        from cloister.guest.background import CONTAINER_LIBRARIES, SEAL_LIBRARIES, Background, Libraries
        from cloister.guest.measure import InitDataMeasurement

        self._key_process.watch(self._lose_keys)
        key_proxy = self._key_process.keys
        watch = Stopwatch()
        init_data = InitDataMeasurement(key_proxy.extend).measure(self._platform.read_initdata(self._go_on))
        self._reporter.phase("initdata", watch.ms())
        network = Background(self._bring_network_up, "network")

        from cloister.guest.attest import KeySource
        from cloister.guest.pod import Pod
        from cloister.podpolicy.model import parse_pod_policy
        from cloister.protocol.initdata import POLICY_ENTRY

        policy = parse_pod_policy(init_data.entry(POLICY_ENTRY).encode())
        keys = KeySource(lambda: key_proxy)

        seals = SEAL_LIBRARIES if self._platform.scratch else ()
        libraries = Libraries((*CONTAINER_LIBRARIES, *seals))

        def wait_registry() -> None:
            network.wait()
            self._pull_libraries.wait()
            if seals:
                libraries.wait()  # the threads that fetch seal what they get

        pod = Pod(policy, init_data, self._platform, keys, self._reporter, wait_registry, libraries.wait)
        Background(lambda: self._serve(pod), "control")
        Background(lambda: self._become_ready(pod, policy, keys, network, libraries), "attest")
        self._over.wait()
        self._end(pod, keys)
        if self._reason is not None:
            raise self._reason

    def _bring_network_up(self) -> None:
        watch = Stopwatch()
        self._platform.bring_network_up()
        self._reporter.phase("network", watch.ms())

    def _serve(self, pod: Pod) -> None:
        from cloister.guest.server import ControlServer

        try:
            ControlServer(self._control, pod.handle, self._over.set).serve()
        except BaseException as err:  # noqa: BLE001  # handed to the main thread
            self._finish(err)

    def _become_ready(
        self, pod: Pod, policy: PodPolicy, keys: KeySource, network: Background, libraries: Libraries
    ) -> None:
        """Attest, get the stream key, open streams and secrets service, let creates go on; then keep the lease."""
        try:
            runtime = self._platform.open_runtime()  # while the key process loads the broker's client
            watch = Stopwatch()
            self._key_process.keys.open(pod.init_data_text)
            network.wait()
            keys.attest()
            self._reporter.phase("attest", watch.ms())
            libraries.wait()
            self._streams = open_streams(self._platform, policy, keys)
            pod.become_ready(self._streams, runtime)
            self._secrets = _open_secrets(pod, policy, keys)
            gc.freeze()  # what was loaded stays; from here on the collector works
            gc.enable()
            self._reporter.ready(pod.init_data)
            from cloister.guest.lease import Lease

            self._keep_lease(Lease(keys, policy.streams.key, policy.lease_seconds))
        except BaseException as err:  # noqa: BLE001  # handed to the main thread
            self._finish(err)

    def _finish(self, reason: BaseException) -> None:
        """End the pod. The first reason counts: what fails while everything ends is a consequence."""
        if not self._over.is_set():
            self._reason = reason
            self._over.set()

    def _go_on(self) -> None:
        """Return while nothing has ended the pod."""
        if self._reason is not None:
            raise self._reason

    def _lose_keys(self, error: CloisterError) -> None:
        """End the pod, because its key process did; told before the containers are killed."""
        if not self._over.is_set():
            self._reporter.failed(error)
        self._finish(error)

    def _keep_lease(self, lease: Lease) -> None:
        """Stay here while the lease holds; its end is the pod's end, and told before the containers are killed."""
        self._lease = lease
        try:
            lease.keep()
        except CloisterError as err:
            self._reporter.failed(err)
            raise

    def _end(self, pod: Pod, keys: KeySource) -> None:
        """Kill what runs, let the last bytes out, overwrite the keys."""
        if self._lease is not None:
            self._lease.stop()
        pod.close()
        if self._secrets is not None:
            self._secrets.close()
        if self._streams is not None:
            self._streams.mux.flush(_FLUSH_SECONDS)
            self._streams.mux.stop()
            self._streams.wipe()
        keys.close()


def open_streams(platform: Platform, policy: PodPolicy, keys: KeySource) -> StreamSetup:
    """Return the running streams of the pod, sealed under the broker's key where the policy says so.

    Raises:
        Refused: the broker does not give the key, or it has another length (`crypto.streamseal.length`).
        Unavailable: no broker, or no streams port.
    """
    from cloister.guest.process import StreamSetup
    from cloister.guest.streams import StreamMux

    key = None
    if policy.streams.key is not None:
        from cloister.crypto.streamseal import require_stream_key

        with keys.resource(policy.streams.key) as secret:
            key = require_stream_key(bytearray(secret))
    mux = StreamMux(platform.open_streams(), absence_is_final=not platform.in_vm)
    mux.start()
    return StreamSetup(mux, policy.streams.mode, key)


def _open_secrets(pod: Pod, policy: PodPolicy, keys: KeySource) -> SecretsServer | None:
    """Return the running secrets service; None where no container may have anything."""
    if not any(container.resources for container in policy.containers):
        return None
    from cloister.guest.secrets import SecretsServer

    server = SecretsServer(pod, keys.token)
    server.start()
    return server
