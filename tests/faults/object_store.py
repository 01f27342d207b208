"""An S3 server in this process, and a proxy before it that breaks the connection at the N-th request."""

from __future__ import annotations

import io
import socket
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import fsspec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Where a request can break: nothing of it arrives; half of it arrives; it is carried out and no answer, or half of it, comes.
BREAKS = ("before", "within", "unanswered", "half_answered")


class Atomic:
    """moto with what S3 guarantees and moto leaves out: requests are carried out one at a time, and only when they have
    arrived as a whole; a copy and the completion of parts honour their conditions.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        promised = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(promised)
        if len(body) < promised:
            return self._refuse(start_response, "400 Bad Request", "IncompleteBody")
        environ["wsgi.input"] = io.BytesIO(body)
        with self._one_at_a_time:
            if self._condition_fails(environ):
                return self._refuse(start_response, "412 Precondition Failed", "PreconditionFailed")
            return list(self._moto(environ, start_response))

    def _condition_fails(self, environ: dict[str, Any]) -> bool:
        wanted, at = environ.get("HTTP_X_AMZ_COPY_SOURCE_IF_MATCH"), environ.get("HTTP_X_AMZ_COPY_SOURCE")
        if environ["REQUEST_METHOD"] == "POST" and "uploadId" in environ["QUERY_STRING"]:
            wanted, at = environ.get("HTTP_IF_MATCH"), environ["PATH_INFO"]
        if wanted is None or at is None:
            return False
        known = {"Host": environ["HTTP_HOST"], "Authorization": environ["HTTP_AUTHORIZATION"]}
        head = Client(self._moto).head(f"/{unquote(at).lstrip('/')}", headers=known)
        return head.headers.get("ETag", "").strip('"') != wanted.strip('"')

    @staticmethod
    def _refuse(start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty S3 server on loopback with a bucket ``bucket``."""
    wsgi = make_server("127.0.0.1", 0, Atomic(), threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=wsgi.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{wsgi.server_port}"
        with configured(url):
            fsspec.filesystem("s3").call_s3("create_bucket", Bucket="bucket")
        yield url
    finally:
        wsgi.shutdown()
        thread.join()
        wsgi.server_close()


@contextmanager
def configured(url: str, retries: int = 1) -> Iterator[None]:
    """Let every ``s3://`` URI mean the server at ``url``; a request is tried ``retries`` times at most by each library."""
    from s3fs import S3FileSystem

    before, times = dict(fsspec.config.conf), S3FileSystem.retries
    fsspec.config.conf["s3"] = {
        "key": "key",
        "secret": "secret",
        "endpoint_url": url,
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": {"retries": {"total_max_attempts": retries}},
    }
    S3FileSystem.retries = retries
    try:
        yield
    finally:
        S3FileSystem.retries = times
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)


class Proxy:
    """Forwards to the server at ``url``; counts requests, breaks those that `break_at` names, and counts these too."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._counting = threading.Lock()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.mend()
        threading.Thread(target=self._serve, daemon=True).start()

    def break_at(self, number: int, how: str, times: int = 1) -> None:
        """Count from one again, and break request ``number`` and those after it, ``times`` in all, in one of `BREAKS`."""
        with self._counting:
            self.requests, self.struck = 0, 0
            self._broken, self._how = range(number, number + times), how

    def mend(self) -> None:
        """Break nothing, and count from one again."""
        self.break_at(0, "", 0)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with closing(client):
            request = _request(client)
            if not request:
                return  # a connection that was opened ahead and never used
            with self._counting:
                self.requests += 1
                how = self._how if self.requests in self._broken else ""
                self.struck += bool(how)
            if how == "before":
                return
            with closing(socket.create_connection(self._server)) as upstream:
                upstream.sendall(request[: len(request) // 2] if how == "within" else request)
                upstream.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: upstream.recv(65536), b""))
            if how == "half_answered":
                client.sendall(answer[: len(answer) // 2])
            elif not how:
                client.sendall(answer)


def _request(client: socket.socket) -> bytes:
    """One whole request; the server is never asked whether it wants the body."""
    with client.makefile("rb") as stream:
        lines = []
        while (line := stream.readline()) not in (b"", b"\r\n"):
            lines.append(line)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if headers.get(b"expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = stream.read(int(headers.get(b"content-length", 0)))
        kept = [line for line in lines if not line.lower().startswith(b"expect:")]
        return b"".join([*kept, b"\r\n", body]) if lines else b""
