import hashlib
import os
import socket

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://example.org/a"}, "`url` must begin with http:// or https://. Received: url"),
        ({"sha256": "abc"}, "`sha256` must be 64 hexadecimal digits. Received: sha256='abc'"),
        ({"attempts": 0}, "`attempts` must be at least 1. Received: attempts=0"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    arguments = {"url": "http://127.0.0.1:1/a", "path": tmp_path / "new" / "a", "sha256": SHA256}
    with pytest.raises(ValueError, match=message):
        download(**{**arguments, **change})
    assert names(tmp_path) == []
