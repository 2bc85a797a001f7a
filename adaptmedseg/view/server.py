"""The page's server: this machine alone, one token, one image.

A page in a browser can be reached by other pages in it and by other users of the machine. Three things keep them out:
the server listens on the loopback address; every address begins with a random token, without which the answer is 403;
and a request that was meant for another host, or was sent by a page of another one, gets 403 too, so that a name that
is made to point here (DNS rebinding) is of no use.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
import sys
import threading
import zlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from adaptmedseg.errors import UserError
from adaptmedseg.view.scene import Scene

LOOPBACK = "127.0.0.1"
HTTP_PORT = 80
MAX_BODY = 1 << 20  # bytes: prompts are small
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' blob:; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
PAGE = ("index.html", "app.js", "drawing.js", "planes.js", "prompts.js", "style.css")


class ViewServer(ThreadingHTTPServer):
    """Serves one scene until it is shut down; `url` is the only address that opens the page.

    Raises:
        UserError: the port is taken or not to be had.
    """

    daemon_threads = True

    def __init__(self, scene: Scene, niivue: bytes, port: int = 0):
        self.scene, self.token = scene, secrets.token_urlsafe(24)
        self.asking = threading.Lock()  # one model, one question at a time
        folder = resources.files("adaptmedseg.view").joinpath("page")
        self.files = {name: folder.joinpath(name).read_bytes() for name in PAGE} | {"niivue.js": niivue}
        self.files[""] = self.files.pop("index.html")
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OverflowError:
            raise UserError(f"--port {port}: is no port; choose 0 to 65535") from None
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "is in use" if taken else f"cannot be had ({error.strerror})"
            raise UserError(f"--port {port}: {reason}; choose another, or leave it out for a free one") from None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers that go away in the middle of an answer are no error; everything else is told as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def hosts(self) -> tuple[str, ...]:
        """What a browser that was sent here by `url` says in Host; it leaves out the port that HTTP has by itself."""
        port = "" if self.server_port == HTTP_PORT else f":{self.server_port}"
        return f"{LOOPBACK}{port}", f"localhost{port}"


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    server_version, sys_version = "adaptmedseg", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, handle: Callable[[str], None]) -> None:
        """Handle what was admitted; whatever goes wrong is told to the page, which would wait for nothing otherwise."""
        name = self._admitted()
        if name is None:
            return
        try:
            handle(name)
        except UserError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except ConnectionError:
            raise
        except Exception as error:  # the page goes on; the terminal gets the whole story by `handle_error`
            told = f"{type(error).__name__}: {error}; the terminal of `adaptmedseg view` says more"
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": told})
            raise

    def _get(self, name: str) -> None:
        scene = self.server.scene
        made: dict[str, Callable[[], bytes | None]] = {
            "image.nii": scene.image,
            "mask.nii": scene.empty_mask,
            "reference.nii": scene.reference,
        }
        if name in self.server.files:
            self._send(HTTPStatus.OK, self.server.files[name], _TYPES[name.rpartition(".")[2] or "html"])
        elif name == "scene.json":
            with self.server.asking:
                facts = scene.facts()
            self._send_json(HTTPStatus.OK, facts)
        elif name in made and (content := made[name]()) is not None:
            self._send(HTTPStatus.OK, content, "application/octet-stream")
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is nothing of this name"})

    def _post(self, name: str) -> None:
        if name == "ask":
            self._ask(self._body())
        elif name == "save":
            with self.server.asking:
                file = self.server.scene.save()
            self._send(HTTPStatus.OK, file.content, "application/octet-stream", {"X-File-Name": json.dumps(file.name)})
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is nothing of this name"})

    def _ask(self, body: Any) -> None:
        if not isinstance(body, dict) or body.get("zoom") not in (None, True, False):
            raise UserError("a question holds prompts and, where wanted, zoom: true or false")
        with self.server.asking:
            reply = self.server.scene.ask(body.get("prompts"), body.get("zoom"))
        packed = zlib.compress(reply.mask.tobytes(), 1)  # masks are nearly all zeros
        headers = {"Content-Encoding": "deflate", "X-Answer": json.dumps(reply.facts)}
        self._send(HTTPStatus.OK, packed, "application/octet-stream", headers)

    def _body(self) -> Any:
        """The JSON that was sent. UserError where it is none, or too long."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,8}", length) or int(length) > MAX_BODY:
            raise UserError(f"a question has at most {MAX_BODY} bytes, and says how many")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise UserError("a question is JSON") from None

    def _admitted(self) -> str | None:
        """What is asked for, without the token; None where the request was turned away."""
        server = self.server
        hosts = server.hosts()
        token, slash, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        origin = self.headers.get("Origin")
        welcome = (
            self.headers.get("Host") in hosts
            and origin in (None, *(f"http://{host}" for host in hosts))
            and bool(slash)
            and secrets.compare_digest(token.encode("utf-8", "replace"), server.token.encode())
        )
        if welcome:
            return name
        self._send_json(HTTPStatus.FORBIDDEN, {"error": "open the address that `adaptmedseg view` printed"})
        return None

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(
        self, status: HTTPStatus, content: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**_HEADERS, **(headers or {}), "Content-Type": content_type}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""
