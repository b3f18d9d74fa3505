"""What is sent to harm the server: it is refused or answered, others are answered meanwhile, and nothing leaks."""

import base64
import gzip
import itertools
import json
import socket
import struct
import threading
import zlib

import pytest

from tests.serving.abused import LIMITS, PHOTO, TELLTALE, form, receive, request

pytest.importorskip("fastapi", reason="the server's libraries are not installed (pip install '.[serve]')")
pytest.importorskip("uvicorn")

DISPOSITION = 'Content-Disposition: form-data; name="photo"; filename="{}"\r\nContent-Type: image/jpeg'


def png(width: int, height: int, rows: int) -> bytes:
    """Return a grey PNG whose header names a size and whose data, all black, has so many rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    compress, row = zlib.compressobj(9), bytes(width + 1)
    data = b"".join(compress.compress(row) for _ in range(rows)) + compress.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_that_claims(width: int, height: int) -> bytes:
    at = PHOTO.index(b"\xff\xc0") + 5
    return PHOTO[:at] + struct.pack(">HH", height, width) + PHOTO[at + 4 :]


@pytest.fixture(autouse=True)
def others_are_answered(request):
    yield
    if "server" in request.fixturenames:
        status, found = request.getfixturevalue("server").predict(PHOTO)
        assert (status, found["photos"][0]["error"]) == (200, None)


def require_error(answer: tuple[int, bytes], *statuses: int) -> dict:
    """Require one of the statuses and the one shape of errors; return the error."""
    status, body = answer
    assert status in statuses, (status, body[:300])
    assert not TELLTALE.search(body), body
    found = json.loads(body)
    assert found.keys() == {"error"} and {"code", "message"} <= found["error"].keys() <= {"code", "message", "limit"}
    assert len(body) < 2000, "what was sent comes back"
    return found["error"]


# Paths: no file but the page's own is ever opened

SECRET = "/etc/passwd"
PATHS = [
    f"/static/..{SECRET}", "/static/../../serving/app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fapp.py",
    "/static/....//....//app.py", "/static/..\\..\\app.py", "/static/%5c..%5capp.py", "/static/%c0%ae%c0%ae/app.py",
    "/static//etc/passwd", "/static/%00", "/static/app.css%00.js", "/static/C:/Windows/win.ini", "/static/",
    "/static/.",
    f"/file={SECRET}", "/file=..%2f..%2f..%2fetc%2fpasswd", "/gradio_api/file=/etc/passwd", f"/{SECRET}",
    f"/..{SECRET}",
    "/%2e%2e/%2e%2e/etc/passwd", "//127.0.0.1/v1/model/..", "/component_server", "/queue/join", "/upload",
    "/v1/neighbours/..%2f..%2fetc%2fpasswd.jpg", "/v1/neighbours/../../../etc/passwd.jpg", "/v1/neighbours/-1.jpg",
    "/v1/neighbours/999999999999999999999999.jpg", "/v1/neighbours/0x1.jpg", "/v1/neighbours/1e3.jpg",
    "/v1/neighbours/\u0661.jpg", "/v1/model?model=../../etc", "/v1/model?model=/etc/passwd", "/v1/classes/..%2f..",
    "/v1/classes/%00", f"/v1/classes/{'a' * 5000}", "/v1/classes/make?offset=-1", "/v1/classes/make?limit=1e9",
    "/v1/classes/make?offset=99999999999999999999999", f"/v1/classes/make?search={'a' * 5000}",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_opens_a_file_of_the_machine(server, path):
    status, body = server.get(path)
    assert status in (400, 404, 405, 422), (status, body[:200])
    assert not TELLTALE.search(body) and len(body) < 2000


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "PROPFIND", "a" * 300])
def test_other_methods_are_refused(server, method):
    require_error(server.ask(request(method, "/v1/predict")), 400, 404, 405)


def test_many_ranges_of_a_file_of_the_page_are_answered(server):
    ranges = "Range: bytes=" + ",".join(f"{i}-{i}" for i in range(0, 12_000, 2))
    assert server.ask(request("GET", "/static/app.js", b"", "", ranges))[0] in (200, 206, 400, 416)


SOURCES = [
    "http://127.0.0.1:9/a.jpg", "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "data:image/png;base64,AAAA",
    r"\\host\share\a.jpg", "https://localhost/", "",
]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_no_url_and_no_path_in_a_body_is_opened(server, source):
    listener = socket.create_server(("127.0.0.1", 0))
    source = source.replace(":9/", f":{listener.getsockname()[1]}/")
    listener.setblocking(False)
    for photos in ([{"data": source}], [source], source, [{"path": source}], [{"url": source, "data": source}]):
        body = json.dumps({"photos": photos}).encode()
        require_error(server.ask(request("POST", "/v1/predict", body, "application/json")), 400, 415, 422)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


# Forms

NAMES = [
    "../../../../tmp/evil.jpg", "/etc/passwd", "a.jpg\\0.exe", "a\x00.jpg", "..\\..\\evil.jpg", "C:\\evil.jpg", "CON",
    "",
    ".", "a" * 60_000, "\u202egpj.exe", "%2e%2e%2fevil", "a.jpg; name=boxes", "\udcff\udcfe.jpg", "${jndi:ldap://a}",
    "<script>alert(1)</script>.jpg", "a.php;.jpg", "~root", "-rf", "|ls",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_file_name_is_never_used(server, name):
    before = set(server.log.parent.rglob("*"))
    status, body = server.ask(request("POST", "/v1/predict", *form((DISPOSITION.format(name), PHOTO))))
    assert status in (200, 400) and not TELLTALE.search(body)
    if status == 200:
        [photo] = json.loads(body)["photos"]
        assert photo["error"] is None
        assert len(name) < 5 or name.encode("utf-8", "surrogateescape") not in body
    assert set(server.log.parent.rglob("*")) == before


def hostile_forms() -> dict[str, tuple[bytes, str]]:
    """Bodies and their content types, as in known faults of servers (CVE-2025-0187, CVE-2024-53981, CVE-2024-24762)."""
    good = (DISPOSITION.format("a.jpg"), PHOTO)
    body, kind = form(good)
    return {
        "a name of 18 MB": form((DISPOSITION.format("a" * 18_000_000), PHOTO)),
        "a header of 18 MB": form((f"{good[0]}\r\nX-A: {'a' * 18_000_000}", PHOTO)),
        "100,000 headers": form((good[0] + "\r\nX-A: a" * 100_000, PHOTO)),
        "dashes after the end": form(good, end=b"-" * 18_000_000),
        "line breaks before the start": (b"\r\n" * 9_000_000 + body, kind),
        "line breaks after the end": (body + b"\r\n" * 9_000_000, kind),
        "an edge of 60 kB": form(good, edge="e" * 60_000),
        "an edge of almost each line": form((good[0], b"\r\n--edg" * 2_500_000), edge="edge"),
        "no edge": (body, "multipart/form-data"),
        "an empty edge": (body, "multipart/form-data; boundary="),
        "an edge with line breaks": (body, 'multipart/form-data; boundary="a\\r\\nb"'),
        "backslashes": (body, 'multipart/form-data; boundary="' + "\\" * 50_000),
        "semicolons": (body, "multipart/form-data" + ";=" * 25_000),
        "another edge": (body, "multipart/form-data; boundary=other"),
        "no end": (body[: body.index(b"\r\n--edge--")], kind),
        "cut in a header": (body[:30], kind),
        "nothing": (b"", kind),
        "only an end": (b"--edge--\r\n", kind),
        "33 photos": form(*[good] * 33),
        "100,000 parts": form(*[(DISPOSITION.format(""), b"")] * 100_000),
        "100,000 fields": form(*[('Content-Disposition: form-data; name="a"', b"")] * 100_000),
        "a field of 15 MB": form(good, ('Content-Disposition: form-data; name="boxes"', b"[" * 15_000_000)),
        "no photo": form(('Content-Disposition: form-data; name="file"; filename="a.jpg"', PHOTO)),
        "no disposition": form(("Content-Type: image/jpeg", PHOTO)),
        "a form in a form": form(("Content-Type: multipart/mixed; boundary=b\r\n" + good[0], form(good, edge="b")[0])),
        "an unknown encoding": form((f"{good[0]}\r\nContent-Transfer-Encoding: gzip", gzip.compress(bytes(10**8)))),
        "an unknown charset": (body, f"{kind}; charset=utf-77"),
    }


@pytest.fixture(scope="module")
def forms() -> dict[str, tuple[bytes, str]]:
    return hostile_forms()


@pytest.mark.parametrize("name", hostile_forms())
def test_a_hostile_form_is_refused_or_answered_and_stops_no_other(server, forms, name):
    done, others = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            others.append(0)
            others[-1] = server.get("/livez")[0]  # an error, after a minute without an answer, leaves the 0

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        status, body = server.ask(request("POST", "/v1/predict", *forms[name]))
    finally:
        done.set()
        watcher.join()
    assert set(others) == {200}
    assert status in (200, 400, 413, 415, 422), (status, body[:300])
    assert not TELLTALE.search(body)
    if status != 200:
        require_error((status, body), status)


BOXES = [
    b"[" * 100_000, b"[[NaN,0,1,1]]", b"[[Infinity,0,1,1]]", b"[[1e999,0,1,1]]", b"[[" + b"9" * 5000 + b",0,1,1]]",
    b"[[0,0,1]]", b"{}", b"[[0,0,0,0]]", b"[[10,10,5,5]]", b"[[0,0,1e9,1e9]]", b'[["0","0","9","9"]]', b"[null,null]",
    b"[[true,false,true,true]]", b"\xff\xfe", b'"', b"[[0,0,9,9],[0,0,9,9]]", b"[[[[0]]]]", b"[[-5,-5,-1,-1]]",
]  # fmt: skip


@pytest.mark.parametrize("boxes", BOXES, ids=range(len(BOXES)))
def test_boxes_that_are_none_are_refused(server, boxes):
    parts = (DISPOSITION.format("a.jpg"), PHOTO), ('Content-Disposition: form-data; name="boxes"', boxes)
    require_error(server.ask(request("POST", "/v1/predict", *form(*parts))), 400, 413, 422)


def hostile_json() -> list[bytes]:
    data = base64.b64encode(PHOTO).decode()
    return [
        b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"[]", b'{"photos": []}', b'{"photos": null}',
        b"\xff\xfe\x00",
        b'{"photos": [' + b"[]," * 1_000_000 + b"[]]}", b'{"photos": ' + b"9" * 100_000 + b"}", b"NaN", b"-" * 10_000,
        json.dumps({"photos": [{"data": data}] * 33}).encode(), json.dumps({"photos": [{"data": data + "!"}]}).encode(),
        json.dumps({"photos": [{"data": "\ud800"}]}).encode(), json.dumps({"photos": [{"data": 5}]}).encode(),
        json.dumps({"photos": [{"data": data, "box": {"__class__": "a"}}]}).encode(),
        b'{"photos": "' + b"A" * 10**7 + b'"}',
        json.dumps({"photos": {str(i): 0 for i in range(200_000)}}).encode(), b'"' + b"\\u0000" * 100_000 + b'"',
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(hostile_json())))
def test_json_that_is_none_is_refused(server, number):
    body = hostile_json()[number]
    require_error(server.ask(request("POST", "/v1/predict", body, "application/json")), 400, 413, 415, 422)


# Bodies


def test_a_body_without_end_is_refused_and_takes_no_memory(server):
    before = server.memory_mb()
    head = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    error = require_error(server.ask(itertools.chain([head], itertools.repeat(chunk, 2000))), 413)
    assert (error["code"], error["limit"]) == ("too_large", LIMITS["body_bytes"])
    assert server.memory_mb() - before < 150


def test_a_length_that_is_too_large_is_refused_before_the_body_is_sent(server):
    for length in (LIMITS["body_bytes"] + 1, 10**15):
        head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
        assert require_error(server.ask(head.encode()), 413)["code"] == "too_large"


LENGTHS = ["-1", "1e3", "0x10", "+5", " ", "9" * 30, "1, 2", "\u0661"]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_that_is_none_is_refused(server, length):
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
    require_error(server.ask(head.encode()), 400, 413)


SMUGGLED = [
    "Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: xchunked", "Content-Length: 3\r\nContent-Length: 4",
    "Transfer-Encoding : chunked", "Transfer-Encoding:\x0bchunked",
]  # fmt: skip


@pytest.mark.parametrize("lines", SMUGGLED)
def test_no_second_request_hides_in_a_body(server, lines):
    hidden = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n{lines}\r\n\r\n".encode()
    with server.connect() as connection:
        connection.sendall(head + hidden)
        data = b"".join(iter(lambda: receive(connection), b""))
    assert data.count(b"HTTP/1.1 ") == data.count(b"HTTP/1.1 400 ") == 1


def test_a_compressed_body_is_not_expanded(server):
    bomb, before = gzip.compress(bytes(300_000_000)), server.memory_mb()
    for kind in ("image/jpeg", "application/json"):
        answer = server.ask(request("POST", "/v1/predict", bomb, kind, "Content-Encoding: gzip"))
        require_error(answer, 400, 415, 422)
    assert server.memory_mb() - before < 100


def bombs() -> dict[str, bytes]:
    return {
        "PNG of 30,000 x 30,000 px": png(30_000, 30_000, 30_000),
        "PNG that claims 2 billion px": png(65_000, 32_000, 1),
        "PNG with fewer rows than claimed": png(7_000, 7_000, 1),
        "PNG with more rows than claimed": png(100, 100, 200_000),
        "JPEG that claims 65,535 x 65,535 px": jpeg_that_claims(65_535, 65_535),
        "JPEG that claims 7,000 x 7,000 px": jpeg_that_claims(7_000, 7_000),
        "GIF of 65,535 x 65,535 px": b"GIF89a" + b"\xff" * 4 + bytes(20),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "a PDF": b"%PDF-1.7", "a program": b"MZ" + bytes(1000), "zeros": bytes(1000), "nothing": b"",
        "a cut JPEG": PHOTO[:200],
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_a_photo_that_would_take_much_memory_or_is_none_is_refused_by_its_header(server, name):
    before, photo = server.memory_mb(), bombs()[name]
    answer = server.ask(request("POST", "/v1/predict", photo, "image/jpeg"))
    if answer[0] == 200:
        assert name == "PNG with more rows than claimed"
        return
    require_error(answer, 400, 413, 415, 422)
    status, body = server.ask(
        request("POST", "/v1/predict", *form((DISPOSITION.format("a"), photo), (DISPOSITION.format("b"), PHOTO)))
    )
    photos = json.loads(body)["photos"]
    assert status == 200 and photos[0]["error"]["code"] and photos[1]["error"] is None
    assert server.memory_mb() - before < 100
