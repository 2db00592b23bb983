"""What vast.ai says of an instance, and what that means: tables."""

from typing import Any

import pytest

from orchestrator.errors import RentalError
from orchestrator.vast.instance import Instance, Status, instance_in, meaning_of, place, url_of

ON, OFF = "running", "stopped"
MEANINGS: list[tuple[str | None, str | None, str | None, Status, bool | None]] = [
    # actual_status, intended_status, cur_state: the status, and whether it costs
    (None, ON, ON, Status.CREATING, False),
    (None, ON, OFF, Status.SCHEDULING, False),
    (None, OFF, OFF, Status.STOPPED, False),
    (None, None, None, Status.CREATING, False),
    ("created", ON, ON, Status.CREATING, False),
    ("created", ON, OFF, Status.SCHEDULING, False),
    ("created", OFF, OFF, Status.STOPPED, False),
    ("loading", ON, ON, Status.LOADING, False),
    ("loading", ON, OFF, Status.LOADING, False),
    ("loading", OFF, OFF, Status.LOADING, False),
    ("running", ON, ON, Status.RUNNING, True),
    ("running", None, None, Status.RUNNING, True),
    ("running", OFF, OFF, Status.RUNNING, True),  # until it has really stopped
    ("stopped", OFF, OFF, Status.STOPPED, False),
    ("stopped", ON, OFF, Status.SCHEDULING, False),
    ("stopped", ON, ON, Status.LOADING, False),
    ("stopped", None, None, Status.STOPPED, False),
    ("exited", OFF, OFF, Status.STOPPED, False),  # how a stopped one looks
    ("exited", OFF, ON, Status.STOPPED, False),
    ("exited", ON, OFF, Status.SCHEDULING, False),
    ("exited", ON, ON, Status.EXITED, None),
    ("exited", None, None, Status.EXITED, False),
    ("frozen", "frozen", ON, Status.STOPPED, True),
    ("rebooting", ON, ON, Status.LOADING, True),
    ("unknown", ON, ON, Status.EXITED, None),
    ("unknown", OFF, OFF, Status.STOPPED, False),
    ("offline", ON, ON, Status.EXITED, None),
    ("offline", OFF, OFF, Status.STOPPED, False),
    ("hibernating", ON, ON, Status.EXITED, None),  # a word that is not known here
]


@pytest.mark.parametrize(("actual", "wanted", "given", "status", "costs"), MEANINGS)
def test_every_word_of_vast_ai(
    actual: str | None, wanted: str | None, given: str | None, status: Status, costs: bool | None
) -> None:
    meaning = meaning_of(actual, wanted, given)
    assert (meaning.status, meaning.costs) == (status, costs)


def test_the_table_has_every_word_of_vast_ai_and_every_status() -> None:
    known = {None, "created", "loading", "running", "stopped", "frozen", "exited", "rebooting", "unknown", "offline"}
    assert known <= {actual for actual, *_ in MEANINGS}
    assert {status for *_, status, _ in MEANINGS} | {Status.UNCONFIGURED, Status.NOT_FOUND} == set(Status)


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        ("unknown", "(unknown)"),
        ("offline", "(offline)"),
        ("frozen", "so is the price"),
        ("hibernating", "'hibernating'"),
    ],
)
def test_what_a_status_leaves_out_is_said(actual: str, words: str) -> None:
    assert words in meaning_of(actual, ON, ON).words


@pytest.mark.parametrize("actual", ["exited", "unknown", "offline"])
def test_what_never_becomes_running(actual: str) -> None:
    assert meaning_of(actual, ON, ON).hopeless
    assert not any(meaning_of(other, ON, ON).hopeless for other in (None, "created", "loading", "running", "stopped"))


def read(**row: Any) -> Instance:
    return instance_in({"instances": {"id": 7, "actual_status": "running"} | row}, 7)


def test_an_instance_is_read() -> None:
    ports: dict[str, Any] = {
        "8001/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41234"}, {"HostIp": "::", "HostPort": "41234"}],
        "22/udp": [{"HostPort": "1"}], "x/tcp": [{"HostPort": "1"}], "80/tcp": [{"HostPort": "99999"}],
        "81/tcp": [], "82/tcp": None, "83/tcp": [{}], "84": [{"HostPort": "5"}],
    }  # fmt: skip
    found = read(
        public_ipaddr="8.8.4.4\n", ports=ports, dph_total=0.45, gpu_name="RTX 3090", intended_status=ON, status_msg="up"
    )
    assert (found.address, found.ports, found.price) == ("8.8.4.4", {8001: 41234}, 0.45)
    assert (found.gpu_name, found.wanted, found.message, found.status) == ("RTX 3090", ON, "up", Status.RUNNING)
    assert url_of(place(found, 8001, loopback=False), "/health") == "http://8.8.4.4:41234/health"


@pytest.mark.parametrize(("dph", "price"), [(1, 1.0), (None, 0.0), ("0.4", 0.0), (True, 0.0), (-1, 0.0), (1e9, 0.0)])
def test_a_price_is_a_number(dph: Any, price: float) -> None:
    assert read(dph_total=dph).price == price


@pytest.mark.parametrize("nothing", [None, []])
def test_an_instance_that_is_not_there(nothing: Any) -> None:
    found = instance_in({"instances": nothing}, 7)
    assert (found.status, found.meaning.costs) == (Status.NOT_FOUND, False)
    assert "VAST_INSTANCE_ID" in str(found.message)


@pytest.mark.parametrize(
    "content", [None, [], "x", {}, {"instances": 3}, {"instances": [{"id": 7}]}, {"instances": {"id": 8}}]
)
def test_what_is_no_instance(content: Any) -> None:
    with pytest.raises(RentalError, match=r"vast\.ai answers something"):
        instance_in(content, 7)


@pytest.mark.parametrize(
    ("address", "loopback", "words"),
    [
        (None, False, "no address"),
        ("10.0.0.1", False, "not a public one"),
        ("192.168.1.1", False, "not a public one"),
        ("169.254.169.254", False, "not a public one"),
        ("127.0.0.1", False, "not a public one"),
        ("::1", False, "not a public one"),
        ("::ffff:10.0.0.1", False, "not a public one"),
        ("224.0.0.1", False, "not a public one"),
        ("0.0.0.0", False, "not a public one"),
        ("8.8.4.4", True, "not a public one"),
        ("login1", False, "which is none"),
        ("8.8.4.4@login1", False, "which is none"),
    ],
)
def test_nothing_is_sent_to_an_address_that_is_not_public(address: str | None, loopback: bool, words: str) -> None:
    found = read(public_ipaddr=address, ports={"8001/tcp": [{"HostPort": "41234"}]})
    with pytest.raises(RentalError, match=words):
        place(found, 8001, loopback=loopback)


def test_a_port_that_is_not_mapped_is_named() -> None:
    with pytest.raises(RentalError, match=r"does not map its port 8000: its template needs `-p 8000:8000`"):
        place(read(public_ipaddr="8.8.4.4", ports={"8001/tcp": [{"HostPort": "1"}]}), 8000, loopback=False)


def test_an_address_of_ipv6_is_one() -> None:
    found = read(public_ipaddr="2001:4860:4860::8844", ports={"8001/tcp": [{"HostPort": "41234"}]})
    assert url_of(place(found, 8001, loopback=False), "/v1") == "http://[2001:4860:4860::8844]:41234/v1"
    assert place(read(public_ipaddr="127.0.0.1", ports={"1/tcp": [{"HostPort": "2"}]}), 1, loopback=True)[1] == 2
