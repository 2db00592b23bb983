"""The text of a job's script, compared whole with tests/golden/NAME.sh. tests/test_job.py runs such scripts.

After a change that was meant: `SLUICE_ACCEPT=1 pytest tests/test_script.py`, then read the difference in git.
"""

import difflib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import resolve
from orchestrator.errors import Invalid
from orchestrator.recipes import RecipeBook, builtin_recipes, read_recipe
from orchestrator.runs import RunFolder
from orchestrator.script import Target, directives, render
from orchestrator.settings import Engine, SettingsError, Site

GOLDEN = Path(__file__).parent / "golden"
BOOK = RecipeBook([builtin_recipes()])
VLLM = BOOK.find("vllm-single-node")
RUN = Path("/home/ada/.sluicegate/runs/0190b2c4")

MELUXINA = Site(
    account="p200981",
    partition="gpu",
    cpu_partition="cpu",
    qos="short",
    constraint="a100&ib",
    extra_directives=["--exclusive", '--mail-user="ada@example.org"'],
    gpu_request="gpus-per-node",
    gpu_type="a100",
    request_memory=False,
    modules=["env/release/2024.1", "Apptainer/1.3.1-GCCcore-12.3.0"],
    module_init="/etc/profile.d/lmod.sh",
    runtime="apptainer",
    bind=["/mnt/tier2", "/project/home:/data:ro"],
    cache_dir="/project/scratch/p200981/cache",
    environment={"HF_HUB_OFFLINE": "1", "NCCL_SOCKET_IFNAME": "ib0"},
    engines={
        "vllm": Engine(image="/project/images/vllm.sif", modules=["CUDA/12.4"], environment={"OMP_NUM_THREADS": "8"})
    },
)
ALL_OPTIONS = {
    "environment": {
        "VLLM_MODEL": "gpt2",
        "VLLM_HOST": "0.0.0.0",
        "VLLM_PORT": "8001",
        "VLLM_MAX_MODEL_LEN": "2048",
        "VLLM_TENSOR_PARALLEL_SIZE": "4",
        "VLLM_GPU_MEMORY_UTILIZATION": "0.9",
        "CUDA_VISIBLE_DEVICES": "0",
    },
    "resources": {"cpu": "2", "memory": "32G", "time_limit": 15, "gpu": "4"},
}
QUOTING = {
    "model": "/data/my models/qwen",
    "served_model_name": "chat",
    "vllm_args": ["--chat-template", "{{ 'it''s' }} $(id)", "", "#", "~"],
    "environment": {"GREETING": 'it\'s "$HOME" `id` \\', "CUDA_VISIBLE_DEVICES": "0,1"},
    "account": "other",
}

SGLANG_QUOTING = QUOTING | {"sglang_args": QUOTING["vllm_args"]}
del SGLANG_QUOTING["vllm_args"]
MULTI_NODE_QUOTING = QUOTING | {
    "environment": {"GREETING": "it's"},
    "pipeline_parallel_size": 1,
    "tensor_parallel_size": 8,
}


@dataclass(frozen=True)
class Case:
    recipe: str = "vllm-single-node"
    config: dict[str, Any] = field(default_factory=dict)
    site: Site = Site()
    bind_host: str = "0.0.0.0"
    there: dict[str, Any] = field(default_factory=dict)  # what has been fetched before the job


CASES = {
    "vllm-all-options": Case(config=ALL_OPTIONS),
    "vllm-quoting": Case(config=QUOTING),
    "vllm-cpu-only": Case(config={"gpu": None, "model": "gpt2"}, site=Site(partition="gpu", cpu_partition="cpu")),
    "vllm-gres-typed": Case(site=Site(partition="gpu", gpu_type="h100")),
    "vllm-gpus": Case(site=Site(gpu_request="gpus", gpu_type="a100")),
    "vllm-meluxina": Case(site=MELUXINA),
    "vllm-meluxina-quoting": Case(site=MELUXINA, config=QUOTING),
    "vllm-docker": Case(site=Site(runtime="docker"), bind_host="127.0.0.1"),
    "vllm-docker-quoting": Case(site=Site(runtime="docker"), config=QUOTING),
    "vllm-podman": Case(site=Site(runtime="podman", cache_dir="/scratch/cache")),
    "vllm-podman-chosen-gpus": Case(site=Site(runtime="podman"), config=QUOTING),
    "vllm-offline": Case(config={"model": "gpt2"}, there={"offline": True}),
    "vllm-pulled-image": Case(
        site=Site(runtime="apptainer", environment={"HF_HUB_OFFLINE": "0"}),
        there={"offline": True, "image": Path("/images/vllm--vllm-openai--v0.11.2.sif")},
    ),
    "qdrant-meluxina": Case("qdrant", {"volume": "papers"}, site=MELUXINA),
    "qdrant-docker": Case("qdrant", site=Site(runtime="docker")),
    "sglang-meluxina-quoting": Case("sglang-single-node", SGLANG_QUOTING, site=MELUXINA),
    "sglang-docker": Case("sglang-single-node", {"max_model_len": 4096, "gpu": 1}, site=Site(runtime="docker")),
    "ollama-docker": Case("ollama", {"model": "hf.co/owner/name:Q4_K_M", "parallel": 4}, site=Site(runtime="docker")),
    "ollama-store": Case("ollama", {"max_model_len": 8192, "environment": {"OLLAMA_MODELS": "/data/it's models"}}),
    "vllm-multi-node-meluxina": Case("vllm-multi-node", {"nodes": 4, "network_interface": "ib0"}, site=MELUXINA),
    "vllm-multi-node-docker-quoting": Case("vllm-multi-node", MULTI_NODE_QUOTING, site=Site(runtime="docker")),
    "vllm-multi-node-of-one": Case("vllm-multi-node", {"nodes": 1}),
    "llamacpp-weights": Case("llamacpp-cpu", {"weights": "/data/it's a model.gguf", "threads": 4}),
    "llamacpp-meluxina": Case("llamacpp-cpu", site=MELUXINA.model_copy(update={"runtime": "none"})),
}
for each in BOOK.all():  # whoever adds a recipe reads what it becomes
    CASES[f"{each.name}-defaults"] = Case(each.full_name)
    CASES[f"{each.name}-local"] = Case(each.full_name, bind_host="127.0.0.1")


def target(site: Site, bind_host: str = "0.0.0.0", folder: Path = RUN) -> Target:
    cache = Path(site.cache_dir or "/home/ada/.cache/sluicegate")
    return Target(
        "sluice-0190b2c4", "sluicegate:0190b2c4", RunFolder(folder), bind_host, "/opt/sluicegate/python", cache
    )


def rendered(case: Case) -> str:
    """The script, with the recipe's folder of this machine replaced by a fixed one."""
    recipe = BOOK.find(case.recipe)
    place = replace(target(case.site, case.bind_host), **case.there)
    text = render(recipe, resolve(recipe, case.config, case.site), case.site, place)
    here = re.escape(str(builtin_recipes()))
    return re.sub(rf"'?{here}/([^' \n]*)'?", r"/opt/sluicegate/recipes/\1", text)  # quoted where it holds a blank


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_one_that_was_read_and_accepted(name: str) -> None:
    text, path = rendered(CASES[name]), GOLDEN / f"{name}.sh"
    if os.environ.get("SLUICE_ACCEPT") == "1":
        path.write_text(text)
    accepted = path.read_text() if path.exists() else ""
    if text != accepted:
        lines = difflib.unified_diff(accepted.splitlines(), text.splitlines(), str(path), "rendered now", lineterm="")
        how = "If this was meant: SLUICE_ACCEPT=1 pytest tests/test_script.py"
        pytest.fail("\n".join([f"the script of {name} has changed", *lines, how]), pytrace=False)


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {f"{name}.sh" for name in (*CASES, "own-job")}


def test_shellcheck_and_bash_find_no_fault_in_any_script(tmp_path: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the development group in pyproject.toml
    files: dict[str, list[str]] = {"": [], "SC1003,SC2016": []}  # they are about quotes that were meant
    for name, case in CASES.items():
        path = tmp_path / f"{name}.sh"
        path.write_text(rendered(case))
        files["SC1003,SC2016" if case.config in (QUOTING, SGLANG_QUOTING, MULTI_NODE_QUOTING) else ""].append(str(path))
    checks = [[str(shellcheck), "--norc", "--severity=style", f"--exclude={x}", *paths] for x, paths in files.items()]
    for command in checks + [["bash", "-n", path] for paths in files.values() for path in paths]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_all_lines_for_sbatch_stand_before_everything_else() -> None:
    for case in CASES.values():
        shebang, *lines = rendered(case).split("\n")
        options = lines[: lines.index("")]
        assert shebang == "#!/bin/bash" and options
        assert options == [line for line in lines if "#SBATCH" in line]


@pytest.mark.parametrize("key", ["account", "partition", "qos", "constraint", "gpu_type"])
@pytest.mark.parametrize(
    "value", ["a b", "a\n#SBATCH --qos=x", "a\r", "a;id", "$(id)", "`id`", "'a'", "-a", "a#b", "é", "%j", "x" * 1002]
)
def test_a_site_value_that_sbatch_would_read_as_something_else_is_refused(key: str, value: str) -> None:
    site = Site.model_validate({key: value})
    with pytest.raises(Invalid) as caught:
        directives(resolve(VLLM, {}, site), site, target(site))
    assert str(caught.value).startswith(f"{key} is {value[:100]!r}; ")


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("/home/ada/runs/1", "#SBATCH --chdir=/home/ada/runs/1"),
        ("/home/a b/runs/1", '#SBATCH --chdir="/home/a b/runs/1"'),
        ("/home/%u/runs/1", None),
        ('/home/a"b/runs/1', None),
        ("/home/a'b/runs/1", None),
        ("/home/a\nb/runs/1", None),
        ("/home/a\\b/runs/1", None),
        ("/home/é/runs/1", None),
        ("runs/1", None),
    ],
)
def test_a_folder_that_sbatch_cannot_take_is_refused(folder: str, line: str | None) -> None:
    site = Site()
    place = target(site, folder=Path(folder))
    if line is not None:
        assert line in directives(resolve(VLLM, {}, site), site, place)
        return
    with pytest.raises(Invalid, match="choose an ORCHESTRATOR_HOME of letters, digits"):
        directives(resolve(VLLM, {}, site), site, place)


@pytest.mark.parametrize("name", ["A B", "A=B", "", "1A", "A\nB", "PORT", "NODE", "UID"])
def test_an_environment_name_of_the_site_that_would_break_the_script_is_told(name: str) -> None:
    for site in (Site(environment={name: "x"}), Site(engines={"vllm": Engine(environment={name: "x"})})):
        with pytest.raises(SettingsError) as caught:
            render(VLLM, resolve(VLLM, {}, site), site, target(site))
        assert f"{name!r} of inference/vllm-single-node or of [site] cannot be" in str(caught.value)


@pytest.mark.parametrize(
    ("site", "model", "says"),
    [
        (Site(runtime="docker"), "/data/a:b", "the model '/data/a:b' cannot be shown to a container"),
        (
            Site(runtime="apptainer", environment={"X": "a\nb"}),
            "gpt2",
            "a line break cannot stand in a job script: 'a\\nb'",
        ),
        (Site(modules=["a\nb"]), "gpt2", "a line break cannot stand in a job script: 'a\\nb'"),
        (Site(engines={"vllm": Engine(command=["a\0"])}), "gpt2", "a line break cannot stand in a job script"),
    ],
)
def test_what_no_quoting_can_save_is_refused(site: Site, model: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        render(
            VLLM,
            resolve(VLLM, {"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, site).model_copy(update={"model": model}),
            site,
            target(site),
        )
    assert str(caught.value).startswith(says)


def test_a_container_without_an_image_names_the_setting() -> None:
    recipe = BOOK.find("llamacpp-cpu")
    site = Site(runtime="apptainer")
    with pytest.raises(Invalid, match=r"no image is known for llamacpp: set \[site.engines.llamacpp\] image"):
        render(recipe, resolve(recipe, {}, site), site, target(site))


def own_recipe(tmp_path: Path, job: str, name: str = "toy") -> str:
    """The script of a recipe of one's own with this job.sh.j2."""
    folder = tmp_path / "inference" / name
    folder.mkdir(parents=True)
    head = f"name: {name}\ncategory: inference\ndescription: A toy.\nengine: toy\ncommand: [toy]\nports: [9000]\n"
    (folder / "recipe.yaml").write_text(head + "parameters:\n  TOY_NAME: {description: A name.}\n")
    (folder / "job.sh.j2").write_text(job)
    recipe = read_recipe(folder)
    return render(recipe, resolve(recipe, {}, Site()), Site(), target(Site()))


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ("#!/bin/bash\n{% if %}\n", "line 2: Expected an expression"),
        ("#!/bin/bash\n{{ p.TOY_NAME \n", "line 2: unexpected end of template"),
        ("{% for x in y %}\n", "line 1: Unexpected end of template"),
        ("\n\n{{ p.TOY_NAM }}\n", "line 3: 'dict object' has no attribute 'TOY_NAM'"),
        ("{{ nobody }}", "line 1: 'nobody' is undefined"),
        ("\n{{ 1 + p.TOY_NAME }}", "line 2: unsupported operand type"),
        ("\n{{ 1 // 0 }}", "line 2: "),
        ("{{ ''.__class__.__mro__ }}", "line 1: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ p.update({'a': 1}) }}", "line 1: access to attribute 'update' of 'dict' object is unsafe"),
        ('{% extends "no.sh.j2" %}', "no.sh.j2"),
        ('{% include "../../../../etc/passwd" %}', "etc/passwd"),
    ],
)
def test_a_broken_template_says_file_line_and_fault(tmp_path: Path, job: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        own_recipe(tmp_path, job)
    text = str(caught.value)
    assert text.startswith(
        f"the template of inference/toy cannot be rendered: {tmp_path}/inference/toy/job.sh.j2, line "
    )
    assert says in text


def test_a_template_that_is_a_link_out_of_the_recipes_is_none(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("planted\n")
    book = tmp_path / "book"
    book.mkdir()
    (book / "part.sh.j2").symlink_to(tmp_path / "outside")
    with pytest.raises(SettingsError, match=r"part.sh.j2 is a link that leads out of its folder"):
        own_recipe(book, '{% include "part.sh.j2" %}')
    (book / "part.sh.j2").unlink()
    (book / "real.sh.j2").write_text("within\n")
    (book / "part.sh.j2").symlink_to(book / "real.sh.j2")
    assert own_recipe(book / "second", '{% include "part.sh.j2" ignore missing %}') == ""
    assert own_recipe(book, '{% include "part.sh.j2" %}', name="another") == "within\n"


def test_a_folder_of_recipes_may_bring_a_base_template_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "base.sh.j2").write_text("#!/bin/bash\n# ours\n{% block command %}{% endblock %}\n")
    assert (
        own_recipe(tmp_path, '{% extends "base.sh.j2" %}{% block command %}true{% endblock %}')
        == "#!/bin/bash\n# ours\ntrue\n"
    )
