import hashlib
import os
import socket
import struct
import time

import pytest

from keras_selfish.data import DownloadError, download

CONTENT = bytes(range(256)) * 1200  # several of the chunks a download is written in
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def get(server, tmp_path):
    """Downloads `CONTENT` as new/corpus.txt, without pauses between attempts."""
    server.files["corpus.txt"] = CONTENT

    def get(sha256=SHA256, **options):
        path = tmp_path / "new" / "corpus.txt"
        options = {"timeout": 5.0, "pause": 0.0, **options}
        return download(server.url("corpus.txt"), path, sha256, **options)

    return get


@pytest.fixture
def part(tmp_path):
    (tmp_path / "new").mkdir()
    return tmp_path / "new" / "corpus.txt.part"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_put_in_place_and_made_once(get, server, tmp_path):
    path = get()
    assert path == tmp_path / "new" / "corpus.txt"
    assert path.read_bytes() == CONTENT
    assert get(SHA256.upper()) == path
    assert server.seen == [("/corpus.txt", None)]
    assert names(path.parent) == ["corpus.txt"]


def test_a_file_without_declared_length(get, server):
    server.declare_length = False
    assert get().read_bytes() == CONTENT


def test_a_wrong_file_in_place_is_replaced(get, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "corpus.txt").write_bytes(b"something else")
    assert get().read_bytes() == CONTENT


def test_an_interrupted_download_resumes_where_it_stopped(get, server):
    server.cuts = [100_000, 50_000]
    assert get().read_bytes() == CONTENT
    assert [wanted for _, wanted in server.seen] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_resumes_what_an_earlier_one_left(get, server):
    server.cuts = [100_000]
    with pytest.raises(DownloadError, match=r"cut after 100000 of 307200 bytes.*run again") as error:
        get(attempts=1)
    assert "\n" not in str(error.value)
    assert get(attempts=1).read_bytes() == CONTENT
    assert server.seen[-1] == ("/corpus.txt", "bytes=100000-")


def test_a_server_that_cannot_resume_sends_all_again(get, server):
    server.ranges = False
    server.cuts = [100_000]
    assert get().read_bytes() == CONTENT
    assert len(server.seen) == 2


@pytest.mark.parametrize("length", [1000, len(CONTENT), len(CONTENT) + 1])
def test_a_partial_file_of_other_content_costs_a_fresh_start(get, server, part, length):
    part.write_bytes(b"x" * length)
    assert get().read_bytes() == CONTENT
    assert server.seen[-1] == ("/corpus.txt", None)


def test_a_whole_file_that_was_not_yet_put_in_place(get, server, part):
    part.write_bytes(CONTENT)
    assert get(attempts=1).read_bytes() == CONTENT
    assert server.seen == [("/corpus.txt", f"bytes={len(CONTENT)}-")]


def test_an_answer_with_another_part_than_asked_for(get, server, part):
    part.write_bytes(CONTENT[:1000])
    server.shift_range = 7
    assert get().read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(get, server, tmp_path):
    expected = hashlib.sha256(b"what was published").hexdigest()
    with pytest.raises(DownloadError, match=f"{expected}.*Received: {SHA256}"):
        get(expected)
    assert names(tmp_path / "new") == []


def test_a_wrong_checksum_after_a_resume_is_told_after_a_fresh_start(get, server, tmp_path):
    server.cuts = [1000]
    with pytest.raises(DownloadError, match=f"Received: {SHA256}"):
        get("0" * 64)
    assert [wanted for _, wanted in server.seen] == [None, "bytes=1000-", None]
    assert names(tmp_path / "new") == []


def test_a_file_in_place_outlives_a_failed_download(get, server, tmp_path):
    path = tmp_path / "new" / "corpus.txt"
    path.parent.mkdir()
    path.write_bytes(b"an older edition")
    with pytest.raises(DownloadError):
        get("0" * 64)
    assert path.read_bytes() == b"an older edition"


def test_a_missing_file_is_told_at_once(server, tmp_path):
    with pytest.raises(DownloadError, match=r"absent\.txt: the server answered 404"):
        download(server.url("absent.txt"), tmp_path / "a", SHA256, pause=0.0)
    assert len(server.seen) == 1


def test_a_busy_server_is_asked_again(get, server):
    server.statuses = [503, 429]
    assert get().read_bytes() == CONTENT
    server.statuses = [500, 500]
    with pytest.raises(DownloadError, match=r"answered 500 .*\(attempts: 2\)"):
        get(sha256="0" * 64, attempts=2)


def test_a_server_that_hangs_up(get, server):
    server.statuses = [0]
    assert get().read_bytes() == CONTENT
    server.statuses = [0]
    with pytest.raises(DownloadError, match=r"closed connection without response \(attempts: 1\)"):
        get(sha256="0" * 64, attempts=1)


def test_a_silent_server(get, server):
    server.delay = 1.0
    with pytest.raises(DownloadError, match="timed out"):
        get(timeout=0.1, attempts=2)


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:  # bound but not listening: the port refuses connections
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/corpus.txt"
        with pytest.raises(DownloadError, match=r"refused.*check the network"):
            download(url, tmp_path / "corpus.txt", SHA256, attempts=2, pause=0.0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(get, part):
    part.symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"corpus\.txt\.part: No space left on device; make"):
        get()


def test_a_folder_that_cannot_be_made(get, tmp_path):
    (tmp_path / "new").write_text("a file")
    with pytest.raises(DownloadError, match=r"Cannot make the folder .*choose another"):
        get()


# Answers that no server should give

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 307200\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def forever(start, piece, pause=0.0):
    """An answer without an end."""

    def answer(connection):
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return answer


def reset(start):
    """An answer that a reset of the connection interrupts."""

    def answer(connection):
        connection.sendall(start)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return answer


def redirected(location, code=302):
    return b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (code, location)


ODD = {
    "nothing": (b"", "closed connection"),
    "no status": (b"\r\n\r\n", "did not answer in HTTP"),
    "HTTP/0.9": (CONTENT, "did not answer in HTTP"),
    "HTTP/0.9 with a status": (b"HTTP/0.9 200 OK\r\n" + LENGTH + CONTENT, "HTTP/0.9"),
    "escape sequences": (b"\x1b[2J\x1b[31mevil\r\n\r\n", r"with '\?\[2J\?\[31mevil'"),
    "another protocol": (b"HTTP/9.9 200 OK\r\n" + LENGTH + CONTENT, "HTTP/9.9"),
    "a long status": (b"HTTP/1.1 200 " + b"a" * 70_000, "more than belongs"),
    "a status of letters": (b"HTTP/1.1 abc OK\r\n\r\n", "did not answer in HTTP"),
    "a reason in colours": (b"HTTP/1.1 404 \x1b[31m\xff" + b"a" * 3000 + b"\r\n\r\n", r"404 \?\[31m\?aaa"),
    "status 99": (b"HTTP/1.1 99 OK\r\n\r\n", "did not answer in HTTP"),
    "no content": (b"HTTP/1.1 204 No\r\n\r\n", "answered 204 No"),
    "accepted": (b"HTTP/1.1 202 Accepted\r\n" + LENGTH + CONTENT, "answered 202 Accepted"),
    "not changed": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
    "choices": (b"HTTP/1.1 300 Choices\r\n\r\n", "answered 300"),
    "many headers": (OK + b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + LENGTH + CONTENT, "headers"),
    "a long header": (OK + b"X: " + b"a" * 100_000 + b"\r\n" + LENGTH + CONTENT, "more than belongs"),
    "headers without end": (forever(OK, b"X: " + b"a" * 1000 + b"\r\n"), "more than belongs|headers"),
    "continuations without end": (forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "more than belongs"),
    "a part unasked": (
        b"HTTP/1.1 206 Part\r\nContent-Range: bytes 0-307199/307200\r\n" + LENGTH + CONTENT,
        "a part of the file when asked for the whole",
    ),
    "another part unasked": (b"HTTP/1.1 206 Part\r\n\r\n" + CONTENT, "a part of the file when"),
    "range 416 unasked": (b"HTTP/1.1 416 Range\r\nContent-Range: bytes */0\r\n\r\n", "answered 416"),
    "a range of the whole": (
        OK + b"Content-Range: bytes 5-307199/307200\r\n" + LENGTH + CONTENT,
        "calls the range 'bytes 5-307199/307200' the whole",
    ),
    "a length of letters": (OK + b"Content-Length: abc\r\n\r\n" + CONTENT, "states the length 'abc'"),
    "a negative length": (OK + b"Content-Length: -1\r\n\r\n" + CONTENT, "states the length '-1'"),
    "a length of other digits": (OK + b"Content-Length: \xb2\r\n\r\n" + CONTENT, r"states the length '\?'"),
    "two lengths": (OK + b"Content-Length: 1\r\n" + LENGTH + CONTENT, "states the length '1, 307200'"),
    "an endless length": (OK + b"Content-Length: 999999999999999\r\n\r\n", "at most 400,000 bytes"),
    "a length of many digits": (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", "states the length"),
    "a length too large": (OK + b"Content-Length: 307201\r\n\r\n" + CONTENT, "cut after 307200 of 307201"),
    "a length too small": (OK + b"Content-Length: 307199\r\n\r\n" + CONTENT, "must have the SHA-256"),
    "a body without end": (forever(OK + b"\r\n", CONTENT), "at most 400,000 bytes"),
    "parts without end": (forever(OK + CHUNKED, b"1000\r\n" + b"a" * 4096 + b"\r\n"), "at most 400,000"),
    "names of parts without end": (
        forever(OK + CHUNKED, b"1;" + b"a" * 60_000 + b"\r\na\r\n"),
        "more than bel",
    ),
    "trailers without end": (forever(OK + CHUNKED + b"0\r\n", b"X: a\r\n" * 1000), "more than belongs"),
    "parts that are cut": (OK + CHUNKED + b"10000\r\n" + CONTENT[:4096], "connection was cut"),
    "parts without lengths": (OK + CHUNKED + CONTENT, "something else than parts"),
    "a part of length -1": (forever(OK + CHUNKED + b"-1\r\n", CONTENT), "part of unknown length"),
    "a part of length -5": (OK + CHUNKED + b"-5\r\n" + CONTENT, "does not keep to HTTP"),
    "a part of a long negative length": (
        OK + CHUNKED + b"-ffffffffffffffffff\r\n" + CONTENT,
        "does not keep to HTTP",
    ),
    "a part of a long length": (OK + CHUNKED + b"f" * 200 + b"\r\n" + CONTENT, "cut"),
    "wrong gzip": (OK + b"Content-Encoding: gzip\r\n" + LENGTH + CONTENT[:-4] + b"oops", "must have the SHA"),
    "a reset": (reset(OK + LENGTH + CONTENT[:5000]), "reset|cut"),
    "a reset at once": (reset(b""), "reset|closed"),
    "a slow head": (forever(b"", b"H", pause=0.05), "timed out|not answer"),
    "slow headers": (forever(OK, b"X", pause=0.05), "timed out"),
    "a slow body": (forever(OK + LENGTH, b"a", pause=0.05), "timed out"),
    "a slow part": (forever(OK + CHUNKED, b"1\r\na\r\n", pause=0.05), "timed out"),
    "a redirect to http": (redirected(b"http://127.0.0.1:1/a"), "redirects to 'http://127.0.0.1:1/a', where"),
    "a redirect from http": (redirected(b"/other"), "redirects to '/other', where only"),
    "a redirect to no scheme": (redirected(b"//example.org/a"), "where only"),
    "a redirect to ftp": (redirected(b"ftp://example.org/a"), "where only"),
    "a redirect to a file": (redirected(b"file:///etc/passwd"), "where only"),
    "a redirect to data": (redirected(b"data:text/plain,a"), "where only"),
    "a redirect nowhere": (b"HTTP/1.1 301 Moved\r\n\r\n", "redirects to 0 addresses"),
    "two redirects": (
        b"HTTP/1.1 301 Moved\r\nLocation: https://a/\r\nLocation: https://b/\r\n\r\n",
        "redirects to 2 addresses",
    ),
    "a redirect with half a code": (redirected(b"https://example.org/%2"), "where only"),
    "a redirect with brackets": (redirected(b"https://example.org/<a>"), "where only"),
    "a redirect with a backslash": (redirected(b"https://example.org\\\\@a"), "where only"),
    "a redirect to nothing": (redirected(b""), "where only"),
    "a redirect to no host": (redirected(b"https://"), "where only"),
    "a redirect to half a host": (redirected(b"https://[::1/a"), "where only"),
    "a redirect to a port": (redirected(b"https://example.org:99999/a"), "where only"),
    "a redirect to a user": (redirected(b"https://a@example.org/"), "where only"),
    "a redirect to a long name": (redirected(b"https://" + b"a" * 64 + b".org/"), "where only"),
    "a redirect to dots": (redirected(b"https://a..b/"), "where only"),
    "a redirect to UTF-8": (redirected("https://example.org/caf\u00e9".encode()), "where only"),
    "a redirect with a space": (redirected(b"https://example.org/a b"), "where only"),
    "a redirect with a tab": (redirected(b"https://example.org/a\tb"), "where only"),
    "a redirect with a zero": (redirected(b"https://example.org/\0"), "where only"),
    "a redirect with a long body": (forever(redirected(b"http://a/")[:-2] + b"\r\n", CONTENT), "where only"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_told_in_a_sentence(answer_server, tmp_path, name):
    answer, message = ODD[name]
    answer_server.answers = [answer]
    options = {"timeout": 0.5, "attempts": 1, "max_bytes": 400_000}
    with pytest.raises(DownloadError, match=message) as error:
        download(answer_server.url(), tmp_path / "file", SHA256, **options)
    assert type(error.value) is DownloadError
    assert str(error.value).isprintable()
    assert str(error.value).isascii()
    assert len(str(error.value)) < 800
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("body", ["length", "no length", "parts"])
def test_a_file_of_the_greatest_size(answer_server, tmp_path, body):
    parts = b"".join(b"4b00\r\n" + CONTENT[i : i + 19_200] + b"\r\n" for i in range(0, 307_200, 19_200))
    answer_server.answers = [
        {
            "length": OK + LENGTH + CONTENT,
            "no length": OK + b"\r\n" + CONTENT,
            "parts": OK + CHUNKED + parts + b"0\r\n\r\n",
        }[body]
    ]
    download(answer_server.url(), tmp_path / "file", SHA256, max_bytes=307_200)
    assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="must have at most 307,199 bytes and was thrown away"):
        download(answer_server.url(), tmp_path / "other", SHA256, max_bytes=307_199)
    assert names(tmp_path) == ["file"]


def test_a_beginning_that_is_too_large(get, server, part):
    part.write_bytes(CONTENT + CONTENT)
    with pytest.raises(DownloadError, match="must have at most 307,199 bytes"):
        get(max_bytes=307_199)
    assert not part.exists()


def test_redirects_to_https_are_followed(answer_server, secure_server, tmp_path):
    answer_server.answers = [redirected(secure_server.url("a/b").replace("https", "HTTPS").encode(), 301)]
    secure_server.answers = [redirected(b"../c?d=e#f", 308), OK + LENGTH + CONTENT]
    download(answer_server.url(), tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert secure_server.asked == ["GET /a/b HTTP/1.1", "GET /c?d=e HTTP/1.1"]


def test_redirects_end(answer_server, secure_server, tmp_path):
    secure_server.answers = [redirected(b"/again")]
    with pytest.raises(DownloadError, match="redirected more than 5 times"):
        download(secure_server.url(), tmp_path / "file", SHA256)
    assert len(secure_server.asked) == 6
    secure_server.answers = [redirected(answer_server.url().encode())]
    with pytest.raises(DownloadError, match="redirects to 'http://"):
        download(secure_server.url(), tmp_path / "file", SHA256)
    assert answer_server.asked == []


def test_a_server_that_nobody_vouches_for(secure_server, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    secure_server.answers = [OK + LENGTH + CONTENT]
    with pytest.raises(DownloadError, match="certificate verify failed"):
        download(secure_server.url(), tmp_path / "file", SHA256, attempts=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["corpus.txt", "corpus.txt.part"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_something_else_at_the_files_place(get, server, tmp_path, place, make):
    (tmp_path / "new").mkdir()
    make(tmp_path / "new" / place)
    with pytest.raises(DownloadError, match=r"Cannot (put a file at|write to) .*corpus\.txt"):
        get()
    assert names(tmp_path / "new") == [place]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://example.org/a"}, "`url` must begin with http:// or https://. Received: url"),
        ({"url": "http://"}, "`url` must be the address of a host"),
        ({"url": "https://user:word@example.org/a"}, "`url` must be the address of a host"),
        ({"url": "https://example.org:99999/a"}, "`url` must be the address of a host"),
        ({"url": "https://example.org/caf\u00e9"}, "`url` must be the address of a host"),
        ({"url": "https://[::1/a"}, "`url` must be the address of a host"),
        ({"url": "https://a..b/"}, "`url` must be the address of a host"),
        ({"url": "https://" + "a" * 64 + ".org/"}, "`url` must be the address of a host"),
        ({"url": "https://example.org/a b"}, "`url` must be the address of a host"),
        ({"url": "https://example.org/a\r\nX: y"}, "`url` must be the address of a host"),
        ({"max_bytes": 0}, "`max_bytes` must be a positive integer. Received: max_bytes=0"),
        ({"sha256": "abc"}, "`sha256` must be 64 hexadecimal digits. Received: sha256='abc'"),
        ({"attempts": 0}, "`attempts` must be a positive integer. Received: attempts=0"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    arguments = {"url": "http://127.0.0.1:1/a", "path": tmp_path / "new" / "a", "sha256": SHA256}
    with pytest.raises(ValueError, match=message):
        download(**{**arguments, **change})
    assert names(tmp_path) == []
