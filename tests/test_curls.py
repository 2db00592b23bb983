"""Curls out of Markdown: each as a shell would read it, and none that a shell would read otherwise."""

import json
import re
import subprocess

import pytest

from tests.curls import DOCUMENTS, OURS, REPOSITORY, Curl, CurlError, curls
from tests.e2e.promises import PLACE, Answer, promise_of

PAGES = {document.name: document.read_text(encoding="utf-8") for document in DOCUMENTS}
CURLS = [curl for name, page in PAGES.items() for curl in curls(name, page)]
API = [curl for document in OURS for curl in curls(document.name, PAGES[document.name])]
OPERATIONS = json.loads((REPOSITORY / "openapi" / "server-openapi.json").read_text(encoding="utf-8"))["paths"]

DOCUMENT = """\
# A title

```bash
# don't be misled by a quote in a comment
curl http://localhost:8001/a  # nor by one behind a command: "
curl -X POST http://localhost:8001/b#part \\
  -H "Content-Type: application/json" \\
  -d '{
    "text": "# no comment, \\n no line break",
    "more": 1
  }'
echo done
```

```json
curl http://localhost:8001/not-bash
```

    curl http://localhost:8001/not-fenced

```bash
curl -N -d '{}' "http://localhost:8001/c?query=a&limit=10"
```
"""


def block(command: str) -> str:
    return f"```bash\n{command}\n```\n"


def test_the_commands_of_bash_blocks_are_found_in_their_order() -> None:
    found = curls("a.md", DOCUMENT)
    assert [(curl.line, curl.method, curl.path, curl.query) for curl in found] == [
        (5, "GET", "/a", ""),
        (6, "POST", "/b", ""),
        (22, "POST", "/c", "query=a&limit=10"),
    ]


def test_a_command_is_the_words_that_a_shell_makes_of_it() -> None:
    _, second, third = curls("a.md", DOCUMENT)
    body = '{\n    "text": "# no comment, \\n no line break",\n    "more": 1\n  }'
    url, header = "http://localhost:8001/b#part", "Content-Type: application/json"
    assert second.argv == ("curl", "-X", "POST", url, "-H", header, "-d", body)
    assert (second.headers, second.body) == ((header,), body)
    assert third.argv == ("curl", "-N", "-d", "{}", "http://localhost:8001/c?query=a&limit=10")


@pytest.mark.parametrize("text", [DOCUMENT, *PAGES.values()], ids=["sample", *PAGES])
def test_bash_makes_the_same_words_of_it(text: str) -> None:
    """With a function in place of the program. Only texts of ours: what else stands in a block is run."""
    blocks = [part.partition("\n```")[0] for part in text.split("```bash\n")[1:]]
    script = "curl() { printf 'curl\\0'; printf '%s\\0' \"$@\" ''; }\n" + "\n".join(blocks)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=10)
    said = [tuple(words.split("\0")) for words in done.stdout.replace("done\n", "").split("\0\0")[:-1]]
    assert said == [curl.argv for curl in curls("a.md", text)]


def test_a_document_without_curls_has_none() -> None:
    assert curls("a.md", "# Nothing\n\n```bash\nmake demo\n```\n") == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("curl http://localhost/a?b=1", "single quotes"),  # zsh looks for a file of that name
        ("curl http://localhost/a&b=1", "single quotes"),  # the rest is another command
        ("curl http://localhost/a | jq", "single quotes"),
        ("curl http://localhost/a > answer", "single quotes"),
        ("curl http://localhost/$ID", "single quotes"),
        ('curl "http://localhost/$ID"', "single quotes"),
        ("curl -d '{ http://localhost/a", "a.md:2: ' has no partner"),
        ('curl "http://localhost/a', 'a.md:2: " has no partner'),
        ("curl -o answer http://localhost/a", "a.md:2: unrecognized arguments: -o"),
        ("curl http://localhost/a http://localhost/b", "a.md:2: unrecognized arguments"),
        ("curl -X POST", "a.md:2: the following arguments are required: url"),
    ],
)
def test_what_is_not_the_same_for_every_reader_is_refused(command: str, says: str) -> None:
    with pytest.raises(CurlError, match=re.escape(says)):
        curls("a.md", block(command))


def test_only_ids_are_replaced() -> None:
    def put(url: str) -> str:
        return PLACE.sub(r"\g<alias>7", url)

    base = "http://localhost:8001/api/v1"
    assert put(f"{base}/services/3652098/logs?tail=20000") == f"{base}/services/7/logs?tail=20000"
    assert put(f"{base}/service-groups/sg-3652098") == f"{base}/service-groups/sg-7"
    assert put(f"{base}/services/3652098:8002") == f"{base}/services/7"
    assert put(f"{base}/services?limit=10000") == f"{base}/services?limit=10000"


def test_an_answer_is_taken_apart() -> None:
    answer = Answer.parse('HTTP/1.1 200 OK\nContent-Type: application/json\nX-Total-Count: 3\n\n{"a": "b\n\nc"}')
    assert (answer.status, answer.headers["x-total-count"], answer.text) == (200, "3", '{"a": "b\n\nc"}')


def test_the_documents_are_whole() -> None:
    assert len(API) > 60
    assert len(CURLS) - len(API) == 33


@pytest.mark.parametrize("curl", CURLS, ids=lambda curl: f"{curl.document}:{curl.line} {curl.method} {curl.path}")
def test_every_curl_of_the_documents_has_a_promise(curl: Curl) -> None:
    promise = promise_of(curl)
    assert bool(PLACE.search(curl.path)) == (promise.targets != ("",))
    assert curl.body is None or json.loads(curl.body)


def test_a_curl_without_a_promise_is_an_error() -> None:
    (unknown,) = curls("a.md", block("curl -X PATCH http://localhost:8001/api/v1/services/3652098"))
    with pytest.raises(LookupError, match=r"a\.md:2: no promise for PATCH /api/v1/services/3652098"):
        promise_of(unknown)


@pytest.mark.parametrize(
    "operation", [f"{method.upper()} {path}" for path, item in OPERATIONS.items() for method in item]
)
def test_every_operation_of_the_gateway_has_a_curl(operation: str) -> None:
    """openapi/server-openapi.json says which there are; they are told apart by their promises."""
    method, _, path = operation.partition(" ")
    url = re.sub(r"[{}]", "", re.sub(r"\{(service|group)_id\}", "3652098", path))
    (one,) = curls("openapi", block(f"curl -X {method} http://localhost:8001{url}"))
    assert promise_of(one) in [promise_of(curl) for curl in API]
