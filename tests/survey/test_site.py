"""The first site file: what is chosen, what is said beside it, and that it is always taken."""

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from gateway.survey import (
    Account,
    Gpus,
    Index,
    Modules,
    Partition,
    Place,
    Program,
    Qos,
    Slurm,
    Survey,
    read,
    site_file,
    summary,
)
from gateway.survey.choice import charged_to, choices, newest, own_folder, qos_of, size
from orchestrator.settings import Settings
from tests.survey.pasted import LARGE, SMALL

GIB = 1024**3


def partition(name: str, nodes: int = 4, gpus: int = 4, **more: Any) -> Partition:
    about: dict[str, Any] = {"nodes": nodes, "states": (("idle", nodes),), "gpus": (Gpus("", gpus),) if gpus else ()}
    return Partition(name, **(about | more))


def chosen(
    partitions: list[Partition], accounts: tuple[Account, ...] = (), groups: tuple[str, ...] = ()
) -> tuple[str, str]:
    slurm = Slurm((24, 11), True, partitions=tuple(partitions), accounts=accounts)
    account, best = charged_to(slurm, groups)
    return account.name if account else "", best.name


def settings_of(survey: Survey) -> Settings:
    return Settings(**tomllib.loads(site_file(survey)))


@pytest.mark.parametrize(
    ("partitions", "best"),
    [
        ([partition("cpu", gpus=0, default=True), partition("gpu")], "gpu"),
        ([partition("gpu"), partition("big", 40)], "big"),
        ([partition("gpu", default=True), partition("big", 40)], "gpu"),
        ([partition("gpu_debug", 400, default=True), partition("gpu")], "gpu"),
        ([partition("gpu-interactive", 400), partition("preempt", 400), partition("a100")], "a100"),
        ([partition("gpu", up=False), partition("old")], "old"),
        ([partition("gpu", states=(("drained", 4),)), partition("old")], "old"),
        ([partition("gpu", states=(("down", 3), ("idle", 1)))], "gpu"),
        ([partition("a", max_minutes=60), partition("b", max_minutes=None)], "b"),
        ([partition("cpu", gpus=0), partition("debug", gpus=0)], "cpu"),
        ([partition("gpu", groups=("staff",)), partition("open")], "open"),
    ],
)
def test_the_partition(partitions: list[Partition], best: str) -> None:
    assert chosen(partitions, groups=("users",))[1] == best


@pytest.mark.parametrize(
    ("partitions", "accounts", "both"),
    [
        ([partition("gpu")], (Account("a"), Account("b", default=True)), ("b", "gpu")),
        (
            [partition("gpu", accounts=("a",)), partition("cpu", gpus=0)],
            (Account("a"), Account("b", default=True)),
            ("a", "gpu"),
        ),
        ([partition("gpu", denied_accounts=("b",))], (Account("a"), Account("b", default=True)), ("a", "gpu")),
        (
            [partition("gpu"), partition("cpu", gpus=0)],
            (Account("a", partition="cpu", default=True), Account("b")),
            ("b", "gpu"),
        ),
        ([partition("gpu", accounts=("x",)), partition("cpu", gpus=0)], (Account("a", default=True),), ("a", "cpu")),
        ([partition("gpu")], (), ("", "gpu")),
    ],
)
def test_the_account_and_the_partition_fit(
    partitions: list[Partition], accounts: tuple[Account, ...], both: tuple[str, str]
) -> None:
    assert chosen(partitions, accounts) == both


@pytest.mark.parametrize(
    ("account", "taken", "best"),
    [
        (Account("a", qos=("normal", "gpu"), default_qos="normal"), (), None),
        (Account("a", qos=("normal", "gpu"), default_qos="normal"), ("normal",), None),
        (Account("a", qos=("normal", "gpu"), default_qos="normal"), ("gpu", "long"), "gpu"),
        (Account("a", qos=("x", "normal"), default_qos=""), ("x", "normal"), "normal"),
        (Account("a", qos=("x",), default_qos=""), ("y",), None),
        (None, ("gpu",), None),
    ],
)
def test_the_qos_only_where_the_default_would_be_refused(
    account: Account | None, taken: tuple[str, ...], best: str | None
) -> None:
    found = qos_of(account, partition("gpu", qos=taken))
    assert (found.value if found else None) == best


def test_modules_by_their_version() -> None:
    names = ["apptainer/1.2.5", "tools/Apptainer/1.10.0-GCCcore", "apptainer/1.3.6", "singularity/4.1"]
    assert newest(names, "apptainer") == ["tools/Apptainer/1.10.0-GCCcore", "apptainer/1.3.6", "apptainer/1.2.5"]


def test_a_large_site() -> None:
    survey = read(LARGE)
    text = site_file(survey)
    site = Settings(**tomllib.loads(text)).site
    assert (site.account, site.partition, site.cpu_partition, site.qos, site.gpu_type) == (
        "p200118",
        "gpu",
        "cpu",
        None,
        "a100",
    )
    assert site.max_time_limit == 2880
    assert (site.runtime, site.modules, site.module_init) == (
        "apptainer", ["Apptainer/1.3.6-GCCcore-13.3.0"], "/usr/share/lmod/lmod/init/bash",
    )  # fmt: skip
    assert site.cache_dir == "/project/scratch/p200118/ada/sluicegate"
    assert site.engines["vllm"].image == "/project/scratch/p200118/vllm-openai.sif"
    assert site.engines["llamacpp"].runtime == "none"
    lines = {line.partition(" = ")[0]: line for line in text.splitlines()}
    assert "your default account, by sacctmgr; also there: p200117" in lines["account"]
    assert "sinfo: 193 nodes with 4 GPUs (a100)" in lines["partition"]
    assert "also there: Apptainer/1.2.4-GCCcore-13.2.0" in lines["modules"]
    assert "default, large" in lines["# qos"]
    for name in ("account", "partition", "cpu_partition", "gpu_type", "modules", "runtime", "cache_dir", "image"):
        assert "#" in lines[name], f"{name} does not say where it comes from"


def test_a_site_without_accounting() -> None:
    settings = settings_of(read(SMALL))
    assert settings.scheduler == "slurm"
    assert (settings.site.account, settings.site.partition, settings.site.max_time_limit) == (None, "gpu", 120)
    assert (settings.site.runtime, settings.site.engines, settings.site.cache_dir) == ("none", {}, None)


def test_what_nobody_tells_is_said() -> None:
    survey = replace(read(SMALL), groups=("ada", "p200117"))
    assert survey.slurm is not None
    lines = site_file(replace(survey, slurm=replace(survey.slurm, enforced=("associations",)))).splitlines()
    assert any("Slurm wants one; your groups are: p200117" in line for line in lines)
    assert any(line.startswith("# home = ") and "/home/users/ada is on ext4" in line for line in lines)
    assert not any(line.startswith("# home = ") for line in site_file(read(LARGE)).splitlines())


def test_a_workstation() -> None:
    survey = Survey(
        user="ada",
        host="desk",
        gpus=("NVIDIA RTX A6000, 49140 MiB",),
        containers=(Program("docker", "/usr/bin/docker", "Docker 28"),),
        vllm=(Program("vllm", "/home/ada/vllm/bin/vllm", "0.11.2"),),
        places=(Place("/data", "project", "$DATA", True, "ext4", 900 * GIB, 800 * GIB),),
    )
    settings = settings_of(survey)
    assert (settings.scheduler, settings.site.runtime, settings.site.cache_dir) == (
        "local",
        "docker",
        "/data/ada/sluicegate",
    )
    vllm = settings.site.engines["vllm"]
    assert (vllm.command[0], vllm.runtime) == ("/home/ada/vllm/bin/python", "none")


def test_a_module_of_vllm_that_another_one_brings() -> None:
    modules = Modules("lmod", "8.7", "/init", names=("vLLM/0.10.0", "vLLM/0.11.2", "Python/3.12.3"))
    engine = settings_of(Survey(user="ada", slurm=Slurm((24, 5), True), modules=modules)).site.engines["vllm"]
    assert (engine.modules, engine.command[1:]) == (["vLLM/0.11.2"], ["-m", "vllm.entrypoints.openai.api_server"])


def test_several_types_of_gpus_are_not_narrowed_to_one() -> None:
    mixed = partition("gpu", gpus=0)
    mixed = replace(mixed, gpus=(Gpus("a100", 4), Gpus("v100", 2)))
    text = site_file(Survey(user="ada", slurm=Slurm((24, 5), True, partitions=(mixed,))))
    assert tomllib.loads(text)["site"].get("gpu_type") is None
    assert "a100, v100" in text


def test_the_limit_of_a_qos_counts() -> None:
    slurm = Slurm(
        (24, 5), True, partitions=(partition("gpu", max_minutes=2880),), qos=(Qos("short", 360),),
        accounts=(Account("a", True, "", ("short",), "short"),),
    )  # fmt: skip
    assert choices(Survey(slurm=slurm)).minutes == 360


@pytest.mark.parametrize(
    ("places", "best"),
    [
        ([Place("/scratch/ada", "scratch", "$SCRATCH", True, "lustre", free=900 * GIB)], "/scratch/ada/sluicegate"),
        ([Place("/scratch/ada", "scratch", "$SCRATCH", True, "xfs", free=900 * GIB)], None),
        ([Place("/scratch/ada", "scratch", "$SCRATCH", False, "lustre", free=900 * GIB)], None),
        (
            [
                Place("/scratch/ada", "scratch", "$SCRATCH", True, "nfs4", free=GIB),
                Place("/projects/x", "project", "$WORK", True, "gpfs", free=900 * GIB),
            ],
            "/projects/x/ada/sluicegate",
        ),
        ([Place("/home/ada", "home", "$HOME", True, "nfs4", free=900 * GIB)], None),
    ],
)  # fmt: skip
def test_the_folder_for_models(places: list[Place], best: str | None) -> None:
    found = choices(Survey(user="ada", slurm=Slurm((24, 5), True), places=tuple(places))).cache
    assert (found.value if found else None) == best


def test_a_folder_of_ones_own_in_that_of_a_project() -> None:
    assert own_folder(Place("/project/p1", "project", "", True), "ada") == "/project/p1/ada/sluicegate"
    assert own_folder(Place("/scratch/ada", "scratch", "", True), "ada") == "/scratch/ada/sluicegate"


@pytest.mark.parametrize(
    "evil", ['"', "\\", "\n[site]\n", "\x7f\x00\x1b[31m", "'''", "# x", "ü😀", "\ud800", "a" * 5000, "$(id)"]
)
def test_whatever_a_name_is_the_file_is_taken(evil: str) -> None:
    slurm = Slurm(
        (24, 5),
        False,
        cluster=evil,
        partitions=(partition(evil), partition(evil + "2"), partition("c", gpus=0)),
        accounts=(Account(evil, True, "", (evil,)), Account("other")),
        accounts_from=evil,
        words=evil,
    )
    survey = Survey(
        host=evil,
        user=evil,
        slurm=slurm,
        modules=Modules(evil, evil, evil, ("apptainer/" + evil,), (evil,)),
        containers=(Program("podman", evil, evil),),
        images=(evil, evil),
        vllm=(Program("vllm", evil, evil),),
        token_file=evil,
        places=(Place("/s/" + evil, "scratch", evil, True, "lustre", free=GIB),),
        index=Index(evil, False, evil),
        trouble=(evil,),
    )
    assert settings_of(survey).scheduler == "slurm"
    assert settings_of(replace(survey, slurm=None)).scheduler == "local"
    assert all("\n" not in line for line in summary(survey))


def test_nothing_known() -> None:
    assert settings_of(read("")).scheduler == "local"
    assert settings_of(Survey(slurm=Slurm((), False))).scheduler == "slurm"


def test_the_summary_of_a_large_site() -> None:
    lines = summary(read(LARGE))
    for told in (
        "ada@login01: Rocky Linux 8.10 (Green Obsidian), x86_64, glibc 2.28, 128 processors",
        "no Python 3.11 or newer on the PATH, the newest is 3.6.8",
        "Slurm 23.11.10 of mel, found by a login shell only; with accounting",
        "partition gpu: 193 nodes with 4 GPUs (a100), at most 2 d; 120 allocated, 70 mixed, 3 drained",
        "accounts, by sacctmgr: p200117, p200118 (default)",
        "processes are killed when their user logs out",
        "a process may use 3600 s of processor time",
        "an orchestrator runs on login02 as process 4711",
    ):
        assert told in lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 KiB"),
        (20 * GIB, "20 GiB"),
        (3 * 1024 * GIB, "3.0 TiB"),
        (9 * 1024**6, "9216 PiB"),
    ],
)
def test_sizes(count: int, told: str) -> None:
    assert size(count) == told
