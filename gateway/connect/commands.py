"""`sluice connect` and `sluice disconnect`, as typer reads them."""

from pathlib import Path
from typing import Annotated

import typer

from gateway.connect.starting import How

connecting = typer.Typer()

Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A TOML file with the gateway's settings; the environment wins over it."),
]


@connecting.command()
def connect(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The cluster, as in `ssh ALIAS`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether the site file is right.")] = False,
    site: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Your own site file, where there is none there yet."
        ),
    ] = None,
    how: Annotated[How | None, typer.Option(help="How the orchestrator is started there.")] = None,
    python: Annotated[str | None, typer.Option(metavar="PATH", help="A Python there, 3.11 or newer.")] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="MODEL|RECIPE", help="Start this too, and wait until it answers.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --run: ask it this, the answer on stdout.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="With --run: on each node; 0: none.")] = None,
    time: Annotated[int | None, typer.Option(min=1, metavar="MINUTES", help="With --run: the time limit.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="With --run: more of its config.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="With --run: end afterwards; the service goes on.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Go to the background when it serves.")] = False,
    config: Config = None,
) -> None:
    """From nothing to a gateway: install, start and reach the orchestrator on a cluster, over one login."""
    from gateway.connect.connecting import First, Request
    from gateway.connect.connecting import connect as begin
    from gateway.connect.errand import Wishes
    from gateway.console.wanted import Options

    if run is None and (prompt is not None or once):
        raise typer.BadParameter("--prompt and --once belong to --run")
    first = None if run is None else First(run, Options(gpus, None, time, set_ or ()), prompt, once)
    raise typer.Exit(begin(Request(alias, Wishes(yes, site, how, python), first, detach, config)))


@connecting.command()
def disconnect(
    stop: Annotated[bool, typer.Option("--stop", help="Stop the orchestrator there too; jobs go on.")] = False,
    config: Config = None,
) -> None:
    """End the gateway that `sluice connect` has started."""
    from gateway.connect.connecting import disconnect as end

    raise typer.Exit(end(stop, config))
