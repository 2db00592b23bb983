"""What is secret by its name, and by its look."""

import time

import pytest

from orchestrator.confidential import MASK, is_secret, masked, redacted

HF = "hf_" + "aB3" * 11
OURS = "sluice_" + "x9" * 12


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "MY_SECRET", "DB_PASSWORD", "PASSWORD",
        "TOKEN", "token", "Api_Key", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION", "GITHUB_PAT", "KEY",
        "SSH_PASSPHRASE", "GOOGLE_CREDENTIALS", "SENTRY_DSN", "DATABASE_URL",
    ],
)  # fmt: skip
def test_a_name_that_says_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_MODEL", "HF_TOKEN_PATH", "MAX_TOKENS", "VLLM_MAX_NUM_BATCHED_TOKENS", "TOKENIZER", "KEYBOARD", "MONKEY",
        "KEY_FILE", "HF_HOME", "PATTERN", "", "HTTP_PROXY", "AWSOME",
    ],
)  # fmt: skip
def test_a_name_that_does_not(name: str) -> None:
    assert not is_secret(name)


def test_a_configuration_is_masked_at_any_depth_and_otherwise_as_it_was() -> None:
    config = {"environment": {"A_TOKEN": "x", "B": 1, "C_KEY": None}, "list": [{"D_SECRET": ["x"]}, 2.5], "token": {}}
    assert masked(config) == {
        "environment": {"A_TOKEN": MASK, "B": 1, "C_KEY": None},
        "list": [{"D_SECRET": MASK}, 2.5],
        "token": MASK,
    }
    assert config["token"] == {}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        ("authorization: Basic dXNlcjpwdw==", "authorization: Basic ***"),
        ("X-API-Key: planted-1234", "X-API-Key: ***"),
        ("api-key: planted-1234", "api-key: ***"),
        (f"the token {HF} is wrong", "the token hf_*** is wrong"),
        (f"key {OURS}", "key sluice_***"),
        ("sk-proj-abcdefghijklmnop1234", "sk-***"),
        ("GET /v1/x?api_key=planted&a=1", "GET /v1/x?api_key=***&a=1"),
        ("?key=planted&token=planted2", "?key=***&token=***"),
        ("HF_TOKEN=planted", "HF_TOKEN=***"),
        ("MY_PASSWORD='planted one'", "MY_PASSWORD='*** one'"),
        ("{'WANDB_API_KEY': 'planted'}", "{'WANDB_API_KEY': '***'}"),
        ('{"password": "planted"}', '{"password": "***"}'),
        ("http://me:planted@proxy:3128/", "http://***@proxy:3128/"),
    ],
)
def test_what_looks_like_a_secret_is_masked_in_a_text(text: str, left: str) -> None:
    assert redacted(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "this gateway wants its API key (GATEWAY_API_KEY) as `Authorization: Bearer …`, `X-API-Key` or `api-key`",
        "config.environment.HF_TOKEN contains a line break or another control character",
        "max_tokens=150, n=2; config: unknown key 'modle'. Known keys: account, cpu",
        "sluice_gateway_tunnel_reconnects is a metric, hf_overrides an option, sluice-0123456789abcdef a job",
        "http://node1:8001/v1 is running since 12:00:00+00:00 at user@host",
        "the host key: SHA256:abcdef of login has changed",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("piece", ["a-", "sluice_-", "api-key ", "authorization ", "://", "://a:", "key=", "'token':"])
def test_a_hostile_text_costs_no_more_than_its_length(piece: str) -> None:
    """With a square of its length this would take minutes."""
    began = time.monotonic()
    redacted(piece * 100_000)
    assert time.monotonic() - began < 20
