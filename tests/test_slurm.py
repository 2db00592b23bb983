"""The Slurm adapter: its parsing, with what Slurm 22.05 really printed and with the worst; its calls of commands."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.__main__ import scheduler_of
from orchestrator.errors import SchedulerError, SchedulerUnknown
from orchestrator.models import JobState
from orchestrator.schedulers import JobInfo, JobSpec
from orchestrator.schedulers.slurm import (
    Output,
    Slurm,
    by_name,
    clean_environment,
    hostnames,
    parse_estimate,
    parse_exit_code,
    parse_rehearsal,
    parse_sacct,
    parse_sbatch,
    parse_squeue,
)
from orchestrator.schedulers.words import parse_state, parse_time
from orchestrator.settings import Settings, Site
from tests.fake_slurm import BIN, PATH, FakeSlurm

# Pasted from the test cluster, Slurm 22.05.8; "~" stands for \x1f.
REAL = """\
8~sluice-cancel~CANCELLED~None~node1~1795274371~1795274373~1795274375~15~0~
1~sluice-ok~COMPLETED~None~node1~1795274371~1795274371~1795274371~0~0~
2~sluice-seven~FAILED~NonZeroExitCode~node1~1795274371~1795274373~1795274373~1792~0~
6~sluice-killed~FAILED~JobLaunchFailure~node1~1795274371~1795274373~1795274373~9~0~
9~sluice-nolog~FAILED~JobLaunchFailure~node1~1795274371~1795274373~1795274373~4021~0~
10~sluice-toobig~FAILED~BadConstraints~~1795274372~1795274372~1795274372~1~0~
7~sluice-held~PENDING~JobHeldUser~~1795274371~N/A~N/A~0~0~
4~sluice-both~RUNNING~None~node[1-2]~1795274371~1795274373~1795274973~0~0~
5~a|b é
new~RUNNING~None~node1~1795274371~1795274373~1795274973~0~0~
"""
# In the form of the manual page: the test cluster keeps no accounts.
ACCOUNTED = """\
12~sluice-a~COMPLETED~None~node1~1795274371~1795274373~1795274400~0:0
13~sluice-b~CANCELLED by 1000~None~node1~1795274371~1795274373~1795274400~0:15
14~sluice-c~OUT_OF_MEMORY~OutOfMemory~gpu[01-02]~1795274371~1795274373~1795274400~0:125
15~sluice-d~TIMEOUT~TimeLimit~None assigned~1795274371~Unknown~Unknown~0:0
"""
ROW = "7~sluice-x~RUNNING~None~node1~1~2~3~0~0~"


def us(text: str) -> str:
    return text.replace("~", "\x1f")


def at(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def test_what_the_real_squeue_printed_is_understood() -> None:
    jobs = by_name(parse_squeue(us(REAL)))
    assert {name: (job.state, job.reason, job.exit_code) for name, job in jobs.items()} == {
        "sluice-cancel": (JobState.CANCELLED, "", 143),
        "sluice-ok": (JobState.COMPLETED, "", 0),
        "sluice-seven": (JobState.FAILED, "NonZeroExitCode", 7),
        "sluice-killed": (JobState.FAILED, "JobLaunchFailure", 137),
        "sluice-nolog": (JobState.FAILED, "JobLaunchFailure", 181),
        "sluice-toobig": (JobState.FAILED, "BadConstraints", 129),
        "sluice-held": (JobState.PENDING, "JobHeldUser", None),
        "sluice-both": (JobState.RUNNING, "", None),
    }


def test_the_times_of_the_real_squeue_are_utc_and_mean_what_the_state_says() -> None:
    jobs = by_name(parse_squeue(us(REAL)))
    submitted, started = at(1795274371), at(1795274373)
    assert jobs["sluice-both"] == JobInfo(
        "4", "sluice-both", JobState.RUNNING, nodes="node[1-2]", submitted_at=submitted, started_at=started,
        ends_at=at(1795274973),
    )  # fmt: skip
    assert jobs["sluice-held"] == JobInfo(
        "7", "sluice-held", JobState.PENDING, reason="JobHeldUser", submitted_at=submitted
    )
    seven = jobs["sluice-seven"]
    assert (seven.started_at, seven.ended_at, seven.ends_at) == (started, started, None)


def test_the_start_that_slurm_expects_of_a_pending_job_is_not_its_start() -> None:
    (job,) = parse_squeue(us("7~x~PENDING~Resources~~1795274371~1795279999~1795289999~0~2~"))
    assert (job.started_at, job.reason, job.restarts) == (None, "Resources", 2)


def test_what_sacct_prints_is_understood() -> None:
    jobs = parse_sacct(us(ACCOUNTED))
    assert [(job.job_id, job.state, job.reason, job.exit_code, job.ended_at) for job in jobs] == [
        ("12", JobState.COMPLETED, "", 0, at(1795274400)),
        ("13", JobState.CANCELLED, "", 143, at(1795274400)),
        ("14", JobState.OUT_OF_MEMORY, "OutOfMemory", 253, at(1795274400)),
        ("15", JobState.TIMEOUT, "TimeLimit", 0, None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "*** Welcome to the cluster! Maintenance on 2026-12-24 ***",
        "CLUSTER: alpha",
        "JOBID~NAME~STATE~REASON~NODELIST~SUBMIT_TIME~START_TIME~END_TIME~EXIT_CODE~RESTART_COUNT~",
        "7~sluice-x~RUNNING~None~node1",
        "7                   sluice-x            RUNNING   ",
        "7_1~sluice-x~RUNNING~None~node1~1~2~3~0~0~",
        "7+0~sluice-x~RUNNING~None~node1~1~2~3~0~0~",
        "-7~sluice-x~RUNNING~None~node1~1~2~3~0~0~",
        "\u0667~sluice-x~RUNNING~None~node1~1~2~3~0~0~",
        f"{'9' * 5000}~sluice-x~RUNNING~None~node1~1~2~3~0~0~",
        "~" * 500,
        "\0\ufffd\x1b[31m",
        "squeue: error: Invalid job format specification: RestartCnt",
    ],
)
def test_a_line_that_is_no_job_is_passed_over_and_hides_no_other(text: str) -> None:
    assert parse_squeue(us(text)) == []
    assert parse_sacct(us(text)) == []
    assert [job.name for job in parse_squeue(us(f"{text}\n{ROW}\n{text}"))] == ["sluice-x"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (ROW + "one~more~column", JobInfo("7", "sluice-x", JobState.RUNNING)),
        ("7~a|b~RUNNING~None~~~~~~~", JobInfo("7", "a|b", JobState.RUNNING)),
        ("7~é😀~RUNNING~None~~~~~~~", JobInfo("7", "é😀", JobState.RUNNING)),
        ("7~~RUNNING~None~~~~~~~", JobInfo("7", "", JobState.RUNNING)),
        ("7~x~COMPLETI+~None~~~~~~~", JobInfo("7", "x", JobState.UNKNOWN)),
        ("7~x~CANCELLED+~None~~~~~~~", JobInfo("7", "x", JobState.CANCELLED)),
        ("7~x~LOST~None~~~~~~~", JobInfo("7", "x", JobState.UNKNOWN)),
        ("7~x~FAILED~(null)~(null)~gestern~Mo 3. Nov~heute~?~viele~", JobInfo("7", "x", JobState.FAILED)),
    ],
)
def test_odd_columns_cost_only_themselves(line: str, expected: JobInfo) -> None:
    (job,) = parse_squeue(us(line))
    assert (job.job_id, job.name, job.state) == (expected.job_id, expected.name, expected.state)
    assert (job.exit_code, job.restarts) == (None, 0)


def test_our_jobs_are_found_among_a_hundred_thousand_in_less_than_a_second() -> None:
    text = us("".join(f"{n}~sluice-{n:016x}~RUNNING~None~node1~1795274371~N/A~N/A~0~0~\n" for n in range(1, 100_001)))
    names = frozenset(f"sluice-{n:016x}" for n in range(1, 100_001, 50))
    began = time.process_time()
    jobs = parse_squeue(text, names)
    assert time.process_time() - began < 1
    assert {job.name for job in jobs} == names
    assert len(parse_squeue(text)) == 100_000


def test_of_a_submission_taken_twice_the_job_that_lives_counts() -> None:
    rows = [
        JobInfo("9", "x", JobState.RUNNING),
        JobInfo("8", "x", JobState.PENDING),
        JobInfo("7", "x", JobState.FAILED),
    ]
    assert by_name(rows)["x"].job_id == "8"
    assert by_name(rows[2:])["x"].job_id == "7"


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("12\n", "12"),
        ("12", "12"),
        ("12;cluster\n", "12"),
        ("Welcome!\n*****\n12;alpha-2.x\n", "12"),
        ("12\nThank you for flying Slurm 22\n", "12"),
        ("99 bottles\r\n 12 \r\n\r\n", "12"),
    ],
)
def test_the_job_id_is_found_below_a_banner(text: str, job_id: str) -> None:
    assert parse_sbatch(text) == job_id


@pytest.mark.parametrize(
    "text", ["", "\n", "Submitted batch job 12", "12;", "12;a b", "-1", "1.5", "9" * 19, "x" * 9999]
)
def test_no_job_id_means_that_nothing_is_known(text: str) -> None:
    with pytest.raises(SchedulerUnknown, match="no job id") as caught:
        parse_sbatch(text)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("7:0", 7), ("0:9", 137), ("0:0", 0), ("3:15", 3), ("0", 0), ("1792", 7), ("9", 137), ("15", 143), ("139", 139),
        ("4021", 181), ("", None), ("N/A", None), ("-1", None), ("7:", None), ("9" * 50, None), ("0x7", None),
    ],
)  # fmt: skip
def test_exit_codes_are_read_in_both_spellings(text: str, code: int | None) -> None:
    assert parse_exit_code(text) == code


@pytest.mark.parametrize(
    ("text", "time"),
    [("1795274371", at(1795274371)), ("99999999999", at(99999999999))]
    + [(text, None) for text in ("0", "", "N/A", "NONE", "Unknown", "2026-11-21T15:00:00", "-5", "9" * 12, "1e9")],
)
def test_only_epoch_seconds_are_a_time(text: str, time: datetime | None) -> None:
    assert parse_time(text) == time


def test_every_word_of_slurm_is_kept_and_ours_are_not_its_words() -> None:
    ours = {JobState.SUBMITTING, JobState.LOST, JobState.UNKNOWN}
    assert all(parse_state(word) is (JobState.UNKNOWN if word in ours else word) for word in JobState)
    words = ("", "  ", "CANCELLED by 1000", "cancelled", "HIBERNATED", "__class__")
    expected = [JobState.UNKNOWN, JobState.UNKNOWN, JobState.CANCELLED] + [JobState.UNKNOWN] * 3
    assert [parse_state(word) for word in words] == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-2]", ["node1", "node2"]),
        ("gpu[01-03,7],login1", ["gpu01", "gpu02", "gpu03", "gpu7", "login1"]),
        ("n[09-11]-ib,m", ["n09-ib", "n10-ib", "n11-ib", "m"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
        ("a.b-c_d", ["a.b-c_d"]),
    ]
    + [
        (text, [])
        for text in (
            "", ",,", "None assigned", "(null)", "n[1-2-3]", "n[3-1]", "n[", "n[]", "n[a-b]", "n{}", "gpu\u0663", "a b",
            "x/../y",            f"n[{'1' * 5000}]", "n[0-999999999]", "n[1-900]n[1-900]",
            "n[0-9999999]m[2-1]",
        )
    ],
)  # fmt: skip
def test_node_lists_are_expanded_and_odd_ones_yield_no_name(text: str, names: list[str]) -> None:
    assert list(hostnames(text)) == names


def test_a_list_of_more_nodes_than_there_are_ends() -> None:
    assert len(hostnames("a," + ",".join(["n[1-900]"] * 1000))) == 9901


# Against commands that run.


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def spec(slurm: FakeSlurm, name: str = "sluice-1") -> JobSpec:
    script = slurm.home / f"{name}.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --job-name={name}\n")
    return JobSpec(name, "a comment", script, slurm.home, slurm.home / "out", slurm.home / "err")


def test_a_job_is_submitted_seen_and_cancelled(slurm: FakeSlurm) -> None:
    scheduler = slurm.scheduler()

    async def work() -> tuple[str, JobState, JobState]:
        job_id = await scheduler.submit(spec(slurm))
        before = (await scheduler.query(["sluice-1", "never-heard-of"]))["sluice-1"].state
        await scheduler.cancel(job_id, "sluice-1")
        return job_id, before, (await scheduler.query(["sluice-1"]))["sluice-1"].state

    assert asyncio.run(work()) == ("100", JobState.PENDING, JobState.CANCELLED)
    assert slurm.calls("scancel") == ["scancel --me --jobname=sluice-1 100"]
    assert slurm.calls("sbatch") == [f"sbatch --parsable {slurm.home}/sluice-1.sh"]


def test_a_job_that_has_got_the_id_of_ours_is_not_cancelled(slurm: FakeSlurm) -> None:
    slurm.change("7", name="of-somebody-else", state="RUNNING")
    asyncio.run(slurm.scheduler().cancel("7", "sluice-1"))
    assert slurm.jobs()["7"]["state"] == "RUNNING"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("sbatch: Job 1 to start at 1795295839 using 1 processors on nodes node1 in partition gpu\n", 1795295839),
        (
            "a banner\nsbatch: Job 12 to start at 1795295839 using 64 processors on nodes n[1-2] in partition x",
            1795295839,
        ),
        ("allocation failure: Requested node configuration is not available\n", None),
        ("sbatch: Job 2 to start at 2026-11-21T21:17:19 using 1 processors on nodes node1 in partition gpu\n", None),
        ("sbatch: Job 2 to start at Unknown using 1 processors", None),
        (f"to start at {'9' * 5000} using", None),
        ("", None),
    ],
)
def test_the_start_that_slurm_expects_is_read_or_left_open(text: str, start: int | None) -> None:
    assert parse_estimate(text) == (None if start is None else datetime.fromtimestamp(start, UTC))


def test_an_estimate_submits_nothing_and_silence_is_none(slurm: FakeSlurm) -> None:
    (slurm.state / "starts_at").write_text("1795295839")
    script = slurm.home / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --job-name=sluice-a\n")
    expected = datetime.fromtimestamp(1795295839, UTC)
    assert asyncio.run(slurm.scheduler().starts_at(script)) == expected
    assert slurm.jobs() == {}
    for silence in ("exit 1", "sleep 1000", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1"):
        slurm.behave("sbatch", silence)
        assert asyncio.run(slurm.scheduler(timeout=0.2).starts_at(script)) is None
    assert asyncio.run(Slurm(environment={"PATH": "/nonexistent"}).starts_at(script)) is None


@pytest.mark.parametrize(
    ("status", "stderr", "starts", "refusal"),
    [
        (0, "sbatch: Job 1 to start at 1795295839 using 1 processors on nodes n1 in partition x", True, ""),
        (0, "", False, ""),
        (1, "sbatch: error: Batch job submission failed: Invalid qos", False, "Batch job submission"),
        (1, "allocation failure: Requested node configuration is not available", False, "allocation failure:"),
        (1, "sbatch: error: Unable to contact slurm controller (connect failure)", False, ""),
        (1, "allocation failure: Socket timed out on send/recv operation", False, ""),
        (1, "", False, "ended with status 1"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_from_silence(status: int, stderr: str, starts: bool, refusal: str) -> None:
    said = parse_rehearsal(Output(status, "", stderr))
    assert (said.starts_at is not None, said.refusal.startswith(refusal), bool(said.refusal)) == (
        starts, True, bool(refusal),
    )  # fmt: skip


def test_no_name_costs_no_call_and_many_names_cost_one(slurm: FakeSlurm) -> None:
    scheduler = slurm.scheduler()
    assert asyncio.run(scheduler.query([])) == {}
    assert slurm.calls("squeue") == []
    for number in range(20):
        slurm.change(str(number + 1), name=f"sluice-{number}", state="RUNNING")
    found = asyncio.run(scheduler.query([f"sluice-{number}" for number in range(20)]))
    assert len(found) == 20
    assert len(slurm.calls("squeue")) == 1
    assert slurm.calls("sacct") == []


REFUSALS = [
    "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition name",
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
    "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
]
SILENCES = [
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Connection refused",
]


@pytest.mark.parametrize(
    ("words", "kind"),
    [(w, SchedulerError) for w in REFUSALS] + [(w, SchedulerUnknown) for w in SILENCES] + [("", SchedulerError)],
)
def test_a_refusal_is_told_in_slurms_words_and_a_lost_answer_is_no_refusal(
    slurm: FakeSlurm, words: str, kind: type[SchedulerError]
) -> None:
    slurm.behave("sbatch", f"echo '{words}' >&2; exit 1")
    with pytest.raises(SchedulerError) as caught:
        asyncio.run(slurm.scheduler().submit(spec(slurm)))
    assert type(caught.value) is kind
    last = words.splitlines()[-1].removeprefix("sbatch: error: ") if words else "status 1 and no message"
    assert last in str(caught.value)
    assert "sbatch: sbatch" not in str(caught.value)


@pytest.mark.parametrize("verb", ["squeue", "sacct", "scancel"])
def test_a_controller_that_is_down_ends_no_job(slurm: FakeSlurm, verb: str) -> None:
    slurm.behave(verb, "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    scheduler = slurm.scheduler()
    asked = scheduler.cancel("7", "sluice-1") if verb == "scancel" else scheduler.query(["sluice-1"])
    with pytest.raises(SchedulerUnknown, match="Unable to contact"):
        asyncio.run(asyncio.wait_for(asked, 20))


def test_a_command_that_hangs_is_killed_with_its_children(slurm: FakeSlurm) -> None:
    """All of them at once, so that the test waits for one time limit. The second squeue answers: sacct hangs then."""
    for verb in ("sbatch", "sacct", "scancel"):
        slurm.behave(verb, 'sleep 1000 & echo $! $$ >"$STATE/$COMMAND.pids"; wait')
    slurm.behave("squeue", 'mkdir "$STATE/first" || exit 0; sleep 1000 & echo $! $$ >"$STATE/$COMMAND.pids"; wait')
    scheduler = slurm.scheduler(timeout=1)

    async def ask() -> list[object]:
        asked = (
            scheduler.submit(spec(slurm)),
            scheduler.cancel("7", "sluice-1"),
            scheduler.query(["a"]),
            scheduler.query(["b"]),
        )
        async with asyncio.timeout(20):
            return list(await asyncio.gather(*asked, return_exceptions=True))

    errors = asyncio.run(ask())
    assert [type(error) for error in errors] == [SchedulerUnknown] * 4
    told = {str(error).partition(" did not answer within 1 s")[0] for error in errors}
    assert told == {"sbatch", "scancel", "squeue", "sacct"}
    assert "If Slurm took the job" in str(errors[0])
    pids = [pid for path in slurm.state.glob("*.pids") for pid in path.read_text().split()]
    assert len(pids) == 8
    assert [pid for pid in pids if lives(pid)] == []


def lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_without_slurm_a_submission_is_refused_and_says_what_to_set(slurm: FakeSlurm) -> None:
    scheduler = Slurm(environment={"PATH": "/nowhere", "HOME": str(slurm.home)})
    with pytest.raises(SchedulerError, match=r"cannot run sbatch: .*ORCHESTRATOR_SCHEDULER=local") as caught:
        asyncio.run(scheduler.submit(spec(slurm)))
    assert not isinstance(caught.value, SchedulerUnknown)
    with pytest.raises(SchedulerUnknown, match="cannot run squeue"):
        asyncio.run(scheduler.query(["sluice-1"]))


def test_a_site_without_sacct_is_not_a_site_that_does_not_answer(slurm: FakeSlurm, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("squeue", "common.sh"):
        (commands / name).symlink_to(BIN / name)
    for program in ("env", "bash"):
        (commands / program).symlink_to(f"/usr/bin/{program}")
    scheduler = Slurm(environment={"PATH": str(commands), "HOME": str(slurm.home)})
    assert asyncio.run(scheduler.query(["sluice-1"])) == {}


def test_accounting_is_asked_only_for_what_squeue_has_forgotten(slurm: FakeSlurm) -> None:
    slurm.change("7", name="sluice-1", state="RUNNING")
    slurm.behave("sacct", f"printf '%b' '{us(ACCOUNTED)}'; exit 0".replace("\n", "\\n"))
    found = asyncio.run(slurm.scheduler().query(["sluice-1", "sluice-b", "sluice-z"]))
    assert {name: job.state for name, job in found.items()} == {
        "sluice-1": JobState.RUNNING,
        "sluice-b": JobState.CANCELLED,
    }
    assert [call.rpartition(" ")[2] for call in slurm.calls("sacct")] == ["--name=sluice-b,sluice-z"]


def test_thousands_of_forgotten_jobs_fit_on_saccts_command_line(slurm: FakeSlurm) -> None:
    assert asyncio.run(slurm.scheduler().query([f"sluice-{n:016x}" for n in range(4000)])) == {}
    assert len(slurm.calls("sacct")) == 4


@pytest.mark.parametrize(
    "line",
    ["7~sluice-1~RUNNING", "7  sluice-1  RUNNING", "7|sluice-1|RUNNING|", "x~sluice-1~RUNNING~None~node1~1~2~3~0~0~"],
)
def test_our_own_job_in_a_form_not_understood_is_not_gone(slurm: FakeSlurm, line: str) -> None:
    slurm.behave("squeue", f"echo '{us(line)}'; exit 0")
    with pytest.raises(SchedulerUnknown, match="form that is not understood"):
        asyncio.run(slurm.scheduler().query(["sluice-1"]))


def test_banners_and_other_peoples_names_do_not_hide_our_jobs(slurm: FakeSlurm) -> None:
    slurm.change("7", name="sluice-1", state="RUNNING")
    slurm.behave("squeue", us("echo 'Welcome! ~~~ 7 jobs'; printf '8~a\\nb~RUNNING~~~~~~~~\\n\\xff\\xfe\\n'"))
    assert asyncio.run(slurm.scheduler().query(["sluice-1"]))["sluice-1"].state is JobState.RUNNING


@pytest.mark.parametrize("command", ["sbatch", "squeue", "scancel", "sacct"])
def test_no_secret_and_no_habit_of_the_user_reaches_slurm(
    slurm: FakeSlurm, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = {
        "HF_TOKEN": "hf_planted",
        "ORCHESTRATOR_TOKEN": "planted",
        "SQUEUE_STATES": "PENDING",
        "SBATCH_ACCOUNT": "x",
    }
    for name, value in {**planted, "PATH": PATH, "HOME": str(slurm.home), "SLURM_CONF": "/etc/x.conf"}.items():
        monkeypatch.setenv(name, value)
    scheduler = Slurm()

    async def everything() -> None:
        await scheduler.submit(spec(slurm))
        await scheduler.query(["sluice-1", "forgotten"])
        await scheduler.cancel("100", "sluice-1")

    asyncio.run(everything())
    passed = slurm.environment_of(command)
    assert not planted.keys() & passed.keys()
    assert "planted" not in str(passed)
    assert (passed["SLURM_CONF"], passed["SLURM_TIME_FORMAT"], passed["LC_ALL"]) == ("/etc/x.conf", "%s", "C")


def test_the_clean_environment_is_a_list_of_what_is_kept() -> None:
    kept = clean_environment({"PATH": "/bin", "SLURM_JOB_ID": "1", "LC_ALL": "de_DE", "SLURM_TIME_FORMAT": "relative"})
    assert kept == {"PATH": "/bin", "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}


def test_within_an_allocation_nothing_of_it_reaches_slurm_unless_the_site_names_it() -> None:
    outer = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "7", "SBATCH_EXPORT": "NONE", "TMPDIR": "/tmp/of-a-session"}
    wanted = {"SLURM_CLUSTERS": "a,b", "TZ": "Europe/Berlin", "SLURM_CONF": "/etc/slurm.conf"}
    own = {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
    assert clean_environment(outer | wanted) == wanted | own
    assert clean_environment(outer | wanted, ["SBATCH_EXPORT", "ABSENT"]) == wanted | own | {"SBATCH_EXPORT": "NONE"}


def test_the_site_names_what_slurm_gets_beside_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KRB5CCNAME", "FILE:/tmp/x")
    monkeypatch.setenv("HF_TOKEN", "planted")
    scheduler = scheduler_of(Settings(home=tmp_path, site=Site(slurm_environment=["KRB5CCNAME"])))
    assert isinstance(scheduler, Slurm)
    assert (scheduler.environment["KRB5CCNAME"], "HF_TOKEN" in scheduler.environment) == ("FILE:/tmp/x", False)


@pytest.mark.parametrize(
    ("words", "ended"),
    [
        ("scancel: error: Kill job error on job id 7: Invalid job id specified", True),
        ("scancel: error: Kill job error on job id 7: Job/step already completing or completed", True),
        ("scancel: error: Kill job error on job id 7: Access/permission denied", False),
        ("scancel: error: Invalid job id abc", False),
    ],
)
def test_only_a_job_that_has_ended_is_no_error_to_cancel(slurm: FakeSlurm, words: str, ended: bool) -> None:
    slurm.behave("scancel", f"echo '{words}' >&2; exit 1")
    cancelled = slurm.scheduler().cancel("7", "sluice-1")
    if ended:
        assert asyncio.run(asyncio.wait_for(cancelled, 20)) is None
    else:
        with pytest.raises(SchedulerError, match=f"^{words.replace('error: ', '')}$"):
            asyncio.run(asyncio.wait_for(cancelled, 20))


def test_a_submission_whose_request_is_cancelled_leaves_no_process(slurm: FakeSlurm) -> None:
    slurm.behave("sbatch", 'echo $$ >"$STATE/p"; mv "$STATE/p" "$STATE/pids"; sleep 1000')

    async def work() -> str:
        submitting = asyncio.create_task(slurm.scheduler().submit(spec(slurm)))
        async with asyncio.timeout(20):
            while not (slurm.state / "pids").exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.01)
        submitting.cancel()
        await asyncio.wait({submitting})
        assert submitting.cancelled()
        return (slurm.state / "pids").read_text().strip()

    assert not lives(asyncio.run(work()))


@pytest.mark.parametrize("turns", range(8))
def test_a_cancel_at_any_moment_of_a_commands_start_ends_it(slurm: FakeSlurm, turns: int) -> None:
    """`turns`: how far the event loop has come with the start. The command's children hold its pipes open."""
    slurm.behave("squeue", 'sleep 1000 & echo $! $$ >"$STATE/pids"; wait')

    async def work() -> None:
        asking = asyncio.create_task(slurm.scheduler().query(["sluice-1"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait({asking})
        assert asking.cancelled()

    asyncio.run(work())
    pids = slurm.state / "pids"
    assert [pid for pid in (pids.read_text().split() if pids.exists() else []) if lives(pid)] == []


def test_the_fake_commands_can_be_run() -> None:
    assert all(os.access(BIN / name, os.X_OK) for name in ("sbatch", "squeue", "scancel", "sacct"))
