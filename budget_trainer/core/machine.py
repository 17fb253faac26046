"""What not every system has: the cores a process may use, its resident memory, glibc's malloc, room that a disk keeps.

Linux has all of it. Each function says what it does elsewhere: on macOS, with another C library, without /proc.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

# A file system without room to keep (network disks, FUSE) answers posix_fallocate so.
_KEEPS_NO_ROOM = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS})


# ---- cores ----


def usable_cores() -> list[int]:
    """The cores that this process may run on, rising; none where the system cannot say, as macOS."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """What is started in the block runs on this core; on any, where it is None or the system pins nothing."""
    allowed = usable_cores()
    if core is None or not allowed:
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def cpu_name() -> str:
    """The model of the CPU; without /proc what `platform` knows, which may be no more than the architecture."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*: *(.+)$", text, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


# ---- memory ----


def resident_peak() -> int:
    """The most bytes of this process in memory so far, or since `reset_resident_peak` where that works."""
    with suppress(OSError, StopIteration):  # psutil knows no high-water mark here, and getrusage's is not reset
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def reset_resident_peak() -> bool:
    """Let the high-water mark begin anew at what is used now; False where the system does not do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return resident_peak() < psutil.Process().memory_info().rss + 2**24  # some kernels take the word and do nothing


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this process can still have: of the machine, or of the tightest of its cgroups, whichever is less."""
    return min([float(psutil.virtual_memory().available), *_cgroup_rooms(cgroup)])


def _cgroup_rooms(root: Path) -> list[float]:
    """Limit less use (but for the file cache, which goes first) of every cgroup above this process, version 2 or 1."""
    folders = [root, root / "memory"]  # all that a container sees
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                own = (root if controllers == "" else root / "memory") / path.lstrip("/")
                folders += [folder for folder in (own, *own.parents) if root in folder.parents]
    rooms = []
    for folder in folders:
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError):  # not there, or "max"
                room = float((folder / limit).read_text()) - float((folder / used).read_text())
                stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
                rooms.append(max(0.0, room + float(stat.get("total_inactive_file", stat.get("inactive_file", 0)))))
    return rooms


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; return whether it does. Another C library, or the user's own settings, stay.

    glibc gives every large block back to the kernel when a tensor dies, and the next step pays for zeroed pages anew: on
    two cores that was 10 % of a step of a model 256 wide. Blocks then come from one heap that only grows.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # malloc.h's M_MMAP_MAX and M_TRIM_THRESHOLD: no mapping of its own for a large block, and never back to the kernel.
    return bool(mallopt(-4, 0)) and bool(mallopt(-1, -1))


def return_freed_memory() -> None:
    """Let glibc give back what was freed; another C library decides for itself."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


# ---- disks ----


def allocate(file: IO[bytes], size: int) -> None:
    """Make `file` take `size` bytes of its disk, without writing them; OSError (ENOSPC) where there is no such room.

    Where the system (macOS) or the file system keeps no room, the file stays as it is: only what is free now is asked.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _KEEPS_NO_ROOM:
                raise
    disk = shutil.disk_usage(file.fileno())
    if disk.total and disk.free < size:  # some file systems do not say
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
