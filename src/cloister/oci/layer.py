"""Applies layer archives to a directory tree (OCI image specification 1.1, layer.md), hostile archives included.

Every write goes through `cloister.oci.rootfs`, so no name, link or whiteout reaches outside the tree. What the
specification forbids or readers see differently is refused: duplicate entries, whiteouts that are no plain empty
files or come after what their own layer made at that path (the specification spares it, containerd removes it),
entries below a path the same layer made a file. Devices are refused unless the caller says otherwise, and attributes
that an overlay over the tree would obey always.

Ownership: uid, gid, set-id bits and file capabilities are applied where `ownership` is true, which needs root. Where
it is not (the simulated level runs as a normal user), files belong to the caller, directories stay writable for it,
and attributes that the kernel reserves for root are left out.

With a record of attributes nothing of all this touches the tree: a device is an empty file there, and what it is stands
in the record.

Hard links take the metadata of their target; the header's own copy is ignored, as GNU tar does. Does not check
digests: `cloister.oci.unpack` feeds it authenticated bytes and checks them to the end. Trusts nobody.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final, NoReturn

import msgspec

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.attributes import AttributeRecord, Attributes
from cloister.oci.rootfs import CREATE_FILE, OPEN_DIRECTORY, Directory, RootDirectory, split_path
from cloister.oci.tar import EntryKind, TarEntry, TarReader
from cloister.wire.limits import LAYER_ENTRIES, LAYER_NAME_BYTES, LAYER_UNPACKED_BYTES, MIB

_ARCHIVE_OVERHEAD_BYTES: Final = 256 * MIB  # 1 KiB for each of 250 000 entries
_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_OWNER_ALL: Final = 0o700
# Applied where the kernel lets us. Others of `security.` are labels of the machine that built the image and mean
# nothing here.
_CAPABILITY: Final = "security.capability"
_XATTR_APPLIED: Final = ("user.", _CAPABILITY, "system.posix_acl_access", "system.posix_acl_default")
_XATTR_IGNORED: Final = ("security.",)
_ACL: Final = "system.posix_acl_"
_ACL_VERSION: Final = b"\2\0\0\0"  # linux/posix_acl_xattr.h; entries of eight bytes follow
_ACL_ENTRY_BYTES: Final = 8
# An overlay mounted over this tree would hide or redirect names by these; so would one of `trusted.`.
_XATTR_OVERLAY: Final = ("user.overlay.", "user.fuseoverlayfs.")
_NOT_OURS_TO_SET: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP})
_BAD_ATTRIBUTE: Final = frozenset({errno.EINVAL, errno.ERANGE, errno.E2BIG, errno.ENOSPC})
_OVERLAY_WHITEOUT: Final = (0, 0)  # a character device with these numbers hides a name in an overlay
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BAD_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.EILSEQ})


class DeviceNodes(enum.Enum):
    """What to do with a device node in a layer.

    A container runtime mounts its own `/dev`, so nodes below it are never seen and may be left out.
    """

    REFUSE = "refuse"
    SKIP_BELOW_DEV = "skip below dev"  # and refuse elsewhere
    CREATE = "create"


class UnpackOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Choices of the caller.

    Attributes:
        ownership: apply owners and what else needs root.
        devices: what to do with device nodes.
        bytes_ceiling: most bytes in the files of all layers together.
        entries_ceiling: most entries in all layers together.
    """

    ownership: bool
    devices: DeviceNodes
    bytes_ceiling: int = LAYER_UNPACKED_BYTES
    entries_ceiling: int = LAYER_ENTRIES

    @property
    def archive_ceiling(self) -> int:
        """Most bytes of one plain archive: the files, and a generous share for headers and padding."""
        return self.bytes_ceiling + _ARCHIVE_OVERHEAD_BYTES


class LayerUnpacker:
    """Applies layers, lowest first, to `root`. After any error the tree is unusable: remove it.

    Args:
        root: the tree, empty before the first layer.
        options: the caller's choices.
        record: takes the attributes of everything instead of the file system.
    """

    def __init__(self, root: RootDirectory, options: UnpackOptions, record: AttributeRecord | None = None) -> None:
        self._root = root
        self._record = record
        self._options = options
        self._bytes_left = options.bytes_ceiling
        self._entries_left = options.entries_ceiling
        self._entries: dict[bytes, EntryKind] = {}
        self._kept: set[bytes] = set()
        self._name_bytes_left = LAYER_NAME_BYTES
        self._directory_times: dict[bytes, int] = {}

    def apply(self, chunks: Iterable[bytes]) -> None:
        """Apply one layer, given as the bytes of its plain archive.

        Raises:
            ImageRefused: `oci.layer.*`, for the archive.
            Unavailable: `oci.layer.no_space`, `oci.layer.write_failed`.
        """
        self._entries.clear()
        self._kept.clear()
        self._directory_times.clear()
        self._name_bytes_left = LAYER_NAME_BYTES
        reader = TarReader(chunks)
        place = ""
        try:
            for entry in reader.entries():
                place = entry.place
                self._count(entry)
                self._apply_entry(entry, reader)
            self._set_directory_times()
        except OSError as err:
            _refuse_os_error(err, place)
        finally:
            self._root.forget()

    # -- one entry -------------------------------------------------------------------------------------------

    def _count(self, entry: TarEntry) -> None:
        self._entries_left -= 1
        self._bytes_left -= entry.size
        if self._entries_left < 0:
            _refuse(
                "too_many_entries", "layers hold too many files", entry, expected=str(self._options.entries_ceiling)
            )
        if self._bytes_left < 0:
            _refuse("too_large", "layers unpack to too many bytes", entry, expected=str(self._options.bytes_ceiling))

    def _apply_entry(self, entry: TarEntry, reader: TarReader) -> None:
        names = split_path(entry.path)
        if not names:
            if entry.kind is not EntryKind.DIRECTORY:
                _refuse("path_escape", "the root of the image is not a directory", entry)
            _require_xattrs(entry)
            self._clear_xattrs(self._root.top.fd)
            self._finish_directory(os.dup(self._root.top.fd), b"", entry)
            return
        name = names.pop()
        _require_plain_end(entry.path, entry)
        if entry.xattrs:
            _require_xattrs(entry)
        if any(part.startswith(_WHITEOUT) for part in names):
            _refuse("bad_whiteout", "a whiteout is used as a directory", entry)
        if name.startswith(_WHITEOUT):
            self._apply_whiteout(names, name, entry)
            return
        if self._is_skipped_device(names, entry):
            return
        parent = self._root.find(names, create=True)
        if parent is None:
            raise RuntimeError("a directory that was to be made is missing")
        path = parent.join(name)
        self._note(path, parent.path, entry)
        self._keep_time(parent)
        if entry.kind is EntryKind.DIRECTORY:
            self._make_directory(parent, name, path, entry)
        elif entry.kind is EntryKind.FILE:
            self._make_file(parent, name, path, entry, reader)
        else:
            self._make_node(parent, name, path, entry)

    def _note(self, path: bytes, parent: bytes, entry: TarEntry) -> None:
        """Remember what this layer made: duplicates are refused, whiteouts spare it."""
        before = self._entries.get(path)
        # To be there twice is a habit of builders; which of two times then counts is seen differently.
        again = before is entry.kind is EntryKind.DIRECTORY and self._directory_times.get(path) == entry.mtime_ns
        if (before is not None and not again) or (path in self._kept and entry.kind is not EntryKind.DIRECTORY):
            _refuse("duplicate_entry", "layer has a path twice", entry)
        self._entries[path] = entry.kind
        self._kept.add(path)
        self._name_bytes_left -= len(path)
        while parent not in self._kept:
            self._kept.add(parent)
            self._name_bytes_left -= len(parent)
            parent = parent.rpartition(b"/")[0]
        if self._name_bytes_left < 0:
            _refuse("too_many_entries", "names of a layer are too long together", entry, expected=str(LAYER_NAME_BYTES))

    def _make_directory(self, parent: Directory, name: bytes, path: bytes, entry: TarEntry) -> None:
        there = False
        try:
            os.mkdir(name, _OWNER_ALL, dir_fd=parent.fd)
        except FileExistsError:
            there = stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode)
            if not there:
                self._replace(parent, name)
                os.mkdir(name, _OWNER_ALL, dir_fd=parent.fd)
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd)
        if there:
            self._clear_xattrs(fd)
        self._finish_directory(fd, path, entry)

    def _finish_directory(self, fd: int, path: bytes, entry: TarEntry) -> None:
        try:
            self._set_metadata(fd, entry)
        finally:
            os.close(fd)
        self._directory_times[path] = entry.mtime_ns

    def _make_file(self, parent: Directory, name: bytes, path: bytes, entry: TarEntry, reader: TarReader) -> None:
        try:
            fd = os.open(name, CREATE_FILE, 0o600, dir_fd=parent.fd)
        except FileExistsError:
            self._replace(parent, name)
            fd = os.open(name, CREATE_FILE, 0o600, dir_fd=parent.fd)
        try:
            for piece in reader.data():
                _write_all(fd, piece)
            self._set_metadata(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _make_node(self, parent: Directory, name: bytes, path: bytes, entry: TarEntry) -> None:
        try:
            self._create_node(parent, name, path, entry)
        except FileExistsError:
            self._replace(parent, name)
            self._create_node(parent, name, path, entry)
        if entry.kind is EntryKind.HARD_LINK:
            return
        if self._record is not None:
            self._record.made(os.lstat(name, dir_fd=parent.fd).st_ino, _attributes(entry))
            return
        if self._options.ownership:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        if entry.kind is not EntryKind.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent.fd)  # just made by us, so not a link
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent.fd, follow_symlinks=False)

    def _create_node(self, parent: Directory, name: bytes, path: bytes, entry: TarEntry) -> None:
        if entry.kind is EntryKind.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent.fd)
        elif entry.kind is EntryKind.HARD_LINK:
            self._make_hard_link(parent, name, path, entry)
        elif entry.kind is EntryKind.FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent.fd)
        else:
            if self._options.devices is not DeviceNodes.CREATE or _is_overlay_whiteout(entry):
                _refuse("device", "layer holds a device node", entry, hint="build the image without device nodes")
            if self._record is not None:
                os.close(os.open(name, CREATE_FILE, 0o600, dir_fd=parent.fd))
                return
            kind = stat.S_IFCHR if entry.kind is EntryKind.CHARACTER_DEVICE else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=parent.fd)

    def _make_hard_link(self, parent: Directory, name: bytes, path: bytes, entry: TarEntry) -> None:
        _require_plain_end(entry.link, entry)
        target = split_path(entry.link)
        directory = self._root.find(target[:-1], create=False) if target else None
        if directory is None or directory.join(target[-1]) == path:
            _refuse("link_target", "hard link to nothing", entry)
        try:
            os.link(target[-1], name, src_dir_fd=directory.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as err:  # PermissionError: to a directory
            raise ImageRefused(
                "oci.layer.link_target", "hard link to nothing, or to a directory", path=entry.place
            ) from err

    def _is_skipped_device(self, parents: list[bytes], entry: TarEntry) -> bool:
        return (
            entry.kind in (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)
            and self._options.devices is DeviceNodes.SKIP_BELOW_DEV
            and parents[:1] == [b"dev"]
            and not _is_overlay_whiteout(entry)
        )

    # -- metadata --------------------------------------------------------------------------------------------

    def _set_metadata(self, fd: int, entry: TarEntry) -> None:
        if self._record is not None:
            self._record.made(os.fstat(fd).st_ino, _attributes(entry))
            return
        mode = entry.mode
        if self._options.ownership:
            os.fchown(fd, entry.uid, entry.gid)  # before the mode: chown clears set-id bits and capabilities
        else:
            mode &= ~_SET_ID
            if entry.kind is EntryKind.DIRECTORY:
                mode |= _OWNER_ALL
        os.fchmod(fd, mode)
        if entry.xattrs:
            self._set_xattrs(fd, entry.xattrs, entry)

    def _set_xattrs(self, fd: int, xattrs: Mapping[str, bytes], entry: TarEntry) -> None:
        for name, value in xattrs.items():
            if not name.startswith(_XATTR_APPLIED) or (name == _CAPABILITY and not self._options.ownership):
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as err:
                if err.errno in _BAD_ATTRIBUTE:
                    raise ImageRefused(
                        "oci.layer.xattr",
                        "extended attribute is malformed, or too large for the file system",
                        path=entry.place,
                        actual=name[:80],
                    ) from err
                if self._options.ownership or err.errno not in _NOT_OURS_TO_SET:
                    raise

    @staticmethod
    def _clear_xattrs(fd: int) -> None:
        """A directory of this layer has the attributes it has here, not those of a lower layer."""
        for name in os.listxattr(fd):
            if name.startswith(_XATTR_APPLIED):
                os.removexattr(fd, name)

    def _keep_time(self, directory: Directory) -> None:
        """Remember when a directory was changed, before this layer changes what is in it.

        So the tree depends on the layers only, never on when it was unpacked.
        """
        if directory.path not in self._directory_times:
            self._directory_times[directory.path] = os.fstat(directory.fd).st_mtime_ns

    def _set_directory_times(self) -> None:
        for path, mtime_ns in self._directory_times.items():
            directory = self._root.find(path.split(b"/") if path else [], create=False)
            if directory is not None:
                os.utime(directory.fd, ns=(mtime_ns, mtime_ns))

    # -- removal ---------------------------------------------------------------------------------------------

    def _apply_whiteout(self, parents: list[bytes], name: bytes, entry: TarEntry) -> None:
        hidden = name.removeprefix(_WHITEOUT)
        if entry.kind is not EntryKind.FILE or entry.size:
            _refuse("bad_whiteout", "a whiteout is not an empty file", entry)
        if name != _OPAQUE and (hidden in (b"", b".", b"..") or hidden.startswith(_WHITEOUT)):
            _refuse("bad_whiteout", "a whiteout hides no name", entry)
        directory = self._root.find(parents, create=False)
        if directory is None:
            return  # nothing below to hide
        if name != _OPAQUE and directory.join(hidden) in self._kept:
            _refuse("bad_whiteout", "a whiteout hides what its own layer made", entry)
        self._keep_time(directory)
        if name == _OPAQUE:
            self._remove_content(directory, spare=True)
        elif _exists(directory, hidden):
            self._remove(directory, hidden, spare=False)
        self._root.forget()  # a remembered path may have led through it

    def _replace(self, parent: Directory, name: bytes) -> None:
        """Make room for an entry of this layer; that nothing of this layer is in the way was checked before."""
        self._remove(parent, name, spare=False)
        self._root.forget(keep=parent)

    def _remove(self, directory: Directory, name: bytes, *, spare: bool) -> None:
        """Remove what is at `name`, however deep; with `spare`, only what lower layers left there."""
        path = directory.join(name)
        try:
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=directory.fd)
        except OSError as err:
            if err.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            if not (spare and path in self._entries):
                self._forget(os.lstat(name, dir_fd=directory.fd))
                os.unlink(name, dir_fd=directory.fd)
            return
        spared = spare and path in self._kept
        try:
            if spared:
                self._keep_time(Directory(fd, path))
            self._remove_content(Directory(fd, path), spare=spare)
            if not spared:
                self._forget(os.fstat(fd))
        finally:
            os.close(fd)
        if not spared:
            os.rmdir(name, dir_fd=directory.fd)
            self._directory_times.pop(path, None)

    def _forget(self, inode: os.stat_result) -> None:
        """Drop the attributes of what is about to be removed; a file with another name stays."""
        if self._record is not None and (stat.S_ISDIR(inode.st_mode) or inode.st_nlink == 1):
            self._record.removed(inode.st_ino)

    def _remove_content(self, directory: Directory, *, spare: bool) -> None:
        with os.scandir(directory.fd) as content:
            names = [os.fsencode(item.name) for item in content]
        for name in names:
            self._remove(directory, name, spare=spare)


def _attributes(entry: TarEntry) -> Attributes:
    """Return what `_set_metadata` would have set, had it been root's to do so."""
    return Attributes(
        kind=entry.kind,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        device=entry.device,
        xattrs={name: value for name, value in entry.xattrs.items() if name.startswith(_XATTR_APPLIED)},
    )


def _exists(directory: Directory, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=directory.fd)
    except FileNotFoundError:
        return False
    return True


def _is_overlay_whiteout(entry: TarEntry) -> bool:
    return entry.kind is EntryKind.CHARACTER_DEVICE and entry.device == _OVERLAY_WHITEOUT


def _require_plain_end(path: bytes, entry: TarEntry) -> None:
    """`f/` and `f/.` are `f` to some readers and nothing to others, unless `f` is a directory."""
    if entry.kind is not EntryKind.DIRECTORY and path.rpartition(b"/")[2] in (b"", b"."):
        _refuse("ambiguous_header", "name of something that is no directory ends as a directory's", entry)


def _require_xattrs(entry: TarEntry) -> None:
    """Refuse attributes that an image may not set, on whatever; a hard link's own are left out."""
    for name, value in entry.xattrs.items():
        if not name.startswith(_XATTR_APPLIED):
            allowed = name.startswith(_XATTR_IGNORED)
        elif name == _CAPABILITY:
            allowed = bool(value) and entry.kind in (EntryKind.FILE, EntryKind.HARD_LINK)
        elif name.startswith(_ACL):
            allowed = value.startswith(_ACL_VERSION) and len(value) % _ACL_ENTRY_BYTES == len(_ACL_VERSION)
        else:
            kinds = (EntryKind.FILE, EntryKind.HARD_LINK, EntryKind.DIRECTORY)
            allowed = entry.kind in kinds and not name.startswith(_XATTR_OVERLAY)
        if not allowed:
            _refuse("xattr", "extended attribute is not one an image may set here", entry, actual=name[:80])


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _refuse(reason: str, message: str, entry: TarEntry, **details: str) -> NoReturn:
    raise ImageRefused(f"oci.layer.{reason}", message, path=entry.place, **details)


def _refuse_os_error(err: OSError, place: str) -> NoReturn:
    name = errno.errorcode.get(err.errno or 0, "unknown")
    if err.errno in _BAD_NAME:
        raise ImageRefused(
            "oci.layer.bad_name", "file system does not take this name", path=place, actual=name
        ) from err
    if err.errno == errno.EMLINK:
        raise ImageRefused(
            "oci.layer.too_many_links", "file system does not take so many names of one file", path=place
        ) from err
    if err.errno in _NO_SPACE:
        raise Unavailable(
            "oci.layer.no_space", "no space left for the image", path=place, hint="give the pod more scratch space"
        ) from err
    raise Unavailable("oci.layer.write_failed", "file system refused a write", path=place, actual=name) from err
