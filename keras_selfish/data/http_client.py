"""HTTP requests whose answers are bounded in memory and time."""

import http.client
import io
import time
import urllib.request

__all__ = ["NETWORK_ERRORS", "open_url", "plain", "told"]

# What `open_url` and reading its answer raise apart from `urllib.error.HTTPError`, whose answer is whole:
# the network's errors, and those of a server that does not keep to HTTP, the last for a length below any int.
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError, OverflowError)

_MOST_OF_HEAD = 1 << 16  # bytes before the body
_SLOWEST = 1 << 10  # bytes of the body in the seconds of a timeout


def open_url(url, headers, timeout):
    """The answer to a GET request; redirects are not followed.

    Args:
        url: A well-formed address of http or https.
        headers: A dict.
        timeout: Seconds for connecting, for all headers, and for each kilobyte after that.

    Returns:
        An `http.client.HTTPResponse` with a method `allow`, which must be given the number of bytes that
        may be read of the body.

    Raises:
        urllib.error.HTTPError: If the status is not one of success.
        NETWORK_ERRORS: If there is no answer, or none in HTTP.
    """
    opener = urllib.request.build_opener(_Handler, _SecureHandler, _NoRedirects)
    return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)


def plain(text):
    """Text from a server for a message: one line of at most 200 visible ASCII characters."""
    text = " ".join(str(text)[:1000].split())[:200]
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def told(error):
    """The meaning of one of NETWORK_ERRORS, for a message."""
    error = getattr(error, "reason", error)
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return f"the server did not answer in HTTP but with '{plain(error.line)[:50]}'"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut, or the server sent something else than parts with their lengths"
    if isinstance(error, (ValueError, OverflowError)):
        return f"the server does not keep to HTTP ({plain(error)})"
    return plain(error) or type(error).__name__


class _Line(io.RawIOBase):
    """What arrives at a socket, counted and timed: a slow server cannot keep a timeout from passing."""

    def __init__(self, connection, arriving):
        self._connection = connection
        self._arriving = arriving
        self._timeout = connection.gettimeout()
        self._left, self._waited, self._since = _MOST_OF_HEAD, 0.0, None

    def allow(self, count):
        self._left, self._waited, self._since = count, 0.0, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        if self._left <= 0:
            raise http.client.HTTPException("the server sends more than belongs to an answer")
        if self._timeout is not None:
            if self._waited >= self._timeout:
                raise TimeoutError("the answer timed out")
            self._connection.settimeout(self._timeout - self._waited)
        start = time.monotonic()
        try:
            count = self._arriving.readinto(memoryview(buffer)[: self._left])
        finally:
            self._connection.settimeout(self._timeout)
        self._waited += time.monotonic() - start
        self._left -= count
        if self._since is not None:
            self._since += count
            if self._since >= _SLOWEST:
                self._waited, self._since = 0.0, 0
        return count

    def readall(self):
        # Python asks for this where a server states a negative length.
        raise http.client.HTTPException("the server sends a part of unknown length")

    def close(self):
        self._arriving.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer that is read through a `_Line`."""

    def __init__(self, sock, *args, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self._line = _Line(sock, self.fp.detach())
        self.fp = io.BufferedReader(self._line)

    def begin(self):
        # Which http.client takes for HTTP/1.0.
        if self.headers is None and self.fp.peek().startswith(b"HTTP/0.9"):
            raise http.client.UnknownProtocol("HTTP/0.9")
        super().begin()

    def allow(self, size):
        """Lets a body of `size` bytes be read; as much again may be how it is cut into parts."""
        self._line.allow(2 * size + _MOST_OF_HEAD)


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_Connection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_SecureConnection, request)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an `HTTPError`, whose address nobody has looked at and whose body is not read."""

    def http_error_302(self, request, file, code, message, headers):
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302
