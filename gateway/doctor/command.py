"""The command: look, judge, say, stage after stage."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from gateway.console.tables import plain
from gateway.doctor.finding import Finding, Level
from gateway.doctor.looking import Looking
from gateway.doctor.order import STAGES, judged

WELL, BROKEN, INTERRUPTED = 0, 1, 130
"""Exit statuses, explained in docs/doctor.md."""

_MARKS = {Level.WELL: "✓", Level.ODD: "!", Level.BROKEN: "✗", Level.UNKNOWN: "\N{EN DASH}"}
_COLOURS = {Level.WELL: "green", Level.ODD: "yellow", Level.BROKEN: "bold red", Level.UNKNOWN: "dim"}
_WIDTH = 13  # of the longest check's name, and a space


def main(alias: str | None, *, login: bool, as_json: bool, url: str | None) -> int:
    """The exit status."""
    logging.getLogger("gateway").addHandler(logging.NullHandler())  # what goes wrong is a finding, not a message
    logging.getLogger("asyncssh").addHandler(logging.NullHandler())
    out = Console(highlight=False, soft_wrap=True)
    try:
        findings = asyncio.run(examine(Looking(alias, login, url), None if as_json else out))
    except KeyboardInterrupt:
        Console(stderr=True).print("sluice doctor: interrupted")
        return INTERRUPTED
    if as_json:
        out.file.write(json.dumps([asdict(one) for one in findings], indent=1, ensure_ascii=False) + "\n")
    else:
        say(out, [summed_up(findings)])
    return status_of(findings)


async def examine(looking: Looking, out: Console | None) -> list[Finding]:
    """All findings; each is said as soon as it is found."""
    findings: list[Finding] = []
    async with looking:
        seen = await looking.here()
        for stage in STAGES:
            seen = await stage.look(looking, seen)
            found = list(judged(stage.checks, seen))
            findings += found
            if out is not None:
                say(out, [line for one in found for line in lines_of(one)])
    return findings


def status_of(findings: Sequence[Finding]) -> int:
    return BROKEN if any(one.level is Level.BROKEN for one in findings) else WELL


def lines_of(finding: Finding) -> list[Text]:
    """Its mark, its name, what was found; how to mend it is a line of its own."""
    head = Text(f"{_MARKS[finding.level]} ", style=_COLOURS[finding.level])
    head.append(f"{finding.check:<{_WIDTH}}", style="bold" if finding.level is Level.BROKEN else "not bold")
    head.append(_one_line(finding.words))
    fix = Text(f"  {'':<{_WIDTH}}fix: {_one_line(finding.fix)}")
    return [head, fix] if finding.fix and finding.level is not Level.WELL else [head]


def summed_up(findings: Sequence[Finding]) -> Text:
    wrong = [one for one in findings if one.level is Level.BROKEN]
    if wrong:
        return Text(f"{len(wrong)} broken, the first is: {wrong[0].check}", style="bold")
    unseen = sum(one.level is Level.UNKNOWN for one in findings)
    return Text("nothing is broken" + (f"; {unseen} could not be looked at" if unseen else ""), style="bold")


def say(out: Console, lines: Sequence[Text]) -> None:
    for line in lines:
        if out.is_terminal:
            out.print(line)
        else:
            out.file.write(line.plain.rstrip() + "\n")
    out.file.flush()


def _one_line(text: str) -> str:
    """Words come from elsewhere too."""
    return " ".join(plain(text).split())
