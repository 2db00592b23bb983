"""What a terminal shows of what it is sent, and recordings in their pages."""

import pytest

from scripts.recordings import (
    FOLDER,
    PLACES,
    RECORDINGS,
    ROOT,
    Recording,
    RecordingError,
    Screen,
    shown_in,
    without_times,
)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (["one\r\n", "two"], ["one", "two"]),
        (["one\rtwo"], ["two"]),
        (["longer\rtwo"], ["twoger"]),
        (["⠋ queued\r\x1b[2K⠙ loading"], ["⠙ loading"]),
        (["⠋ queued\r\x1b[2Kdone\r\n⠙ loading"], ["done", "⠙ loading"]),
        (["a\r\nb\r\n\x1b[1A\x1b[2Kc"], ["a", "c", ""]),
        (["\x1b[?25l\x1b[1;32mgreen\x1b[0m\x1b[?25h"], ["green"]),
        (["abc\x1b[1Ad"], ["abcd"]),
        (["abcdef\rab\x1b[K"], ["ab"]),
    ],
)
def test_a_screen(sent: list[str], shown: list[str]) -> None:
    screen = Screen()
    for part in sent:
        screen.feed(part)
    assert screen.lines == shown


def test_ids_are_those_of_the_documentation() -> None:
    lines = ["$ sluice show 2", "vllm-2: queued: 2 s", "ready at http://node2:8002 after 2 min 2 s", "See 2.", "2.2 x"]
    recording = Recording({}, lines)
    assert recording.text(("2",)).splitlines() == [
        "$ sluice show 3652098", "vllm-3652098: queued: 2 s", "ready at http://node2:8002 after 2 min 2 s",
        "See 3652098.", "2.2 x",
    ]  # fmt: skip


def test_times_do_not_matter_and_words_do() -> None:
    one, other = "⠋ queued: Resources (2 s) at 2026-11-21 12:10:00", "⠙ queued: Resources (12 s) at 2026-11-22 00:10:00"
    assert without_times(one) == without_times(other) != without_times(other.replace("Resources", "Priority"))


def test_a_page_without_a_place_is_an_error() -> None:
    with pytest.raises(RecordingError, match="recording: run: begin"):
        shown_in("# A page\n", "run", "")


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_pages_show_the_recording(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    for place in PLACES[name]:
        page = (ROOT / place).read_text(encoding="utf-8")
        assert shown_in(page, name, text) == page, f"{place}: run `make recordings`"
