"""A web server for a folder, in this process, without ranges, that can misbehave."""

import contextlib
import gzip
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and counts the requests for each in server.asked.

    server.bad {name: (times, what)}: the next answers for that file are cut off in the middle ("cut"), have a changed
    byte ("damage"), are an error 500 ("refuse"), never end ("endless"), or are 30 MB of zeros, compressed ("bomb").
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = Path(self.path).name
        self.server.asked[name] += 1
        times, what = self.server.bad.get(name, (0, ""))
        if not times:
            return super().do_GET()
        self.server.bad[name] = (times - 1, what)
        content = bytearray(Path(self.translate_path(self.path)).read_bytes())
        content[len(content) // 2] ^= 1
        self.send_response(500 if what == "refuse" else 200)
        if what == "bomb":
            content = gzip.compress(bytes(30_000_000))
            self.send_header("Content-Encoding", "gzip")
        if what != "endless":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if what == "cut" else content)
        self.close_connection = True
        with contextlib.suppress(OSError):  # whoever asked has gone
            while what == "endless":
                self.wfile.write(bytes(1 << 20))

    def log_message(self, *arguments) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path):
    """Yield the server, whose URL is server.url."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.daemon_threads = True
        server.bad, server.asked = {}, Counter()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
