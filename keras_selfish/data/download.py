"""Downloads that resume after an interruption and are checked before anyone sees the file."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from absl import logging

_CHUNK = 1 << 16  # bytes
_SECONDS_BETWEEN_REPORTS = 5.0
# Some of the corpora's hosts refuse the default name of Python's client.
_USER_AGENT = "Mozilla/5.0 (compatible; keras_selfish)"


class DownloadError(OSError):
    """A download failed; the message says why in one sentence, and no file was put in place."""


class _Interrupted(Exception):
    """The network failed in a way that another attempt may mend."""


def file_sha256(path):
    """The SHA-256 of a file's content, 64 lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(folder=None):
    """Where downloads are kept: `folder`, or `datasets/keras_selfish` in Keras's home."""
    if folder is not None:
        return Path(folder).expanduser()
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return Path(home).expanduser() / "datasets" / "keras_selfish"


def download(url, path, sha256, *, timeout=30.0, attempts=4, pause=1.0):
    """Downloads a file unless it is already there; its content is checked by SHA-256.

    The data goes to `<path>.part`, which becomes `path` only when the checksum is right, so that
    `path` never holds a wrong or half a file. What arrived before an interruption stays there, and
    the next call asks the server for the rest alone. A server that cannot resume, or a file that
    changed in the meantime, costs a fresh start and nothing else.

    Args:
        url: address that begins with `http://` or `https://`.
        path: where to put the file; missing folders are made.
        sha256: expected SHA-256 of the content, 64 hexadecimal digits.
        timeout: seconds without an answer after which the connection counts as lost.
        attempts: how many times the network may fail before the call gives up.
        pause: seconds before the second attempt; doubled before each further one.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        ValueError: if `url` or `sha256` is not of the form above, or `attempts` is below 1.
        DownloadError: if the network, the server or the disk fails, or if the content has another
            checksum (it is then removed).

    Example:

        download("https://example.org/corpus.txt", "data/corpus.txt", sha256="5891b5b5...")
    """
    sha256 = sha256.lower()
    _check_arguments(url, sha256, attempts)
    path = Path(path)
    if path.is_file():
        if file_sha256(path) == sha256:
            return path
        logging.warning("%s has not the expected SHA-256 and is downloaded again.", path)
    part = path.with_name(path.name + ".part")
    _make_folder(path.parent)

    resumed = _complete(url, part, timeout, attempts, pause)
    received = file_sha256(part)
    if received != sha256 and resumed:
        logging.info("%s changed since its download began, which starts again.", url)
        part.unlink()
        _complete(url, part, timeout, attempts, pause)
        received = file_sha256(part)
    if received != sha256:
        part.unlink()
        raise DownloadError(
            f"The content of {url} must have the SHA-256 {sha256} and was thrown away. Received: {received}"
        )
    os.replace(part, path)
    return path


def _check_arguments(url, sha256, attempts):
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"`url` must begin with http:// or https://. Received: url={url!r}")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits. Received: sha256={sha256!r}")
    if attempts < 1:
        raise ValueError(f"`attempts` must be at least 1. Received: attempts={attempts}")


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"Cannot make the folder {folder}: {error.strerror}; choose another one"
        ) from None


def _complete(url, part, timeout, attempts, pause):
    """Fetches what `part` lacks; True if it held something before an attempt."""
    resumed = False
    for attempt in range(attempts):
        offset = part.stat().st_size if part.exists() else 0
        resumed = resumed or offset > 0
        try:
            _fetch(url, part, offset, timeout)
            return resumed
        except _Interrupted as error:
            failure = error
        if attempt + 1 < attempts:
            logging.warning("Download of %s: %s; another attempt follows.", url, failure)
            time.sleep(pause * 2**attempt)
    raise DownloadError(
        f"Cannot download {url}: {failure} (attempts: {attempts}); check the network and run "
        "again, what has arrived is kept"
    )


def _fetch(url, part, offset, timeout):
    """One request for the bytes from `offset` on, written to the end of `part`."""
    headers = {"User-Agent": _USER_AGENT}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and offset:
                _settle_unsatisfiable(error, part, offset)
                return
            if error.code in (408, 429) or error.code >= 500:
                raise _Interrupted(f"the server answered {error.code} {error.reason}") from None
            raise DownloadError(
                f"Cannot download {url}: the server answered {error.code} {error.reason}"
            ) from None
    except urllib.error.URLError as error:
        raise _Interrupted(str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from None
    with response:
        _receive(response, url, part, offset)


def _settle_unsatisfiable(error, part, offset):
    """The server has nothing from `offset` on: `part` is either whole, or of another file."""
    if error.headers.get("Content-Range") != f"bytes */{offset}":
        part.unlink()
        raise _Interrupted("the file is shorter than what had arrived of it") from None


def _receive(response, url, part, offset):
    continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(
        f"bytes {offset}-"
    )
    if response.status == 206 and not continued:
        part.unlink()
        raise _Interrupted("the server sent another part of the file than asked for")
    size = offset if continued else 0
    length = response.headers.get("Content-Length")
    total = size + int(length) if length is not None else None
    logging.info("Downloading %s (%s bytes, %d already here)", url, total or "unknown", size)
    report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    try:
        with open(part, "ab" if continued else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                size += len(chunk)
                if time.monotonic() >= report_at:
                    logging.info("Downloading %s: %d of %s bytes", url, size, total or "unknown")
                    report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
    except OSError as error:
        raise DownloadError(
            f"Cannot write to {part}: {error.strerror}; make room or choose another folder and "
            "run again, what has arrived is kept"
        ) from None
    if total is not None and size != total:
        raise _Interrupted(f"the connection was cut after {size} of {total} bytes")


def _read(response):
    # A failing network and a failing disk are both OSErrors; only the first may be tried again.
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from None
