"""Start and stop: the only two ways in which a service changes by command."""

import asyncio
import hmac
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.budgets import Spent, draws_on, period_of, spent
from orchestrator.confidential import MASK, masked
from orchestrator.config import Plan, resolve, secrets_of
from orchestrator.costs import Use
from orchestrator.errors import Conflict, Invalid, NotFound, SchedulerError, SchedulerUnknown, StateFull, not_written
from orchestrator.images import file_of
from orchestrator.model_cache import ENGINES, ModelCache, cache_of, is_hub_id, wants_more
from orchestrator.model_list import Listing
from orchestrator.models import Job, JobState, Service, new_submission_id
from orchestrator.recipes import Recipe, RecipeBook
from orchestrator.retry import amended, failed
from orchestrator.runs import RunFolder
from orchestrator.schedulers import JobSpec, Rehearsal, Scheduler
from orchestrator.script import Target, image_of, render, site_secrets
from orchestrator.settings import Engine, Settings, SettingsError, read_token
from orchestrator.store import Store, Why
from orchestrator.volumes import make_volume, volume_path


@dataclass
class Services:
    """`clock` gives aware UTC datetimes. `submitting` holds what a request of this process is handing over now."""

    settings: Settings
    recipes: RecipeBook
    scheduler: Scheduler
    store: Store
    clock: Callable[[], datetime]
    submitting: set[str] = field(default_factory=set)
    _adding: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(
        self,
        recipe_name: str,
        config: Mapping[str, Any],
        *,
        actor: str,
        idempotency_key: str | None = None,
        listing: Listing | None = None,
    ) -> tuple[Service, Job]:
        """Render, record, submit. Returns as soon as the scheduler has given an id.

        `listing`: where the model of the service stands in the model list.

        Raises NotFound for the recipe, Invalid for a value, Conflict while the same key is being served or when a
        budget is spent, StateFull when nothing can be recorded, SchedulerError in the scheduler's own words. Exactly
        once: the row is committed before the scheduler is asked.
        """
        if idempotency_key is not None and (found := await self.store.by_idempotency_key(idempotency_key)):
            return self._again(*found, recipe_name, config)
        service, job, script, keys = await self._prepare(recipe_name, config, idempotency_key, actor, listing)
        await self._afford(service)
        folder = self.folder(job.submission_id)
        self.submitting.add(job.submission_id)
        try:
            async with self._adding:  # so that of two services that want one volume the second sees the first
                await self._take_volume(plan_of(service))
                folder.write(script, keys)
                try:
                    await self.store.add(service, job, actor=actor)
                except (Conflict, StateFull):  # it is certain that there is no record
                    folder.remove()
                    raise
            await self.submit(job, actor=actor)
        finally:
            self.submitting.discard(job.submission_id)
        return await self.store.find(service.submission_id)

    async def retry(
        self,
        service: Service,
        job: Job,
        changes: Sequence[Mapping[str, Any]],
        *,
        actor: str,
        idempotency_key: str | None = None,
    ) -> tuple[Service, Job]:
        """Start a service like one that has failed, with some values of its config changed; the last change wins.

        Raises what `start` raises, Conflict when it has not failed, Invalid where its secrets are gone.
        """
        if not failed(service, job):
            raise Conflict(
                f"service {service.id or service.submission_id} has not failed; only one that did can be started "
                "again so. POST /api/v1/services starts another one"
            )
        if slot := plan_of(service).slot:
            raise Conflict(f"the slot {slot!r} starts its models itself: POST /slots/{slot}/switch")
        recipe = self.recipes.find(service.recipe_name)
        config: Mapping[str, Any] = service.config
        for change in changes:
            config = amended(config, change, recipe)
        config = self._unmasked(config, service, job)
        return await self.start(service.recipe_name, config, actor=actor, idempotency_key=idempotency_key)

    def _unmasked(self, config: Mapping[str, Any], service: Service, job: Job) -> Mapping[str, Any]:
        """A config with those secrets of `service` in it that were not changed. Raises Invalid where they are gone."""
        own = secrets_of(service.config)
        names = [name for name, value in secrets_of(config).items() if value == MASK == own.get(name)]
        if not names:
            return config
        values = self._kept(job, names, f"send them again as changes.environment, here {names[0]}")
        return {**config, "environment": {**config["environment"], **values}}

    async def _afford(self, service: Service) -> None:
        """Raises Conflict when a budget is spent on which the service would draw."""
        for budget in await self.spent(use_of(service)):
            if budget.over:
                raise Conflict(f"{budget}. For more, ask whoever keeps [[budgets]] in this orchestrator's settings")

    async def spent(self, *uses: Use) -> list[Spent]:
        """How the budgets stand on which these jobs draw."""
        prices, now = self.settings.prices, self.clock()
        budgets = [b for b in self.settings.budgets if any(draws_on(b, use, prices) for use in uses)]
        begins = [period_of(budget, now)[0] for budget in budgets]
        used = {since: await self.store.used(since=since) for since in set(begins)}
        return [spent(budget, used[since], prices, now) for budget, since in zip(budgets, begins, strict=True)]

    async def _take_volume(self, plan: Plan) -> None:
        """Make the folder of the plan's volume. Raises Conflict while a service that has not ended uses it."""
        if plan.volume is None:
            return
        for service, _ in await self.store.open_jobs():
            used = plan_of(service)
            if (used.engine, used.volume) == (plan.engine, plan.volume):
                ends = "is being cancelled" if service.cancelled_at else "has not ended"
                raise Conflict(
                    f"the volume {plan.volume!r} of {plan.engine} is used by service "
                    f"{service.id or service.submission_id}, which {ends}; cancel it, or choose another volume",
                    retry_after=10 if service.cancelled_at else None,
                )
        make_volume(volume_path(self.settings.home, plan.engine, plan.volume))

    def _again(self, service: Service, job: Job, recipe_name: str, config: Mapping[str, Any]) -> tuple[Service, Job]:
        """The answer to a request that was sent before: the same service, never a second job."""
        same_recipe = self.recipes.find(recipe_name).full_name == service.recipe_name
        if not same_recipe or service.config != masked(config) or not self._same_secrets(service, config):
            raise Invalid("this Idempotency-Key was used for another request; choose a new one for a new service")
        if job.job_id is None and job.state.ended:
            raise SchedulerError(job.reason)
        if job.job_id is None:
            raise Conflict(
                "the first request with this Idempotency-Key is still being submitted; ask again", retry_after=2
            )
        return service, job

    def _same_secrets(self, service: Service, config: Mapping[str, Any]) -> bool:
        """Whether the values that are not kept with a service are those of its job's file.

        One that the file lacks is not compared: the file is older than the rule that it holds them.
        """
        given = secrets_of(config)
        if not given:
            return True
        try:
            kept = self.folder(service.submission_id).read_secrets()
        except OSError as exc:
            raise Conflict(f"the first request with this Idempotency-Key cannot be compared with: {exc}") from exc
        return all(hmac.compare_digest(kept.get(name, value).encode(), value.encode()) for name, value in given.items())

    async def _prepare(
        self,
        recipe_name: str,
        config: Mapping[str, Any],
        idempotency_key: str | None,
        actor: str,
        listing: Listing | None,
    ) -> tuple[Service, Job, str, dict[str, str]]:
        recipe = self.recipes.find(recipe_name)
        plan = resolve(recipe, config, self.settings.site, idle_minutes=self.settings.idle_minutes)
        if listing is not None:
            place = {"listed": listing.model, "slot": listing.slot, "image": listing.image, "price": listing.price}
            plan = plan.model_copy(update=place)
        submission_id, now = new_submission_id(), self.clock()
        script = await self.script_of(recipe, plan, submission_id)
        service = Service(
            submission_id=submission_id,
            job=submission_id,
            recipe_name=recipe.full_name,
            name=recipe.full_name,
            config=masked(config),
            plan=plan.model_dump(mode="json"),
            created_at=now,
            idempotency_key=idempotency_key,
            actor=actor,
        )
        job = Job(
            submission_id=submission_id,
            service=submission_id,
            scheduler=self.scheduler.name,
            name=job_name(submission_id),
            recorded_at=now,
        )
        return service, job, script, self._secrets(recipe) | secrets_of(config)

    async def replace(self, service: Service, job: Job, attempt: int, *, actor: str) -> None:
        """Submit a job that is to take over from `job`, made from the same plan. Exactly once, as in `start`.

        What cannot be rendered any more, of a recipe that is gone, is recorded as a job that has failed. Raises
        SchedulerError in the scheduler's own words.
        """
        submission_id = new_submission_id()
        successor = Job(
            submission_id=submission_id,
            service=service.submission_id,
            scheduler=self.scheduler.name,
            name=job_name(submission_id),
            recorded_at=self.clock(),
            replaces=job.submission_id,
            attempt=attempt,
        )
        try:
            recipe = self.recipes.find(service.recipe_name)
            script = await self.script_of(recipe, plan_of(service), submission_id)
            given = self._given(service, job)
            self.folder(submission_id).write(script, self._secrets(recipe) | given)
        except (NotFound, Invalid, SettingsError) as exc:
            successor.state, successor.reason, successor.ended_at = JobState.FAILED, str(exc), successor.recorded_at
        try:
            wanted = await self.store.follows(successor, actor=actor)
        except (Conflict, StateFull):  # it is certain that there is no record
            self.folder(submission_id).remove()
            raise
        if not wanted:
            self.folder(submission_id).remove()
        elif not successor.state.ended:
            await self.submit(successor, actor=actor)

    def _given(self, service: Service, job: Job) -> dict[str, str]:
        """The user's own secrets, which only the folder of an earlier job has. Raises Invalid where they are gone."""
        return self._kept(job, list(secrets_of(service.config)), "start the service again")

    def _kept(self, job: Job, names: Sequence[str], next_step: str) -> dict[str, str]:
        """Secrets out of the folder of a job. Raises Invalid where they are gone."""
        try:
            kept = self.folder(job.submission_id).read_secrets() if names else {}
            return {name: kept[name] for name in names}
        except (OSError, KeyError) as exc:
            raise Invalid(
                f"the values of {', '.join(names)} are not in the run folder of the job before it any more ({exc}); "
                f"{next_step}"
            ) from exc

    async def rehearse(self, script: str) -> Rehearsal:
        """What the scheduler says of a script that it is only asked about. Nothing is recorded, and no file stays.

        The folder is of this machine, where sbatch reads the script. Raises StateFull or NotReady where there is none.
        """
        with ExitStack() as made:
            try:
                path = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="sluicegate-"))) / "job.sh"
                path.write_text(script, encoding="utf-8")
            except OSError as exc:
                raise not_written(Path(tempfile.gettempdir()), exc) from exc
            return await self.scheduler.rehearse(path)

    async def rendered(self, recipe_name: str, config: Mapping[str, Any]) -> str:
        """The script that `start` would submit, for a job of its own. Raises as `start` does; nothing is recorded."""
        recipe = self.recipes.find(recipe_name)
        plan = resolve(recipe, config, self.settings.site, idle_minutes=self.settings.idle_minutes)
        return await self.script_of(recipe, plan, new_submission_id())

    async def script_of(self, recipe: Recipe, plan: Plan, submission_id: str) -> str:
        """The script of one job, in the light of what has been fetched before. Raises Invalid for a value that cannot
        stand in it, else SettingsError."""
        there = await asyncio.to_thread(self._there, recipe, plan)
        return render(recipe, plan, self.settings.site, replace(self._target(submission_id), **there))

    def cache(self, engine: str, own: Mapping[str, str] | None = None) -> ModelCache:
        """Where the jobs of an engine keep models of the hub. `own`: the variables of one service."""
        return cache_of(self.settings.site, engine, self.settings.cache_path, Path.home(), own)

    def _there(self, recipe: Recipe, plan: Plan) -> dict[str, Any]:
        """Of a target, what depends on files: whether the model is complete in the cache, and the image's file."""
        site = self.settings.site
        image, folder = image_of(recipe, plan, site), site.image_folder
        pulled = None if image is None or folder is None or "://" not in image else file_of(folder, image)
        apptainer = (site.engines.get(plan.engine, Engine()).runtime or site.runtime) == "apptainer"
        return {
            "offline": needs_no_hub(plan) and self.cache(plan.engine, plan.environment).has(plan.model or ""),
            "image": pulled if apptainer and pulled is not None and pulled.is_file() else None,
        }

    def _target(self, submission_id: str) -> Target:
        return Target(
            job_name=job_name(submission_id),
            comment=f"sluicegate:{submission_id}",
            folder=self.folder(submission_id),
            bind_host=self.scheduler.bind_host,
            python=self.settings.python,
            cache_dir=self.settings.cache_path,
        )

    def _secrets(self, recipe: Recipe) -> dict[str, str]:
        # Digits and letters only: an engine that must be told its key as an argument would take a dash for an option's.
        keys = {"VLLM_API_KEY": secrets.token_hex(32)}
        if self.settings.site.token_file is not None:
            keys["HF_TOKEN"] = read_token(Path(self.settings.site.token_file).expanduser())
        return site_secrets(recipe, self.settings.site) | keys

    async def submit(self, job: Job, *, actor: str) -> None:
        """Hand a recorded job to the scheduler and write down what became of that."""
        folder = self.folder(job.submission_id)
        spec = JobSpec(
            name=job.name,
            comment=f"sluicegate:{job.submission_id}",
            script=folder.script,
            folder=folder.path,
            stdout=folder.stdout,
            stderr=folder.stderr,
        )
        try:
            job_id = await self.scheduler.submit(spec)
        except SchedulerUnknown as exc:
            # Perhaps accepted: the watcher looks for the job by its name before it gives up.
            await self._record(job, {"reason": str(exc)}, "job.submit_unanswered", actor)
            raise
        except SchedulerError as exc:
            refused = {"state": JobState.FAILED, "reason": str(exc), "ended_at": self.clock()}
            await self._record(job, refused, "job.refused", actor)
            raise
        await self.store.accepted(job.submission_id, job_id, at=self.clock(), actor=actor)

    async def _record(self, job: Job, changes: dict[str, Any], kind: str, actor: str) -> None:
        await self.store.record(job.submission_id, changes, at=self.clock(), actor=actor, kind=kind)

    async def cancel(
        self, service: Service, job: Job, *, actor: str, drains: bool = False, why: Why | None = None
    ) -> None:
        """End a service. One that has ended already, or is being ended, is no error.

        `drains`: requests are being answered; the watcher ends the job when they are, or have had their time. `why`:
        recorded where no user asked for it.
        """
        if job.state.ended and not service.kept:
            return
        if not drains:
            for one in await self.store.open_jobs_of(service.submission_id):
                if one.job_id is not None:
                    await self.scheduler.cancel(one.job_id, one.name)
        await self.store.cancelled(service.submission_id, at=self.clock(), actor=actor, why=why)

    def folder(self, submission_id: str) -> RunFolder:
        return RunFolder(self.settings.home / "runs" / submission_id)


def job_name(submission_id: str) -> str:
    """The name that identifies a job for ever. Other users of the cluster can read it."""
    return f"sluice-{submission_id}"


def needs_no_hub(plan: Plan) -> bool:
    """Whether an engine wants nothing of the hub but the files of its model, which is one of the hub."""
    lists = [value for value in plan.parameters.values() if isinstance(value, list)]
    words = [word for words in lists for word in words]
    return plan.engine in ENGINES and is_hub_id(plan.model or "") and not wants_more(words)


def plan_of(service: Service) -> Plan:
    return Plan.model_validate(service.plan)


def use_of(service: Service) -> Use:
    """A job of a service that has not begun."""
    plan = plan_of(service)
    resources = plan.resources
    return Use(
        service=service.submission_id,
        service_id=service.id,
        actor=service.actor,
        recipe=service.recipe_name,
        model=plan.served_model_name,
        gpus=resources.gpu * resources.nodes,
        gpu_type=plan.gpu_type,
        cores=resources.cpu * resources.nodes,
        job_id=None,
        started_at=None,
        ended_at=None,
        earlier_runs=(),
        price=plan.price,
    )
