"""Real servers on the loopback interface, whose manners a test can spoil."""

import contextlib
import http.server
import shutil
import socket
import ssl
import subprocess
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


class AnswerServer:
    """Sends each connection the next of some answers, whatever was asked.

    Attributes:
        answers: bytes, or functions that are given the connection; the last one is used again.
        asked: first lines of the requests so far.
    """

    def __init__(self, context=None):
        self.answers = []
        self.asked = []
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def url(self, path="file"):
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}/{path}"

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            # The client goes whenever it likes.
            with contextlib.suppress(OSError), connection:
                connection.settimeout(5)
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with connection:
                    self.asked.append(connection.recv(1 << 16).partition(b"\r\n")[0].decode())
                    answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                    answer(connection) if callable(answer) else connection.sendall(answer)


@pytest.fixture
def answer_server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with contextlib.closing(AnswerServer()) as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1, which nothing trusts unless `SSL_CERT_FILE` names it; and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificate")
    names = "subjectAltName=IP:127.0.0.1"
    command = f"openssl req -x509 -nodes -days 2 -newkey rsa:2048 -subj /CN=test -addext {names}"
    command = [*command.split(), "-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture
def secure_server(certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with contextlib.closing(AnswerServer(context)) as server:
        yield server
