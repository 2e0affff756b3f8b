"""A TCP proxy that lets through, delays, drops, resets, or resets now and then; one thread for all proxies of a run."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
PASS, DELAY, DROP, RESET, FLAKY = "pass", "delay", "drop", "reset", "flaky"
FLAKY_CHANCE = 0.03
_CHUNK = 64 * 1024
_RST = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger


class Proxies:
    """The thread that carries bytes. Use as a context manager."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self.servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxies", daemon=True)

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def make(self) -> Proxy:
        proxy = Proxy(self)
        self.run(proxy.listen())
        return proxy

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def call(self, work: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(work)

    async def _end(self) -> None:
        for server in self.servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


class Proxy:
    """One address that leads to another, which may change.

    Attributes:
        port: on 127.0.0.1.
        target: port on 127.0.0.1, 0 for nobody.
    """

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies
        self.port, self.target = 0, 0
        self._mode, self._seconds = PASS, 0.0
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._upstream: set[int] = set()

    def set(self, mode: str, seconds: float = 0.0) -> None:
        """Treat what comes from now on by `mode`; whoever was dropped or is reset loses the connection."""
        self._proxies.call(lambda: self._set(mode, seconds))

    def upstream_ports(self) -> frozenset[int]:
        """Local ports of the connections to the target: how the target sees who is who."""
        return frozenset(self._upstream)

    async def listen(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._proxies.servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    def _set(self, mode: str, seconds: float) -> None:
        if DROP in (mode, self._mode) or mode == RESET:
            self._changed.set()
            self._changed = asyncio.Event()
        if self._mode == DROP or mode == RESET:
            for writer in list(self._writers):
                _reset(writer)
        self._mode, self._seconds = mode, seconds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._mode == RESET or not self.target:
                _reset(writer)
                return
            source, other = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(other)
            self._upstream.add(other.get_extra_info("sockname")[1])
            pumps = [asyncio.ensure_future(self._pump(*way)) for way in ((reader, other), (source, writer))]
            _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in left:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            _reset(writer)
        finally:
            for end in (writer, other):
                if end is not None:
                    self._writers.discard(end)
                    end.close()
            if other is not None:
                self._upstream.discard((other.get_extra_info("sockname") or ("", 0))[1])

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                mode = self._mode
                if mode == DELAY:
                    await asyncio.sleep(self._seconds)
                elif mode == DROP:
                    await self._changed.wait()
                    return
                elif mode == FLAKY and self._proxies.random.random() < FLAKY_CHANCE:
                    _reset(writer)
                    return
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    held: Any = writer.get_extra_info("socket")  # Any: asyncio's wrapper of a socket
    if held is not None:
        with suppress(OSError):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()
