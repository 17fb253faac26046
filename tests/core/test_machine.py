"""What Linux has, where it is, and what is done where it was taken away."""

import ctypes
import errno
import mmap
import os
import platform
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from budget_trainer.core import machine
from budget_trainer.core.errors import RunError
from budget_trainer.reporting.report import environment
from budget_trainer.training.run_folder import RunFolder


@pytest.fixture
def without_proc(monkeypatch):
    """A system without /proc: what is asked of it is not there."""

    def hidden(method):
        def call(self, *args, **kwargs):
            if self.is_relative_to("/proc"):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
            return method(self, *args, **kwargs)

        return call

    for name in ("read_text", "write_text"):
        monkeypatch.setattr(Path, name, hidden(getattr(Path, name)))


# ---- cores ----


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins nothing")
def test_a_process_is_pinned_for_a_while():
    before = machine.usable_cores()
    assert before == sorted(os.sched_getaffinity(0)) and before
    with pytest.raises(RuntimeError), machine.pinned(before[-1]):
        assert machine.usable_cores() == before[-1:]
        raise RuntimeError
    assert machine.usable_cores() == before
    with machine.pinned(None):
        assert machine.usable_cores() == before


def test_without_affinity_nothing_is_pinned_and_the_report_has_the_cores_of_the_machine(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    assert machine.usable_cores() == []
    with machine.pinned(0):
        pass
    assert environment()["hardware"]["cores"] == os.cpu_count()


def test_without_proc_the_cpu_has_the_name_that_python_knows(without_proc):
    assert machine.cpu_name() == (platform.processor() or platform.machine())


# ---- memory ----


def test_the_high_water_mark_begins_anew():
    def peak_with(size):  # not malloc's: a test of this process may have told it to keep what is freed
        with mmap.mmap(-1, size) as block:
            for page in range(0, size, mmap.PAGESIZE):
                block[page] = 1
            return machine.resident_peak()

    with_it = peak_with(2**28)
    if not machine.reset_resident_peak():
        pytest.skip("this system does not reset it")
    before = machine.resident_peak()
    assert before < with_it - 2**27 and 0.8 * 2**27 < peak_with(2**27) - before < 1.2 * 2**27


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_without_proc_the_peak_is_that_of_getrusage_and_is_not_reset(without_proc, monkeypatch, system):
    """Which counts KiB on Linux and bytes on macOS."""
    used = SimpleNamespace(ru_maxrss=3 * 2**20)
    monkeypatch.setattr("resource.getrusage", lambda who: used)
    monkeypatch.setattr("sys.platform", system)
    assert machine.resident_peak() == 3 * 2**20 * (1024 if system == "linux" else 1)
    assert not machine.reset_resident_peak()


def test_free_memory_heeds_the_cgroup(tmp_path):
    none = machine.free_memory(tmp_path / "none")
    assert 2**20 < none < 2**50
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert machine.free_memory(tmp_path) == pytest.approx(600_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory(tmp_path) == pytest.approx(none, rel=0.5)


def test_without_proc_free_memory_is_the_machines(without_proc, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12345))
    assert machine.free_memory(tmp_path) == 12345


@pytest.mark.parametrize("library", [SimpleNamespace(), OSError("no library"), TypeError("None is no library here")])
def test_another_c_library_handles_freed_memory_itself(monkeypatch, library):
    def load(name):
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    assert machine.keep_freed_memory() is False
    machine.return_freed_memory()


def test_the_users_own_settings_of_malloc_stay(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked all the same"))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert machine.keep_freed_memory() is False
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr("sys.platform", "darwin")
    assert machine.keep_freed_memory() is False


# ---- disks ----


def no_posix_fallocate(monkeypatch, how):
    """Take it away, or make it answer with an error number."""
    if how is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        return

    def refuse(descriptor, offset, size):
        raise OSError(how, os.strerror(how))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)


@pytest.mark.parametrize("how", [None, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize(
    ("free", "total", "fits"), [(2000, 9000, True), (1000, 9000, True), (999, 9000, False), (0, 0, True)]
)
def test_where_no_room_can_be_kept_it_is_asked_whether_it_is_free(monkeypatch, tmp_path, how, free, total, fits):
    no_posix_fallocate(monkeypatch, how)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=total, free=free))
    folder = RunFolder(tmp_path)
    if fits:
        folder.reserve_disk_space(1000)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    else:
        with pytest.raises(RunError, match="final"):
            folder.reserve_disk_space(1000)
        assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system keeps no room")
def test_room_is_kept_and_given_back(monkeypatch, tmp_path):
    folder = RunFolder(tmp_path)
    folder.reserve_disk_space(100_000)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [100_000]
    folder.release_disk_space()
    assert not [*tmp_path.iterdir()]
    no_posix_fallocate(monkeypatch, errno.ENOSPC)
    with pytest.raises(RunError, match="final"):
        folder.reserve_disk_space(100_000)
