"""The disk cache: what is stored comes back or is a miss, whatever happens to the files."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from fusegraph.errors import CacheWarning, OptionError
from fusegraph.runtime import cache as cache_module
from fusegraph.runtime.cache import DiskCache, default_folder, default_limit, host_parts

BLOBS = {"object": bytes(range(256)) * 40, "report.json": b"{}", "empty": b""}


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def entry_file(cache: DiskCache) -> Path:
    (path,) = cache.folder.glob("*/*.fgc")
    return path


def test_round_trip(cache):
    key = cache.key("graph", b"generator 1")
    assert cache.get(key) is None
    cache.put(key, BLOBS)
    entry = cache.get(key)
    assert entry.key == key and dict(entry.blobs) == BLOBS and entry["report.json"] == b"{}"
    with pytest.raises(KeyError):
        entry["assembly"]
    info = cache.info()
    assert (info.entries, info.hits, info.misses, info.usable) == (1, 1, 1, True)
    assert info.nbytes == entry_file(cache).stat().st_size > len(BLOBS["object"])


def test_another_instance_sees_it_and_a_put_replaces_it(cache):
    key = cache.key("a")
    cache.put(key, BLOBS)
    cache.put(key, {"object": b"new"})
    assert dict(DiskCache(cache.folder).get(key).blobs) == {"object": b"new"}
    assert cache.info().entries == 1


def test_key_depends_on_every_part_and_its_borders(cache):
    variants = [(), ("a",), ("a", "b"), ("ab",), ("a", "b", ""), ("", "a", "b"), ("b", "a")]
    assert len({cache.key(*parts) for parts in variants}) == len(variants)
    assert cache.key("a", "b") == cache.key(b"a", b"b")
    with pytest.raises(OptionError, match="key"):
        cache.get("../outside")


@pytest.mark.parametrize("number", range(5))
def test_key_depends_on_the_host_and_the_versions(cache, monkeypatch, number):
    before = cache.key("graph")
    parts = list(host_parts())
    assert len(parts) == 5
    parts[number] += "x"
    monkeypatch.setattr(cache_module, "host_parts", lambda: tuple(parts))
    assert cache.key("graph") != before


def test_each_truncation_and_each_flipped_byte_is_a_miss(cache):
    key = cache.key("a")
    cache.put(key, {"object": b"code" * 8})
    path = entry_file(cache)
    good = path.read_bytes()
    damaged = [good[:n] for n in range(len(good))]
    damaged += [good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :] for n in range(len(good))]
    damaged += [good + b"x", b"", b"\0" * 1000]
    for data in damaged:
        path.write_bytes(data)
        assert cache.get(key) is None
        assert not path.exists()
    cache.put(key, BLOBS)
    assert dict(cache.get(key).blobs) == BLOBS


class Bomb:
    """Reports itself if anybody unpickles it."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def test_a_foreign_file_is_a_miss_and_never_unpickled(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = cache.key("a")
    cache.put(key, BLOBS)
    path = entry_file(cache)
    for data in (pickle.dumps(Bomb()), b"\x7fELF" + bytes(100), b"fgcache1" + pickle.dumps(Bomb())):
        path.write_bytes(data)
        assert cache.get(key) is None
    assert not (tmp_path / "unpickled").exists()


def test_an_entry_under_another_name_is_a_miss(cache):
    key, other = cache.key("a"), cache.key("b")
    cache.put(key, BLOBS)
    target = cache.folder / other[:2] / (other + ".fgc")
    target.parent.mkdir(exist_ok=True)
    os.replace(entry_file(cache), target)
    assert cache.get(other) is None and cache.get(key) is None


def test_an_intact_digest_over_a_nonsense_header_is_a_miss(cache):
    key = cache.key("a")
    cache.put(key, BLOBS)
    path = entry_file(cache)
    headers = (b"", b"\xff\xff\xff\xff", b"\2\0\0\0[]", b"\4\0\0\0null", b"\1\0\0\0{", b"\3\0\0\0\xff\xff\xff")
    for body in headers:
        path.write_bytes(b"fgcache1" + cache_module.hashlib.sha256(body).digest() + body)
        assert cache.get(key) is None


def test_a_directory_in_the_place_of_an_entry_is_a_miss(cache):
    key = cache.key("a")
    (cache.folder / key[:2] / (key + ".fgc")).mkdir(parents=True)
    assert cache.get(key) is None
    assert DiskCache(cache.folder).get(key) is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX owners")
def test_a_file_of_another_user_is_a_miss_and_stays(cache, monkeypatch):
    key = cache.key("a")
    cache.put(key, BLOBS)
    owner = entry_file(cache).stat().st_uid
    trusted = cache_module._trusted
    monkeypatch.setattr(cache_module.os, "geteuid", lambda: owner + 1)
    status = os.stat_result((0o600, 1, 1, 1, owner + 2, 0, 0, 0, 0, 0))
    assert not trusted(status)
    monkeypatch.setattr(cache_module, "_trusted", lambda _: False)
    assert cache.get(key) is None
    assert entry_file(cache).exists()


def test_a_folder_that_cannot_be_made_warns_once_and_is_no_error(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    folder = tmp_path / "file" / "cache"
    first, second = DiskCache(folder), DiskCache(folder)
    with pytest.warns(CacheWarning, match="FUSEGRAPH_CACHE_DIR"):
        first.put(first.key("a"), BLOBS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.put(first.key("a"), BLOBS)
        second.put(second.key("a"), BLOBS)
        assert first.get(first.key("a")) is None
        assert not first.info().usable and first.info().entries == 0
        assert first.clear() == 0


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_refuses_to_write_leaves_no_rubbish(cache, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    key = cache.key("a")
    monkeypatch.setattr(cache_module.os, "replace", refuse)
    with pytest.warns(CacheWarning, match="goes on without"):
        cache.put(key, BLOBS)
    monkeypatch.undo()
    assert not list(cache.folder.rglob("*.fgc"))
    assert cache.get(key) is None


def test_reading_goes_on_when_the_time_of_use_cannot_be_written(cache, monkeypatch):
    key = cache.key("a")
    cache.put(key, BLOBS)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(cache_module.os, "utime", refuse)
    assert dict(cache.get(key).blobs) == BLOBS


def test_the_least_recently_used_entries_go_first(tmp_path):
    cache = DiskCache(tmp_path, limit=10 * 1100)
    keys = [cache.key(str(n)) for n in range(30)]
    for number, key in enumerate(keys):
        cache.put(key, {"object": bytes(900)})
        path = cache._path(key)
        os.utime(path, (time.time() - 1000 + number,) * 2)  # files made within one tick of the clock stay in order
        assert cache.get(keys[0]) is not None  # used all the time, hence kept
        assert cache.info().nbytes <= cache.limit
    kept = [number for number, key in enumerate(keys) if os.path.exists(cache._path(key))]
    assert kept[0] == 0 and kept[-1] == 29
    assert kept[1:] == list(range(kept[1], 30))


def test_an_entry_over_the_limit_is_not_stored(tmp_path):
    cache = DiskCache(tmp_path, limit=1000)
    cache.put(cache.key("a"), {"object": bytes(2000)})
    assert cache.info().entries == 0


def test_clear_removes_entries_and_nothing_else(cache):
    for number in range(5):
        cache.put(cache.key(str(number)), BLOBS)
    mine = cache.folder / "notes.txt"
    mine.write_text("not the cache's")
    (cache.folder / "ab").mkdir(exist_ok=True)
    (cache.folder / "ab" / "other.txt").write_text("nor this")
    assert cache.clear() == 5
    assert cache.info().entries == 0 and mine.exists() and (cache.folder / "ab" / "other.txt").exists()


def test_temporary_files_of_dead_processes_are_removed(cache):
    key = cache.key("a")
    cache.put(key, BLOBS)
    old, new = (entry_file(cache).parent / f".tmp-{name}.fgc" for name in ("old", "new"))
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    assert cache.info().entries == 1
    assert not old.exists() and new.exists()


def test_defaults_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("FUSEGRAPH_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cache_module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "fusegraph"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / ".cache" / "fusegraph"
    monkeypatch.setattr(cache_module.sys, "platform", "darwin")
    assert default_folder() == tmp_path / "Library" / "Caches" / "fusegraph"
    monkeypatch.setattr(cache_module.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_folder() == tmp_path / "local" / "fusegraph" / "cache"
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path / "mine"))
    assert DiskCache().folder == tmp_path / "mine"


def test_limit_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("FUSEGRAPH_CACHE_SIZE_MB", raising=False)
    assert default_limit() == 512 << 20
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "1.5")
    assert DiskCache(tmp_path).limit == 3 << 19
    for text in ("many", "-1", "nan", "inf"):
        monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", text)
        with pytest.raises(OptionError, match="FUSEGRAPH_CACHE_SIZE_MB"):
            default_limit()
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")
    off = DiskCache(tmp_path / "off")
    off.put(off.key("a"), BLOBS)
    assert off.get(off.key("a")) is None and not (tmp_path / "off").exists()


WRITER = """
import hashlib, sys
from fusegraph.runtime.cache import DiskCache
cache = DiskCache(sys.argv[1], limit=200_000)
for turn in range(150):
    key = cache.key(str(turn % 7))
    entry = cache.get(key)
    if entry is not None:
        body = entry["body"]
        assert hashlib.sha256(body).digest() == entry["digest"], "a torn entry was read"
        assert entry["turn"] == str(turn % 7).encode()
    body = (sys.argv[2] * (1000 + turn)).encode()
    blobs = {"body": body, "digest": hashlib.sha256(body).digest(), "turn": str(turn % 7).encode()}
    cache.put(key, blobs)
    if turn % 40 == 39:
        cache.clear()
"""


def test_processes_that_write_at_the_same_time_never_read_a_torn_entry(tmp_path):
    arguments = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*arguments, name], stderr=subprocess.PIPE) for name in "abcd"]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_get_and_put_import_no_llvm(tmp_path):
    program = f"""
import sys
from fusegraph.runtime.cache import DiskCache
cache = DiskCache({str(tmp_path)!r})
cache.put("ab" * 32, {{"object": b"x"}})
assert cache.get("ab" * 32)["object"] == b"x"
assert "llvmlite" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
