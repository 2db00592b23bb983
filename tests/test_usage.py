"""The tokens of all engines: read from their metrics, added up over engines that come and go."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orchestrator.app import create_app
from orchestrator.schedulers.local import Local
from orchestrator.settings import Settings
from orchestrator.usage import BOUNDS, Meter, Told, apart, told_in
from tests.orchestrating import RECIPE, fake_engine_site, until

# Pasted from a real vLLM 0.32, shortened.
VLLM = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="smol {2}"} 42.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="smol {2}"} 1.7641e+09
vllm:generation_tokens_total{engine="0",model_name="smol {2}"} 1.5e+06
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="smol {2}"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.08",model_name="smol {2}"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="smol {2}"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="smol {2}"} 6.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="smol {2}"} 6.0
"""
LLAMACPP = """\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 17
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 30
llamacpp:prompt_tokens_seconds 12.5
"""
NONE = Told(0, 0, {})


def test_what_engines_count_is_read_whatever_they_call_it() -> None:
    assert told_in(VLLM) == Told(42, 1_500_000, {0.001: 0, 0.08: 3, 0.5: 5, float("inf"): 6})
    assert told_in(LLAMACPP) == Told(17, 30, {})
    assert told_in("") == NONE
    assert told_in("vllm:prompt_tokens_total{x} 1e999\nvllm:prompt_tokens_total 1.2.3\n") == NONE


def test_two_engines_of_one_text_are_added_up() -> None:
    text = VLLM + VLLM.replace('engine="0"', 'engine="1"')
    assert (told_in(text).generated, told_in(text).first[0.5]) == (3_000_000, 10)


def test_first_tokens_by_our_own_bounds() -> None:
    counts = dict(zip((*BOUNDS, None), apart({0.001: 1, 0.08: 3, 0.5: 5, float("inf"): 6}), strict=True))
    assert {bound: n for bound, n in counts.items() if n} == {0.02: 1, 0.1: 2, 0.5: 2, None: 1}


def test_the_sum_only_grows_while_engines_come_and_go() -> None:
    meter, a, b, c = Meter(), *((name, "node1", 0, 1) for name in "abc")
    assert meter.take({a: Told(100, 50, {1.0: 5})}, []).prompt_tokens == 0  # of before anybody looked
    grown = meter.take({a: Told(110, 55, {1.0: 7}), b: Told(3, 4, {})}, [])
    assert (grown.prompt_tokens, grown.generated_tokens, sum(grown.first_tokens)) == (13, 9, 2)
    silent = meter.take({b: Told(5, 4, {})}, [a])
    assert (silent.prompt_tokens, silent.engines, silent.silent) == (15, 1, 1)
    assert meter.take({a: Told(120, 55, {1.0: 7}), b: Told(5, 4, {})}, []).prompt_tokens == 25
    assert meter.take({}, []).prompt_tokens == 25
    assert meter.take({c: Told(1, 0, {})}, []).prompt_tokens == 26


@pytest.fixture
def http(tmp_path: Path) -> Iterator[TestClient]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    settings = Settings(home=home, scheduler="local", site=fake_engine_site(), probe_seconds=0.05, poll_seconds=0.05)
    with TestClient(create_app(settings, Local(home)), base_url="http://localhost") as client:
        yield client
        for service in client.get("/api/services").json():
            client.post(f"/api/services/{service['id']}/status", json={"status": "cancelled"})


@pytest.mark.system
def test_the_tokens_of_an_engine_that_runs(http: TestClient) -> None:
    assert http.get("/api/v1/usage").json()["engines"] == 0
    cpu = {"model": "gpt2", "resources": {"gpu": None, "cpu": 1, "memory": "1G"}}
    made = http.post("/api/services", json={"recipe_name": RECIPE, "config": cpu}).json()
    asyncio.run(until(lambda: http.get(f"/api/services/{made['id']}/status").json()["status"] == "running"))
    assert http.post(f"/api/v1/vllm/{made['id']}/prompt", json={"prompt": "hello"}).status_code == 200
    asyncio.run(until(lambda: http.get("/api/usage").json()["generated_tokens"] > 0))
    told = http.get("/api/usage").json()
    assert (told["engines"], told["silent"]) == (1, 0)
    assert told["prompt_tokens"] > 0
    assert [entry["seconds"] for entry in told["first_tokens"]] == [*BOUNDS, None]
