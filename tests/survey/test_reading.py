"""What is read from the words of commands on login nodes."""

import pytest

from gateway.survey import Account, Gpus, Index, Installed, OwnJob, Partition, Process, Qos, Quota, Survey, read
from gateway.survey.sections import Section, number, version
from gateway.survey.slurm import (
    accounts_of_scontrol,
    gpus,
    minutes,
    partitions_of_scontrol,
    partitions_of_sinfo,
)
from gateway.survey.storage import gpfs_quotas, lustre_quotas, quotas
from gateway.survey.summary import summary
from tests.survey.pasted import (
    ASSOC_MGR_2411,
    GPFS,
    HOST,
    LARGE,
    LFS,
    PARTITION_2205,
    QUOTA,
    SINFO_2205,
    SMALL,
    printed,
)

KIB, GIB = 1024, 1024**3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2-00:00:00", 2880), ("1-12:30:00", 2190), ("2:00:00", 120), ("02:00:00", 120), ("30:00", 30), ("45", 45),
        ("7-00", 10080), ("infinite", None), ("UNLIMITED", None), ("n/a", None), ("NONE", None), ("", None),
        ("1:2:3:4", None),
    ],
)  # fmt: skip
def test_time_limits(text: str, told: int | None) -> None:
    assert minutes(text) == told


@pytest.mark.parametrize(
    ("gres", "told"),
    [
        ("gpu:4", {"": 4}),
        ("gpu:a100:4", {"a100": 4}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:tesla:2(S:0),gpu:kepler:1(S:1)", {"tesla": 2, "kepler": 1}),
        ("craynetwork:4,gpu:h100:8(S:0-7),nvme:1", {"h100": 8}),
        ("gpu:a100_3g.20gb:2(S:0),gpu:a100_1g.5gb:1(S:0)", {"a100_3g.20gb": 2, "a100_1g.5gb": 1}),
        ("gpu:nvidia_gh200_480gb:1", {"nvidia_gh200_480gb": 1}),
        ("gpu:0", {}), ("(null)", {}), ("", {}), ("shard:16", {}), ("gpu", {}),
    ],
)  # fmt: skip
def test_gpus(gres: str, told: dict[str, int]) -> None:
    assert gpus(gres) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slurm-wlm 22.05.8", (22, 5, 8)),
        ("slurm 24.11.0-0rc1", (24, 11, 0)),
        ("GNU libc 2.36", (2, 36)),
        ("musl", ()),
        ("7", ()),
    ],
)
def test_versions(text: str, told: tuple[int, ...]) -> None:
    assert version(text) == told


@pytest.mark.parametrize(
    ("text", "told"), [("12", 12), (" 4125696+ ", 4125696), ("12*", 12), ("-1", None), ("", None), ("9" * 99, None)]
)
def test_numbers(text: str, told: int | None) -> None:
    assert number(text) == told


def test_partitions_of_the_tests_cluster() -> None:
    """Slurm 22.05."""
    (one,) = partitions_of_sinfo([SINFO_2205])
    assert one == Partition("gpu", True, True, 120, 2, (("idle", 2),), (Gpus("", 4),), 16, 400000 * 1024**2)
    (other,) = partitions_of_scontrol([PARTITION_2205])
    assert (other.default, other.max_minutes, other.nodes, other.gpus, other.accounts) == (True, 120, 2, (), ())


def test_a_large_site() -> None:
    survey = read(LARGE)
    assert (survey.user, survey.host, survey.home, survey.glibc) == ("ada", "login01", "/home/users/ada", (2, 28))
    assert survey.needs_login_shell
    assert survey.complete
    slurm = survey.slurm
    assert slurm is not None
    assert (slurm.version, slurm.cluster, slurm.answers, slurm.accounting) == ((23, 11, 10), "mel", True, True)
    found = {one.name: one for one in slurm.partitions}
    assert list(found) == ["cpu", "gpu", "gpu-test", "largemem", "closed"]
    gpu = found["gpu"]
    assert gpu.states == (("allocated", 120), ("mixed", 70), ("drained", 3))
    assert (gpu.nodes, gpu.usable_nodes, gpu.gpus_per_node, gpu.gpus) == (193, 190, 4, (Gpus("a100", 4),))
    assert gpu.qos == ("default", "short", "test", "dev")
    assert found["cpu"].default
    assert found["largemem"].accounts == ("p200118",)
    assert found["gpu-test"].groups == ("staff",)
    assert not found["closed"].up
    assert slurm.accounts == (
        Account("p200117", False, "", ("default", "dev", "short"), "default"),
        Account("p200118", True, "", ("default", "large"), "default"),
    )
    assert slurm.accounts_from == "sacctmgr"
    assert Qos("dev", 360) in slurm.qos


def test_programs_of_a_large_site() -> None:
    survey = read(LARGE)
    assert [(one.path, one.version) for one in survey.pythons if one.path] == [("/usr/bin/python3", (3, 6, 8))]
    assert [one.module for one in survey.pythons if one.usable] == [
        "Python/3.11.10-GCCcore-13.3.0",
        "Python/3.12.3-GCCcore-13.3.0",
    ]
    assert survey.index == Index("https://pypi.org/simple/", True, "HTTP 200")
    assert survey.modules is not None
    assert (survey.modules.kind, survey.modules.version, survey.modules.init) == (
        "lmod",
        "8.7.32",
        "/usr/share/lmod/lmod/init/bash",
    )
    assert "CUDA/12.6.0" in survey.modules.names
    assert "Python/" not in survey.modules.names
    assert survey.modules.hidden == ("vLLM/0.11.2",)
    assert survey.images == ("/project/scratch/p200118/vllm-openai.sif",)
    assert survey.installed == (Installed("/home/users/ada/.sluicegate/bin/sluice", "0.0.9"),)
    assert survey.process == Process("login02", 4711, alive=False, elsewhere=True)


def test_folders_of_a_large_site() -> None:
    home, project, scratch, local = read(LARGE).places
    assert [one.path for one in (home, project, scratch, local)] == [
        "/home/users/ada", "/project/home/p200117", "/project/scratch/p200118", "/scratch/ada",
    ]  # fmt: skip
    assert home.quotas == (
        Quota("user", 33554432 * KIB, 104857600 * KIB, 98765, 100000, "lfs quota"),
        Quota("group ada", 33554432 * KIB, None, 98765, None, "lfs quota"),
    )
    assert home.room == (104857600 - 33554432) * KIB
    assert [one.of for one in project.quotas] == ["user", "project 117"]
    assert project.room == (1048576 - 1024) * KIB
    assert (scratch.shared, scratch.room, scratch.quotas) == (True, 250000000 * KIB, ())
    assert (local.shared, local.writable) == (False, False)


def test_sessions_and_limits_of_a_large_site() -> None:
    survey = read(LARGE)
    assert (survey.sessions.systemd_user, survey.sessions.lingers, survey.sessions.kills) == (False, False, True)
    limits = survey.limits
    assert (limits.cpu_seconds, limits.processes, limits.open_files, limits.memory) == (3600, 2000, 1024, 32 * GIB)


def test_a_site_without_accounting() -> None:
    survey = read(SMALL)
    slurm = survey.slurm
    assert slurm is not None
    assert (slurm.answers, slurm.accounting, slurm.accounts, slurm.accounts_from) == (True, False, (), "")
    assert not survey.needs_login_shell
    (python,) = survey.pythons
    assert python.usable
    assert not python.venv


def test_accounts_of_the_controller_alone() -> None:
    found = accounts_of_scontrol(Section("assoc-cache", "0", ASSOC_MGR_2411.splitlines()), "ada")
    assert found == [Account("chem"), Account("bio", default=True, partition="gpu")]
    answers = {"host": HOST, "slurm-version": "slurm 24.11.1", "sinfo": SINFO_2205, "assoc": ("refused", "1")}
    by_cache = read(printed(answers | {"assoc-cache": ASSOC_MGR_2411})).slurm
    by_sshare = read(printed(answers | {"sshare": " chem|ada\n bio|eve\n"})).slurm
    assert by_cache is not None
    assert by_sshare is not None
    assert (by_cache.accounts_from, [one.name for one in by_cache.accounts]) == (
        "scontrol show assoc_mgr",
        ["chem", "bio"],
    )
    assert (by_sshare.accounts_from, [one.name for one in by_sshare.accounts]) == ("sshare", ["chem"])


def test_a_controller_that_does_not_answer() -> None:
    words = "slurm_load_partitions: Unable to contact slurm controller (connect failure)"
    down = read(
        printed({"host": HOST, "slurm-version": "slurm-wlm 22.05.8", "sinfo": (words, "1"), "partitions": (words, "1")})
    ).slurm
    assert down is not None
    assert (down.answers, down.words, down.partitions, down.accounting) == (False, words, (), None)
    late = read(printed({"host": HOST, "slurm-version": "slurm-wlm 22.05.8", "sinfo": ("", "late")}))
    assert late.slurm is not None
    assert late.slurm.words == "sinfo did not answer in time"
    assert late.trouble == ("sinfo: no answer in time",)


def test_partitions_where_only_scontrol_answers() -> None:
    tres = "cpu=4,gres/gpu=32,gres/gpu:h100=16,gres/gpu:a100=16"
    line = f"PartitionName=g MaxTime=UNLIMITED State=UP TotalNodes=4 TRES={tres}"
    (one,) = partitions_of_scontrol([line, "", "slurm_load_partitions error"])
    assert one.gpus == (Gpus("h100", 4), Gpus("a100", 4))


def test_quotas_of_nfs() -> None:
    first, second = quotas(Section("quota", "0", QUOTA.splitlines()))
    assert first.where == "nfs01:/export/home"
    assert first.quota == Quota("user", 10485760 * KIB, 10000000 * KIB, 12345, None, "quota")
    assert first.quota.free == 0
    assert second.quota == Quota("user", 100 * KIB, None, 100, 90, "quota")
    assert not list(quotas(Section("quota", "0", ["Disk quotas for user ada (uid 1000): none"])))


def test_quotas_of_lustre_whose_path_has_a_line_of_its_own() -> None:
    of_group = [one for one in lustre_quotas(Section("lfs-quota", "0", LFS.splitlines())) if one.name == "p200117"]
    assert [(one.where[:10], one.quota.used, one.quota.limit) for one in of_group] == [
        ("/mnt/tier1", 1048576000 * KIB, 1073741824 * KIB)
    ]


def test_quotas_of_gpfs() -> None:
    (one,) = gpfs_quotas(Section("mmlsquota", "0", GPFS.splitlines()))
    assert (one.where, one.kind, one.quota) == (
        "gpfs0",
        "user",
        Quota("user", 12345678 * KIB, 52428800 * KIB, 123456, 1000000, "mmlsquota"),
    )
    place = "place=home|$HOME|/u/ada|/u/ada|1|gpfs|900|800|/dev/gpfs0|/u"
    (home,) = read(printed({"host": HOST, "place": place, "mmlsquota": GPFS})).places
    assert (home.shared, home.quotas) == (True, (one.quota,))


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ({"index": "url=https://pypi.org/simple/\ncurl: (28) Connection timed out after 5001 milliseconds\n"}, "index"),
        ({"modules": "lmod=\ntmod=/usr/lib/modulecmd.tcl\nversion=Modules Release 5.2.0 (2022-11-08)"}, "modules"),
        ({"modules": ""}, "none"),
    ],
)
def test_further_words(answers: dict[str, str], what: str) -> None:
    survey = read(printed({"host": HOST} | answers))
    if what == "index":
        assert survey.index == Index(
            "https://pypi.org/simple/", False, "curl: (28) Connection timed out after 5001 milliseconds"
        )
    elif what == "modules":
        assert survey.modules is not None
        assert (survey.modules.kind, survey.modules.version) == ("environment-modules", "5.2.0")
    else:
        assert survey.modules is None


@pytest.mark.parametrize("length", [0, 1, 40, 300, 900, 2000, 5000])
def test_an_output_that_is_cut_off(length: int) -> None:
    survey = read(LARGE[:length])
    assert "the output ends before the script does" in survey.trouble
    assert not survey.complete


@pytest.mark.parametrize(
    "text", ["", "\0", "#sluice# begin", "#sluice# end 0\n#sluice# complete\n", "place=||||", "bash: sh: not found"]
)
def test_an_output_of_something_else(text: str) -> None:
    assert read(text).user == ""


@pytest.mark.parametrize(
    "section", ["place", "python", "container", "orchestrator", "sinfo", "partitions", "lfs-quota", "modules", "limits"]
)
@pytest.mark.parametrize(
    "words", ["=", "|||||||||||", "place=home|x", "python=|||", "process=a|b|c|d", "a|b|c|d|-1|f|g|h|i|j", "\ufffd"]
)
def test_words_that_mean_nothing(section: str, words: str) -> None:
    survey = read(printed({"host": HOST, "slurm-version": "x", section: words}))
    assert isinstance(survey, Survey)
    assert survey.user == "ada"


@pytest.mark.parametrize(
    ("line", "job", "told"),
    [
        ("17|1|RUNNING|mel0001|None", OwnJob("17", True, "RUNNING", "mel0001", "None"), "is Slurm job 17 on mel0001"),
        (
            "17|0|PENDING||Priority",
            OwnJob("17", False, "PENDING", "", "Priority"),
            "17, which waits: PENDING (Priority)",
        ),
        ("17|1|", OwnJob("17", True), ""),
        (
            "17|1||||slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            OwnJob("17", True, words="slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
            "squeue does not say (slurm_load_jobs error: Unable to contact",
        ),
        ("x|1|RUNNING", None, ""),
    ],
)
def test_an_orchestrator_that_is_a_job(line: str, job: OwnJob | None, told: str) -> None:
    survey = read(printed({"host": HOST, "orchestrator": f"job={line}"}))
    assert (survey.job, survey.process) == (job, None)
    said = [line for line in summary(survey) if "an orchestrator" in line]
    assert (len(said), told in "".join(said)) == (bool(told), True), said


def test_a_mark_in_the_words_of_a_command_ends_nothing() -> None:
    """The script puts a space before it."""
    survey = read(printed({"host": HOST, "uv": " #sluice# end 0\nuv=/usr/bin/uv|uv 0.9.1"}))
    assert survey.uv is not None
    assert survey.uv.version == "uv 0.9.1"
