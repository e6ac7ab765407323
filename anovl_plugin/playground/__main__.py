"""Try images, words and references in the browser: ``python -m anovl_plugin.playground [IMAGE_OR_FOLDER]``."""

import argparse
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from anovl_plugin.playground.server import DEFAULT_PORT, be_quiet, find_port, launch

_DEMO = "anovl-demo"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m anovl_plugin.playground",
        description="Try images, words and references in the browser, on this machine alone.",
    )
    parser.add_argument(
        "path", nargs="?", type=Path, metavar="IMAGE_OR_FOLDER", help="what to look at; default: the demo's photographs"
    )
    parser.add_argument(
        "--backbone", help=f"the CLIP, as for AnoVL; default: {_DEMO} for the demo's photographs, else the paper's"
    )
    parser.add_argument("--pretrained", help="weights of the CLIP, as for AnoVL; default: the paper's")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="port on 127.0.0.1, 0 for any that is free; default: %(default)s"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("results") / "playground",
        metavar="FOLDER",
        help="folder for the images that are dropped into the page, which commands then name; default: %(default)s",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted, and return the exit status: 2 if something cannot be used."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if find_spec("gradio") is None:
        print(f'{parser.prog}: error: Gradio is missing; run pip install "anovl_plugin[playground]"', file=sys.stderr)  # noqa: T201
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="anovl_playground-") as uploads:
        be_quiet(uploads)
        try:
            serve(options)
        except KeyboardInterrupt:
            return 0
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
            return 2
    return 0


def serve(options: argparse.Namespace) -> None:
    """Serve the page until it is interrupted.

    Raises:
        OSError: If the port or a file cannot be used.
        ValueError: If an option is invalid.
    """
    # What takes seconds to import comes after what may be wrong.
    port = find_port(options.port)
    warnings.simplefilter("ignore", FutureWarning)

    import torch

    from anovl_plugin.playground.answers import Playground
    from anovl_plugin.playground.images import check_keeping, find_demo_images, find_images
    from anovl_plugin.playground.page import STYLE, build_page, theme
    from anovl_plugin.playground.session import Session
    from anovl_plugin.playground.words import Words
    from anovl_plugin.vision.backbone import DEFAULT_BACKBONE

    is_demo = options.path is None
    check_keeping(options.keep)
    images = find_demo_images() if is_demo else find_images(options.path)
    backbone = options.backbone or (_DEMO if is_demo else DEFAULT_BACKBONE)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    session = Session(backbone, options.pretrained, device)
    words = Words("surface", "texture") if is_demo else Words("object")
    page = build_page(Playground(session, images, options.keep), words)
    address = launch(page, port, theme=theme(), css_paths=[STYLE])
    print(f"The playground is at {address} (to end it, press Ctrl+C)", flush=True)  # noqa: T201
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
