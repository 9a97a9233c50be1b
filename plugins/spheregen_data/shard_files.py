"""Where shards lie: in a folder, or at an address, from where they are fetched into a bounded cache."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import spheregen
from spheregen_data.sources import one_line

OPEN = 64  # files that a process keeps open
ATTEMPTS = 4  # to fetch a file, 1, 2 and 4 seconds apart
PACK = "spheregen data pack makes such a set"


def is_remote(root: str) -> bool:
    """Whether a root is an address; file:// is a folder."""
    return ("://" in root or "::" in root) and not root.startswith("file://")


class Files(ABC):
    """An index and shards, read by offset."""

    def __init__(self, root: str) -> None:
        self.root = root.removeprefix("file://").rstrip("/") or "/"
        self.lengths: dict[str, int] = {}
        self.opened: OrderedDict[str, FileIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": OrderedDict()}  # open files do not go to other processes

    def address(self, name: str) -> str:
        """What errors call a file."""
        return f"{self.root}/{name}"

    @abstractmethod
    def index(self, name: str) -> bytes:
        """The bytes of an index. Raises DataError where it is missing or cannot be read."""

    def expect(self, lengths: Mapping[str, int]) -> None:
        """Be told the shards and their lengths in bytes, by the index."""
        self.lengths = dict(lengths)

    @abstractmethod
    def open(self, name: str) -> FileIO:
        """A shard, of the length that the index promises. Raises DataError where there is none."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Some bytes of a shard. Raises DataError where it has not as many."""
        file = self.opened.pop(name, None) or self.open(name)
        self.opened[name] = file
        if len(self.opened) > OPEN:
            self.opened.popitem(last=False)[1].close()
        try:
            # Without a position of the file's own, which processes that were forked would share.
            data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise spheregen.DataError(f"{self.address(name)}: cannot be read: {error.strerror or error}") from None
        if len(data) < size:
            raise self.short(name, os.fstat(file.fileno()).st_size)
        return data

    def short(self, name: str, found: int) -> spheregen.DataError:
        expected = self.lengths[name]
        return spheregen.DataError(
            f"{self.address(name)}: {found:,} bytes, its index says {expected:,}: "
            + ("cut short" if found < expected else "it belongs to another set")
        )


class LocalFiles(Files):
    """A folder."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.folder = Path(self.root).expanduser()

    def index(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise spheregen.DataError(f"{self.address(name)}: no such index; {PACK}") from None
        except OSError as error:
            raise spheregen.DataError(f"{self.address(name)}: cannot be read: {error.strerror or error}") from None

    def expect(self, lengths: Mapping[str, int]) -> None:
        super().expect(lengths)
        for name in lengths:  # at once, not after hours of training
            self.open(name).close()

    def open(self, name: str) -> FileIO:
        try:
            file = FileIO(self.folder / name)
        except OSError as error:
            raise spheregen.DataError(f"{self.address(name)}: cannot be read: {error.strerror or error}") from None
        if (found := os.fstat(file.fileno()).st_size) != self.lengths[name]:
            file.close()
            raise self.short(name, found)
        return file


class CachedFiles(Files):
    """An address that fsspec reads, and a folder in which its shards are kept while there is room.

    Any number of processes may use the folder: a shard is fetched by one of them, aside, and renamed; the others wait
    for it. Those used longest ago are removed; a process that has one open reads on.
    """

    def __init__(self, root: str, cache: str) -> None:
        super().__init__(root)
        self.cache = Path(cache).expanduser()
        self.folder = self.cache

    def bound(self, gigabytes: float, at_a_time: int, content: str) -> None:
        """Keep the cache within so many 10⁹ bytes. content: the set's hash, so that sets do not mix.

        Raises DataError where shards would be removed before all of their images were read.
        """
        self.limit = gigabytes * 1e9
        self.folder = self.cache / content[:16]
        # An epoch's last shards and the next one's first are under way together.
        needed = sum(sorted(self.lengths.values(), reverse=True)[: 2 * at_a_time])
        if needed > self.limit:
            raise spheregen.DataError(
                f"{self.root}: data.cache_gb is {gigabytes:g}; to read {at_a_time} shards at a time "
                f"(data.shuffle_shards) it must be at least {needed / 1e9 + 0.005:.2f}"
            )

    def index(self, name: str) -> bytes:
        try:
            filesystem, path = self._remote(name)
            return bytes(self._patiently(lambda: filesystem.cat_file(path)))
        except FileNotFoundError:
            raise spheregen.DataError(f"{self.address(name)}: no such index; {PACK}") from None
        except Exception as error:  # each kind of address has errors of its own
            raise self._unreachable(name, error) from None

    def open(self, name: str) -> FileIO:
        path = self.folder / name
        while True:
            try:
                file = FileIO(path)
            except FileNotFoundError:  # not there yet, or no longer
                self._fetch(name, path)
                continue
            except OSError as error:
                raise spheregen.DataError(f"{path}: cannot be read: {error.strerror or error}") from None
            if os.fstat(file.fileno()).st_size == self.lengths[name]:
                with suppress(OSError):  # removed this moment, or another user's
                    os.utime(path)  # what was used last is removed last
                return file
            file.close()
            path.unlink(missing_ok=True)  # the machine stopped before all of it was on the disk

    def _fetch(self, name: str, path: Path) -> None:
        """Have a shard in the folder."""
        from filelock import FileLock

        aside = path.with_name(f"{name}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f"{name}.lock")):
                if path.exists():  # another process was quicker
                    return
                with FileLock(self.cache / "room.lock"):
                    self._make_room(self.lengths[name])
                try:
                    filesystem, remote = self._remote(name)
                    self._patiently(lambda: filesystem.get_file(remote, str(aside)))
                    if (found := aside.stat().st_size) != self.lengths[name]:
                        raise self.short(name, found)
                    os.replace(aside, path)
                finally:
                    aside.unlink(missing_ok=True)
        except Exception as error:  # each kind of address has errors of its own
            raise self._unreachable(name, error) from None

    def _make_room(self, size: int) -> None:
        """Remove the shards used longest ago until one of `size` bytes fits, beside what others are fetching."""
        found = []
        for path in self.cache.rglob("*.tar*"):
            if path.suffix in (".tar", ".part"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                # What is being fetched will be as long as the index says.
                length = self.lengths.get(path.stem, status.st_size) if path.suffix == ".part" else status.st_size
                found.append((status.st_mtime_ns, length, path))
        total = sum(length for _, length, _ in found)
        for _, length, path in sorted(found):
            if total + size <= self.limit:
                return
            if path.suffix == ".tar":
                path.unlink(missing_ok=True)
                total -= length

    def _remote(self, name: str) -> tuple[Any, str]:
        """The file system and a file's path in it. Asked for anew each time: those with connections do not outlive a
        fork, and fsspec knows in which process it is."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise spheregen.DataError(
                f"{self.root}: addresses need the package fsspec: pip install 'spheregen[shards]'"
            ) from None
        filesystem, path = url_to_fs(self.address(name))  # which names the package that an address needs
        return filesystem, path

    def _patiently(self, attempt: Any) -> Any:
        """Try again where a connection fails."""
        for number in range(ATTEMPTS):
            try:
                return attempt()
            except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError):
                raise
            except Exception:
                if number == ATTEMPTS - 1:
                    raise
                time.sleep(2**number)
        return None

    def _unreachable(self, name: str, error: Exception) -> spheregen.DataError:
        if isinstance(error, spheregen.DataError):
            return error
        missing = "no such shard" if isinstance(error, FileNotFoundError) else "cannot be fetched: " + one_line(error)
        return spheregen.DataError(f"{self.address(name)}: {missing}")
