"""The openai package, 2.x and 3.x."""

import json
import time
from collections.abc import Callable
from typing import Any, Literal

import openai
from carry import Case, Seen, main, messages
from pydantic import BaseModel

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class City(BaseModel):
    """Every value is one of a few, so that the smallest model comes to an end."""

    name: Literal["Paris", "London", "Rome"]
    millions: Literal[1, 2, 3]


class Program:
    def __init__(self, base_url: str) -> None:
        self.client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)

    def _client(self, case: Case) -> openai.OpenAI:
        options = {"timeout": case.get("timeout", 60), "max_retries": case.get("retries", 0)}
        return self.client.with_options(api_key=case.get("key", "none"), **options)

    def chat(self, case: Case) -> Seen:
        options: dict[str, Any] = {"model": case["model"], "messages": messages(case)} | case.get("options", {})
        raw = self._client(case).chat.completions.with_raw_response
        if not case.get("stream"):
            response = raw.create(**options, extra_headers=case.get("headers"))
            answer = response.parse()
            usage = answer.usage and answer.usage.completion_tokens
            return {"text": answer.choices[0].message.content, "usage": usage, "headers": dict(response.headers)}
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        response = raw.create(**options, extra_headers=case.get("headers"))
        chunks = list(response.parse())
        words = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        usage = next((chunk.usage.completion_tokens for chunk in chunks if chunk.usage), None)
        return {"text": "".join(words), "usage": usage, "headers": dict(response.headers), "chunks": len(chunks)}

    def completion(self, case: Case) -> Seen:
        answer = self._client(case).completions.create(model=case["model"], prompt="Once upon a", max_tokens=4)
        assert answer.usage is not None
        return {"text": answer.choices[0].text, "usage": answer.usage.completion_tokens}

    def embedding(self, case: Case) -> Seen:
        answer = self._client(case).embeddings.create(model=case["model"], input=["a cat", "a dog"])
        return {"sizes": [len(one.embedding) for one in answer.data]}

    def response(self, case: Case) -> Seen:
        asked: Any = {"model": case["model"], "input": messages(case)[0]["content"], "max_output_tokens": 30}
        if not case.get("stream"):
            return {"text": self._client(case).responses.create(**asked).output_text}
        kinds, words = [], []
        for event in self._client(case).responses.create(stream=True, **asked):
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                words.append(event.delta)
        return {"text": "".join(words), "last": kinds[-1]}

    def models(self, case: Case) -> Seen:
        return {"ids": [model.id for model in self._client(case).models.list()]}

    def model(self, case: Case) -> Seen:
        return {"id": self._client(case).models.retrieve(case["model"]).id}

    def parse(self, case: Case) -> Seen:
        asked: Any = {"model": case["model"], "messages": messages(case), "max_tokens": 200, "temperature": 0}
        answer = self._client(case).chat.completions.parse(response_format=City, **asked)
        city = answer.choices[0].message.parsed
        assert city is not None
        return city.model_dump()

    def tool(self, case: Case) -> Seen:
        asked: Any = {"model": case["model"], "messages": messages(case), "tools": [TOOL], "max_tokens": 200}
        answer = self._client(case).chat.completions.create(tool_choice="required", temperature=0, **asked)
        calls = answer.choices[0].message.tool_calls or []
        return {
            "text": answer.choices[0].message.content,
            "called": [call.function.name for call in calls if call.type == "function"],
        }

    def batch(self, case: Case) -> Seen:
        """One line for each of the prompts, to the end; then its files are deleted."""
        client = self._client(case)
        bodies = [{"model": case["model"], "messages": messages({"prompt": prompt})} for prompt in case["prompts"]]
        lines = [
            {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            for number, body in enumerate(bodies)
        ]
        content = "\n".join(json.dumps(line) for line in lines).encode()
        file = client.files.create(file=("requests.jsonl", content), purpose="batch")
        asked: Any = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.batches.create(**asked, metadata={"for": "a test"})
        deadline = time.monotonic() + 60
        while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < deadline:
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        kept = [name for name in (batch.output_file_id, batch.error_file_id) if name]
        texts = [client.files.content(name).text for name in kept]
        outcomes = [[json.loads(line) for line in text.splitlines()] for text in texts]
        return {
            "status": batch.status,
            "counts": batch.request_counts and batch.request_counts.model_dump(),
            "output": outcomes[0] if outcomes else [],
            "errors": outcomes[1] if len(outcomes) > 1 else [],
            "listed": batch.id in [one.id for one in client.batches.list(limit=1)],
            "deleted": all(client.files.delete(name).deleted for name in [file.id, *kept]),
        }


def actions(base_url: str) -> dict[str, Callable[[Case], Seen]]:
    one = Program(base_url)
    does = [one.chat, one.completion, one.embedding, one.response, one.models, one.model, one.parse, one.tool]
    does.append(one.batch)
    return {do.__name__: do for do in does}


if __name__ == "__main__":
    main(actions)
