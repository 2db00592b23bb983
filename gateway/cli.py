"""The `sluice` command. What a subcommand needs is imported when it runs, so that `--help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator import __version__

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A TOML file with settings; the environment wins over it.")
]

app = typer.Typer(
    name="sluice", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Your cluster's models at http://localhost:8001.",
)  # fmt: skip


def main() -> None:
    """The entry point of the console script."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sluice {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def gateway(config: Config = None) -> None:
    """Serve the gateway on this machine. Settings: GATEWAY_CLUSTER=<host of ~/.ssh/config>, GATEWAY_PORT, …"""
    from gateway.__main__ import serve

    raise typer.Exit(serve(config))


@app.command()
def orchestrator(config: Config = None) -> None:
    """Serve the orchestrator on the login node. Settings: ORCHESTRATOR_SCHEDULER, ORCHESTRATOR_HOME, …"""
    from orchestrator.__main__ import serve

    raise typer.Exit(serve(config))


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the answer instead of staying up.")] = False,
    question: Annotated[str, typer.Option(help="What the model is asked.")] = "Which city is the capital of France?",
    port: Annotated[int | None, typer.Option(help="The gateway's port; the first free one from 8001 on.")] = None,
) -> None:
    """Run everything on this machine with a small model: no cluster, no GPU, nothing left behind."""
    from gateway.demo import main

    raise typer.Exit(main(once=once, question=question, port=port))
