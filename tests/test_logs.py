"""The output of a job, at its edges."""

import asyncio
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator.logs import CHUNK, MOST, follow, tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "stderr.log"


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"", None, ""),
        (b"", 5, ""),
        (b"a\nb\nc\n", None, "a\nb\nc\n"),
        (b"a\nb\nc\n", 2, "b\nc\n"),
        (b"a\nb\nc\n", 3, "a\nb\nc\n"),
        (b"a\nb\nc\n", 4, "a\nb\nc\n"),
        (b"a\nb\nc\n", 0, ""),
        (b"a\nb\nc", 2, "b\nc"),
        (b"a\nb\nc", 1, "c"),
        (b"one line", 1, "one line"),
        (b"\n\n\n", 2, "\n\n"),
        (b"a\n\n", 1, "\n"),
        (b"10%\r50%\r100%\nb\n", 2, "10%\r50%\r100%\nb\n"),
        (b"a\r\nb\r\n", 1, "b\r\n"),
        ("a\u2028b\n".encode(), 1, "a\u2028b\n"),
        (b"\xff\xfe\x00\x1b[31m\n", 1, "\ufffd\ufffd\x00\x1b[31m\n"),
        (b"caf\xc3", 1, "caf\ufffd"),
        ("é😀\n".encode(), 1, "é😀\n"),
    ],
)
def test_the_last_lines(log: Path, content: bytes, lines: int | None, expected: str) -> None:
    log.write_bytes(content)
    assert tail(log, lines) == expected


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7])
@pytest.mark.parametrize("last", ["", "\n", "\nend", "\nend\n", "\n\n"])
def test_lines_are_exact_whatever_the_chunks_cut(log: Path, size: int, last: str) -> None:
    """Compared with the simple way, for line ends right before, at and behind each border."""
    for before in (CHUNK - 1, CHUNK, CHUNK + 1):
        text = ("x" * (size - 1) + "\n" + "é" * (before // 2) + last) if size % 2 else ("ab\n" * size)[:size] + last
        log.write_text(text)
        parts = text.splitlines(keepends=True)
        for lines in (1, 2, 3, len(parts), len(parts) + 1):
            assert tail(log, lines) == "".join(parts[-lines:])
        assert tail(log) == text


def peak(work: Callable[[], object]) -> int:
    """The most bytes that Python held at once while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_of_a_huge_file_only_the_end_is_read(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(50 * 1024**3)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert tail(log, 1) == "last\n"
    for lines in (None, 10_000_000):
        assert len(tail(log, lines)) == MOST
        assert peak(lambda lines=lines: tail(log, lines)) < 7 * MOST  # type: ignore[misc]


@pytest.mark.parametrize("most", [1, 3, 4, CHUNK, CHUNK + 1])
def test_never_more_than_was_asked_for(log: Path, most: int) -> None:
    log.write_bytes(b"0123456789" * CHUNK)
    assert tail(log, most=most) == ("0123456789" * CHUNK)[-most:]


def made_link(path: Path) -> None:
    path.with_name("secret").write_text("secret\n")
    path.symlink_to(path.with_name("secret"))


@pytest.mark.parametrize(
    "make", [lambda path: None, made_link, os.mkfifo, os.mkdir], ids=["none", "link", "pipe", "dir"]
)
def test_what_is_no_regular_file_reads_as_empty(log: Path, make: Callable[[Path], None]) -> None:
    make(log)
    assert tail(log) == tail(log, 5) == ""
    assert collected(log, lambda: True) == b""
    assert log.is_symlink() == (make is made_link)


def test_a_log_of_a_linked_folder_reads_as_empty(log: Path, tmp_path: Path) -> None:
    log.write_text("words")
    (tmp_path / "linked").symlink_to(log.parent)
    assert (tail(log), tail(tmp_path / "linked" / log.name)) == ("words", "")
    assert collected(tmp_path / "linked" / log.name, lambda: True) == b""


def collected(log: Path, over: Callable[[], bool]) -> bytes:
    return both([log], over)


def both(logs: Sequence[Path], over: Callable[[], bool], lines: int | None = None, nothing: bytes = b"") -> bytes:
    async def work() -> bytes:
        return b"".join([data async for data in follow(logs, over, lines=lines, nothing=nothing, interval=0)])

    return asyncio.run(work())


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_following_gives_every_byte_once(log: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    log.write_bytes(content[:size])
    assert collected(log, lambda: True) == content[:size]


def test_following_begins_before_the_file_does_and_ends_after_its_last_byte(log: Path) -> None:
    asked = 0

    def over() -> bool:
        """Something is written each time before the end is looked for, the last of it with the end."""
        nonlocal asked
        asked += 1
        if 2 < asked <= 6:
            with log.open("ab") as file:
                file.write(b"%d," % asked)
        return asked >= 6

    assert collected(log, over) == b"3,4,5,6,"


def test_what_is_written_with_the_end_is_still_read(log: Path) -> None:
    def over() -> bool:
        log.write_bytes(b"last words")
        return True

    assert collected(log, over) == b"last words"


def test_following_a_huge_file_takes_little_memory(log: Path) -> None:
    size = 64 * 1024**2
    with log.open("wb") as file:
        file.truncate(size)

    async def count(*logs: Path) -> None:
        assert sum([len(data) async for data in follow(logs, lambda: True)]) == size

    assert peak(lambda: asyncio.run(count(log))) < 1024**2
    assert peak(lambda: asyncio.run(count(log, log.with_name("none")))) < 1024**2


class Script:
    """Stands for a job: writes the next piece into one of two files each time it is asked whether it is over."""

    def __init__(self, folder: Path, pieces: Sequence[tuple[int, bytes]]) -> None:
        self.logs = [folder / "stderr.log", folder / "stdout.log"]
        self._pieces = list(pieces)

    def __call__(self) -> bool:
        if self._pieces:
            number, piece = self._pieces.pop(0)
            with self.logs[number].open("ab") as file:
                file.write(piece)
        return not self._pieces


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([(0, b"a\n"), (1, b"b\n"), (0, b"c\n"), (1, b"d\n")], b"a\nb\nc\nd\n"),
        ([(1, b"b\n"), (0, b"a\n")], b"b\na\n"),
        # A line that comes in two pieces is not torn by the other output...
        ([(0, b"x\na"), (1, b"b\n"), (0, b"A\n")], b"x\nb\naA\n"),
        # ... a progress bar that has no line's end is seen all the same.
        ([(0, b"50 %"), (0, b""), (0, b""), (1, b"b\n"), (0, b"\r100 %\n")], b"50 %\nb\n\r100 %\n"),
        ([(0, b"end"), (1, b"other end")], b"end\nother end"),
        ([(0, b"end"), (1, b"")], b"end"),
    ],
)
def test_two_outputs_alternate_line_by_line_as_they_grow(
    tmp_path: Path, pieces: list[tuple[int, bytes]], expected: bytes
) -> None:
    script = Script(tmp_path, pieces)
    assert both(script.logs, script) == expected


def test_the_second_output_does_not_wait_for_the_end_of_the_first(tmp_path: Path) -> None:
    """Of two long files neither is sent whole before the other."""
    script = Script(tmp_path, [])
    for log, line in zip(script.logs, (b"err\n", b"out\n"), strict=True):
        log.write_bytes(line * CHUNK)
    sent = both(script.logs, script)
    assert sent.count(b"err\n") == sent.count(b"out\n") == CHUNK
    assert 0 < sent.index(b"out") <= CHUNK
    assert set(sent.splitlines()) == {b"err", b"out"}, "no line is torn at a chunk's border"


@pytest.mark.parametrize(("lines", "expected"), [(0, b"new\n"), (1, b"c\n2\nnew\n"), (2, b"b\nc\n1\n2\nnew\n")])
def test_following_begins_at_the_last_lines(tmp_path: Path, lines: int, expected: bytes) -> None:
    script = Script(tmp_path, [(0, b""), (0, b"new\n")])
    script.logs[0].write_bytes(b"a\nb\nc\n")
    script.logs[1].write_bytes(b"1\n2\n")
    assert both(script.logs, script, lines) == expected


def test_the_end_of_a_huge_file_is_followed_without_what_is_before_it(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(10 * 1024**3)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert both([log], lambda: True, 1) == b"last\n"
    assert len(both([log], lambda: True, 10_000_000)) == MOST
    assert peak(lambda: both([log], lambda: True, 1)) < 1024**2


def test_nothing_is_said_where_there_is_nothing(tmp_path: Path) -> None:
    script = Script(tmp_path, [(1, b""), (1, b"words\n")])
    assert both(script.logs, lambda: True, nothing=b"nothing yet\n") == b"nothing yet\n"
    assert both(script.logs, script, nothing=b"nothing yet\n") == b"nothing yet\nwords\n"
    assert both(script.logs, lambda: True, nothing=b"nothing yet\n") == b"words\n"
    assert both(script.logs, lambda: True, lines=0, nothing=b"nothing yet\n") == b"", "there is something, before"
