"""Real machines: QEMU and swtpm, a real kernel, what the TPM says afterwards, and every way to end.

Most boots use the kernel and firmware of the pod-VM image with a tiny initrd of its busybox, told by the command line
what to do; some boot the image itself.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Refused, Unavailable
from cloister.host.guestlink import GuestLink
from cloister.host.vmm import Accelerator, Backend, Bundle, ExitReason, Places, PortForward, RunningVM, VMSpec
from cloister.host.vmm.backends import launcher_for
from cloister.host.vmm.kvm import probe_kvm
from cloister.imagetool.podvm.cpio import write_cpio
from cloister.imagetool.podvm.tree import Tree
from cloister.oci.digest import Digest
from cloister.oci.rootimage import RootImage, build_root_image
from cloister.protocol.guestapi import FailedEvent
from cloister.protocol.initdata import build_initdata
from cloister.protocol.launch import LaunchProfile
from cloister.sdk.bundle import build_bundle, launch_files
from cloister.sdk.home import Home
from conformance.tools import cache_directory, skip_or_fail
from unit.oci.builders import archive, directory, file, hard_link, header, symlink

pytestmark = pytest.mark.vm

BOOT_SECONDS = 120.0
BOOTS = 3  # QEMU 7.2 crashes a guest kernel with several processors in one of 25 boots
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
case " $(/bin/busybox cat /proc/cmdline) " in
*" do=pcrs "*) for i in 0 2; do echo "PCR$i=$(/bin/busybox cat /sys/class/tpm/tpm0/pcr-sha256/$i)"; done ;;
*" do=devices "*) for i in /sys/bus/pci/devices/*; do echo "PCI=$(/bin/busybox cat $i/vendor $i/device)"; done
  echo "FW_CFG=$(/bin/busybox ls /sys/firmware)"; echo "CPUS=$(/bin/busybox nproc)" ;;
*" do=reset "*) /bin/busybox reboot -f ;;
*" do=panic "*) exit 1 ;;
*" do=stay "*) echo up; /bin/busybox sleep 1000 ;;
esac
/bin/busybox poweroff -f
"""
Launch = Callable[..., RunningVM]


@pytest.fixture(scope="session")
def built(require_tool: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The pod-VM image of this working tree, from the cache or built now."""
    for name in ("qemu-system-x86_64", "swtpm", "swtpm_setup"):
        require_tool(name)
    try:
        return launch_files(build_bundle(Home(root=tmp_path_factory.mktemp("home"), cache=cache_directory())))
    except Unavailable as err:
        skip_or_fail(f"no pod-VM image: {err}")


@pytest.fixture(scope="session")
def tiny(built: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same kernel and firmware with the tiny initrd, in a directory with a comma."""
    directory = tmp_path_factory.mktemp("tiny") / "a,b"
    directory.mkdir()
    tree = Tree()
    tree.add_file("bin/busybox", built.kernel.with_name("busybox").read_bytes(), 0o755)
    tree.add_file("init", INIT.encode(), 0o755)
    for name in ("proc", "sys", "dev"):
        tree.add_directory(name)
    (directory / "initrd.img").write_bytes(gzip.compress(write_cpio(tree, mtime=0)))
    (directory / "root.img").write_bytes(bytes(1 << 20))
    return replace(
        built,
        initrd=directory / "initrd.img",
        root=directory / "root.img",
        cmdline="console=ttyS0 quiet loglevel=1 panic=-1 do=pcrs",
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """One CA and pool of software TPMs for the module."""
    home = tmp_path_factory.mktemp("places")
    return Places(vtpm_ca=home / "ca", vtpm_pool=home / "pool", simulation_key=home / "key", cache=home / "cache")


@pytest.fixture
def launch(tiny: Bundle, places: Places, tmp_path: Path) -> Iterator[Launch]:
    """Return a function that launches, with changes to the spec; everything is ended after the test."""
    with contextlib.ExitStack() as running:

        def start(do: str = "pcrs", backend: Backend = Backend.SEABIOS, **changes: Any) -> RunningVM:
            bundle = changes.pop("bundle", replace(tiny, cmdline=tiny.cmdline.replace("do=pcrs", f"do={do}")))
            spec = VMSpec(
                name="test", work=tmp_path / "w,k", initdata=build_initdata({"a": "b"}).text, bundle=bundle, **changes
            )
            return running.enter_context(launcher_for(backend, places).launch(spec))

        yield start


def ended(vm: RunningVM) -> ExitReason:
    end = vm.wait(BOOT_SECONDS)
    assert end is not None, output(vm)
    return end.reason


def boot(launch: Launch, do: str = "pcrs", **changes: Any) -> RunningVM:
    """Launch and wait for the power-off, again when the kernel crashed: see `BOOTS`."""
    for _ in range(BOOTS):
        vm = launch(do, **changes)
        if ended(vm) is ExitReason.POWERED_OFF:
            break
    return vm


def output(vm: RunningVM) -> str:
    """The console without terminal codes; the firmware's last words are some, without a line end."""
    text = vm.console.read_text(errors="replace").replace("\r", "")
    return re.sub(r"\x1b(\[[0-9;?=]*[A-Za-z]|c)", "\n", text)


def said(vm: RunningVM, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", output(vm), re.MULTILINE)


def predicted(bundle: Bundle, vcpus: int, memory_mib: int) -> str:
    """PCR 0 from first principles: the text written out by hand, the arithmetic of the TCG."""

    def digest(data: bytes) -> str:
        return f'"sha256:{hashlib.sha256(data).hexdigest()}"'

    rom = bundle.option_roms["linuxboot_dma.bin"].read_bytes()
    text = (
        f'{{"cmdline":{digest(bundle.cmdline.encode())},"firmware":{digest(bundle.bios.read_bytes())}'
        f',"initrd":{digest(bundle.initrd.read_bytes())},"kernel":{digest(bundle.kernel.read_bytes())}'
        f',"machine":"q35","memory_mib":{memory_mib},"option_roms":{{"linuxboot_dma.bin":{digest(rom)}}}'
        f',"profile":"seabios","vcpus":{vcpus},"version":1}}'
    )
    register = hashlib.sha256(bytes(31) + b"\4" + hashlib.sha256(text.encode()).digest()).digest()
    return hashlib.sha256(register + hashlib.sha256(b"\xff" * 4).digest()).hexdigest()


@pytest.mark.parametrize("memory_mib", [512, 1024])
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_pcr_0_is_the_predicted_one(launch: Launch, tiny: Bundle, vcpus: int, memory_mib: int) -> None:
    vm = boot(launch, vcpus=vcpus, memory_mib=memory_mib)
    assert vm.launch is not None
    assert ended(vm) is ExitReason.POWERED_OFF
    [quoted] = said(vm, "PCR0")
    assert quoted.lower() == vm.launch.pcr0_seabios().hex() == predicted(tiny, vcpus, memory_mib)


def test_another_command_line_is_seen_in_pcr_0(launch: Launch, tiny: Bundle) -> None:
    hostile = replace(tiny, cmdline=tiny.cmdline + " init=/bin/sh do=pcrs")
    vm = launch(bundle=hostile, vcpus=1)
    assert ended(vm) is ExitReason.POWERED_OFF
    [quoted] = said(vm, "PCR0")
    assert quoted.lower() == predicted(hostile, 1, 512)
    assert quoted.lower() != predicted(tiny, 1, 512)


def test_what_the_guest_sees(launch: Launch) -> None:
    vm = boot(launch, "devices", vcpus=2)
    assert ended(vm) is ExitReason.POWERED_OFF
    assert sorted(re.findall(r"^PCI=(0x\w+)\n(0x\w+)$", output(vm), re.MULTILINE)) == [
        ("0x1af4", "0x1041"),  # network
        ("0x1af4", "0x1042"),  # block: root
        ("0x1af4", "0x1042"),  # block: init data
        ("0x1af4", "0x1043"),  # console: the two ports
        ("0x8086", "0x2918"),  # the chip set's ISA bridge
        ("0x8086", "0x29c0"),  # the chip set's host bridge
    ]
    assert said(vm, "CPUS") == ["2"]
    assert "qemu_fw_cfg" not in said(vm, "FW_CFG")[0]


@pytest.mark.parametrize(("do", "reason"), [("reset", ExitReason.GUEST_RESET), ("panic", ExitReason.KERNEL_PANIC)])
def test_ends_that_are_not_a_power_off(launch: Launch, do: str, reason: ExitReason) -> None:
    vm = launch(do, vcpus=1)
    assert ended(vm) is reason
    with pytest.raises(Unavailable, match=rf"host\.vm\.{reason.value}"):
        vm.terminate().require_clean()


def test_corrupt_root(launch: Launch, built: Bundle, tmp_path: Path) -> None:
    """A root file system that is not the one of the measured root hash ends the machine before it is used."""
    root = bytearray(built.root.read_bytes())
    for place in range(4096, len(root), 4096):
        root[place] ^= 1
    hostile = tmp_path / "root.img"
    hostile.write_bytes(root)
    vm = launch(bundle=replace(built, root=hostile), vcpus=1)
    assert ended(vm) is ExitReason.VERITY_PANIC, output(vm)
    with pytest.raises(Refused, match=r"host\.vm\.verity_panic"):
        vm.terminate().require_clean()


def root_of_container(built: Bundle, folder: Path) -> tuple[Bundle, RootImage]:
    """Return a bundle whose root is the root image of two layers: what `cloister image verity` writes."""
    busybox = built.kernel.with_name("busybox").read_bytes()
    lower = archive(
        *(directory(name) for name in (b"dev", b"proc", b"sys", b"run", b"tmp")),
        file(b"bin/busybox", busybox, mode=0o755),
        file(b"usr/lib/cloister/read-ahead", b"/bin/busybox\n"),
        file(b"sbin/init", ROOT_INIT, mode=0o755),
        file(b"data/gone", b"x"),
        file(b"data/owned", b"y" * 5000, mode=0o4640, uid=1234, gid=70_000, mtime=1_234_567_890),
        hard_link(b"data/again", b"data/owned"),
        symlink(b"data/link", b"owned"),
        header(b"data/node", kind=b"3", mode=0o600, device=(10, 70_000)),
        *(file(b"many/%03d" % number, b"%d" % number) for number in range(300)),
    )
    layers = [lower, archive(file(b"data/.wh.gone"), file(b"data/\xff odd", b"z"))]
    with (folder / "root.img").open("w+b") as out:
        made = build_root_image([[layer] for layer in layers], [Digest.of(layer) for layer in layers], out, str(folder))
    verity = f"{made.data_blocks}:{made.root_hash.hex()}:{made.salt.hex()}"
    cmdline = re.sub(r"cloister\.verity=\S+", f"cloister.verity={verity}", built.cmdline)
    return replace(built, root=folder / "root.img", cmdline=cmdline), made


ROOT_INIT = b"""#!/bin/busybox sh
exec > /dev/ttyS0 2>&1
cd /data
for i in *; do [ "$i" = link ] || echo "SEEN=$(/bin/busybox stat -c '%n %f %u %g %h %s %Y %t %T' "$i")"; done
echo "SEEN=link $(/bin/busybox readlink link)"
echo "SUM=$(/bin/busybox sha256sum < owned)"
echo "MANY=$(/bin/busybox cat /many/* | /bin/busybox sha256sum)"
echo "FROM=$(/bin/busybox grep ' / ' /proc/mounts)"
/bin/busybox poweroff -f
"""


def test_kernel_mounts_a_root_image_through_dm_verity(launch: Launch, built: Bundle, tmp_path: Path) -> None:
    bundle, _ = root_of_container(built, tmp_path)
    vm = boot(launch, bundle=bundle, vcpus=1)
    assert said(vm, "SEEN") == [
        "again 89a0 1234 70000 2 5000 1234567890 0 0",
        "node 2180 0 0 1 0 1700000000 a 11170",
        "owned 89a0 1234 70000 2 5000 1234567890 0 0",
        *[line for line in said(vm, "SEEN") if line.endswith(" odd 81a4 0 0 1 1 1700000000 0 0")],
        "link owned",
    ]
    assert len(said(vm, "SEEN")) == 5
    assert said(vm, "SUM") == [f"{hashlib.sha256(b'y' * 5000).hexdigest()}  -"]
    many = b"".join(b"%d" % number for number in range(300))
    assert said(vm, "MANY") == [f"{hashlib.sha256(many).hexdigest()}  -"]
    assert any(line.startswith("/dev/dm-0 / erofs ro") for line in said(vm, "FROM"))


def test_kernel_refuses_a_root_image_of_another_hash(launch: Launch, built: Bundle, tmp_path: Path) -> None:
    bundle, made = root_of_container(built, tmp_path)
    image = bytearray(bundle.root.read_bytes())
    for place in range(0, made.hash_offset, 4096):
        image[place + 2000] ^= 1
    bundle.root.write_bytes(image)
    vm = launch(bundle=bundle, vcpus=1)
    assert ended(vm) is ExitReason.VERITY_PANIC, output(vm)


@pytest.mark.parametrize("backend", [Backend.SEABIOS, Backend.OVMF])
def test_the_image_says_hello(launch: Launch, built: Bundle, backend: Backend) -> None:
    vm = launch(backend=backend, bundle=built, vcpus=1)
    assert vm.launch is not None
    assert vm.launch.profile is (LaunchProfile.UKI if backend is Backend.OVMF else LaunchProfile.SEABIOS)
    with GuestLink(vm.control, vm.streams) as link:
        assert link.hello(BOOT_SECONDS).platform == "tpm"
        failed = [event for event in link.events() if isinstance(event, FailedEvent)]
    assert [event.error["code"] for event in failed] == ["protocol.initdata.missing_entry"]
    assert ended(vm) is ExitReason.POWERED_OFF
    assert not (vm.console.parent / "ovmf-vars.fd").exists()
    assert not (vm.console.parent / "initdata.img").exists()


def up(vm: RunningVM) -> None:
    """Wait until the tiny guest stays; the console log is written as it comes."""
    for _ in range(int(BOOT_SECONDS * 10)):
        if "up" in output(vm).split():
            return
        assert vm.wait(0.1) is None, output(vm)
    raise AssertionError("the guest did not come up")


def test_two_pods_have_two_tpms(launch: Launch, places: Places) -> None:
    first, second = launch("stay", vcpus=1), launch("stay", vcpus=1)
    states = {Path(f"/proc/{vm.pids['swtpm']}/cwd").resolve() for vm in (first, second)}
    assert states == set(places.vtpm_pool.glob("used-*"))
    assert len(states) == 2
    first.terminate()
    second.terminate()
    assert not any(state.exists() for state in states)


@pytest.mark.parametrize(("victim", "reason"), [("qemu", ExitReason.QEMU_DIED), ("swtpm", ExitReason.SWTPM_DIED)])
def test_sudden_death(launch: Launch, places: Places, victim: str, reason: ExitReason) -> None:
    vm = launch("stay", vcpus=1)
    up(vm)
    descriptors = [os.pidfd_open(pid) for pid in vm.pids.values()]
    os.kill(vm.pids[victim], signal.SIGKILL)
    assert ended(vm) is reason
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)
    assert not list(places.vtpm_pool.glob("used-*"))


LAUNCHER = """
import sys
from pathlib import Path
from cloister.host.vmm import Backend, Bundle, Places, VMSpec, launcher_for
from cloister.protocol.initdata import build_initdata
import pickle
bundle, places, work = pickle.loads(bytes.fromhex(sys.stdin.readline()))
launcher = launcher_for(Backend.SEABIOS, places)
vm = launcher.launch(VMSpec(name="x", work=work, initdata=build_initdata({"a": "b"}).text, bundle=bundle, vcpus=1))
print(*vm.pids.values(), flush=True)
sys.stdin.read()
"""


def test_launcher_is_killed(tiny: Bundle, places: Places, tmp_path: Path) -> None:
    import pickle

    bundle = replace(tiny, cmdline=tiny.cmdline.replace("do=pcrs", "do=stay"))
    request = pickle.dumps((bundle, places, tmp_path / "work")).hex().encode() + b"\n"
    process: Any = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(request)
    process.stdin.flush()
    descriptors = [os.pidfd_open(int(word)) for word in process.stdout.readline().split()]
    assert len(descriptors) == 2
    process.kill()
    process.communicate()
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 10)[0], "a process outlives its launcher"
        os.close(descriptor)
    assert len(list(places.vtpm_pool.glob("used-*"))) == 1  # nobody was left to wipe it
    places.pool().take().wipe()  # the next launch does
    assert not list(places.vtpm_pool.glob("used-*"))


def test_port_that_is_taken(launch: Launch, places: Places) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = PortForward(host_ip="127.0.0.1", host_port=listener.getsockname()[1], guest_port=80)
        with pytest.raises(Unavailable, match=r"host\.port\.taken") as error:
            launch(ports=(port,))
    assert error.value.hint == "choose another port"
    assert not list(places.vtpm_pool.glob("used-*"))


def test_firmware_that_is_none(launch: Launch, tiny: Bundle, places: Places, tmp_path: Path) -> None:
    broken = tmp_path / "bios.bin"
    broken.write_bytes(b"no firmware")
    with pytest.raises(Unavailable, match=r"host\.vm\.qemu_died.*bios"):
        launch(bundle=replace(tiny, bios=broken))
    assert not list(places.vtpm_pool.glob("used-*"))


def test_init_data_that_is_none(tiny: Bundle, places: Places, tmp_path: Path) -> None:
    spec = VMSpec(name="x", work=tmp_path / "work", initdata=b"[", bundle=tiny)
    with pytest.raises(Refused, match=r"protocol\.initdata"):
        launcher_for(Backend.SEABIOS, places).launch(spec)
    assert not list(places.vtpm_pool.glob("used-*"))


def test_probe_guests_run_where_a_guest_can_run(tiny: Bundle, tmp_path: Path) -> None:
    """Under TCG both guests of the probe run: so a failure under KVM is KVM's."""
    qemu = tmp_path / "qemu"
    qemu.write_text('#!/bin/sh\nshift 2\nexec qemu-system-x86_64 -accel tcg "$@"\n')
    qemu.chmod(0o755)
    device = tmp_path / "kvm"
    device.touch()
    from cloister.host.vmm import kvm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvm, "KERNEL_SECONDS", BOOT_SECONDS)
        patch.setattr(kvm, "SECTOR_SECONDS", BOOT_SECONDS)
        verdict = probe_kvm(tiny, tmp_path / "cache", qemu=qemu, device=device)
    assert verdict.works, verdict.why


def test_verdict_on_kvm_is_the_choice(tiny: Bundle, tmp_path: Path, launch: Launch) -> None:
    verdict = probe_kvm(tiny, tmp_path / "cache")
    vm = launch("pcrs", vcpus=1, accelerator=Accelerator.AUTO)
    assert ("kvm" in vm.command) is verdict.works
    assert ended(vm) is ExitReason.POWERED_OFF
