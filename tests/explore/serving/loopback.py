"""A server in a thread of the test, asked over HTTP on this machine's loopback."""

import http.client
import json
import threading
import uuid
from dataclasses import dataclass


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        error = self.json["error"]
        assert "\n" not in error and len(error) < 400
        return error


def form_of(fields) -> tuple[bytes, str]:
    """A form's body and content type; fields are (name, text), or (name, (file name, bytes))."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, value in fields:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, tuple):
            head += f'; filename="{value[0]}"\r\nContent-Type: application/octet-stream'
        data = value[1] if isinstance(value, tuple) else value.encode()
        parts += [f"{head}\r\n\r\n".encode(), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


class Served:
    """A server in a thread, asked over HTTP."""

    def __init__(self, asking, host="127.0.0.1"):
        from soho_fast.explore.serve import listen, server

        self.asking = asking
        self._listening = listen("127.0.0.1", 0)
        self.port = self._listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._server = server(asking, host)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]})
        self._thread.start()

    def close(self):
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        for model in self.asking.models.values():
            model.close()

    def send(self, method, path, body=None, headers=None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Origin": self.address, **(headers or {})})
            got = connection.getresponse()
            return Reply(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            connection.close()

    def get(self, path, **headers) -> Reply:
        return self.send("GET", path, headers=headers)

    def ask(self, *fields) -> Reply:
        body, content_type = form_of(fields)
        return self.send("POST", "/ask", body, {"Content-Type": content_type})


def serve(runs, bundle_folder, names=(), **limits) -> Served:
    from soho_fast.explore.serve import at_hand

    limits = {"upload_bytes": 2**20, "seconds": 60.0, **limits}
    return Served(at_hand(str(bundle_folder), [str(runs / name) for name in names], **limits))
