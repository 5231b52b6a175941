"""A server of files on 127.0.0.1 that misbehaves as it is told."""

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file of the server.

    Attributes:
        content: the bytes.
        cuts: for each of the next answers, after how many bytes the connection breaks.
        statuses: for each of the next answers, the status in place of the file.
        ranges: whether parts of the file can be asked for; "always": whatever If-Range says.
        headers: further headers of the answer.
        chunked: whether the answer does not say how long it is.
        redirect: where it leads to instead.
        wait: event that is waited for in the middle of the content.
    """

    content: bytes = b""
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: object = True
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    chunked: bool = False
    redirect: str = ""
    wait: threading.Event | None = None


class FileServer:
    """The server.

    Attributes:
        files: path -> Served.
        asked: (path, headers of the request), in their order.
        url: of its root, without a slash at the end.
    """

    def __init__(self):
        self.files, self.asked = {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.asked.append((self.path, dict(self.headers)))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.answer(outer.files.get(self.path.partition("?")[0]))

            def answer(self, file):
                self.close_connection = True
                if file is None or file.statuses:
                    self.send_error(file.statuses.pop(0) if file else 404)
                    return
                if file.redirect:
                    self.send_response(302)
                    self.send_header("Location", file.redirect)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start, content = self.begin(file), file.content
                if start is None:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                for name, value in file.headers.items():
                    self.send_header(name, value)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                rest = content[start:]
                if file.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                cut = file.cuts.pop(0) if file.cuts else len(rest)
                for half, piece in enumerate((rest[: cut // 2], rest[cut // 2 : cut])):
                    if file.wait and half:
                        file.wait.wait(20)
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if file.chunked and piece else piece)
                    self.wfile.flush()
                if file.chunked and cut == len(rest):
                    self.wfile.write(b"0\r\n\r\n")

            def begin(self, file):
                """Where the answer begins; None: behind the end."""
                wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
                same = file.ranges == "always" or condition in (None, *file.headers.values())
                if not (wanted and file.ranges and same):
                    return 0
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                return start if start < len(file.content) else None

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def serve(self, path, content=b"", **options):
        """Add a file; returns its address."""
        self.files[path] = Served(content, **options)
        return self.url + path

    def close(self):
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
