"""Resources of a key broker for a program inside a guest that is not the agent: by evidence of this machine's device.

The broker is the one that init data names, and init data must be what the device measured: a pod VM's agent extended
it at boot. At the simulated level nobody did, so it is done here; that level protects nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloister.client.keybroker import KeyBrokerClient
from cloister.errors import FormatRefused, Unavailable
from cloister.protocol.initdata import parse_broker_entry, parse_initdata
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.devices import detect_platform, open_attester
from cloister.wire.limits import INITDATA_BYTES

_CODE: Final = "imagetool.keyprovider.init_data"
_SIMULATED: Final = "simulated"
_SIMULATED_WIRE: Final = "cloister-simulated"
_INIT_DATA_PCR: Final = 8


@contextmanager
def released_resources(init_data: Path, platform: str) -> Iterator[Callable[[ResourcePath], bytes]]:
    """Give what asks the broker of `init_data` for resources, from any thread, for as long as the block runs.

    Args:
        init_data: the exact text that is measured.
        platform: of the evidence; empty for the device that is here.

    Raises:
        Refused: the broker refuses evidence or release, or the file is no init data.
        Unavailable: file, device or broker cannot be used now.
    """
    try:
        with init_data.open("rb") as file:
            text = file.read(INITDATA_BYTES + 1)
    except OSError as err:
        raise Unavailable(_CODE, f"cannot read: {err.strerror}", path=str(init_data)) from err
    parsed = parse_initdata(text)
    broker = parse_broker_entry(parsed)
    chosen = platform or detect_platform()
    with open_attester(chosen) as attester:
        tee = chosen
        if chosen == _SIMULATED:
            if parsed.algorithm != "sha256":
                raise FormatRefused(
                    _CODE,
                    "a register of the simulation takes a SHA-256 digest",
                    path="algorithm",
                    expected="sha256",
                    actual=parsed.algorithm,
                )
            attester.extend(_INIT_DATA_PCR, parsed.digest)
            tee = _SIMULATED_WIRE
        client = KeyBrokerClient(broker, attester, text.decode(), tee)
        one_at_a_time = threading.Lock()

        def release(path: ResourcePath) -> bytes:
            with one_at_a_time:
                return client.get_resource(path)

        try:
            yield release
        finally:
            client.wipe()
