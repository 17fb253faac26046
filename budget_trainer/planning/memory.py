"""How much memory this process has used at most, and how much is left to it; cgroup limits count. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def peak_bytes() -> float:
    """The most resident memory that this process has had, since `reset_peak` where that works."""
    if (used := _of_this_process("VmHWM")) is not None:
        return used
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def reset_peak() -> bool:
    """Let the high-water mark begin anew at what is used now; False where the system does not do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    most, used = _of_this_process("VmHWM"), _of_this_process("VmRSS")
    return most is not None and used is not None and most < used + 2**24  # some kernels take the word and do nothing


def return_freed() -> None:
    """Give back to the system what was freed and is still held by malloc (glibc's only)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _of_this_process(name: str) -> float | None:
    """A number of /proc/self/status in bytes; None where there is none."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def free_bytes(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> float:
    """What the machine can still give, or the tightest of the cgroups this process is in, whichever is less."""
    return min([_available(meminfo), *_cgroup_rooms(cgroup)])


def _available(meminfo: Path) -> float:
    try:
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # not Linux: half of what there is


def _cgroup_rooms(root: Path) -> list[float]:
    """Limit less use (but for the file cache, which goes first) of every cgroup above this process, version 2 or 1."""
    rooms = []
    for folder in _own_cgroups(root):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None and limit < 2**60:
                rooms.append(max(0.0, limit - used + _file_cache(folder)))
    return rooms


def _own_cgroups(root: Path) -> list[Path]:
    """The folders from this process's cgroup up to the root, which is all that a container sees."""
    folders = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory") and path not in ("", "/"):
            own = (root if controllers == "" else root / "memory") / path.lstrip("/")
            folders += [own, *(parent for parent in own.parents if root in parent.parents)]
    return list(dict.fromkeys(folders))


def _file_cache(folder: Path) -> float:
    try:
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return float(value)
    except (OSError, ValueError):
        pass
    return 0.0


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or "max"
        return None
