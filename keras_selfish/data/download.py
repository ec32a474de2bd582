"""Downloads that resume after an interruption and are checked before anyone sees the file."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from absl import logging

from keras_selfish import checks
from keras_selfish.data.http_client import NETWORK_ERRORS, open_url, plain, told
from keras_selfish.typing import PathLike

_CHUNK = 1 << 16  # bytes
_MOST_REDIRECTS = 5
_SECONDS_BETWEEN_REPORTS = 5.0
# Some of the corpora's hosts refuse the default name of Python's client.
_USER_AGENT = "Mozilla/5.0 (compatible; keras_selfish)"


class DownloadError(OSError):
    """A download failed; the message says why in one sentence, and no file was put in place."""


class _Interrupted(Exception):
    """A network failure after which another attempt may succeed."""


def file_sha256(path):
    """The SHA-256 of a file's content, 64 lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(folder=None):
    """The folder of downloads: `folder`, or `datasets/keras_selfish` in Keras's home."""
    if folder is not None:
        return Path(folder).expanduser()
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return Path(home).expanduser() / "datasets" / "keras_selfish"


def download(
    url: str,
    path: PathLike,
    sha256: str,
    *,
    max_bytes: int = 2**31,
    timeout: float = 30.0,
    attempts: int = 4,
    pause: float = 1.0,
) -> Path:
    """Downloads a file unless it is already there; its content is checked by SHA-256.

    The data goes to `<path>.part`, which becomes `path` only when the checksum is right, so that
    `path` never holds a wrong or half a file. What arrived before an interruption stays there, and
    the next call asks the server for the rest alone. A server that cannot resume, or a file that
    changed in the meantime, costs a fresh start and nothing else. Redirects are followed to https
    only, five at most.

    Args:
        url: address that begins with `http://` or `https://`, in ASCII characters.
        path: where to put the file; missing folders are made.
        sha256: expected SHA-256 of the content, 64 hexadecimal digits.
        max_bytes: size of the file at most; of one that is larger nothing is kept. Default: 2 GiB.
        timeout: seconds within which a server has to answer, and after that to send each kilobyte.
        attempts: how many times the network may fail before the call gives up.
        pause: seconds before the second attempt; doubled before each further one.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        ValueError: if `url` or `sha256` is not of the form above, or `attempts` or `max_bytes` is
            below 1.
        DownloadError: if the network, the server or the disk fails, if the server answers what HTTP
            does not allow, or if the content is too large or has another checksum (it is then
            removed).

    Example:

        download("https://example.org/corpus.txt", "data/corpus.txt", sha256="5891b5b5...")
    """
    sha256 = sha256.lower()
    _check_arguments(url, sha256, attempts, max_bytes)
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        if path.is_file():
            if file_sha256(path) == sha256:
                return path
            logging.warning("%s has not the expected SHA-256 and is downloaded again.", path)
        elif path.exists():
            raise DownloadError(f"Cannot put a file at {path}: there is something else; choose another path")
        _make_folder(path.parent)
        _complete(_Source(url, sha256, max_bytes, timeout, attempts, pause), part)
        os.replace(part, path)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"Cannot write to {part}: {error.strerror}; choose another folder and run again"
        ) from None
    return path


class _Source(NamedTuple):
    """The arguments of `download`: what to fetch, and how."""

    url: str
    sha256: str
    max_bytes: int
    timeout: float
    attempts: int
    pause: float


def _check_arguments(url, sha256, attempts, max_bytes):
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"`url` must begin with http:// or https://. Received: url={url!r}")
    if not _is_well_formed(url):
        raise ValueError(
            "`url` must be the address of a host, with spaces and characters that are not ASCII in the form "
            f"%20. Received: url={url!r}"
        )
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits. Received: sha256={sha256!r}")
    for name, value in (("attempts", attempts), ("max_bytes", max_bytes)):
        checks.integer(name, value, at_least=1)


def _is_well_formed(url):
    """Whether an absolute URL has a host, no user, a possible port, and the characters of RFC 3986 only."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port  # raises an error for one that cannot be
    except ValueError:
        return False
    label = "[A-Za-z0-9_-]{1,63}"
    host = rf"{label}(\.{label})*\.?|\[[0-9A-Fa-f:.]+\]"
    return _visible(url) and re.fullmatch(host, parts.netloc.removesuffix(f":{port}")) is not None


def _visible(url):
    return re.fullmatch(r"([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", url) is not None


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"Cannot make the folder {folder}: {error.strerror}; choose another one"
        ) from None


def _complete(source, part):
    """Fetches what `part` lacks and checks the whole, from the start if an older beginning did not fit."""
    resumed = _try_to_fetch(source, part)
    received = file_sha256(part)
    if received != source.sha256 and resumed:
        logging.info("%s changed since its download began, which starts again.", source.url)
        part.unlink()
        _try_to_fetch(source, part)
        received = file_sha256(part)
    if received != source.sha256:
        part.unlink()
        raise DownloadError(
            f"The content of {source.url} must have the SHA-256 {source.sha256} and was thrown away. "
            f"Received: {received}"
        )


def _try_to_fetch(source, part):
    """Fetches what `part` lacks in some attempts; True if it held something before one."""
    resumed = False
    for attempt in range(source.attempts):
        offset = part.stat().st_size if part.exists() else 0
        resumed = resumed or offset > 0
        try:
            _fetch(source, part, offset)
            return resumed
        except _Interrupted as error:
            failure = error
        if attempt + 1 < source.attempts:
            logging.warning("Download of %s: %s; another attempt follows.", source.url, failure)
            time.sleep(source.pause * 2**attempt)
    raise DownloadError(
        f"Cannot download {source.url}: {failure} (attempts: {source.attempts}); check the network and run "
        "again, what has arrived is kept"
    )


def _fetch(source, part, offset):
    """One request for the bytes from `offset` on, written to the end of `part`."""
    headers = {"User-Agent": _USER_AGENT}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with _answer(source, headers) as response:
            _receive(response, source, part, offset)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and offset:
                _settle_unsatisfiable(error, part, offset)
                return
            if error.code in (408, 429) or error.code >= 500:
                raise _Interrupted(f"the server answered {error.code} {plain(error.reason)}") from None
            raise _refusal(source, f"the server answered {error.code} {plain(error.reason)}") from None


def _refusal(source, why):
    return DownloadError(f"Cannot download {source.url}: {why}; try another address")


def _answer(source, headers):
    """The answer to a request, or to the one that it leads to."""
    url = source.url
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            return open_url(url, headers, source.timeout)
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308):
                raise
            with error:
                url = _redirected(source, url, error.headers.get_all("Location", []))
        except NETWORK_ERRORS as error:
            raise _Interrupted(told(error)) from None
    raise _refusal(source, f"it is redirected more than {_MOST_REDIRECTS} times")


def _redirected(source, url, locations):
    if len(locations) != 1:
        raise _refusal(source, f"the server redirects to {len(locations)} addresses")
    try:
        target = urllib.parse.urlsplit(urllib.parse.urljoin(url, locations[0])).geturl()
    except ValueError:
        target = ""
    # Joining drops spaces and line ends, so the original is looked at as well.
    if not (_visible(locations[0]) and target.startswith("https://") and _is_well_formed(target)):
        raise _refusal(
            source,
            f"the server redirects to '{plain(locations[0])}', where only well-formed addresses that begin "
            "with https:// are followed",
        )
    return target


def _settle_unsatisfiable(error, part, offset):
    """The server has nothing from `offset` on: `part` is either whole, or of another file."""
    if error.headers.get("Content-Range") != f"bytes */{offset}":
        part.unlink()
        raise _Interrupted("the file is shorter than what had arrived of it") from None


def _receive(response, source, part, offset):
    continued = _is_continued(response, source, part, offset)
    size = offset if continued else 0
    length = _declared_length(response, source)
    total = size + length if length is not None else None
    if (total or size) > source.max_bytes:
        part.unlink(missing_ok=True)
        raise _too_large(source, f"{total or size:,}")
    logging.info("Downloading %s (%s bytes, %d already here)", source.url, total or "unknown", size)
    response.allow(source.max_bytes)
    size = _write(response, source, part, size, total)
    if total is not None and size != total:
        raise _Interrupted(f"the connection was cut after {size} of {total} bytes")


def _is_continued(response, source, part, offset):
    """Whether an answer continues `part`; False if it is the whole file."""
    stated = response.headers.get("Content-Range", "")
    if response.status == 206 and offset:
        if not re.fullmatch(rf"bytes {offset}-[0-9]+/([0-9]+|\*)", stated):
            part.unlink(missing_ok=True)
            raise _Interrupted("the server sent another part of the file than asked for")
        return True
    if response.status == 206:
        raise _refusal(source, "the server sent a part of the file when asked for the whole")
    if response.status != 200:
        raise _refusal(source, f"the server answered {response.status} {plain(response.reason)}")
    if stated and not stated.startswith("bytes 0-"):
        raise _refusal(source, f"the server calls the range '{plain(stated)}' the whole file")
    return False


def _declared_length(response, source):
    """Bytes of an answer's body as its headers say; None if they do not."""
    lengths = response.headers.get_all("Content-Length", [])
    if response.chunked or not lengths:
        return None
    if len(lengths) > 1 or not re.fullmatch("[0-9]{1,15}", lengths[0].strip()):
        raise _refusal(source, f"the server states the length '{plain(', '.join(lengths))}'")
    return int(lengths[0])


def _too_large(source, size):
    return DownloadError(
        f"The file at {source.url} must have at most {source.max_bytes:,} bytes and was thrown away. "
        f"Received: {size} bytes"
    )


def _write(response, source, part, size, total):
    """Writes the body to the end of the first `size` bytes of `part`; returns the new size."""
    report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    try:
        with open(part, "ab" if size else "wb", opener=_open_at_once) as file:
            while size <= source.max_bytes and (chunk := _read(response)):
                file.write(chunk)
                size += len(chunk)
                if time.monotonic() >= report_at:
                    logging.info("Downloading %s: %d of %s bytes", source.url, size, total or "unknown")
                    report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    except OSError as error:
        raise DownloadError(
            f"Cannot write to {part}: {error.strerror}; make room or choose another folder and "
            "run again, what has arrived is kept"
        ) from None
    if size > source.max_bytes:
        part.unlink()
        raise _too_large(source, f"more than {source.max_bytes:,}")
    return size


def _open_at_once(path, flags):
    # A pipe would wait for a reader.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def _read(response):
    # A failing network and a failing disk are both OSErrors; only the first may be tried again.
    try:
        return response.read(_CHUNK)
    except NETWORK_ERRORS as error:
        raise _Interrupted(told(error)) from None
