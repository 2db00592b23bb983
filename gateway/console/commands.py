"""The commands that talk to a gateway, as typer reads them. What they do is imported when they run."""

from typing import Annotated

import typer

commands = typer.Typer()
models = typer.Typer(name="models", help="The models that answer; `search` looks through the Hugging Face Hub.")
slots = typer.Typer(name="slots", help="Places for one model at a time; `switch` loads another one.")
images = typer.Typer(name="images", no_args_is_help=True, help="Container images as files, made before jobs need them.")
jobs = typer.Typer(name="jobs", help="Requests that are answered later.")
for group in (models, images, slots, jobs):
    commands.add_typer(group)

Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The gateway, in place of GATEWAY_URL or this machine's.")
]
Json = Annotated[bool, typer.Option("--json", help="The API's own JSON.")]
ServiceId = Annotated[str, typer.Argument(metavar="SERVICE", help="Its id, as `sluice ps` shows it.")]
What = Annotated[str, typer.Argument(metavar="MODEL|RECIPE", help="A recipe's name, else a model for vLLM.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="On each node; 0: none.")]
Nodes = Annotated[int | None, typer.Option(min=1)]
Minutes = Annotated[int | None, typer.Option(min=1, metavar="MINUTES", help="The time limit.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Anything else of the config; `sluice recipes NAME` lists it."),
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="The longest answer.")]
Temperature = Annotated[float | None, typer.Option(min=0)]
Status = Annotated[str | None, typer.Option(help="Only those in this status.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")]


@commands.command()
def run(
    what: What,
    gpus: Gpus = None,
    nodes: Nodes = None,
    time: Minutes = None,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="A further name by which clients ask for the model.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait until it answers.")] = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """Start a model or a recipe, and tell how it goes on until it answers."""
    from gateway.console.desk import at_desk
    from gateway.console.running import run
    from gateway.console.wanted import Options

    options = Options(gpus, nodes, time, set_ or (), name)
    raise typer.Exit(at_desk(lambda desk: run(desk, what, options, detach), url, json))


@commands.command()
def retry(
    service: ServiceId,
    gpus: Gpus = None,
    nodes: Nodes = None,
    time: Minutes = None,
    set_: Set = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait until it answers.")] = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """Start a failed service again, with what its diagnosis would change and with your own changes."""
    from gateway.console.desk import at_desk
    from gateway.console.running import retry
    from gateway.console.wanted import Options

    options = Options(gpus, nodes, time, set_ or ())
    raise typer.Exit(at_desk(lambda desk: retry(desk, service, options, detach), url, json))


@commands.command()
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended too.")] = False,
    status: Status = None,
    recipe: Annotated[str | None, typer.Option(help="Only those of this recipe.")] = None,
    limit: Limit = 200,
    json: Json = False,
    url: Url = None,
) -> None:
    """List the services, the newest first."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import ps

    raise typer.Exit(at_desk(lambda desk: ps(desk, everything, status, recipe, limit), url, json))


@commands.command()
def show(service: ServiceId, json: Json = False, url: Url = None) -> None:
    """Show a service: what it waits for, where it runs, when it ends."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import show

    raise typer.Exit(at_desk(lambda desk: show(desk, service), url, json))


@commands.command()
def logs(
    service: ServiceId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="As it grows, until the service ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last lines of each output.")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Show what a service writes."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import logs

    raise typer.Exit(at_desk(lambda desk: logs(desk, service, follow, tail), url, json))


@commands.command()
def stop(
    services: Annotated[list[str], typer.Argument(metavar="SERVICE…", help="Ids of services or groups.")],
    json: Json = False,
    url: Url = None,
) -> None:
    """Cancel services."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import stop

    raise typer.Exit(at_desk(lambda desk: stop(desk, services), url, json))


@commands.command()
def prompt(
    service: ServiceId,
    text: Annotated[str | None, typer.Argument(help="The question; without it, or with -, stdin.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Ask a service's model one question."""
    from gateway.console.desk import at_desk
    from gateway.console.talking import prompt

    options = _sampling(max_tokens, temperature)
    raise typer.Exit(at_desk(lambda desk: prompt(desk, service, text, options), url, json))


@commands.command()
def chat(
    model: Annotated[
        str | None, typer.Argument(help="A model's name or a service's id; the only one there is.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Talk with a model. In a pipe: one answer to what is on stdin."""
    from gateway.console.desk import at_desk
    from gateway.console.talking import chat

    options = _sampling(max_tokens, temperature)
    raise typer.Exit(at_desk(lambda desk: chat(desk, model, system, options), url, json))


@commands.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe: its parameters.")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """List what can be started, or what can be set of one recipe."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import recipes

    raise typer.Exit(at_desk(lambda desk: recipes(desk, name), url, json))


@commands.command()
def preflight(
    what: What,
    gpus: Gpus = None,
    nodes: Nodes = None,
    time: Minutes = None,
    set_: Set = None,
    gpu_memory: Annotated[float | None, typer.Option(metavar="GB", help="Of one GPU.")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Tell before a job is spent on it whether it would load, fit and start. Status 1: it would not."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import preflight
    from gateway.console.wanted import Options

    options = Options(gpus, nodes, time, set_ or ())
    raise typer.Exit(at_desk(lambda desk: preflight(desk, what, options, gpu_memory), url, json))


@commands.command()
def render(
    what: What,
    gpus: Gpus = None,
    nodes: Nodes = None,
    time: Minutes = None,
    set_: Set = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Show the script that `run` would submit. Nothing is submitted."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import render
    from gateway.console.wanted import Options

    options = Options(gpus, nodes, time, set_ or ())
    raise typer.Exit(at_desk(lambda desk: render(desk, what, options), url, json))


@commands.command()
def costs(
    service: Annotated[str | None, typer.Argument(help="Only this service.")] = None,
    by: Annotated[str | None, typer.Option(help="service, user, key, model or recipe.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="As 2026-11-01T00:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Show GPU hours, CPU hours and what they cost."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import costs

    raise typer.Exit(at_desk(lambda desk: costs(desk, service, by, since, until), url, json))


@commands.command("open")
def open_page(json: Json = False, url: Url = None) -> None:
    """Show the gateway's address, and on a terminal open it in the browser."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import open_page

    raise typer.Exit(at_desk(open_page, url, json))


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, json: Json = False, url: Url = None) -> None:
    if context.invoked_subcommand is None:
        _list_models(json, url)


@models.command("list")
def list_models_by_name(json: Json = False, url: Url = None) -> None:
    """List the models that answer, and those that are started when they are asked for."""
    _list_models(json, url)


def _list_models(json: bool, url: str | None) -> None:
    from gateway.console.desk import at_desk
    from gateway.console.looking import models

    raise typer.Exit(at_desk(models, url, json))


@models.command("search")
def search_models(
    query: Annotated[str | None, typer.Argument(help="Words in its name.")] = None,
    architecture: Annotated[str | None, typer.Option(help="As Qwen2ForCausalLM.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    sort: Annotated[str | None, typer.Option(help="downloads, likes, …")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Search the Hugging Face Hub."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import search_models

    raise typer.Exit(at_desk(lambda desk: search_models(desk, query, architecture, limit, sort), url, json))


PullId = Annotated[str, typer.Argument(metavar="PULL", help="As `pulls` shows it.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait until it is there.")]


@models.command("pull")
def pull_model(
    model: Annotated[str, typer.Argument(metavar="MODEL[@REVISION]", help="Of the Hugging Face Hub.")],
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Only files like *.json; may be given again.")
    ] = None,
    detach: Detach = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """Download a model on the cluster's login node, before jobs need it."""
    from gateway.console import fetching
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: fetching.pull_model(desk, model, include or (), detach), url, json))


@models.command("pulls")
def list_model_pulls(json: Json = False, url: Url = None) -> None:
    """List the downloads of models."""
    from gateway.console import fetching
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: fetching.pulls(desk, desk.client.model_pulls()), url, json))


@models.command("cancel")
def cancel_model_pull(pull: PullId, json: Json = False, url: Url = None) -> None:
    """Cancel the download of a model."""
    from gateway.console import fetching
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: fetching.cancelled(desk, desk.client.cancel_model_pull(pull)), url, json))


@models.command("push")
def push_model(
    what: Annotated[str, typer.Argument(metavar="FOLDER|MODEL[@REVISION]", help="A folder here, else of the hub.")],
    name: Annotated[str | None, typer.Option(help="What a folder's model is called; the folder's own name.")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Send a model from this machine to the cluster, which need not reach the hub."""
    from gateway.console import pushing
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: pushing.push(desk, what, name), url, json))


@images.command("pull")
def pull_image(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="As docker://vllm/vllm-openai:v0.11.2.")],
    size: Annotated[
        float | None, typer.Option(metavar="GB", help="About how large it is, for the look at the disk.")
    ] = None,
    detach: Detach = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """Make a file of a container image on the cluster's login node, by apptainer, before jobs need it."""
    from gateway.console import fetching
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: fetching.pull_image(desk, image, size, detach), url, json))


@images.command("pulls")
def list_image_pulls(json: Json = False, url: Url = None) -> None:
    """List the downloads of images."""
    from gateway.console import fetching
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: fetching.pulls(desk, desk.client.image_pulls()), url, json))


@images.command("cancel")
def cancel_image_pull(pull: PullId, json: Json = False, url: Url = None) -> None:
    """Cancel the download of an image."""
    from gateway.console import fetching
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: fetching.cancelled(desk, desk.client.cancel_image_pull(pull)), url, json))


@slots.callback(invoke_without_command=True)
def list_slots(context: typer.Context, json: Json = False, url: Url = None) -> None:
    if context.invoked_subcommand is None:
        _list_slots(json, url)


@slots.command("list")
def list_slots_by_name(json: Json = False, url: Url = None) -> None:
    """List the slots and their models."""
    _list_slots(json, url)


def _list_slots(json: bool, url: str | None) -> None:
    from gateway.console.desk import at_desk
    from gateway.console.looking import slots

    raise typer.Exit(at_desk(slots, url, json))


@slots.command("switch")
def switch_slot(
    slot: Annotated[str, typer.Argument(help="Its name.")],
    model: Annotated[str | None, typer.Argument(help="What is to be loaded; without it: nothing.")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Load another model, whoever asks for what."""
    from gateway.console.desk import at_desk
    from gateway.console.looking import switch_slot

    raise typer.Exit(at_desk(lambda desk: switch_slot(desk, slot, model), url, json))


JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `sluice jobs` shows it.")]


@jobs.callback(invoke_without_command=True)
def list_jobs(
    context: typer.Context, status: Status = None, limit: Limit = 200, json: Json = False, url: Url = None
) -> None:
    if context.invoked_subcommand is None:
        _list_jobs(status, limit, json, url)


@jobs.command("list")
def list_jobs_by_name(status: Status = None, limit: Limit = 200, json: Json = False, url: Url = None) -> None:
    """List them, the newest first."""
    _list_jobs(status, limit, json, url)


def _list_jobs(status: str | None, limit: int, json: bool, url: str | None) -> None:
    from gateway.console.desk import at_desk
    from gateway.console.looking import jobs

    raise typer.Exit(at_desk(lambda desk: jobs(desk, status, limit), url, json))


@jobs.command("show")
def show_job(job: JobId, json: Json = False, url: Url = None) -> None:
    """Show how a request stands."""
    from gateway.console import looking
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: looking.job(desk, job), url, json))


@jobs.command("result")
def job_result(job: JobId, url: Url = None) -> None:
    """Show the model's answer, in JSON; until then how the request stands."""
    from gateway.console import looking
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: looking.job_result(desk, job), url, True))


@jobs.command("cancel")
def cancel_job(job: JobId, json: Json = False, url: Url = None) -> None:
    """Cancel a request."""
    from gateway.console import looking
    from gateway.console.desk import at_desk

    raise typer.Exit(at_desk(lambda desk: looking.cancel_job(desk, job), url, json))


def _sampling(max_tokens: int | None, temperature: float | None) -> dict[str, float]:
    given = {"max_tokens": max_tokens, "temperature": temperature}
    return {name: value for name, value in given.items() if value is not None}
