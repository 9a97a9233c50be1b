"""`spheregen studio`: a trained model in a web page."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, say
from spheregen.errors import SpheregenError

PACKAGES = ("starlette", "uvicorn")


def studio(
    context: typer.Context,
    run: Path | None = typer.Argument(None, help="A run folder; the newest under runs/ where none is named."),
    host: str = typer.Option("127.0.0.1", help="The address to listen at. Others than this machine's own reach it only "
                             "under another one, and then everybody who does can use the model."),
    port: int = typer.Option(8765, min=0, max=65535, help="0 takes a free one."),
    allow_host: list[str] = typer.Option(
        [], "--allow-host", help="A further name or address under which browsers may reach it; repeat for more."
    ),
    open_: bool = typer.Option(False, "--open/--no-open", help="Open the page in the browser."),
    static: Path | None = typer.Option(
        None, help="Do not serve: write a folder with a page that runs in the browser alone, for any web server."
    ),
    runtime: Path | None = typer.Option(
        None, help="--static: a folder with onnxruntime-web's files, for machines without npm."
    ),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:  # fmt: skip
    """Sample, vary, interpolate and edit in a web page, on this machine alone."""
    folder = find_run(run)
    if static is not None:
        from spheregen.studio.static import build

        with console.status("exporting"):
            page = build(folder, static, runtime=runtime, trust_plugins=trust_plugins)
        say(f"page → {escape(str(page))}, for any web server: python -m http.server --directory {escape(str(static))}")
        return
    if runtime is not None:
        raise SpheregenError("--runtime: is for --static alone; a page that is served runs PyTorch")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise SpheregenError(f"the studio needs {', '.join(missing)}: pip install 'spheregen[studio]'")
    import uvicorn

    from spheregen import checkpoint
    from spheregen.cli.options import pick_device
    from spheregen.studio.server import create_app

    with console.status("loading"):
        model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    words = [word for plugin in context.obj or [] for word in ("--plugin", plugin)]
    words += ["--device", device] if device != "auto" else []
    words += ["--trust-plugins"] if trust_plugins else []
    with listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        app = create_app(model, folder, options=words, hosts=[shown, *allow_host])
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        say(f"{escape(str(folder))} → {escape(address)}  (Ctrl-C ends it)")
        if open_:
            import webbrowser

            webbrowser.open(address)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        with contextlib.suppress(KeyboardInterrupt):  # the ordinary end
            uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises SpheregenError for an address that is not this machine's, or is taken."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise SpheregenError(f"--host {host} --port {port}: {error.strerror or error}") from None
