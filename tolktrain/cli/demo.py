"""`tolktrain demo`."""

import argparse

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.output import print_to_reader
from tolktrain.cli.verb import Verb, add_model_argument, existing_model
from tolktrain.errors import UserError

_PORT = 7860
_LARGEST_PORT = 65_535


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--step", metavar="N", type=int, help="step of the checkpoint (the latest valid one)")
    parser.add_argument("--port", metavar="N", type=int, default=_PORT, help=f"of this machine ({_PORT}); 0: any")


def _run(parsed: argparse.Namespace) -> int:
    run_directory, overrides = existing_model(parsed)
    if not 0 <= parsed.port <= _LARGEST_PORT:
        raise UserError(f"--port is {parsed.port}; expected 0 to {_LARGEST_PORT}")
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise UserError("the page needs aiohttp; install it: pip install 'tolktrain[demo]'") from None
    import asyncio

    from tolktrain.demo.server import serve
    from tolktrain.demo.session import Session

    session = Session.load(run_directory, parsed.step, overrides)
    asyncio.run(serve(session, parsed.port, _announce))
    return EXIT_DONE


def _announce(address: str) -> None:
    import socket
    from urllib.parse import urlsplit

    port = urlsplit(address).port
    print_to_reader(
        f"open {address} in a browser of this machine; Ctrl-C ends it\n"
        f"on another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then open the same address there\n"
    )


VERB = Verb("serve a page to prompt a trained model and hear it", _add_arguments, _run, in_one_process=True)
