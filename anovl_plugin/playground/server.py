"""Serves the page on this machine alone, and lets no request leave it."""

import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

HOST = "127.0.0.1"
DEFAULT_PORT = 7860
# Nothing but what the server itself sends may be loaded.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'; "
    "form-action 'self'"
)
_LOCAL = {HOST, "localhost"}
Message = MutableMapping[str, Any]


class PortError(OSError):
    """A port cannot be used."""


class LocalOnly:
    """Middleware that forbids a browser to load anything from elsewhere, and refuses requests for other hosts.

    Args:
        app: The application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rpartition(":")
        # Another name that leads here is that of a page which wants to read this one.
        if (host[0] or host[2]) not in _LOCAL:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def be_quiet(folder: str) -> None:
    """Switch off all that Gradio and the hub report about their use; call this before Gradio is imported.

    Args:
        folder: Where Gradio keeps uploads.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = folder
    # Requests to this machine go to no proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))


def find_port(port: int) -> int:
    """Return a port if it is free; for 0, any that is.

    Raises:
        PortError: If it is not.
    """
    if not 0 <= port <= 65535:
        msg = f"port {port} is not from 0 to 65535; give another with --port"
        raise PortError(msg)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            msg = f"port {port} cannot be used ({error.strerror}); give another with --port, or 0 for any that is free"
            raise PortError(msg) from None
        return int(probe.getsockname()[1])


def launch(page: Any, port: int, **look: Any) -> str:
    """Serve a page in the background, and return its address.

    Args:
        page: Gradio's page.
        port: A free port.
        **look: Theme and style.

    Raises:
        PortError: If the port has been taken in the meantime.
    """
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            footer_links=[],
            enable_monitoring=False,
            # Else Gradio asks for the page, and fails if that takes three seconds, as on a busy machine. An earlier
            # request, which may take any time, has shown that the server can be reached.
            _frontend=False,
            app_kwargs={
                "middleware": [(LocalOnly, (), {})],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
            **look,
        )
    except OSError as error:
        msg = f"port {port} cannot be used ({error}); give another with --port, or 0 for any that is free"
        raise PortError(" ".join(msg.split())) from None
    return str(address)
