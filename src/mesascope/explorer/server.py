"""The local server of the explorer. It needs the packages of ``mesascope[serve]``, which are imported on use."""

import secrets
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mesascope.argument_types import validate_arguments
from mesascope.explorer.page import render_explorer
from mesascope.explorer.requests import MAX_BODY, answer_request, find_views
from mesascope.explorer.subject import ExploredModel

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def check_server_packages() -> None:
    """Check that the packages of the server are installed.

    Raises:
        ValueError: one is missing.
    """
    missing = [package for package in ("starlette", "uvicorn") if find_spec(package) is None]
    if missing:
        raise ValueError(f"serve needs {' and '.join(missing)}; pip install 'mesascope[serve]'")


@validate_arguments
def create_app(subject: ExploredModel, token: str, port: int) -> "Starlette":
    """Return the application: the page at ``/``, and the views at ``/api/NAME``.

    Every request must carry the token, as ``?token=...``, and name this machine and the port in its Host header.

    Args:
        subject: the explored model.
        token: the secret part of the address.
        port: the port at which it is served.

    Returns:
        An ASGI application.

    Raises:
        ValueError: the packages of the server are missing.
    """
    check_server_packages()
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    def refuse(status: int, line: str) -> "Response":
        return JSONResponse({"error": " ".join(line.split())}, status, headers=HEADERS)

    def check_access(request: "Request") -> "Response | None":
        if request.headers.get("host") not in hosts:
            return refuse(403, f"the Host header must be one of {', '.join(sorted(hosts))}")
        given = request.query_params.get("token", "")
        if not secrets.compare_digest(given.encode(), token.encode()):
            return refuse(403, "the address must have the token that mesascope serve has printed")
        return None

    async def show_page(request: "Request") -> "Response":
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {**HEADERS, "Content-Security-Policy": policy}
        return HTMLResponse(render_explorer(subject, nonce), headers=headers)

    async def show_view(request: "Request") -> "Response":
        view, names = request.path_params["view"], find_views(subject)
        if view not in names:
            return refuse(404, f"a view must be one of {', '.join(names)}, but got {view[:40]!r}")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return refuse(413, f"a request must have up to {MAX_BODY} bytes")
        try:
            return JSONResponse(await run_in_threadpool(answer_request, subject, view, body), headers=HEADERS)
        except (ValueError, IndexError, MemoryError) as error:
            return refuse(400, str(error) or type(error).__name__)

    def guard(endpoint: Callable[["Request"], Any]) -> Callable[["Request"], Any]:
        async def guarded(request: "Request") -> "Response":
            return check_access(request) or await endpoint(request)

        return guarded

    async def refuse_error(request: "Request", error: Exception) -> "Response":
        status = getattr(error, "status_code", 500)
        line = {404: "there is no such page", 405: "the page is read with GET, and views with POST"}.get(status)
        return check_access(request) or refuse(status, line or f"a bug: {type(error).__name__}: {error}")

    return Starlette(
        routes=[
            Route("/", guard(show_page), methods=["GET"]),
            Route("/api/{view}", guard(show_view), methods=["POST"]),
        ],
        exception_handlers={404: refuse_error, 405: refuse_error, Exception: refuse_error},
    )


@validate_arguments
def serve_explorer(
    open_subject: Callable[[], ExploredModel], port: int = 0, announce: Callable[[str], None] = print
) -> None:
    """Serve the explorer on this machine until it is interrupted.

    Args:
        open_subject: opens the model; it is called once the port is free.
        port: the port; by default a free one.
        announce: receives the address, with its token.

    Raises:
        ValueError: the packages of the server are missing, the port is not free, or the model cannot be opened.
    """
    check_server_packages()
    if not 0 <= port < 2**16:
        raise ValueError(f"a port must be from 0 to {2**16 - 1}, but got {port}")
    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"the port must be free, but {port} is not: {error.strerror}; give another --port"
            ) from None
        chosen_port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        app = create_app(open_subject(), token, chosen_port)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none"
        )
        listener.listen()  # so that a browser that is quicker than the server waits for it
        announce(f"http://{HOST}:{chosen_port}/?token={token}")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            return  # the usual end
