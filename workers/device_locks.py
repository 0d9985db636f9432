"""Which worker of this node holds how much of which GPU: one small locked file for each worker that holds any.

A worker's file says what it holds, and counts only while the worker keeps its `flock`, which the kernel drops when
the process ends, however it ends: nothing has to be cleaned up after a SIGKILL. Files are read and made under one
more lock, the gate, so that several devices are taken at once or not at all and two waiters cannot block each
other. The locks stay with the worker: its files are closed in every process that it starts or forks.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from common.errors import SettingsInvalid

#: Not in $TMPDIR or $XDG_RUNTIME_DIR: workers of one user may differ in them, and must meet here.
OWN_FOLDER = f"/tmp/jarvis-{os.getuid()}"
GATE = "gate"
LOADING = "loading-"
SUFFIX = ".hold"
ROUNDING = 1e-9  # 0.1 + 0.2 + 0.7 fits one card


class Holder(msgspec.Struct, frozen=True):
    """A live worker, the devices that it holds and the share of each of them."""

    pid: int
    queue: str
    devices: tuple[int, ...]
    share: float

    def __str__(self) -> str:
        return f"{self.queue} pid {self.pid} ({self.share:g})"


def fits(held: float, share: float) -> bool:
    """Whether a device of which `held` is taken has `share` left."""
    return held + share <= 1 + ROUNDING


class GateBusy(Exception):
    """Another worker is choosing, or loading, at this moment."""


class Hold:
    """Devices held by this process, until `release` or its end."""

    def __init__(self, path: Path, descriptor: int, holder: Holder) -> None:
        self.holder = holder
        self._path = path
        self._descriptor: int | None = descriptor
        _open.add(descriptor)

    @property
    def devices(self) -> tuple[int, ...]:
        """Their indices."""
        return self.holder.devices

    def release(self) -> None:
        """Let them go; does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._path.unlink(missing_ok=True)
            _open.discard(descriptor)
            os.close(descriptor)


class DeviceLocks:
    """The lock folder of a node."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use `folder`, or this user's own; raises SettingsInvalid when it cannot be used."""
        self.folder = _own_folder() if folder is None else _given_folder(folder)

    def take(self, among: Sequence[int], count: int, share: float, queue: str) -> Hold | list[Holder]:
        """Hold `share` of `count` of these devices, those with the most left; else who holds what.

        Raises GateBusy when it must be asked again in a moment.
        """
        with self._locked(GATE):
            left = dict.fromkeys(among, 1.0)
            holders = self._holders()
            for holder in holders:
                for device in holder.devices:
                    if device in left:
                        left[device] -= holder.share
            free = [device for device in among if fits(1 - left[device], share)]
            if len(free) < count:
                return holders
            chosen = sorted(free, key=lambda device: -round(left[device], 6))[:count]
            return self._hold(Holder(os.getpid(), queue, tuple(sorted(chosen)), share))

    @contextmanager
    def loading(self, device: int) -> Iterator[None]:
        """While inside, nobody else loads a model on this device; raises GateBusy while somebody does."""
        with self._locked(f"{LOADING}{device}"):
            yield

    def holders(self) -> list[Holder]:
        """Every live worker that holds a device; raises GateBusy when it must be asked again in a moment."""
        with self._locked(GATE):
            return self._holders()

    def _holders(self) -> list[Holder]:
        return [holder for path in sorted(self.folder.glob(f"*{SUFFIX}")) if (holder := _holder(path)) is not None]

    def _hold(self, holder: Holder) -> Hold:
        path = self.folder / f"{holder.pid}-{secrets.token_hex(4)}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, msgspec.json.encode(holder))
        return Hold(path, descriptor, holder)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CREAT, 0o644)
        _open.add(descriptor)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GateBusy from None
            yield
        finally:
            _open.discard(descriptor)
            os.close(descriptor)


def _holder(path: Path) -> Holder | None:
    """Who holds by this file; None when nobody does any more, and then the file goes."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None  # released since the folder was listed
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return msgspec.json.decode(os.read(descriptor, 4096), type=Holder)
    else:
        with suppress(PermissionError):  # another user's, in a folder that several share
            path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)


def _own_folder() -> Path:
    folder = Path(OWN_FOLDER)
    _make(folder)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise SettingsInvalid(f"{folder} is not this user's alone (mode 0700); set JARVIS_DEVICE_LOCK_DIR to another")
    return folder


def _given_folder(folder: Path) -> Path:
    _make(folder)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise SettingsInvalid(f"JARVIS_DEVICE_LOCK_DIR is {folder}: this user may not write there")
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsInvalid(f"JARVIS_DEVICE_LOCK_DIR: {folder} cannot be made: {error.strerror}") from None


#: Descriptors that carry a lock. exec closes them by itself; a fork must not carry a dead worker's lock on.
_open: set[int] = set()


def _forget() -> None:
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_forget)
