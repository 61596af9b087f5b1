"""Download a file once into the user's cache folder: checked, atomic, with a progress bar.

A file appears under its final name only after its size and checksum were found right, so a download that is
interrupted, cut short or tampered with can never be mistaken for data.
"""

import hashlib
import http.client
import os
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fusegraph.errors import FusegraphError

BLOCK = 1 << 16  # bytes read at a time


class DataError(FusegraphError):
    """A data file is missing, damaged or cannot be had. The message says which, why, and what to do."""


@dataclass(frozen=True)
class Remote:
    """One file on the network: its name in the cache, mirrors in the order to try, size (if known) and checksum."""

    name: str
    urls: tuple[str, ...]
    checksum: str
    size: int | None = None
    algorithm: str = "sha256"


def cache_folder() -> Path:
    """Folder for downloaded data, by the platform's habit; `FUSEGRAPH_DATA_CACHE` overrides it."""
    if chosen := os.environ.get("FUSEGRAPH_DATA_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fusegraph" / "data"


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def difference(path: Path, remote: Remote) -> str | None:
    """Say how the file at `path` differs from `remote`, or None when it is the right one."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"size is {size:,} bytes, expected {remote.size:,}"
    found = checksum(path, remote.algorithm)
    if found != remote.checksum:
        return f"{remote.algorithm} is {found}, expected {remote.checksum}"
    return None


def fetch(remote: Remote, folder: Path, *, timeout: float = 10.0) -> Path:
    """Return the path of `remote` inside `folder`, downloading it when it is not there or is damaged.

    Raises DataError, naming what went wrong at each mirror, when no mirror gave the right bytes.
    With `FUSEGRAPH_OFFLINE=1` nothing is downloaded.
    """
    target = folder / remote.name
    if target.exists() and difference(target, remote) is None:
        return target
    if os.environ.get("FUSEGRAPH_OFFLINE") == "1":
        raise DataError(f"{remote.name}: not in {folder}, and FUSEGRAPH_OFFLINE=1 forbids the download")
    reasons = []
    for url in remote.urls:
        try:
            return _download(url, remote, target, timeout)
        except (OSError, http.client.HTTPException, DataError) as error:  # URLError and timeouts are OSErrors
            reasons.append(f"  {urlsplit(url).netloc or url}: {getattr(error, 'reason', None) or error}")
    raise DataError(f"{remote.name}: no mirror gave the right file\n" + "\n".join(reasons))


def _download(url: str, remote: Remote, target: Path, timeout: float) -> Path:
    """Copy `url` to a temporary file beside `target`, check it, then move it into place in one step."""
    with urllib.request.urlopen(url, timeout=timeout) as response:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes that download at once cannot write into each other's file.
        handle, name = tempfile.mkstemp(prefix=f".{remote.name}.", suffix=".part", dir=target.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                _copy(response, file, remote)
            if problem := difference(part, remote):
                raise DataError(problem)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _copy(response: http.client.HTTPResponse, file: IO[bytes], remote: Remote) -> None:
    length = response.headers.get("Content-Length")
    total = int(length) if length else remote.size
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"downloading {remote.name}", total=total)
        while block := response.read(BLOCK):
            file.write(block)
            progress.advance(task, len(block))
