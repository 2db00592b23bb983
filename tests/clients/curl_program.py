"""curl, and what a reader of its output sees: exit code, status, an error in the body. Standard library only."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

from carry import Case, Seen, main, messages

MARK = "\nstatus %{http_code}"


class Refused(Exception):
    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status_code = status


class Program:
    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def _ask(self, case: Case, path: str, body: Any = None) -> str:
        """The body of a good answer."""
        limit = str(case.get("timeout", 60))
        words = ["curl", "-q", "-sS", "-N", "--compressed", "--max-time", limit, "-w", MARK, self.base_url + path]
        if body is not None:
            words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        done = subprocess.run(words, capture_output=True)
        text, _, status = done.stdout.decode(errors="replace").rpartition("\nstatus ")
        if done.returncode:
            raise Refused(f"curl ended with {done.returncode}: {done.stderr.decode()}")
        if int(status) >= 400:
            raise Refused(text, int(status))
        return text

    def chat(self, case: Case) -> Seen:
        asked = {"model": case["model"], "messages": messages(case)} | case.get("options", {})
        if not case.get("stream"):
            answer = json.loads(self._ask(case, "/chat/completions", asked))
            return {"text": answer["choices"][0]["message"]["content"], "usage": answer["usage"]["completion_tokens"]}
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        lines = self._ask(case, "/chat/completions", asked).splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
        for event in events:
            if "error" in event:
                raise Refused(json.dumps(event))
        words = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
        used = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
        return {"text": "".join(words), "usage": used[-1] if used else None}

    def completion(self, case: Case) -> Seen:
        asked = {"model": case["model"], "prompt": "Once upon a", "max_tokens": 4}
        return {"text": json.loads(self._ask(case, "/completions", asked))["choices"][0]["text"]}

    def embedding(self, case: Case) -> Seen:
        answer = json.loads(self._ask(case, "/embeddings", {"model": case["model"], "input": ["a cat", "a dog"]}))
        return {"sizes": [len(one["embedding"]) for one in answer["data"]]}

    def models(self, case: Case) -> Seen:
        return {"ids": [model["id"] for model in json.loads(self._ask(case, "/models"))["data"]]}

    def model(self, case: Case) -> Seen:
        return {"id": json.loads(self._ask(case, f"/models/{case['model']}"))["id"]}


def actions(base_url: str) -> dict[str, Callable[[Case], Seen]]:
    one = Program(base_url)
    return {do.__name__: do for do in [one.chat, one.completion, one.embedding, one.models, one.model]}


if __name__ == "__main__":
    main(actions)
