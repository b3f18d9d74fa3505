"""Downloads from a server on this machine: complete and verified, or not there; Oxford 102 into its layout."""

import hashlib
import socket
import tarfile

import pytest

from carvision.data.readers import oxford102
from carvision.data.readers.oxford102 import download_oxford102, read_oxford102
from carvision.errors import InputError
from carvision.files.download import download
from tests.data import layouts
from tests.data.packs.server import serving


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine's loopback interface; its folder is tmp_path / "served"."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        yield server


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once(tmp_path, server, capsys):
    content = bytes(range(256)) * 10_000  # more than one chunk
    (tmp_path / "served" / "a.bin").write_bytes(content)
    file = tmp_path / "new" / "folder" / "a.bin"
    assert download(f"{server.url}/a.bin", file, md5(content)) is True
    assert file.read_bytes() == content and names_in(file.parent) == ["a.bin"]
    assert "a.bin" in capsys.readouterr().err  # the progress bar
    assert download(f"{server.url}/a.bin", file, md5(content)) is False
    file.write_bytes(b"mine")  # another file of that name stays
    with pytest.raises(InputError, match=r"a\.bin is not the original, whose MD5 is .*another data\.root"):
        download(f"{server.url}/a.bin", file, md5(content))
    assert file.read_bytes() == b"mine" and server.asked == {"a.bin": 1}


@pytest.mark.parametrize(
    ("url", "message"),
    [("{url}/a.bin", f"have MD5 {md5(b'tampered')} instead of {md5(b'right')}"),
     ("{url}/absent.bin", "could not be fetched into .*put the file there by hand"),
     ("http://127.0.0.1:1/a.bin", "could not be fetched into"), ("no url at all", "could not be fetched into"),
     ("http://127.0.0.1:{silent}/a.bin", r"could not be fetched into .*: no answer within 0\.2 s\. Check the")],
)  # fmt: skip
def test_what_cannot_be_downloaded_is_one_line_and_leaves_no_file(url, message, tmp_path, server, monkeypatch):
    monkeypatch.setattr("carvision.files.download.ANSWER_S", 0.2 if "silent" in url else 10)
    (tmp_path / "served" / "a.bin").write_bytes(b"tampered")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(InputError, match=message) as error:
        url = url.format(url=server.url, silent=silent.getsockname()[1])
        download(url, tmp_path / "into" / "a.bin", md5(b"right"))
    assert "\n" not in str(error.value) and names_in(tmp_path / "into") == []


@pytest.fixture
def served_oxford102(tmp_path, server, monkeypatch):
    """The miniature of Oxford 102 as the authors serve it, with its own checksums."""
    layouts.write_oxford102(tmp_path / "original")
    served = tmp_path / "served"
    for name in ("imagelabels.mat", "setid.mat"):
        (tmp_path / "original" / name).rename(served / name)
    with tarfile.open(served / "102flowers.tgz", "w:gz") as tar:
        tar.add(tmp_path / "original" / "jpg", "jpg")
    monkeypatch.setattr(oxford102, "MD5", {path.name: md5(path.read_bytes()) for path in served.iterdir()})
    return server


def test_oxford102_is_downloaded_into_its_layout(tmp_path, served_oxford102):
    root = tmp_path / "new" / "oxford102"
    download_oxford102(root, served_oxford102.url)
    assert names_in(root) == ["102flowers.tgz", "imagelabels.mat", "jpg", "setid.mat"]
    table = read_oxford102(root, known=None)
    assert len(table) == 10
    for path in table.rows["path"]:
        assert (root / path).read_bytes() == (tmp_path / "original" / path).read_bytes()
    asked = dict(served_oxford102.asked)
    (root / "jpg" / "image_00004.jpg").unlink()  # completed from the archive
    download_oxford102(root, served_oxford102.url)
    assert len(read_oxford102(root, known=None)) == 10
    (root / "102flowers.tgz").unlink()  # a user may remove it, as the photos are there
    download_oxford102(root, served_oxford102.url)
    assert served_oxford102.asked == asked and [*asked.values()] == [1, 1, 1]


def test_an_archive_that_would_write_outside_the_folder(tmp_path, served_oxford102, monkeypatch):
    archive = tmp_path / "served" / "102flowers.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../escaped.jpg"))
    monkeypatch.setitem(oxford102.MD5, "102flowers.tgz", md5(archive.read_bytes()))
    with pytest.raises(InputError, match=r"102flowers.tgz could not be unpacked"):
        download_oxford102(tmp_path / "new", served_oxford102.url)
    assert not list(tmp_path.rglob("escaped.jpg"))


def test_the_real_lists_have_the_expected_checksums():
    root = layouts.real_data("oxford102")
    for name in ("imagelabels.mat", "setid.mat"):
        assert md5((root / name).read_bytes()) == oxford102.MD5[name]
