"""``rythmiq web``: the console in a browser, as a separate process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rythmiq_ray.access import database, database_url
from rythmiq_ray.cli.failure import say
from rythmiq_ray.cli.operations import reasons_of
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.secret import Secret


def web(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port to listen on; 0 = any free one.")
    ] = 8266,
    actions: Annotated[bool, typer.Option("--actions", help="Pages may cancel and retry, as the login may.")] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Certificate chain, PEM.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Its key, PEM.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without TLS.")] = False,
    root_path: Annotated[
        str, typer.Option(metavar="PREFIX", help="The prefix of a proxy in front, such as /rythmiq.")
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name that it is reached by, such as a proxy's.")
    ] = None,
) -> None:
    """Serve the console: jobs, groups, queues, drivers, schedules and cost in a browser.

    Prints an address that contains a token; whoever has it may read all jobs, so it is a secret. Each start makes a new
    token, unless RYTHMIQ_WEB_TOKEN sets one. A login of rythmiq_reader is enough without --actions.

    \b
    Examples:
      rythmiq web
      rythmiq web --actions --port 8080
      rythmiq web --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --allow-host jobs.example.org
      rythmiq web --root-path /rythmiq --allow-host jobs.example.org      # behind a proxy
    """
    from rythmiq_ray.config import LoggingConfig
    from rythmiq_ray.telemetry import logs

    try:
        from rythmiq_ray.web.server import Server, Serving
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'rythmiq-ray[web]'") from None
    given = os.environ.get("RYTHMIQ_WEB_TOKEN")
    serving = Serving(
        host=host,
        port=port,
        actions=actions,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
        root_path=root_path,
        allow_hosts=tuple(allow_host or ()),
        token=Secret(given) if given else None,
    )
    serving.check()
    with database():
        pass  # Tests the database, so that a fault is reported here and not on the first page.
    url = database_url()
    server = Server(url, serving, reasons_of)
    logs.setup(LoggingConfig(level="INFO", format="text"), secrets=[server.token, url], stream=sys.stderr)
    typer.echo(server.address)
    if not insecure or serving.secure:
        say("whoever has this address can read all jobs; Ctrl-C stops the console")
    else:
        say("anybody on the network path can read this address and all pages; Ctrl-C stops the console")
    server.run()
