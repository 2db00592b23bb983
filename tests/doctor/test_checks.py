"""What each check concludes from what was seen: pure."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.doctor import cluster, machine, way
from gateway.doctor.command import lines_of, status_of, summed_up
from gateway.doctor.finding import Finding, Level, broken, odd, unknown, well
from gateway.doctor.looking import ahead, in_the_future, not_to_be_tried
from gateway.doctor.order import STAGES, judged
from gateway.doctor.seen import Answers, Door, Here, Login, Seen, Way
from gateway.link import LinkState, Rung
from gateway.settings import Settings
from gateway.survey import Account, Gpus, Installed, OwnJob, Partition, Place, Process, Python, Quota, Slurm, Survey

NOW = 1795780800.0  # 2026-11-27 12:00:00 UTC
GIB = 1024**3
HEALTH: dict[str, Any] = {
    "status": "healthy", "version": "1.0", "scheduler": "slurm", "milliseconds": 3.2,
    "watcher": {"late": False, "last_look": "2026-11-27T11:59:57Z", "stale_since": None, "trouble": ""},
}  # fmt: skip
UP = {"state": "up", "via": "unix-socket", "to": "/h/.sluicegate/orchestrator.sock on hpc", "error": ""}
GATEWAY = Door(
    "gateway", health={"version": "1.0", "tunnel": UP, "orchestrator": {"answered": True} | HEALTH}, access=200
)
WAY = Way("login.hpc.org", 22, "ada", "login.hpc.org", 22, addresses=("192.0.2.7",), milliseconds=12)
SURVEY = Survey(
    host="login01", user="ada", pythons=(Python("/usr/bin/python3", (3, 11, 2)),),
    installed=(Installed("/h/bin/sluice", "1.0"),),
    places=(Place("/h", "home", "$HOME", True, "nfs4", free=9 * GIB),),
    slurm=Slurm((22, 5, 8), True, partitions=(Partition("gpu", gpus=(Gpus("", 4),)),), accounts=(Account("p1", True),)),
    process=Process("login01", 4711, True, False),
)  # fmt: skip
VERDICTS = ({"check": "script", "level": "ok", "message": "m"}, {"check": "scheduler", "level": "ok", "message": "m"})
WELL = Seen(
    Here(Settings(cluster="hpc"), version="1.0"), "hpc", NOW,
    door=GATEWAY, way=WAY, login=Login(state=LinkState.UP, via=Rung.UNIX_SOCKET, survey=SURVEY, clock=0.0),
    answers=Answers(HEALTH, "gateway", services=(), rehearsal=VERDICTS, clock=0.0),
)  # fmt: skip


def everything(seen: Seen) -> list[Finding]:
    return [one for stage in STAGES for one in judged(stage.checks, seen)]


def found(check: Any, seen: Seen) -> Finding:
    """The one finding of a check."""
    (one,) = judged([check], seen)
    return one


def health(**changes: Any) -> dict[str, Any]:
    return HEALTH | {"watcher": HEALTH["watcher"] | changes}


def answering(**changes: Any) -> Seen:
    assert WELL.answers is not None
    return replace(WELL, answers=replace(WELL.answers, **changes))


def silent(survey: Survey | None = SURVEY, error: str = "no way to it") -> Seen:
    door = replace(GATEWAY, health=dict(GATEWAY.health) | {"orchestrator": {"answered": False}})
    login = Login(state=LinkState.UP, survey=survey)
    return replace(WELL, door=door, login=login, answers=Answers(error=error))


def in_a_job(state: str = "", node: str = "", reason: str = "", words: str = "", *, holds: bool = True) -> Seen:
    return silent(replace(SURVEY, process=None, job=OwnJob("17", holds, state, node, reason, words)))


def bridged(seen: Seen) -> Seen:
    return replace(seen, login=replace(seen.login or Login(), state=LinkState.UP, via=Rung.BRIDGE))


def surveyed(**changes: Any) -> Seen:
    return replace(WELL, login=Login(state=LinkState.UP, via=Rung.UNIX_SOCKET, survey=replace(SURVEY, **changes)))


def linked(state: LinkState, error: str = "", **more: Any) -> Seen:
    return replace(WELL, door=Door("nothing"), login=Login(state=state, error=error, **more), answers=Answers())


def test_all_is_well() -> None:
    findings = everything(WELL)
    assert [one for one in findings if one.level is not Level.WELL] == []
    assert [one.check for one in findings] == [
        "settings", "port", "gateway", "key", "ssh config", "name", "network", "host key", "login", "forwarding",
        "python", "installation", "orchestrator", "version", "database", "scheduler", "account", "home", "services",
        "engines", "clock",
    ]  # fmt: skip
    assert all(one.words for one in findings)


def test_each_check_is_explained() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text().partition("## The checks")[2]
    assert {one.check for one in everything(WELL) if f"`{one.check}`" not in text} == set()


def test_nothing_is_there_to_be_seen() -> None:
    """Wrong settings: everything else is unknown, and only the settings are broken."""
    seen = Seen(Here(None, "wrong settings: GATEWAY_PORT"), None, NOW)
    findings = everything(replace(seen, login=Login(not_tried="not without settings"), answers=Answers()))
    assert [one.check for one in findings if one.level is Level.BROKEN] == ["settings", "gateway", "orchestrator"]


def test_without_a_cluster_ssh_is_left_out() -> None:
    tunnel = UP | {"to": "/h/o.sock on this machine"}
    door = replace(GATEWAY, health=dict(GATEWAY.health) | {"tunnel": tunnel})
    findings = everything(replace(WELL, alias=None, door=door, way=None, login=Login(survey=SURVEY, clock=0.0)))
    assert {one.check for one in findings} & {"name", "network", "host key", "login", "forwarding"} == set()
    assert status_of(findings) == 0


BAD: list[tuple[Any, Seen, Level, str, str]] = [
    (
        machine.port,
        replace(WELL, door=Door("other", "it says no")),
        Level.BROKEN,
        "another program's",
        "GATEWAY_PORT=8002",
    ),
    (machine.port, replace(WELL, door=Door("silent", "late")), Level.BROKEN, "does not answer", "ss -ltnp"),
    (machine.port, replace(WELL, door=Door("nothing")), Level.WELL, "8001 is free", ""),
    (
        machine.gateway,
        replace(WELL, door=Door("nothing")),
        Level.BROKEN,
        "no gateway runs",
        "GATEWAY_CLUSTER=hpc sluice gateway",
    ),
    (machine.gateway, replace(WELL, alias="other"), Level.BROKEN, "leads to hpc, not to other", "sluice doctor hpc"),
    (machine.gateway, replace(WELL, here=Here(None, version="1.1")), Level.ODD, "this `sluice` is 1.1", "restart"),
    (
        machine.key,
        replace(WELL, door=replace(GATEWAY, access=401, access_words="wants a key")),
        Level.BROKEN,
        "wants a key",
        "GATEWAY_API_KEY",
    ),
    (
        machine.key,
        replace(WELL, door=replace(GATEWAY, access=403, access_words="scope")),
        Level.BROKEN,
        "scope",
        "--scope manage",
    ),
    (machine.key, replace(WELL, door=Door("nothing")), Level.UNKNOWN, "no gateway", ""),
    (way.configuration, replace(WELL, way=Way(trouble="line 3")), Level.BROKEN, "line 3", "ssh hpc"),
    (
        way.name,
        replace(linked(LinkState.DOWN), way=replace(WAY, first="hpc", addresses=(), no_address="unknown")),
        Level.BROKEN,
        "no address is known for hpc",
        "Host hpc",
    ),
    (
        way.name,
        replace(linked(LinkState.DOWN), way=replace(WAY, addresses=(), no_address="unknown")),
        Level.BROKEN,
        "login.hpc.org",
        "HostName",
    ),
    (way.name, replace(WELL, way=replace(WAY, addresses=(), no_address="unknown")), Level.ODD, "goes on", "HostName"),
    (
        way.network,
        replace(linked(LinkState.DOWN), way=replace(WAY, milliseconds=None, closed="refused")),
        Level.BROKEN,
        "takes no connection: refused",
        "VPN",
    ),
    (way.network, replace(WELL, way=replace(WAY, by_command=True)), Level.UNKNOWN, "ProxyCommand", ""),
    (way.host_key, linked(LinkState.HOST_KEY_UNKNOWN, "x"), Level.BROKEN, "not in your known_hosts", "fingerprint"),
    (
        way.host_key,
        linked(LinkState.HOST_KEY_CHANGED, "the host's key is not the one (k line 3). Ask the site"),
        Level.BROKEN,
        "k line 3)",
        "ask the site",
    ),
    (way.host_key, linked(LinkState.DOWN), Level.UNKNOWN, "nobody", ""),
    (
        way.login,
        linked(LinkState.AUTH_REQUIRED, "the login was refused (Permission denied). Make `ssh hpc` work"),
        Level.BROKEN,
        "(Permission denied)",
        "ssh-add",
    ),
    (
        way.login,
        linked(LinkState.AUTH_REQUIRED, "refused", by_question=True),
        Level.UNKNOWN,
        "without a question",
        "--login",
    ),
    (
        way.login,
        replace(linked(LinkState.AUTH_REQUIRED, "refused", by_question=True), asked_login=True),
        Level.BROKEN,
        "refused",
        "ssh-add",
    ),
    (
        way.login,
        linked(LinkState.DOWN, "no answer within 15 s. Does `ssh hpc` work?"),
        Level.BROKEN,
        "no answer within 15 s",
        "ssh -v hpc",
    ),
    (way.login, linked(LinkState.HOST_KEY_CHANGED, "x"), Level.UNKNOWN, "not the known one", ""),
    (way.login, replace(WELL, login=Login(not_tried="no")), Level.WELL, "the gateway is logged in", ""),
    (way.login, replace(WELL, door=Door("nothing"), login=Login(not_tried="no")), Level.UNKNOWN, "no", "--login"),
    (
        way.login,
        replace(WELL, login=Login(state=LinkState.AUTH_REQUIRED, by_question=True)),
        Level.UNKNOWN,
        "the gateway is logged in",
        "--login",
    ),
    (
        way.forwarding,
        bridged(WELL),
        Level.ODD,
        "forbids forwarding",
        "AllowStreamLocalForwarding",
    ),
    (way.forwarding, linked(LinkState.UP), Level.UNKNOWN, "when an orchestrator answers", ""),
    (way.forwarding, linked(LinkState.DOWN), Level.UNKNOWN, "no connection", ""),
    (
        cluster.python,
        replace(silent(replace(SURVEY, pythons=(Python("/usr/bin/python3", (3, 6, 8)),), installed=()))),
        Level.BROKEN,
        "the newest one there is 3.6.8",
        "uv python install",
    ),
    (cluster.python, surveyed(pythons=()), Level.ODD, "there is none", "module avail"),
    (
        cluster.python,
        replace(WELL, login=Login(not_tried="the login node has no address")),
        Level.UNKNOWN,
        "no address",
        "",
    ),
    (
        cluster.installation,
        silent(replace(SURVEY, installed=(), process=None)),
        Level.BROKEN,
        "there is none",
        "pip install sluicegate==1.0",
    ),
    (
        cluster.installation,
        surveyed(installed=(Installed("/h/sluice", ""),)),
        Level.BROKEN,
        "/h/sluice does not start",
        "pip install",
    ),
    (
        cluster.installation,
        surveyed(installed=(Installed("/h/sluice", "0.9"),)),
        Level.ODD,
        "/h/sluice is 0.9",
        "sluicegate==1.0",
    ),
    (cluster.orchestrator, silent(replace(SURVEY, process=None)), Level.BROKEN, "none runs", "sluice orchestrator"),
    (
        cluster.orchestrator,
        silent(),
        Level.BROKEN,
        "process 4711 runs there but does not answer: no way to it",
        "kill 4711",
    ),
    (
        cluster.orchestrator,
        silent(replace(SURVEY, process=Process("login02", 1, False, True))),
        Level.BROKEN,
        "it runs on login02",
        "HostName login02",
    ),
    (
        cluster.orchestrator,
        silent(replace(SURVEY, process=Process("login01", 1, False, False))),
        Level.BROKEN,
        "has ended",
        "sluice orchestrator",
    ),
    (
        cluster.orchestrator,
        in_a_job("PENDING", "", "Priority"),
        Level.BROKEN,
        "it is Slurm job 17, which waits: PENDING (Priority)",
        "squeue --start --jobs=17",
    ),
    (
        cluster.orchestrator,
        in_a_job("RUNNING", "node1", "None", holds=False),
        Level.BROKEN,
        "Slurm job 17 has begun on node1",
        "orchestrator.out on hpc",
    ),
    (
        cluster.orchestrator,
        in_a_job("RUNNING", "node1", "None"),
        Level.BROKEN,
        "it is in Slurm job 17 on node1, and does not answer: no way to it",
        "srun --overlap --jobid=17 hostname",
    ),
    (cluster.orchestrator, in_a_job(), Level.BROKEN, "Slurm job 17, which has ended", "sluice connect hpc --how job"),
    (
        cluster.orchestrator,
        in_a_job(words="slurm_load_jobs error"),
        Level.BROKEN,
        "squeue does not say how that is: slurm_load_jobs error",
        "scontrol ping",
    ),
    (
        cluster.installation,
        surveyed(installed=(), process=None, job=OwnJob("17", True, "RUNNING")),
        Level.ODD,
        "an orchestrator runs",
        "sluice connect hpc",
    ),
    (way.forwarding, bridged(in_a_job("RUNNING", "node1")), Level.WELL, "to Slurm job 17", ""),
    (way.forwarding, bridged(in_a_job("PENDING")), Level.UNKNOWN, "it shows when", ""),
    (way.forwarding, bridged(silent(None)), Level.ODD, "or the orchestrator is a Slurm job", "nothing has to be done"),
    (cluster.orchestrator, silent(None), Level.BROKEN, "none answers: no way to it", "sluice orchestrator"),
    (cluster.orchestrator, linked(LinkState.DOWN), Level.UNKNOWN, "no connection", ""),
    (
        cluster.version,
        answering(health=HEALTH | {"version": "0.9"}),
        Level.ODD,
        "the orchestrator is 0.9, the gateway 1.0",
        "both sides",
    ),
    (cluster.version, silent(), Level.UNKNOWN, "does not answer", ""),
    (
        cluster.database,
        answering(services=None, services_error="503: database is locked"),
        Level.BROKEN,
        "database is locked",
        "Recover",
    ),
    (
        cluster.database,
        answering(health=health(trouble="disk full")),
        Level.BROKEN,
        "nothing can be recorded: disk full",
        "make room",
    ),
    (
        cluster.scheduler,
        answering(health=health(stale_since="2026-11-27T11:00:00Z", trouble="squeue: timed out")),
        Level.BROKEN,
        "since 2026-11-27 11:00:00 UTC: squeue: timed out",
        "scontrol ping",
    ),
    (
        cluster.scheduler,
        answering(health=health(late=True)),
        Level.BROKEN,
        "has not asked Slurm since 2026-11-27 11:59:57 UTC",
        "orchestrator.log",
    ),
    (cluster.scheduler, answering(health=HEALTH | {"scheduler": "local"}), Level.WELL, "plain processes", ""),
    (cluster.scheduler, silent(), Level.WELL, "Slurm 22.05.8 answers", ""),
    (
        cluster.scheduler,
        surveyed(slurm=Slurm((22, 5, 8), False, words="connect failure")),
        Level.BROKEN,
        "connect failure",
        "scontrol ping",
    ),
    (
        cluster.scheduler,
        silent(replace(SURVEY, slurm=Slurm((22, 5, 8), False, words="Unable to contact"))),
        Level.BROKEN,
        "Unable to contact",
        "ask the site",
    ),
    (cluster.scheduler, silent(replace(SURVEY, slurm=None)), Level.UNKNOWN, "no Slurm", ""),
    (
        cluster.account,
        answering(rehearsal=({"check": "scheduler", "level": "error", "message": "Invalid account"},)),
        Level.BROKEN,
        "Invalid account",
        "your accounts: p1; partitions with GPUs: gpu",
    ),
    (
        cluster.account,
        answering(rehearsal=({"check": "script", "level": "error", "message": "no image"},)),
        Level.BROKEN,
        "no image",
        "[site]",
    ),
    (
        cluster.account,
        answering(rehearsal=({"check": "scheduler", "level": "unknown", "message": "did not say"},)),
        Level.UNKNOWN,
        "did not say",
        "",
    ),
    (cluster.account, answering(rehearsal=None, rehearsal_error="403"), Level.UNKNOWN, "403", ""),
    (cluster.account, answering(health=HEALTH | {"scheduler": "local"}), Level.UNKNOWN, "need none", ""),
    (
        cluster.home,
        surveyed(places=(Place("/h", "home", "$HOME", True, free=10**8),)),
        Level.BROKEN,
        "only 95 MiB left",
        "make room",
    ),
    (
        cluster.home,
        surveyed(places=(Place("/h", "home", "$HOME", True, free=GIB),)),
        Level.ODD,
        "only 1.0 GiB left",
        "make room",
    ),
    (
        cluster.home,
        surveyed(places=(Place("/h", "home", "$HOME", True, free=9 * GIB, quotas=(Quota("user", GIB, GIB),)),)),
        Level.BROKEN,
        "0 B left in /h by quota",
        "make room",
    ),
    (
        cluster.home,
        surveyed(
            places=(Place("/h", "home", "$HOME", True, free=9 * GIB, quotas=(Quota("user", 0, None, 999, 1000),)),)
        ),
        Level.BROKEN,
        "leaves 1 files",
        "make room",
    ),
    (
        cluster.home,
        surveyed(places=(Place("/h", "home", "$HOME", False, free=9 * GIB),)),
        Level.BROKEN,
        "cannot be written",
        "ORCHESTRATOR_HOME",
    ),
    (cluster.home, surveyed(places=()), Level.UNKNOWN, "did not answer", "ask the site"),
    (cluster.home, surveyed(places=(Place("/h", "home", "$HOME", True),)), Level.UNKNOWN, "nobody tells", ""),
    (cluster.clock, replace(WELL, login=Login(clock=400.0)), Level.ODD, "400 s ahead of", "NTP"),
    (cluster.clock, replace(WELL, login=Login(clock=-61.5)), Level.ODD, "62 s behind", "NTP"),
    (cluster.clock, replace(WELL, login=None, answers=Answers()), Level.UNKNOWN, "nobody", ""),
]


@pytest.mark.parametrize(("check", "seen", "level", "words", "fix"), BAD)
def test_a_finding(check: Any, seen: Seen, level: Level, words: str, fix: str) -> None:
    one = found(check, seen)
    assert one.level is level, one
    assert words in one.words, one
    assert fix in one.fix, one
    assert level not in (Level.BROKEN, Level.ODD) or one.fix, "a failure comes with its fix"


def service(status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "7",
        "recipe_name": "inference/vllm",
        "status": status,
        "created_at": "2026-11-27T11:00:00Z",
        "nodes": ["n1"],
        "reason": "loads",
        **more,
    }


DIAGNOSIS = {"sentence": "the GPU's memory is too small", "advice": "ask for two GPUs"}
LATELY, LONG_AGO = {"ended_at": "2026-11-27T11:30:00Z"}, {"ended_at": "2026-11-01T11:30:00Z"}


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ([], [well("services", "none is there")]),
        ([service("running"), service("running"), service("pending")], [well("services", "2 running, 1 pending")]),
        (
            [service("failed", diagnosis=DIAGNOSIS, job=LATELY)],
            [
                well("services", "none is there"),
                odd("services", "7 inference/vllm has failed: the GPU's memory is too small", "ask for two GPUs"),
            ],
        ),
        (
            [service("timeout", diagnosis=None, job=LATELY, reason="TIMEOUT")],
            [
                well("services", "none is there"),
                odd("services", "7 inference/vllm has failed: TIMEOUT", "sluice logs 7 --tail 50"),
            ],
        ),
        (
            [service("failed", diagnosis=DIAGNOSIS, job=LONG_AGO), service("cancelled", job=LATELY)],
            [well("services", "none is there")],
        ),
    ],
)
def test_services(listed: list[dict[str, Any]], told: list[Finding]) -> None:
    assert list(cluster.services(answering(services=listed))) == told


def test_services_that_nobody_tells_of() -> None:
    assert found(cluster.services, silent()).level is Level.UNKNOWN
    assert found(cluster.engines, silent()).level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("started", "levels"),
    [("2026-11-27T11:59:00Z", [Level.WELL]), ("2026-11-27T11:00:00Z", [Level.BROKEN]), (None, [Level.WELL])],
)
def test_an_engine_that_does_not_answer_for_long(started: str | None, levels: list[Level]) -> None:
    seen = answering(services=[service("configuring", job={"started_at": started})])
    assert [one.level for one in judged([cluster.engines], seen)] == levels


def test_engines_that_answer() -> None:
    assert found(cluster.engines, answering(services=[service("running")])).words == "1 answers"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (WELL, ""),
        (replace(WELL, alias=None), ""),
        (replace(WELL, here=Here(None, "x")), "not without settings"),
        (replace(WELL, way=Way(trouble="x")), "not with this SSH configuration"),
        (replace(WELL, way=replace(WAY, addresses=(), milliseconds=None)), "the login node has no address"),
        (replace(WELL, way=replace(WAY, milliseconds=None)), "the login node takes no connection"),
        (replace(WELL, way=replace(WAY, milliseconds=None, by_command=True)), ""),
    ],
)
def test_when_a_login_is_tried(seen: Seen, why: str) -> None:
    assert not_to_be_tried(seen) == why


@pytest.mark.parametrize("state", ["auth_required", "host_key_changed", "host_key_unknown"])
def test_no_login_is_tried_where_that_of_the_gateway_was_refused(state: str) -> None:
    door = replace(GATEWAY, health=dict(GATEWAY.health) | {"tunnel": UP | {"state": state}})
    assert "--login" in not_to_be_tried(replace(WELL, door=door))
    assert not_to_be_tried(replace(WELL, door=door, asked_login=True)) == ""


@pytest.mark.parametrize(
    ("clock", "before", "after", "told"),
    [
        (105, 100, 110, 0.0),
        (100, 100.7, 103, 0.0),
        (200, 100, 110, 90.0),
        (50, 100, 110, -49.0),
        (None, 100, 110, None),
    ],
)
def test_the_difference_of_clocks_is_the_least_that_there_can_be(
    clock: int | None, before: float, after: float, told: float | None
) -> None:
    assert ahead(Survey(clock=clock), before, after) == told


@pytest.mark.parametrize(
    ("last_look", "told"), [("2026-11-27T12:01:00Z", 60.0), ("2026-11-27T11:00:00Z", 0.0), (None, None), ("soon", None)]
)
def test_a_last_look_in_the_future(last_look: str | None, told: float | None) -> None:
    assert in_the_future(health(last_look=last_look), NOW) == told


@pytest.mark.parametrize(
    "told", [{}, {"watcher": None}, {"watcher": []}, {"version": 3, "watcher": {"trouble": 3, "last_look": 4}}]
)
def test_a_health_of_another_version(told: dict[str, Any]) -> None:
    assert everything(answering(health=told))


def test_lines() -> None:
    def lines(*findings: Finding) -> list[str]:
        return [line.plain for one in findings for line in lines_of(one)]

    assert lines(
        well("port", "a gateway listens"),
        broken("ssh config", "it is\nwrong \x1b[1m", "mend\n it"),
        unknown("name", "no"),
    ) == [
        "✓ port         a gateway listens",
        "✗ ssh config   it is wrong \N{REPLACEMENT CHARACTER}[1m",
        "               fix: mend it",
        "\N{EN DASH} name         no",
    ]


@pytest.mark.parametrize(
    ("findings", "status", "told"),
    [
        ([well("a", "x"), odd("b", "x", "y")], 0, "nothing is broken"),
        ([well("a", "x"), unknown("b", "x")], 0, "nothing is broken; 1 could not be looked at"),
        ([well("a", "x"), broken("b", "x", "y"), broken("c", "x", "y")], 1, "2 broken, the first is: b"),
    ],
)
def test_the_end(findings: list[Finding], status: int, told: str) -> None:
    assert (status_of(findings), summed_up(findings).plain) == (status, told)
