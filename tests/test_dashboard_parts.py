"""What the dashboard says and asks, as functions: forms from recipes, configs from forms, steps, numbers, words."""

from typing import Any

import pytest

from gateway.dashboard import story, words
from gateway.dashboard.asking import Refused
from gateway.dashboard.forms import Form, amended, config_of, field_named, form_of
from gateway.dashboard.pages import Entry, current
from gateway.dashboard.readings import Reading, readings
from gateway.dashboard.sign_in import local
from gateway.dashboard.view import wants_html
from orchestrator.recipes import RecipeBook, builtin_recipes

BOOK = RecipeBook([builtin_recipes()])
VLLM, GROUP = (BOOK.find(name).public() for name in ("vllm-single-node", "vllm-replicas"))


def filled(form: Form, **given: str) -> dict[str, str]:
    """The form as a browser sends it, untouched but for `given`."""
    fields = {field.name: field.value for field in form.fields if field.kind != "boolean" or field.value == "true"}
    return fields | given


@pytest.mark.parametrize("recipe", [recipe.public() for recipe in BOOK.all()], ids=lambda recipe: recipe["name"])
def test_a_form_that_is_left_as_it_is_asks_for_nothing(recipe: dict[str, Any]) -> None:
    form = form_of(recipe)
    assert config_of(form, filled(form)) == {}
    assert len({field.name for field in form.fields}) == len(form.fields)
    assert {field.name for field in form.main} >= {"gpu", "time_limit"}


@pytest.mark.parametrize(
    ("given", "config"),
    [
        ({"VLLM_MODEL": "gpt2"}, {"model": "gpt2"}),
        ({"gpu": "0", "time_limit": "120"}, {"resources": {"gpu": None, "time_limit": "120"}}),
        ({"gpu": "2", "memory": " 8G "}, {"resources": {"gpu": "2", "memory": "8G"}}),
        ({"VLLM_HOST": "::1"}, {"environment": {"VLLM_HOST": "::1"}}),
        ({"VLLM_EXTRA_ARGS": "--a 'b c'"}, {"vllm_args": "--a 'b c'"}),
        ({"keep_alive": "true", "idle_timeout": "30"}, {"keep_alive": True, "idle_timeout": "30"}),
        ({"variables": "A=1\r\n\r\n B=x=y "}, {"environment": {"A": "1", "B": "x=y"}}),
        ({"VLLM_PORT": "many", "stranger": "x"}, {"replica_port": "many"}),
        ({"VLLM_MODEL": ""}, {}),
    ],
)
def test_config_of_a_form(given: dict[str, str], config: dict[str, Any]) -> None:
    form = form_of(VLLM)
    assert config_of(form, filled(form, **given)) == config


@pytest.mark.parametrize(
    "config",
    [
        {"model": "gpt2", "resources": {"gpu": "2", "time_limit": "60"}},
        {"environment": {"VLLM_HOST": "::1", "MINE": "1"}, "keep_alive": True},
        {"resources": {"gpu": None}, "vllm_args": "--a"},
    ],
)
def test_a_service_s_config_becomes_a_form_and_comes_back(config: dict[str, Any]) -> None:
    form = form_of(VLLM, config)
    assert config_of(form_of(VLLM), filled(form)) == config


def test_other_spellings_of_a_config_are_found() -> None:
    form = form_of(VLLM, {"gpu": None, "environment": {"VLLM_MODEL": "gpt2", "VLLM_TENSOR_PARALLEL": 2}})
    assert config_of(form_of(VLLM), filled(form)) == {
        "model": "gpt2",
        "tensor_parallel_size": "2",
        "resources": {"gpu": None},
    }


def test_a_line_that_is_no_variable() -> None:
    form = form_of(VLLM)
    with pytest.raises(Refused, match=r"config\.variables: 'x y' is not NAME=value") as caught:
        config_of(form, filled(form, variables="A=1\nx y"))
    named = field_named(form, caught.value.text)
    assert named is not None and named.name == "variables"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("config.model must match; use the form owner/name", "VLLM_MODEL"),
        ("config.environment.VLLM_TENSOR_PARALLEL is 99; allowed: 1 to 64", "VLLM_TENSOR_PARALLEL_SIZE"),
        ("config.resources.gpu is 'x'", "gpu"),
        ("config.idle_timeout must be a number", "idle_timeout"),
        ("config: unknown key", None),
        ("the cluster is away", None),
    ],
)
def test_the_field_that_an_error_is_about(text: str, name: str | None) -> None:
    field = field_named(form_of(VLLM), text)
    assert (field and field.name) == name


def test_what_a_diagnosis_changes_is_filled_in() -> None:
    form = amended(
        form_of(VLLM, {"max_model_len": 8192, "model": "gpt2"}), {"max_model_len": 4096, "resources": {"gpu": 2}}
    )
    assert config_of(form_of(VLLM), filled(form)) == {
        "model": "gpt2",
        "max_model_len": "4096",
        "resources": {"gpu": "2"},
    }


def job(**more: Any) -> dict[str, Any]:
    times = dict.fromkeys(("submitted_at", "started_at", "ready_at", "ended_at"))
    return {"state": "PENDING", "exit_code": None} | times | more


def service(status: str, of_job: dict[str, Any], **more: Any) -> Any:
    return {
        "status": status,
        "created_at": "2026-11-21T12:00:00Z",
        "job": of_job,
        "diagnosis": None,
        "config": {},
    } | more


T0, T1, T2, T3 = (f"2026-11-21T12:0{minute}:00Z" for minute in range(4))


@pytest.mark.parametrize(
    ("shown", "steps"),
    [
        (service("pending", job(submitted_at=T0)),
         [("Queued", "now", ""), ("Loading", "ahead", ""), ("Answering", "ahead", "")]),
        (service("configuring", job(state="RUNNING", submitted_at=T0, started_at=T1)),
         [("Queued", "done", "1 min 0 s"), ("Loading", "now", ""), ("Answering", "ahead", "")]),
        (service("running", job(state="RUNNING", submitted_at=T0, started_at=T1, ready_at=T2)),
         [("Queued", "done", "1 min 0 s"), ("Loading", "done", "1 min 0 s"), ("Answering", "now", "")]),
        (service("failed", job(state="FAILED", submitted_at=T0, started_at=T1, ended_at=T3)),
         [("Queued", "done", "1 min 0 s"), ("Loading", "done", "2 min 0 s"), ("Answering", "ahead", ""),
          ("Failed", "failed", "")]),
        (service("cancelled", job(state="CANCELLED", submitted_at=T0, ended_at=T3)),
         [("Queued", "done", "3 min 0 s"), ("Loading", "ahead", ""), ("Answering", "ahead", ""),
          ("Cancelled", "done", "")]),
    ],
)  # fmt: skip
def test_steps(shown: Any, steps: list[tuple[str, str, str]]) -> None:
    assert [(step.label, step.state, step.took) for step in story.steps(shown)] == steps


def test_what_a_retry_would_change() -> None:
    diagnosis = {"changes": {"max_model_len": 4096, "vllm_args": ["--a", "b"], "resources": {"memory": "128G"}}}
    failed = service(
        "failed", job(), diagnosis=diagnosis, config={"max_model_len": 8192, "resources": {"memory": "64G"}}
    )
    assert [(change.key, change.before, change.after) for change in story.proposed(failed)] == [
        ("max_model_len", "8192", "4096"),
        ("vllm_args", "the recipe's", "--a b"),
        ("memory", "64G", "128G"),
    ]


def test_kinds_of_statuses() -> None:
    from orchestrator.groups import ReplicaStatus
    from orchestrator.models import ServiceStatus

    kinds = {status: story.kind(status) for status in (*ServiceStatus, *ReplicaStatus)}
    assert {kind for status, kind in kinds.items() if isinstance(status, ServiceStatus) and status.ended} == {
        "ended",
        "failed",
    }
    assert (kinds["suspended"], kinds["starting"], kinds["lost"]) == ("pending", "configuring", "failed")


def test_numbers_of_an_engine() -> None:
    text = (
        'vllm:num_requests_running{replica_id="1:1"} 2.0\nvllm:num_requests_running{replica_id="1:2"} 1.0\n'
        'vllm:kv_cache_usage_perc{replica_id="1:1"} 0.5\nvllm:kv_cache_usage_perc{replica_id="1:2"} 0.25\n'
        "# TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total 12345.0\nother 1\n"
    )
    assert readings(text) == [
        Reading("Requests running", "3"),
        Reading("KV cache in use", "38 %"),
        Reading("Tokens written", "12,345"),
    ]
    assert readings("not {metrics") == []


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (words.bytes_(15_231_271_888), "14.2 GiB"),
        (words.bytes_(12), "12 B"),
        (words.bytes_(None), "—"),
        (words.count(1, "replica"), "1 replica"),
        (words.count(1200, "token"), "1,200 tokens"),
        (words.minutes(90), "1 h 30 min"),
        (words.minutes(60), "1 h"),
        (words.minutes(15), "15 min"),
        (words.minutes(0), "0 min"),
        (words.moment(None), "—"),
        (str(words.moment("2026-11-21T12:00:00+01:00")),
         '<time datetime="2026-11-21T11:00:00+00:00" title="2026-11-21 11:00:00 UTC">2026-11-21 11:00:00 UTC</time>'),
    ],
)  # fmt: skip
def test_words(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/ui/start?x=1", "/ui/start?x=1"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
    ],
)
def test_where_to_go_after_the_sign_in(target: str, path: str) -> None:
    assert local(target) == path


def test_the_entry_that_is_current() -> None:
    entries = [Entry("Services", "/", ""), Entry("Start", "/ui/start", "")]
    assert [current(entries, path) for path in ("/", "/ui/start/a/b", "/ui/starter")] == ["/", "/ui/start", ""]


def test_who_wants_a_page() -> None:
    assert wants_html("text/html,application/xhtml+xml,*/*;q=0.8")
    assert not any(wants_html(accept) for accept in ("", "*/*", "application/json"))
