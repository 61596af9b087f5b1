"""Content-addressed disk cache of compiled steps.

An entry is one file with named blobs (object code, report). It is written to a temporary file and renamed, so that
readers see all of it or nothing; a SHA-256 digest is checked before any byte is used, and nothing is ever unpickled.
A damaged, truncated or foreign file is a miss. A folder that cannot be used is a warning, not an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from fusegraph.errors import CacheWarning, OptionError
from fusegraph.records import dataclass
from fusegraph.runtime.host import identity

if TYPE_CHECKING:
    from pathlib import Path

FORMAT_VERSION = 2
DEFAULT_SIZE_MB = 512
_MAGIC = b"fgcache1"
_DIGEST_BYTES = 32
_HEADER_LENGTH = struct.Struct("<I")
_SUFFIX = ".fgc"
_STALE_SECONDS = 3600  # a temporary file of this age was left by a process that died
_SCAN_EVERY = 64  # puts between two looks at what other processes have added
_warned: set[str] = set()


@dataclass(frozen=True)
class Entry:
    """What was stored under a key."""

    key: str
    blobs: Mapping[str, bytes]

    def __getitem__(self, name: str) -> bytes:
        """The blob of that name; KeyError if the entry has none."""
        return self.blobs[name]


@dataclass(frozen=True)
class CacheInfo:
    """State of a cache folder, and the hits and misses of this instance."""

    folder: Path
    entries: int
    nbytes: int
    limit: int
    hits: int
    misses: int
    usable: bool


def default_folder() -> Path:
    """FUSEGRAPH_CACHE_DIR, or the platform's folder for caches of this user."""
    from pathlib import Path

    return Path(_default_folder())


def _default_folder() -> str:
    join = os.path.join
    given = os.environ.get("FUSEGRAPH_CACHE_DIR")
    if given:
        return os.path.expanduser(given)
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        return join(os.environ.get("LOCALAPPDATA") or join(home, "AppData", "Local"), "fusegraph", "cache")
    if sys.platform == "darwin":
        return join(home, "Library", "Caches", "fusegraph")
    return join(os.environ.get("XDG_CACHE_HOME") or join(home, ".cache"), "fusegraph")


def default_limit() -> int:
    """Bytes that a cache folder may hold: FUSEGRAPH_CACHE_SIZE_MB (0 turns the cache off), else 512 MB."""
    given = os.environ.get("FUSEGRAPH_CACHE_SIZE_MB")
    if not given:
        return DEFAULT_SIZE_MB << 20
    try:
        size = float(given)
        if not 0 <= size < float("inf"):
            raise ValueError
    except ValueError:
        raise OptionError(f"FUSEGRAPH_CACHE_SIZE_MB must be a number of megabytes, 0 or more, not {given!r}") from None
    return int(size * (1 << 20))


@lru_cache(maxsize=1)
def host_parts() -> tuple[str, ...]:
    """What object code depends on beside its source: format, host, compiler."""
    return (f"fusegraph cache {FORMAT_VERSION}", *identity())


class DiskCache:
    """A bounded folder of entries; the least recently used ones go first.

    `folder=None`: see `default_folder`. `limit=None`: see `default_limit`; a limit of 0 turns the cache off.
    `get` and `put` never raise for what the disk does. Safe to share between threads and processes.
    """

    def __init__(self, folder: Path | str | None = None, limit: int | None = None) -> None:
        self._folder = os.fspath(folder) if folder is not None else _default_folder()
        self.limit = default_limit() if limit is None else limit
        self._hits = self._misses = 0
        self._usable = self.limit > 0
        self._lock = threading.Lock()
        self._known_bytes = 0
        self._puts_until_scan = 0

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        from pathlib import Path  # takes as long as to load a step, which does without

        return Path(self._folder)

    def key(self, *parts: str | bytes) -> str:
        """Hex SHA-256 of the parts and of what else object code depends on (see `host_parts`)."""
        digest = hashlib.sha256()
        for part in (*host_parts(), *parts):
            data = part.encode() if isinstance(part, str) else part
            digest.update(b"%d:" % len(data))  # ("ab", "c") and ("a", "bc") are different keys
            digest.update(data)
        return digest.hexdigest()

    def get(self, key: str) -> Entry | None:
        """The entry stored under `key`, or None. A file that is not an intact entry of this key is removed."""
        entry = self._read(key) if self._usable else None
        if entry is None:
            self._misses += 1
        else:
            self._hits += 1
        return entry

    def put(self, key: str, blobs: Mapping[str, bytes]) -> None:
        """Store blobs under `key`, replacing what was there. Warns once, and goes on, if the folder is not usable."""
        if not self._usable:
            return
        data = _encode(key, blobs)
        if len(data) > self.limit:
            return
        try:
            self._write(self._path(key), data)
            self._account(len(data))
        except OSError as error:
            self._give_up(error)

    def clear(self) -> int:
        """Remove all entries; returns how many. Files that are not the cache's own are left alone."""
        removed = sum(_unlink(path) for path, _, _ in self._files())
        self._known_bytes = 0
        return removed

    def info(self) -> CacheInfo:
        """What the folder holds now."""
        sizes = [size for _, size, _ in self._files()]
        return CacheInfo(self.folder, len(sizes), sum(sizes), self.limit, self._hits, self._misses, self._usable)

    def _path(self, key: str) -> str:
        if not key.isalnum():
            raise OptionError(f"a cache key is made by DiskCache.key, not {key!r}")
        return os.path.join(self._folder, key[:2], key + _SUFFIX)

    def _read(self, key: str) -> Entry | None:
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                if not _trusted(os.fstat(file.fileno())):
                    return None
                data = file.read()
        except OSError:
            return None
        entry = _decode(key, data)
        if entry is None:
            _unlink(path)
            return None
        try:
            os.utime(path)  # the time of last use decides what is evicted
        except OSError:
            pass
        return entry

    def _write(self, path: str, data: bytes) -> None:
        import tempfile  # a warm start writes nothing

        parent = os.path.dirname(path)
        os.makedirs(parent, mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=_SUFFIX, dir=parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            _unlink(temporary)
            raise

    def _account(self, added: int) -> None:
        with self._lock:
            self._known_bytes += added
            self._puts_until_scan -= 1
            if self._puts_until_scan > 0 and self._known_bytes <= self.limit:
                return
            self._puts_until_scan = _SCAN_EVERY
            self._known_bytes = self._evict()

    def _evict(self) -> int:
        """Remove the least recently used entries until the folder is at nine tenths of its limit; returns its bytes."""
        files = sorted(self._files(), key=lambda item: item[2])
        total = sum(size for _, size, _ in files)
        if total <= self.limit:
            return total
        for path, size, _ in files:
            if total <= self.limit * 0.9:
                break
            if _unlink(path):
                total -= size
        return total

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """Entries as (path, bytes, time of last use). Removes temporary files that a dead process left."""
        now = time.time()
        for path in self.folder.glob(f"[0-9a-f][0-9a-f]/*{_SUFFIX}"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process has just removed it
            if not path.name.startswith(".tmp-"):
                yield path, status.st_size, status.st_mtime
            elif now - status.st_mtime > _STALE_SECONDS:
                _unlink(path)

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        if self._folder not in _warned:
            _warned.add(self._folder)
            warnings.warn(
                f"the compile cache in {self._folder} cannot be written ({error}); compiling goes on without it. "
                "Set FUSEGRAPH_CACHE_DIR to a folder of yours, or FUSEGRAPH_CACHE_SIZE_MB=0 to do without a cache.",
                CacheWarning,
                stacklevel=3,
            )


def _encode(key: str, blobs: Mapping[str, bytes]) -> bytes:
    """magic | SHA-256 of the rest | header length | header (JSON: key, names and sizes) | blobs"""
    header = json.dumps({"key": key, "blobs": [[name, len(blob)] for name, blob in blobs.items()]}).encode()
    body = b"".join([_HEADER_LENGTH.pack(len(header)), header, *blobs.values()])
    return _MAGIC + hashlib.sha256(body).digest() + body


def _decode(key: str, data: bytes) -> Entry | None:
    body = memoryview(data)[len(_MAGIC) + _DIGEST_BYTES :]
    digest = data[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES]
    if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(body).digest() != digest:
        return None
    try:
        (length,) = _HEADER_LENGTH.unpack_from(body)
        start = _HEADER_LENGTH.size + length
        header = json.loads(bytes(body[_HEADER_LENGTH.size : start]))
        if header["key"] != key:
            return None
        blobs = {}
        for name, size in header["blobs"]:
            blobs[str(name)] = bytes(body[start : start + size])
            start += size
    except (struct.error, ValueError, KeyError, TypeError):
        return None
    return Entry(key, blobs) if start == len(body) else None


def _trusted(status: os.stat_result) -> bool:
    """Whether a file's code may be run: it belongs to this user or to the administrator."""
    return not hasattr(os, "geteuid") or status.st_uid in (os.geteuid(), 0)


def _unlink(path: Path | str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
