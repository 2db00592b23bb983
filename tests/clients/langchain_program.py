"""LangChain's classes for OpenAI's API."""

from collections.abc import Callable
from typing import Any, Literal

from carry import Case, Seen, main, messages
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr


class City(BaseModel):
    """Every value is one of a few, so that the smallest model comes to an end."""

    name: Literal["Paris", "London", "Rome"]
    millions: Literal[1, 2, 3]


class Program:
    def __init__(self, base_url: str) -> None:
        self.options: dict[str, Any] = {"base_url": base_url, "api_key": SecretStr("none")}

    def _model(self, case: Case, **more: Any) -> ChatOpenAI:
        timeout, retries = case.get("timeout", 60), case.get("retries", 0)
        options = self.options | case.get("options", {}) | more
        return ChatOpenAI(model=case["model"], timeout=timeout, max_retries=retries, **options)

    def chat(self, case: Case) -> Seen:
        asked = [("user", messages(case)[0]["content"])]
        if not case.get("stream"):
            answer = self._model(case).invoke(asked)
            return {"text": answer.content, "usage": (answer.usage_metadata or {}).get("output_tokens")}
        chunks = list(self._model(case, stream_usage=True).stream(asked))
        used = [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata]
        return {"text": "".join(str(chunk.content) for chunk in chunks), "usage": used[-1] if used else None}

    def completion(self, case: Case) -> Seen:
        model = OpenAI(model=case["model"], max_retries=0, max_tokens=4, **self.options)
        return {"text": model.invoke("Once upon a")}

    def embedding(self, case: Case) -> Seen:
        # Otherwise it sends the numbers of OpenAI's own tokens, after having fetched their list.
        model = OpenAIEmbeddings(model=case["model"], check_embedding_ctx_length=False, **self.options)
        return {"sizes": [len(one) for one in model.embed_documents(["a cat", "a dog"])]}

    def parse(self, case: Case) -> Seen:
        model = self._model(case, max_tokens=200, temperature=0).with_structured_output(City, method="json_schema")
        city = model.invoke([("user", messages(case)[0]["content"])])
        assert isinstance(city, City)
        return city.model_dump()


def actions(base_url: str) -> dict[str, Callable[[Case], Seen]]:
    one = Program(base_url)
    return {do.__name__: do for do in [one.chat, one.completion, one.embedding, one.parse]}


if __name__ == "__main__":
    main(actions)
