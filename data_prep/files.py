"""Text files as they come: plain, compressed, in folders and in tar archives; read as streams, never whole."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from budget_trainer.core.errors import InputError


def _open_zstandard(stream: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(pa.CompressedInputStream(stream, "zstd"))  # its own lines are not implemented


_OPENERS: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open, ".zst": _open_zstandard}
ARCHIVES = (".tar", ".tar.xz", ".tar.gz", ".tar.bz2", ".tgz", ".txz")
_BROKEN = (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, tarfile.TarError)
_RAW_BYTES = 128 * 1024  # read from the disk at once
LINE_BYTES = 16 * 2**20  # a line of any length must not be held in memory whole


def plain_name(name: str) -> str:
    """The name without a compression suffix: a.txt.xz -> a.txt"""
    path = Path(name)
    return path.with_suffix("").name if path.suffix in _OPENERS else path.name


def files_below(path: Path) -> list[Path]:
    """The file itself, or the files below a folder in sorted order, hidden ones left out."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def members(path: Path, advance: Callable[[int], object] = lambda size: None) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, decompressed stream) of a file, of the files below a folder in sorted order, or of a tar's files in
    theirs. Each stream is valid until the next is asked for. Hidden files are left out. `advance` is given how many bytes were
    read from the disk."""
    if path.is_dir():
        for file in files_below(path):
            yield from members(file, advance)
    elif path.name.endswith(ARCHIVES):
        # A stream: one pass, bounded memory.
        with (
            naming_errors(str(path)),
            io.BufferedReader(_Counted(path, advance), _RAW_BYTES) as raw,
            tarfile.open(fileobj=raw, mode="r|*") as archive,
        ):
            for entry in archive:
                stream = archive.extractfile(entry) if entry.isfile() else None
                if stream is not None and not Path(entry.name).name.startswith("."):
                    yield f"{path}:{entry.name}", _decompressed(entry.name, stream)
    elif path.is_file():
        with io.BufferedReader(_Counted(path, advance), _RAW_BYTES) as stream:
            yield str(path), _decompressed(path.name, stream)
    else:
        raise InputError(f"input {path}: no such file or folder; give a path that exists")


class _Counted(io.FileIO):
    """A file that reports how many bytes are read from it."""

    def __init__(self, path: Path, advance: Callable[[int], object]) -> None:
        super().__init__(path)
        self._advance = advance

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        self._advance(size)
        return size


def lines(name: str, stream: IO[bytes], errors: str = "strict") -> Iterator[str]:
    """Lines without their ends (\\n, \\r\\n or \\r), as Python's text mode splits them. A BOM is dropped.

    A line of more than LINE_BYTES comes in pieces, cut at a space where it has one. Bytes that are not UTF-8 raise
    InputError naming file and byte offset, or become U+FFFD with errors="replace"."""
    offset = 0
    with naming_errors(name):
        for raw in _raw_lines(stream):
            start = 3 if not offset and raw.startswith(codecs.BOM_UTF8) else 0
            try:
                line = raw[start:].decode("utf-8", errors)
            except UnicodeDecodeError as error:
                at = start + error.start
                what = f"byte 0x{raw[at]:02x} at offset {offset + at} is not UTF-8"
                raise InputError(f"input {name}: {what}; convert the file or give --errors replace") from error
            offset += len(raw)
            if "\r" in line:
                yield from line.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
            else:
                yield line.removesuffix("\n")


def _raw_lines(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while raw := rest + stream.readline(LINE_BYTES - len(rest)):
        rest = b""
        if len(raw) == LINE_BYTES and not raw.endswith(b"\n"):
            # Where there is no space, before the last character of UTF-8: it may not be complete.
            begin = next((len(raw) - back for back in range(1, 5) if raw[-back] & 0xC0 != 0x80), len(raw))
            cut = raw.rfind(b" ", LINE_BYTES // 2) + 1 or begin
            raw, rest = raw[:cut], raw[cut:]
        yield raw


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file of this package's own, without their ends; only \\n is one."""
    with file.open(encoding="utf-8", newline="\n") as opened:
        for line in opened:
            yield line.removesuffix("\n")


@contextlib.contextmanager
def naming_errors(name: str) -> Iterator[None]:
    """Turns what the decompressors raise for a damaged file into an InputError with its name."""
    try:
        yield
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system; bz2's has none
            raise
        raise InputError(f"input {name}: damaged or cut off ({error}); fetch the file again") from error


def _decompressed(name: str, stream: IO[bytes]) -> IO[bytes]:
    opener = _OPENERS.get(Path(name).suffix)
    return stream if opener is None else opener(stream)
