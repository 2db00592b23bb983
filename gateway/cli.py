"""The `sluice` command. What a subcommand needs is imported when it runs, so that `--help` is quick."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gateway.connect.commands import connecting
from gateway.console.commands import commands
from orchestrator import __version__

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A TOML file with settings; the environment wins over it.")
]

app = typer.Typer(
    name="sluice", no_args_is_help=True, pretty_exceptions_enable=False,
    help="Your cluster's models at http://localhost:8001.",
)  # fmt: skip


keys = typer.Typer(
    name="keys", no_args_is_help=True,
    help="API keys: who may use the gateway, or with --orchestrator the orchestrator's TCP port.",
)  # fmt: skip
app.add_typer(keys)
app.add_typer(connecting)
app.add_typer(commands)

Name = Annotated[str, typer.Argument(help="What the key is called: the program or person that gets it.")]
File = Annotated[Path | None, typer.Option(metavar="FILE", help="The file of keys, in place of the gateway's.")]
OfOrchestrator = Annotated[bool, typer.Option("--orchestrator", help="The keys of this machine's orchestrator.")]
ScopeName = Annotated[
    Literal["use", "manage", "admin"],
    typer.Option(help="use: ask models and look; manage: start and cancel services too; admin: everything."),
]


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
def bridge(
    socket: Annotated[str, typer.Argument(metavar="SOCKET", help="The orchestrator's UNIX socket.")],
    step: Annotated[bool, typer.Option("--step", help="Only as a step of the orchestrator's Slurm job.")] = False,
) -> None:
    """Join standard input and output with SOCKET: what a gateway runs on login nodes that forbid forwarding."""
    from gateway.bridge import main

    raise typer.Exit(main(socket, step))


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the answer instead of staying up.")] = False,
    question: Annotated[str, typer.Option(help="What the model is asked.")] = "Which city is the capital of France?",
    port: Annotated[int | None, typer.Option(help="The gateway's port; the first free one from 8001 on.")] = None,
) -> None:
    """Run everything on this machine with a small model: no cluster, no GPU, nothing left behind."""
    from gateway.demo import main

    raise typer.Exit(main(once=once, question=question, port=port))


@app.command()
def doctor(
    alias: Annotated[
        str | None, typer.Argument(metavar="ALIAS", help="The cluster, as in `ssh ALIAS`; that of the settings.")
    ] = None,
    login: Annotated[bool, typer.Option("--login", help="Log in, and be asked what the site wants to know.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    url: Annotated[str | None, typer.Option(metavar="URL", help="The gateway, in place of this machine's.")] = None,
) -> None:
    """Look at every link of the chain, from this machine to the engines, and say how to mend what is broken."""
    from gateway.doctor.command import main

    raise typer.Exit(main(alias, login=login, as_json=json, url=url))


@keys.command("create")
def create_key(
    name: Name,
    scope: ScopeName = "use",
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="When it ends, as 12h or 30d.")] = None,
    orchestrator: OfOrchestrator = False,
    file: File = None,
) -> None:
    """Make a key. Its secret is shown once, alone on stdout."""
    from gateway.console.keys import create
    from orchestrator.keys import Scope

    raise typer.Exit(create(file, orchestrator, name, Scope(scope), expires))


@keys.command("list")
def list_keys(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    orchestrator: OfOrchestrator = False,
    file: File = None,
) -> None:
    """List the keys: their names, scopes and times."""
    from gateway.console.keys import show

    raise typer.Exit(show(file, orchestrator, json))


@keys.command("revoke")
def revoke_key(name: Name, orchestrator: OfOrchestrator = False, file: File = None) -> None:
    """Take a key away, at once and for ever."""
    from gateway.console.keys import revoke

    raise typer.Exit(revoke(file, orchestrator, name))


@keys.command("rotate")
def rotate_key(name: Name, orchestrator: OfOrchestrator = False, file: File = None) -> None:
    """Give a key a new secret; it lives as long again as it was to."""
    from gateway.console.keys import rotate

    raise typer.Exit(rotate(file, orchestrator, name))
