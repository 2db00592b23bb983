"""What a user may ask for: `config` becomes a plan, or a 422 that names the value and what is allowed."""

import json
import random
from typing import Any

import pytest

from orchestrator.config import Plan, resolve, secrets_of
from orchestrator.errors import Invalid
from orchestrator.recipes import Parameter, Recipe, RecipeBook, builtin_recipes
from orchestrator.settings import Site

BOOK = RecipeBook([builtin_recipes()])
VLLM = BOOK.find("inference/vllm-single-node")
SITE = Site(max_time_limit=2880)
# Every type of parameter, every bound, and each place in which one may be set.
TOY = Recipe(
    name="toy",
    category="inference",
    description="A toy.",
    engine="toy",
    command=["toy"],
    ports=[9000],
    port_parameter="TOY_PORT",
    max_nodes=3,
    environment={"TOY_MODE": "quiet"},
    parameters={
        "TOY_PORT": Parameter(description="", type="integer", minimum=1024, maximum=65535),
        "TOY_NAME": Parameter(description="The name.", required=True, alias="name"),
        "TOY_DTYPE": Parameter(description="", choices=["float16", "float32"]),
        "TOY_SHARE": Parameter(description="", type="number", minimum=0),
        "TOY_FAST": Parameter(description="", type="boolean", default=False, alias="fast", also=["TOY_QUICK"]),
        "TOY_ARGS": Parameter(description="", type="words", default=[]),
        "per_gpu": Parameter(description="", type="integer", location="root", maximum=8),
    },
)


def plan(config: dict[str, Any], recipe: Recipe = VLLM) -> Plan:
    return resolve(recipe, config, SITE)


def toy(**environment: Any) -> Plan:
    return plan({"environment": {"TOY_NAME": "x"} | environment}, TOY)


def refusal(config: dict[str, Any], recipe: Recipe = VLLM) -> str:
    """The sentence of the 422. Whatever was sent, it can be sent back: short, printable, valid Unicode."""
    with pytest.raises(Invalid) as caught:
        plan(config, recipe)
    text = str(caught.value)
    text.encode()
    assert caught.value.status == 422 and text.isprintable() and len(text) < 1000
    return text


def test_nothing_asked_for_is_the_recipes_default() -> None:
    for recipe in BOOK.all():
        found = plan({}, recipe)
        assert (found.resources, found.environment) == (recipe.resources, recipe.environment)
        assert found.parameters == {name: p.default for name, p in recipe.parameters.items()}
        assert (found.recipe, found.engine, found.port) == (recipe.full_name, recipe.engine, recipe.ports[0])
        assert found == plan({"environment": None, "resources": None, "account": None, "cpu": None}, recipe)


def test_the_seeds_example_with_all_options() -> None:
    found = plan(
        {
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
    )
    assert found.resources.model_dump() == {"nodes": 1, "cpu": 2, "memory": "32G", "gpu": 4, "time_limit": 15}
    assert found.parameters == {
        "VLLM_MODEL": "gpt2",
        "VLLM_SERVED_MODEL_NAME": None,
        "VLLM_HOST": "0.0.0.0",
        "VLLM_PORT": 8001,
        "VLLM_MAX_MODEL_LEN": 2048,
        "VLLM_TENSOR_PARALLEL_SIZE": 4,
        "VLLM_GPU_MEMORY_UTILIZATION": 0.9,
        "VLLM_EXTRA_ARGS": [],
        "CUDA_VISIBLE_DEVICES": "0",
    }
    assert (found.model, found.served_model_name, found.port) == ("gpt2", "gpt2", 8001)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("nodes", 1, 1),
        ("nodes", "1", 1),
        ("cpu", 1, 1),
        ("cpu", "1024", 1024),
        ("cpu", " 8 ", 8),
        ("cpu", 8.0, 8),
        ("gpu", "2", 2),
        ("gpu", 0, 0),
        ("gpu", "0", 0),
        ("gpu", 64, 64),
        ("gpu", None, 0),
        ("time_limit", 1, 1),
        ("time_limit", "2880", 2880),
        ("memory", "64G", "64G"),
        ("memory", " 64g\n", "64G"),
        ("memory", "64GB", "64G"),
        ("memory", "64GiB", "64G"),
        ("memory", "1 T", "1T"),
        ("memory", "2048", "2048M"),
        ("memory", 2048, "2048M"),
        ("memory", "65536K", "65536K"),
        ("memory", "64", "64M"),
        ("memory", "64T", "64T"),
    ],
)
def test_a_resource_may_stand_in_resources_and_in_config_itself(key: str, value: Any, found: Any) -> None:
    expected = VLLM.resources.model_copy(update={key: found})
    assert plan({"resources": {key: value}}).resources == expected
    assert plan({key: value}).resources == expected
    assert plan({key: value, "resources": {key: value}}).resources == expected


WHOLE = "must be a whole number, not "


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("nodes", 0, "is 0; allowed for inference/vllm-single-node: 1 to 1"),
        ("nodes", 2, "is 2; allowed for inference/vllm-single-node: 1 to 1"),
        ("gpu", "-1", "is -1; allowed for inference/vllm-single-node: 0 to 64"),
        ("gpu", 65, "is 65; allowed for inference/vllm-single-node: 0 to 64"),
        ("gpu", "4.5", f"{WHOLE}'4.5'"),
        ("gpu", 4.5, f"{WHOLE}4.5"),
        ("gpu", "1e9", f"{WHOLE}'1e9'"),
        ("gpu", 1e9, "is 1000000000; allowed"),
        ("gpu", True, f"{WHOLE}True"),
        ("gpu", "4;id", f"{WHOLE}'4;id'"),
        ("gpu", "", f"{WHOLE}''"),
        ("gpu", "a100:4", f"{WHOLE}'a100:4'"),
        ("gpu", [4], f"{WHOLE}[4]"),
        ("gpu", "٤", f"{WHOLE}'٤'"),
        ("gpu", float("nan"), f"{WHOLE}nan"),
        ("gpu", float("inf"), f"{WHOLE}inf"),
        ("gpu", 10**400, "is 10000000000"),
        ("cpu", 0, "is 0; allowed for inference/vllm-single-node: 1 to 1024"),
        ("cpu", 1025, "is 1025; allowed for inference/vllm-single-node: 1 to 1024"),
        ("cpu", {}, f"{WHOLE}{{}}"),
        ("time_limit", 0, "is 0; allowed for inference/vllm-single-node: 1 to 2880 minutes"),
        ("time_limit", -5, "is -5; allowed for inference/vllm-single-node: 1 to 2880 minutes"),
        ("time_limit", 10**12, "is 1000000000000; allowed for inference/vllm-single-node: 1 to 2880 minutes"),
        ("time_limit", "1-00:00:00", f"{WHOLE}'1-00:00:00'"),
        ("time_limit", "UNLIMITED", f"{WHOLE}'UNLIMITED'"),
        ("memory", "0", "is '0', which is 0M; allowed: 64M to 64T"),
        ("memory", "63", "is '63', which is 63M; allowed: 64M to 64T"),
        ("memory", "65T", "is '65T', which is 65T; allowed: 64M to 64T"),
        ("memory", "-64G", "is '-64G'; write a number and a unit"),
        ("memory", "1.5G", "is '1.5G'; write a number and a unit"),
        ("memory", "64 P", "is '64 P'; write a number and a unit"),
        ("memory", "64G --exclusive", "is '64G --exclusive'; write a number and a unit"),
        ("memory", "64\u212a", "is '64\u212a'; write a number and a unit"),  # the sign for kelvin
        ("memory", True, "is True; write a number and a unit"),
        ("memory", 64.5, "is 64.5; write a number and a unit"),
        ("memory", ["64G"], "is ['64G']; write a number and a unit"),
    ],
)
def test_a_bad_resource_is_named_with_its_bounds(key: str, value: Any, says: str) -> None:
    assert refusal({"resources": {key: value}}).startswith(f"config.resources.{key} {says}")
    assert refusal({key: value}).startswith(f"config.{key} {says}")


def test_a_job_may_not_last_longer_than_the_site_allows() -> None:
    short = Site(max_time_limit=10)
    assert resolve(VLLM, {}, short).resources.time_limit == 10  # the recipe's own is 15
    with pytest.raises(Invalid, match=r"config.time_limit is 15; .*: 1 to 10 minutes"):
        resolve(VLLM, {"time_limit": 15}, short)


def test_null_keeps_the_default_of_every_resource_but_gpu() -> None:
    found = plan({"resources": {"nodes": None, "cpu": None, "memory": None, "gpu": None, "time_limit": None}})
    assert found.resources == VLLM.resources.model_copy(update={"gpu": 0})


@pytest.mark.parametrize(
    ("config", "parameter", "value"),
    [
        ({"model": "gpt2"}, "VLLM_MODEL", "gpt2"),
        ({"environment": {"VLLM_MODEL": "/data/models/a b"}}, "VLLM_MODEL", "/data/models/a b"),
        ({"model": "gpt2", "environment": {"VLLM_MODEL": "gpt2"}}, "VLLM_MODEL", "gpt2"),
        ({"model": None, "environment": {"VLLM_MODEL": None}}, "VLLM_MODEL", "Qwen/Qwen2.5-0.5B-Instruct"),
        ({"served_model_name": "chat"}, "VLLM_SERVED_MODEL_NAME", "chat"),
        ({"max_model_len": 2048}, "VLLM_MAX_MODEL_LEN", 2048),
        ({"max_model_len": "2048", "environment": {"VLLM_MAX_MODEL_LEN": 2048}}, "VLLM_MAX_MODEL_LEN", 2048),
        ({"replica_port": 9000}, "VLLM_PORT", 9000),
        ({"gpu_memory_utilization": "0.90"}, "VLLM_GPU_MEMORY_UTILIZATION", 0.9),
        ({"gpu_memory_utilization": 1, "environment": {"VLLM_GPU_MEMORY_UTILIZATION": "1.0"}},
         "VLLM_GPU_MEMORY_UTILIZATION", 1.0),
        ({"tensor_parallel_size": 2}, "VLLM_TENSOR_PARALLEL_SIZE", 2),
        ({"environment": {"VLLM_TENSOR_PARALLEL": "2"}}, "VLLM_TENSOR_PARALLEL_SIZE", 2),
        ({"environment": {"VLLM_TENSOR_PARALLEL": 2, "VLLM_TENSOR_PARALLEL_SIZE": "2"}},
         "VLLM_TENSOR_PARALLEL_SIZE", 2),
        ({"vllm_args": ["--a", 1]}, "VLLM_EXTRA_ARGS", ["--a", "1"]),
        ({"vllm_args": "--a 'b c'", "environment": {"VLLM_EXTRA_ARGS": ["--a", "b c"]}},
         "VLLM_EXTRA_ARGS", ["--a", "b c"]),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0,10"}}, "CUDA_VISIBLE_DEVICES", "0,10"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": 1}}, "CUDA_VISIBLE_DEVICES", "1"),
    ],
)  # fmt: skip
def test_a_parameter_may_be_set_under_each_of_its_names(config: dict[str, Any], parameter: str, value: Any) -> None:
    found = plan(config)
    assert found.parameters == {n: p.default for n, p in VLLM.parameters.items()} | {parameter: value}
    assert found.environment == VLLM.environment  # a parameter is not exported besides


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"model": "a", "environment": {"VLLM_MODEL": "b"}},
            "config.model is 'a' but config.environment.VLLM_MODEL is 'b'",
        ),
        (
            {"replica_port": 8002, "environment": {"VLLM_PORT": "8001"}},
            "config.replica_port is 8002 but config.environment.VLLM_PORT is 8001",
        ),
        (
            {"environment": {"VLLM_TENSOR_PARALLEL": 2, "VLLM_TENSOR_PARALLEL_SIZE": 4}},
            "config.environment.VLLM_TENSOR_PARALLEL is 2 but config.environment.VLLM_TENSOR_PARALLEL_SIZE is 4",
        ),
        (
            {"vllm_args": "--a b", "environment": {"VLLM_EXTRA_ARGS": "'--a b'"}},
            "config.vllm_args is ['--a', 'b'] but config.environment.VLLM_EXTRA_ARGS is ['--a b']",
        ),
        ({"cpu": 4, "resources": {"cpu": 8}}, "config.cpu is 4 but config.resources.cpu is 8"),
        ({"gpu": 4, "resources": {"gpu": None}}, "config.gpu is 4 but config.resources.gpu is 0"),
        ({"memory": "64G", "resources": {"memory": "32G"}}, "config.memory is '64G' but config.resources.memory is"),
    ],
)
def test_two_spellings_that_disagree_are_refused(config: dict[str, Any], says: str) -> None:
    text = refusal(config)
    assert text.startswith(says) and text.endswith(": set only one of them")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model", "", "is ''; use the form owner/name, or the path of a folder"),
        ("model", "a\nb", "contains a line break or another control character: 'a\\nb'"),
        ("model", "../$(id)", "is '../$(id)'; use the form"),
        ("model", "x" * 1025, f"is '{'x' * 200}'; use the form"),
        ("model", ["gpt2"], "must be a string or a number, not ['gpt2']"),
        ("model", True, "must be a string or a number, not True"),
        ("model", float("nan"), "must be a finite number, not nan"),
        ("model", "\ud800", "is not valid Unicode text: '\\ud800'"),
        ("served_model_name", "a b", "is 'a b'; use letters, digits and _ . / @ + = : -"),
        ("replica_port", 22, "is 22; allowed: 1024 to 65535"),
        ("replica_port", 65536, "is 65536; allowed: 1024 to 65535"),
        ("replica_port", "8001.0", "must be a whole number, not '8001.0'"),
        ("max_model_len", 0, "is 0; allowed: 1 to 1e+08"),
        ("max_model_len", "4k", "must be a whole number, not '4k'"),
        ("gpu_memory_utilization", 1.1, "is 1.1; allowed: 0.01 to 1"),
        ("gpu_memory_utilization", 0, "is 0.0; allowed: 0.01 to 1"),
        ("gpu_memory_utilization", "90%", "must be a number, not '90%'"),
        ("gpu_memory_utilization", "nan", "must be a finite number, not 'nan'"),
        ("gpu_memory_utilization", 10**400, "must be a number"),
        ("tensor_parallel_size", 65, "is 65; allowed: 1 to 64"),
        ("vllm_args", "--a 'b", "cannot be split into words (No closing quotation)"),
        ("vllm_args", {"a": 1}, "must be a list of words or one string, not {'a': 1}"),
        ("vllm_args", 7, "must be a list of words or one string, not 7"),
        ("vllm_args", "a\nb", "contains a line break"),
        ("vllm_args", ["a", "b\n"], "[1] contains a line break"),
        ("vllm_args", ["a", None], "[1] must be a string or a number, not None"),
    ],
)
def test_a_bad_parameter_is_named_under_each_spelling(key: str, value: Any, says: str) -> None:
    name = next(name for name, p in VLLM.parameters.items() if p.alias == key)
    for where, config in (
        (f"config.{key}", {key: value}),
        (f"config.environment.{name}", {"environment": {name: value}}),
    ):
        text = refusal(config)
        assert text.startswith(where) and text.removeprefix(where).lstrip().startswith(says), text


@pytest.mark.parametrize(
    "value", ["", "a", "0,", ",0", "0 1", "-1", "100", "08", "\u0660", "0,1;id", "GPU-aaa", "all", "0," * 64 + "0"]
)
def test_gpus_are_chosen_by_their_places(value: str) -> None:
    text = refusal({"environment": {"CUDA_VISIBLE_DEVICES": value}})
    assert text.startswith("config.environment.CUDA_VISIBLE_DEVICES is ") and 'e.g. "0,1"' in text


def test_every_type_of_parameter_takes_strings_and_its_own() -> None:
    for fast in (True, "true", "True", "yes", 1, "1"):
        assert toy(TOY_FAST=fast).parameters["TOY_FAST"] is True
    for slow in (False, "false", "no", 0, "0", None):
        assert toy(TOY_QUICK=slow).parameters["TOY_FAST"] is False
    found = toy(TOY_PORT="9001", TOY_DTYPE="float32", TOY_SHARE="1e-3", TOY_ARGS="-a '' \"b c\"")
    assert found.port == found.parameters["TOY_PORT"] == 9001
    assert found.parameters["TOY_SHARE"] == 0.001
    assert found.parameters["TOY_ARGS"] == ["-a", "", "b c"]
    assert plan({"name": "x", "fast": True, "per_gpu": "8", "nodes": 3}, TOY).parameters["per_gpu"] == 8


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "config needs TOY_NAME: The name."),
        ({"name": None}, "config needs TOY_NAME: The name."),
        ({"name": "x", "environment": {"TOY_DTYPE": "int8"}}, "config.environment.TOY_DTYPE is 'int8'; allowed: "),
        ({"name": "x", "environment": {"TOY_SHARE": -1}}, "config.environment.TOY_SHARE is -1.0; allowed: at least 0"),
        ({"name": "x", "per_gpu": 9}, "config.per_gpu is 9; allowed: at most 8"),
        ({"name": "x", "fast": "maybe"}, "config.fast must be true or false, not 'maybe'"),
        ({"name": "x", "fast": 2}, "config.fast must be true or false, not 2"),
        ({"name": "x", "fast": [True]}, "config.fast must be true or false, not [True]"),
        ({"name": "x", "fast": True, "environment": {"TOY_QUICK": "no"}}, "config.fast is True but config.env"),
        ({"name": "x", "nodes": 4}, "config.nodes is 4; allowed for inference/toy: 1 to 3"),
    ],
)  # fmt: skip
def test_a_recipes_own_rules_are_told(config: dict[str, Any], says: str) -> None:
    assert refusal(config, TOY).startswith(says)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"gpus": 4}, "config: unknown key 'gpus'. Did you mean 'gpu'?"),
        ({"modle": "gpt2"}, "config: unknown key 'modle'. Did you mean 'model'?"),
        ({"timelimit": 5}, "config: unknown key 'timelimit'. Did you mean 'time_limit'?"),
        ({"VLLM_MODEL": "gpt2"}, "config: unknown key 'VLLM_MODEL'."),
        ({"zzz": 1}, "config: unknown key 'zzz'. Known keys: account, aliases, cpu, environment, gpu, "),
        ({"resources": {"mem": "4G"}}, "config.resources: unknown key 'mem'. Did you mean 'memory'?"),
        ({"resources": {"account": "p"}}, "config.resources: unknown key 'account'."),
        ({"": 1}, "config: unknown key ''. Known keys: "),
        ({"x" * 10**6: 1}, f"config: unknown key '{'x' * 100}'."),
        ({"\ud800": 1}, "config: unknown key '\\ud800'."),
        ({"environment": ["VLLM_MODEL=gpt2"]}, "config.environment must be an object, not ['VLLM_MODEL=gpt2']"),
        ({"environment": "VLLM_MODEL=gpt2"}, "config.environment must be an object, not 'VLLM_MODEL=gpt2'"),
        ({"resources": [1]}, "config.resources must be an object, not [1]"),
        ({"resources": False}, "config.resources must be an object, not False"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(config: dict[str, Any], says: str) -> None:
    assert refusal(config).startswith(says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "config.environment: '' is not a name"),
        ("a b", "config.environment: 'a b' is not a name"),
        ("A=B", "config.environment: 'A=B' is not a name"),
        ("1A", "config.environment: '1A' is not a name"),
        ("A\n", "config.environment: 'A\\n' is not a name"),
        ("A;id", "config.environment: 'A;id' is not a name"),
        ("É", "config.environment: 'É' is not a name"),
        ("A" * 129, f"config.environment: '{'A' * 100}' is not a name"),
        *(
            (name, f"config.environment.{name} is not allowed: it would change how the job itself runs.")
            for name in (
                "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "HOME", "IFS", "BASH_ENV", "ENV", "PYTHONPATH", "SLURM_JOB_ID",
                "SBATCH_ACCOUNT", "SLUICE_JOB_ID", "VLLM_API_KEY", "APPTAINER_BIND", "DOCKER_HOST",
                "SQUEUE_STATES", "GCONV_PATH", "GLIBC_TUNABLES", "PS1", "LOGNAME",
                "RUN", "NODE", "JOB", "PORT", "UID", "SECONDS", "POSIXLY_CORRECT",
            )
        ),
    ],
)  # fmt: skip
def test_an_environment_name_that_would_change_the_job_is_refused(name: str, says: str) -> None:
    assert refusal({"environment": {name: "x"}}).startswith(says)


def test_other_environment_names_are_exported_and_win_over_the_recipes() -> None:
    found = plan({"environment": {"HF_HUB_OFFLINE": 1, "VLLM_LOGGING_LEVEL": "DEBUG", "SHARE": 0.5, "EMPTY": ""}})
    mine = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "DEBUG", "SHARE": "0.5", "EMPTY": ""}
    assert found.environment == VLLM.environment | mine


@pytest.mark.parametrize("value", [None, True, [], {}, float("nan"), "a\0", "a\tb", "a\x7f", "\udfff", "x" * 4097])
def test_an_environment_value_that_cannot_stand_in_a_script_is_named(value: Any) -> None:
    assert refusal({"environment": {"MINE": value}}).startswith("config.environment.MINE ")


@pytest.mark.parametrize("value", [["planted"], {"a": "planted"}, "planted\n", "planted\udfff", "planted" * 1000, True])
def test_a_secret_that_cannot_stand_in_a_script_is_named_and_not_repeated(value: Any) -> None:
    told = refusal({"environment": {"MY_TOKEN": value}})
    assert told.startswith("config.environment.MY_TOKEN ")
    assert "planted" not in told and "True" not in told


def test_what_stands_for_a_hidden_value_is_no_value() -> None:
    told = refusal({"environment": {"MY_TOKEN": "***"}})
    assert (
        told
        == "config.environment.MY_TOKEN is '***', which stands for a value that is not shown; send the value itself"
    )
    assert plan({"environment": {"MINE": "***"}}).environment["MINE"] == "***"


def test_secrets_are_named_in_a_plan_and_no_more() -> None:
    config = {"environment": {"MY_TOKEN": 7, "MINE": "x"}}
    found = plan(config)
    assert (found.secrets, "MY_TOKEN" in found.environment) == (("MY_TOKEN",), False)
    assert secrets_of(config) == {"MY_TOKEN": "7"}
    assert secrets_of({}) == secrets_of({"environment": None}) == {}


def test_a_service_may_outlive_its_job_where_two_jobs_can_run_side_by_side() -> None:
    for recipe in BOOK.all():
        for off in ({}, {"keep_alive": None}, {"keep_alive": False}):
            assert not _of_any(recipe, off).keep_alive
        if recipe.volume_parameter is None:
            assert _of_any(recipe, {"keep_alive": True}).keep_alive
            assert _of_any(recipe, {"keep_alive": "yes"}).keep_alive
    assert refusal({"keep_alive": "perhaps"}).startswith("config.keep_alive must be true or false, not 'perhaps'")
    for name in ("vector-db/qdrant", "vector-db/qdrant-embedded"):
        says = refusal({"keep_alive": True}, BOOK.find(name))
        assert says.startswith(f"config.keep_alive cannot be true for {name}: the next job would need the volume")
        assert "longer time_limit (at most 2880 minutes)" in says


@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        ({}, 45), ({"idle_timeout": None}, 45), ({"idle_timeout": 0}, None), ({"idle_timeout": "0"}, None),
        ({"idle_timeout": 1}, 1), ({"idle_timeout": "1"}, 1), ({"idle_timeout": 0.1}, 0.1),
        ({"idle_timeout": "2.5"}, 2.5),
        ({"idle_timeout": 525600}, 525600),
    ],
)  # fmt: skip
def test_the_minutes_without_a_request(given: dict[str, Any], minutes: float | None) -> None:
    for recipe in BOOK.all():
        config = {"resources": {"gpu": 4}} | given if recipe.gpus_per_replica_parameter else given
        assert resolve(recipe, config, SITE, idle_minutes=45).idle_timeout == minutes
    assert plan({}).idle_timeout is None


def test_minutes_that_cannot_be_meant() -> None:
    for bad in (0.09, -1, "-1", 525_601, 1e300):
        said = refusal({"idle_timeout": bad})
        assert said.startswith("config.idle_timeout is ") and "0.1 to 525600 minutes" in said and "or 0" in said
    odd_ones: list[Any] = ["soon", True, [1], {}, float("nan"), "inf"]
    for odd in odd_ones:
        assert "config.idle_timeout must be a " in refusal({"idle_timeout": odd})


def test_the_plan_knows_the_type_of_gpus_that_the_site_has() -> None:
    site = SITE.model_copy(update={"gpu_type": "a100"})
    assert resolve(VLLM, {"gpu": 1}, site).gpu_type == "a100"
    assert resolve(VLLM, {"gpu": None}, site).gpu_type is None


def _of_any(recipe: Recipe, config: dict[str, Any]) -> Plan:
    return plan({"resources": {"gpu": 4}} | config if recipe.gpus_per_replica_parameter else config, recipe)


def test_an_account_is_one_word() -> None:
    assert plan({"account": "p200981-gpu"}).account == "p200981-gpu"
    bad_ones: list[Any] = ["", "a b", "a\n#SBATCH --qos=x", "-a", "a,b", "$(id)", "é", 7, ["a"], {}, True]
    for bad in bad_ones:
        assert refusal({"account": bad}).startswith("config.account is ")


def test_a_plan_survives_the_database() -> None:
    found = plan({"vllm_args": ["--a", "é"], "gpu_memory_utilization": 0.5, "environment": {"MINE": "'"}})
    assert Plan.model_validate(json.loads(found.model_dump_json())) == found


def odd_value(source: random.Random, depth: int) -> Any:
    """Any JSON value, small or huge, with a liking for what breaks programs."""
    leaves: list[Any] = [
        None, True, False, 0, -1, 2**63, 10**4000, 1e308, float("inf"), float("nan"), -0.0, "", "0", "-1", "1e9", "\0",
        "\n", "\ud800", "٣", "64\u212a", "x" * 100_000, "{{ 7*7 }}", "${x}", "'", '"', "\\", [], {},
    ]  # fmt: skip
    if depth <= 0 or source.random() < 0.6:
        return source.choice(leaves)
    if source.random() < 0.5:
        return [odd_value(source, depth - 1) for _ in range(source.randrange(4))]
    return {odd_key(source): odd_value(source, depth - 1) for _ in range(source.randrange(4))}


def odd_key(source: random.Random) -> str:
    aliases = [p.alias for p in VLLM.parameters.values() if p.alias]
    known = [*VLLM.parameters, *aliases, "resources", "environment", "account", "cpu", "gpu", "memory", "time_limit"]
    return source.choice([*known, "", "\ud800", "x" * 100_000, "MINE", "PATH"])


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def test_no_json_value_raises_anything_but_invalid() -> None:
    source, accepted, refused = random.Random(20261121), 0, 0
    for _ in range(4000):
        key, value = odd_key(source), odd_value(source, 4)
        for config in ({key: value}, {"environment": {key: value}}, {"resources": {key: value}}):
            try:
                plan(config).model_dump_json()
                accepted += 1
            except Invalid as exc:
                refused += 1
                assert len(str(exc).encode()) < 1500
    assert accepted > 500 and refused > 5000


def test_a_deep_value_is_refused_in_every_place() -> None:
    deep = nested(20_000)
    names = [*VLLM.parameters, "MINE"]
    aliases = [p.alias for p in VLLM.parameters.values() if p.alias]
    places = [*aliases, "environment", "resources", "account", "nodes", "cpu", "memory", "gpu", "time_limit", "unknown"]
    for config in (
        *({place: deep} for place in places),
        *({"resources": {key: deep}} for key in ("nodes", "cpu", "memory", "gpu", "time_limit")),
        *({"environment": {name: deep}} for name in names),
        {"model": deep, "environment": {"VLLM_MODEL": deep}},
        {"vllm_args": [deep]},
    ):
        assert "config" in refusal(config)
