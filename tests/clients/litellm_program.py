"""litellm as a client, with its provider for servers that speak OpenAI's API."""

from collections.abc import Callable
from typing import Any

import litellm
from carry import Case, Seen, main, messages


class Program:
    def __init__(self, base_url: str) -> None:
        self.options: dict[str, Any] = {"api_base": base_url, "api_key": "none"}

    def _options(self, case: Case) -> dict[str, Any]:
        given: dict[str, Any] = {"model": f"openai/{case['model']}", "timeout": case.get("timeout", 60)}
        options: dict[str, Any] = case.get("options", {})
        return self.options | given | {"max_retries": case.get("retries", 0)} | options

    def chat(self, case: Case) -> Seen:
        options = self._options(case) | {"messages": messages(case)}
        if not case.get("stream"):
            answer: Any = litellm.completion(**options)
            return {"text": answer.choices[0].message.content, "usage": answer.usage.completion_tokens}
        stream: Any = litellm.completion(stream=True, stream_options={"include_usage": True}, **options)
        chunks = list(stream)
        words = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        used = [chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)]
        return {"text": "".join(words), "usage": used[-1] if used else None}

    def completion(self, case: Case) -> Seen:
        options = self._options(case) | {"model": f"text-completion-openai/{case['model']}"}
        answer: Any = litellm.text_completion(prompt="Once upon a", max_tokens=4, **options)
        return {"text": answer.choices[0].text}

    def embedding(self, case: Case) -> Seen:
        answer: Any = litellm.embedding(input=["a cat", "a dog"], **self._options(case))
        return {"sizes": [len(one["embedding"]) for one in answer.data]}


def actions(base_url: str) -> dict[str, Callable[[Case], Seen]]:
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    one = Program(base_url)
    return {do.__name__: do for do in [one.chat, one.completion, one.embedding]}


if __name__ == "__main__":
    main(actions)
