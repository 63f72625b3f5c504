"""`tolktrain config`."""

import argparse
import json

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.output import print_to_reader
from tolktrain.cli.verb import Verb, load
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=input_argument, nargs="?", help="configuration, a YAML file")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configurations instead")


def _run(parsed: argparse.Namespace) -> int:
    from tolktrain.config.load import dump_config, schema

    if parsed.schema:
        print_to_reader(json.dumps(schema(), indent=2) + "\n")
    elif parsed.config is None:
        raise UserError("name a configuration, such as configs/quickstart.yaml, or ask for --schema")
    else:
        print_to_reader(dump_config(load(parsed)))
    return EXIT_DONE


VERB = Verb("print the resolved configuration", _add_arguments, _run)
