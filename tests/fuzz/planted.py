"""A parser with a bug behind four conditions, which chance alone would need 2^32 inputs to meet."""

from tests.fuzz.target import Target


def parse(data: bytes) -> int:
    if len(data) > 4 and data[0] == 0x53:
        if data[1] == data[2] ^ 0x0F:
            if data[3] == 0xB1:
                return 1 // (data[4] - 0x77)
            return 3
        return 2
    return 0


def _run(data: bytes) -> None:
    parse(data)


TARGET = Target(_run, seeds=[b"seed."])
