"""`trocr-jax demo`: a page in the browser to try models on."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from typing import Any

from trocr_jax.commands.read import add_dtype

DESCRIPTION = """\
Opens a page to read images of single lines on: dropped, pasted, photographed or drawn ones. It is served to this
machine alone unless --host says otherwise, loads nothing from other places, and tells nobody of what is read.
"""
INSTALL = 'the page needs gradio, which is not installed: pip install "trocr-jax[demo]"'


def add_demo(commands: Any) -> None:
    """Adds the command to a parser's."""
    parser = commands.add_parser(
        "demo",
        help="try models on a page in the browser",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="ID_OR_FOLDER",
        help="hub id or folder, again for each model to choose from (default: 'embedded model', the small one)",
    )
    add_dtype(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; 0.0.0.0 is everybody's (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860 on)")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    _check_address(options.host, options.port or 0)
    # Imported only now, so that --help and a wrong address answer at once.
    try:
        from trocr_jax.demo.page import launch
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise ValueError(INSTALL) from error
    from trocr_jax.compilation_cache import enable_compilation_cache
    from trocr_jax.demo.lines import Reader

    enable_compilation_cache()
    reader = Reader(options.model, dtype=options.dtype)
    print(f"trocr-jax: compiling for {reader.names[0]}", file=sys.stderr)
    reader.warmup()
    page = launch(reader, host=options.host, port=options.port)
    print(f"trocr-jax: open {page.local_url} and end with Ctrl-C", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that uploads are removed
    page.block_thread()
    return 0


def _check_address(host: str, port: int) -> None:
    """Raises OSError where the page cannot be served; found out now, not when the models are there."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise OSError(f"port {port} of {host} cannot be had ({error}): choose another with --port or --host") from error
