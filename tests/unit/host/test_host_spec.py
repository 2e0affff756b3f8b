"""What may be asked of a launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Refused, Unavailable
from cloister.host.vmm.spec import PORTS, Bundle, PortForward


def test_spec_as_it_should_be(make_spec: Any) -> None:
    spec = make_spec(scratch_mib=64 * 1024, ports=(PortForward(host_ip="127.0.0.1", host_port=8080, guest_port=80),))
    assert spec.require_bundle() is spec.bundle


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": ""}, "host.spec.name"),
        ({"name": "a,guest=evil"}, "host.spec.name"),
        ({"name": "-rf"}, "host.spec.name"),
        ({"name": "A"}, "host.spec.name"),
        ({"name": "a" * 49}, "host.spec.name"),
        ({"work": Path("/tmp/a\nb")}, "host.spec.path"),
        ({"vcpus": 0}, "host.spec.vcpus"),
        ({"vcpus": 257}, "host.spec.vcpus"),
        ({"memory_mib": 64}, "host.spec.memory"),
        ({"memory_mib": 1 << 40}, "host.spec.memory"),
        ({"scratch_mib": -1}, "host.spec.scratch"),
        ({"scratch_mib": 64 * 1024 + 1}, "host.spec.scratch"),
        ({"ports": (PortForward(host_ip="127.0.0.1", host_port=1, guest_port=1),) * (PORTS + 1)}, "host.spec.ports"),
    ],
)
def test_spec_out_of_range(make_spec: Any, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as refusal:
        make_spec(**changes)
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("address", "host_port", "guest_port"),
    [
        ("::1", 1, 1),
        ("localhost", 1, 1),
        ("127.0.0.1,guestfwd=tcp:1.2.3.4:1-cmd:sh", 1, 1),
        ("127.0.0.1", 0, 1),
        ("127.0.0.1", 1, 65536),
    ],
)
def test_port_forward_out_of_range(address: str, host_port: int, guest_port: int) -> None:
    with pytest.raises(Refused, match=r"host\.spec\.port_forward"):
        PortForward(host_ip=address, host_port=host_port, guest_port=guest_port)


def test_spec_without_bundle(make_spec: Any) -> None:
    with pytest.raises(Refused, match=r"host\.spec\.bundle"):
        make_spec(bundle=None).require_bundle()


def test_bundle_lacks_a_file(bundle: Bundle) -> None:
    bundle.require(bundle.kernel, bundle.root)
    bundle.root.unlink()
    with pytest.raises(Unavailable, match=r"host\.bundle\.incomplete") as error:
        bundle.require(bundle.kernel, bundle.root)
    assert error.value.path == str(bundle.root)
