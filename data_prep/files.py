"""Files as they come: plain, compressed, in folders and archives; told by their first bytes, read as streams, never whole."""

import codecs
import contextlib
import functools
import gzip
import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from budget_trainer.core.errors import InputError

Leave = Callable[[str, str], object]  # told the name of what is not read, and why
# For bz2 Arrow's too: Python's takes a damaged stream behind the first, as dumps have thousands, for the end.
_OPENERS: dict[str, Callable[[Any], Any]] = {"xz": lzma.open, "gzip": gzip.open}
_OPENERS |= {name: functools.partial(pa.CompressedInputStream, compression=name) for name in ("bz2", "zstd", "lz4")}
_PACKED = re.compile(r"(?i)(?:\.(?:xz|lzma|gz|bz2|zst|lz4))+$")
# Names that promise what must be opened; where nothing of that kind is inside, the file is damaged, or an error page.
_PROMISES = re.compile(r"(?i)\.(?:xz|lzma|gz|bz2|zst|lz4|t[gx]z|tbz2?|tzst|tar|zip)$")
_HEADS = re.compile(
    rb"(?s)(?P<gzip>\x1f\x8b\x08)|(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P))|(?P<xz>\xfd7zXZ\0|\]\0\0..)|(?P<lz4>\x04\"M\x18)"
    rb"|(?P<zstd>\x28\xb5/\xfd|[\x50-\x5f]\*M\x18)|(?P<zip>PK(?:\x03\x04|\x05\x06))|(?P<parquet>PAR1\x15)"
    rb"|(?P<arrow>ARROW1\0\0|\xff{4}...\0)|(?P<png>\x89PNG)|(?P<jpeg>\xff\xd8\xff)|(?P<gif>GIF8[79]a)|(?P<pdf>%PDF-)"
    rb"|(?P<postscript>%!PS-)|(?P<rtf>\{\\rtf)|(?P<office>\xd0\xcf\x11\xe0)|(?P<elf>\x7fELF)|(?P<sqlite>SQLite format 3\0)"
    rb"|(?P<hdf5>\x89HDF)|(?P<seven_zip>7z\xbc\xaf)|(?P<rar>Rar!\x1a)|(?P<lzip>LZIP\x01)|(?P<compress>\x1f\x9d)"
    rb"|(?P<git_lfs_pointer>version https://git-lfs)"
)
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
_MARKS |= {codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8"}  # behind those of UTF-32, which begin alike
# A zip with one of these is no archive of texts.
_DOCUMENT = {"[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"}
_LEVELS = 8  # of compressions and archives in each other
_BROKEN = (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile)
_RAW_BYTES = 128 * 1024  # read from the disk at once
_SPOOL_BYTES = 64 * 2**20  # of what must be sought in; more of it goes to a temporary file
LINE_BYTES = 16 * 2**20  # a line of any length must not be held in memory whole


def plain_name(name: str) -> str:
    """The name, in an archive its own, without a compression suffix: a.txt.xz -> a.txt"""
    return _PACKED.sub("", Path(name).name.rpartition(":")[2])


def ignore(name: str, reason: str) -> None:
    """A `Leave` that tells nobody."""


_NAMED = 5  # of the files that are not read


def count_unread(account: dict[str, Any], path: str, name: str, reason: str) -> None:
    """Counts a file in or below `path` in account["files_not_read"]: number, by {reason: number}, names of the first five."""
    files = account.setdefault("files_not_read", {"number": 0, "by": {}, "names": []})
    files["number"] += 1
    files["by"][reason] = files["by"].get(reason, 0) + 1
    if files["number"] <= _NAMED:
        below = name[len(path) :].lstrip("/:") if path and name.startswith(path) else name
        files["names"].append(f"{below or Path(name).name} ({reason})")


def unread_line(files: dict[str, Any]) -> str:
    """What `count_unread` has counted, in a line."""
    names = ", ".join(files["names"]) + (", ..." if files["number"] > _NAMED else "")
    return f"{files['number']:,} {'file' if files['number'] == 1 else 'files'} not read: {names}"


# What tells a data folder, a tokenizer's, and where data_prep.prepare works: a corpus in which they lie is not made of them.
_MADE_HERE = ({"manifest.json", "tokenizer"}, {"tokenizer.json", "tokenizer_config.json"}, {".lock", "documents"})


def files_below(path: Path, leave: Leave = ignore) -> list[Path]:
    """The file itself, or the files below a folder in sorted order, hidden ones left out. Links are followed, and each
    folder and file is read once. `leave` is told of what cannot be read."""
    if not path.is_dir():
        return [path]
    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    tops = [path]  # links last: what lies in the folder itself keeps its own name
    for top in tops:
        for here, folders, names in os.walk(top, onerror=lambda error: leave(error.filename, error.strerror or "")):
            folder, status = Path(here), os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            if folder != path and any(made <= {*names, *folders} for made in _MADE_HERE):
                leave(here, "made by data_prep")
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [folder / name for name in folders if (folder / name).is_symlink()]
            for file in (folder / name for name in names if not name.startswith(".")):
                if file.is_file():
                    files.append(file)
                else:
                    leave(str(file), "broken link" if file.is_symlink() else "no file")
    once: dict[tuple[int, int], Path] = {}
    for file in sorted(files, key=lambda file: (not file.suffix, file.is_symlink(), file)):
        status = file.stat()
        if once.setdefault((status.st_dev, status.st_ino), file) != file:
            leave(str(file), "another name of a file that is read")
    return sorted(once.values())


def members(
    path: Path, advance: Callable[[int], object] = lambda size: None, leave: Leave = ignore
) -> Iterator[tuple[str, io.BufferedReader]]:
    """(name, decompressed stream) of a file, of the files below a folder in sorted order, or of an archive's files in
    theirs, archives in it opened too. Each stream is valid until the next is asked for. Hidden files are left out. `advance`
    is given how many bytes were read from the disk, `leave` what cannot be opened.

    InputError: not there, damaged, or packed more than 8 times."""
    if not path.is_dir() and not path.is_file():
        what = "a pipe or device; give a file, which can be read twice" if path.exists() else "no such file or folder"
        raise InputError(f"input {path}: {what}" + ("" if path.exists() else "; give a path that exists"))
    for file in files_below(path, leave):
        try:
            raw = _Counted(file, advance)
        except PermissionError:
            raise InputError(f"input {file}: this user may not read it; make it readable, or move it away") from None
        with raw:
            yield from _opened(str(file), io.BufferedReader(raw, _RAW_BYTES), leave)
            raw.finish()


class _Counted(io.FileIO):
    """A file that reports how many bytes are read from it, and at `finish` the rest."""

    def __init__(self, path: Path, advance: Callable[[int], object]) -> None:
        super().__init__(path)
        self._advance, self._left = advance, os.fstat(self.fileno()).st_size

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        told = min(size, self._left)  # what is sought in is read again
        self._left -= told
        self._advance(told)
        return size

    def finish(self) -> None:
        self._advance(self._left)


class _Full(io.RawIOBase):
    """What a decompressor or an archive gives, as many bytes at once as were asked for."""

    def __init__(self, name: str, stream: Any) -> None:
        self._name, self._stream = name, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view, size = memoryview(buffer), 0
        with naming_errors(self._name):
            while size < len(view) and (read := self._stream.readinto(view[size:])):
                size += read
        return size


def _buffered(name: str, stream: Any) -> io.BufferedReader:
    return io.BufferedReader(_Full(name, stream), _RAW_BYTES)


def form_of(stream: io.BufferedReader, encoding: str = "utf-8") -> str:
    """What the next bytes are the head of: "" for text in `encoding`, or the name of a form, "binary" for an unknown one."""
    head = stream.peek()[:8192]
    if known := _HEADS.match(head):
        return known.lastgroup or ""
    if b"\0" not in head or head.startswith(tuple(_MARKS)):
        return ""
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
        return "tar"
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return ""
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "binary" if head.count(b"\0") > len(head) // 100 else ""  # one may be a fault in a text
    return "binary"


def _opened(
    name: str, stream: io.BufferedReader, leave: Leave, level: int = 0, promised: bool = True
) -> Iterator[tuple[str, io.BufferedReader]]:
    """The stream decompressed, or the files of an archive. promised: the name says what it begins with."""
    with naming_errors(name):
        form = form_of(stream)
        if promised and form in ("", "binary") and (promise := _PROMISES.search(name)):
            fix = "fetch the file again, or rename it"
            raise InputError(f"input {name}: damaged or cut off (it does not begin as a {promise[0]}); {fix}")
        if level > _LEVELS:
            raise InputError(f"input {name}: packed more than {_LEVELS} times; unpack it")
        if form in _OPENERS:
            yield from _opened(name, _buffered(name, _OPENERS[form](stream)), leave, level + 1, False)
        elif form not in ("tar", "zip"):
            yield name, stream
        else:
            for inner, content in (_tar_files if form == "tar" else _zip_files)(name, stream, leave):
                if not any(part == "__MACOSX" or part.strip(".") and part[0] == "." for part in Path(inner).parts):
                    whole = f"{name}:{inner}"
                    yield from _opened(whole, _buffered(whole, content), leave, level + 1)


def _tar_files(name: str, stream: io.BufferedReader, leave: Leave) -> Iterator[tuple[str, Any]]:
    form = "tar"
    while form == "tar":  # several may be joined
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # a stream: one pass, bounded memory
            for entry in archive:
                if entry.isfile():
                    yield entry.name, archive.extractfile(entry)
                elif not entry.isdir():
                    leave(f"{name}:{entry.name}", "link" if entry.islnk() or entry.issym() else "no file")
        while (head := stream.peek()[:512]) and not head.strip(b"\0"):  # a block: behind it the next may begin
            stream.read(len(head))
        form = form_of(stream)
    while stream.read(2**20):  # with the checksum of the compression at the end
        pass


def _zip_files(name: str, stream: io.BufferedReader, leave: Leave) -> Iterator[tuple[str, Any]]:
    with seekable(stream) as file, zipfile.ZipFile(file) as archive:
        if not _DOCUMENT.isdisjoint(archive.namelist()):
            leave(name, "document")
            return
        for entry in archive.infolist():
            if entry.flag_bits & 1:
                leave(f"{name}:{entry.filename}", "encrypted")
            elif not entry.is_dir():
                try:
                    content = archive.open(entry)
                except NotImplementedError:
                    leave(f"{name}:{entry.filename}", "a compression that Python does not know")
                else:
                    yield entry.filename, content


def seekable(stream: io.BufferedReader) -> Any:
    """The stream where it is a file's own, or a temporary copy of the rest of it."""
    if isinstance(stream.raw, _Counted):
        return stream
    copy = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)
    shutil.copyfileobj(stream, copy, _RAW_BYTES)
    copy.seek(0)
    return copy


def lines(
    name: str,
    stream: io.BufferedReader,
    errors: str = "strict",
    encoding: str = "utf-8",
    whole: bool = False,
    replaced: Callable[[int], object] = lambda count: None,
) -> Iterator[str]:
    """Lines without their ends (\\n, \\r\\n or \\r), as Python's text mode splits them. A byte-order mark is dropped, and says
    the encoding where it is one of UTF-16 or UTF-32.

    A line of more than LINE_BYTES comes in pieces, in UTF-8 cut at a space, unless they are asked for `whole`. Bytes
    that are not of `encoding` raise InputError naming file and byte offset, or become U+FFFD with errors="replace", of which
    `replaced` is told how many."""
    encoding = next((codec for mark, codec in _MARKS.items() if stream.peek().startswith(mark)), encoding)
    if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
        yield from _lines_of_another(name, stream, errors, encoding, -1 if whole else LINE_BYTES, replaced)
        return
    offset = 0
    with naming_errors(name):
        for raw in stream if whole else _raw_lines(stream):
            start = 3 if not offset and raw.startswith(codecs.BOM_UTF8) else 0
            try:
                line = raw[start:].decode("utf-8", errors)
            except UnicodeDecodeError as error:
                at = start + error.start
                what = f"byte 0x{raw[at]:02x} at offset {offset + at} is not UTF-8"
                fix = "name the encoding (--encoding cp1252 for Western text of Windows), or give --errors replace"
                raise InputError(f"input {name}: {what}; {fix}") from error
            if errors != "strict" and "\ufffd" in line:
                replaced(line.count("\ufffd") - raw.count(b"\xef\xbf\xbd"))
            offset += len(raw)
            if "\r" in line:
                yield from line.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
            else:
                yield line.removesuffix("\n")


def _lines_of_another(
    name: str, stream: io.BufferedReader, errors: str, encoding: str, most: int, replaced: Callable[[int], object]
) -> Iterator[str]:
    text = io.TextIOWrapper(stream, encoding, errors)
    try:
        while line := text.readline(most):
            replaced(line.count("\ufffd"))
            yield line.removesuffix("\n")
    except UnicodeError as error:  # not only of decoding: UTF-16 without its mark
        wrong = f"byte 0x{error.object[error.start]:02x}" if isinstance(error, UnicodeDecodeError) else str(error)
        what = (
            f"{wrong} is not {encoding}" if isinstance(error, UnicodeDecodeError) else f"{wrong} (utf-16-le has none)"
        )
        raise InputError(f"input {name}: {what}; name the encoding it has, or give --errors replace") from error


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
        if isinstance(error, OSError) and error.errno is not None:  # of the system; Arrow's has none
            raise
        raise InputError(f"input {name}: damaged or cut off ({error}); fetch the file again") from error
