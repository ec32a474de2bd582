"""A real HTTP server on the loopback interface, whose manners a test can spoil."""

import http.server
import threading
import time

import pytest


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `files` (bytes by path).

    Attributes:
        ranges: whether Range requests are honoured.
        shift_range: bytes by which the part sent in answer to a Range request is misplaced.
        declare_length: whether answers carry Content-Length.
        cuts: for each coming answer, after how many bytes to close the connection; None: not.
        statuses: status codes to refuse the coming requests with; 0: hang up without an answer.
        delay: seconds to wait before the body.
        seen: (path, Range header) of each request so far.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {}
        self.ranges = True
        self.shift_range = 0
        self.declare_length = True
        self.cuts = []
        self.statuses = []
        self.delay = 0.0
        self.seen = []

    def url(self, path=""):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Keeps the test's output clean."""

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.seen.append((self.path, wanted))
        content = server.files.get(self.path.lstrip("/"))
        if server.statuses:
            status = server.statuses.pop(0)
            return self.send_error(status) if status else None
        if content is None:
            return self.send_error(404)
        status, body = 200, content
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            start += server.shift_range
            status, body = 206, content[start:]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.declare_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.flush()
        time.sleep(server.delay)
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(body[:cut])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
