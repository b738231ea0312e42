"""A chat completions endpoint on this machine whose answers a test chooses."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class EndpointAnswer:
    """A response; without a status the endpoint sends `body` as it is, and closes the connection.

    With `drips` it sends the body's bytes one by one, slowly.
    """

    body: bytes
    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)
    drips: bool = False


Respond = Callable[[dict[str, Any]], EndpointAnswer]


@dataclass
class Served:
    """A running endpoint, and the requests that it received."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def says(content: Any, finish_reason: Any = "stop", **message: Any) -> EndpointAnswer:
    """Return a chat completion."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"content": content, **message}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return EndpointAnswer(json.dumps({"choices": [choice], "usage": usage}).encode())


def refuses(status: int, message: str = "no", **headers: str) -> EndpointAnswer:
    """Return an error in OpenAI's form."""
    renamed = {name.replace("_", "-"): value for name, value in headers.items()}
    return EndpointAnswer(json.dumps({"error": {"message": message}}).encode(), status, renamed)


def last_message(body: dict[str, Any]) -> str:
    """Return the text of the last message of a request."""
    return str(body["messages"][-1]["content"])


@contextlib.contextmanager
def serving(respond: Respond) -> Iterator[Served]:
    """Serve `respond` on a free port of the loopback interface."""
    served = Served("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            served.headers.append(dict(self.headers))
            served.paths.append(self.path)
            answer = respond(body)
            self.close_connection = answer.status is None
            if answer.status is not None:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
            with contextlib.suppress(OSError):  # a client that has enough
                for number in range(len(answer.body) if answer.drips else 0):
                    self.wfile.write(answer.body[number : number + 1])
                    threading.Event().wait(0.02)
                self.wfile.write(b"" if answer.drips else answer.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the terminal clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
