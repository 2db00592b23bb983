"""What sinfo and squeue print of the whole cluster, and what engines count: numbers that fit together."""

from orchestrator.cluster import all_gpus, partitions, turns
from orchestrator.schedulers import Cpus, Queue
from orchestrator.schedulers.sinfo import SEPARATOR, parse_sinfo
from orchestrator.schedulers.squeue import FIELDS, parse_queue
from orchestrator.usage import apart, told_in
from tests.fuzz.target import Target

_MARK = "\x1f5a"
_NODES = (
    "gpu*~up~2-00:00:00~mixed~3~96/96/0/192~gpu:a100:4(S:0-1)~gpu:a100:3(IDX:0-2)~gpu[001-003]~",
    "both~up~infinite~allocated~1~64/0/0/64~gpu:h100:8,nvme:1~gpu:h100:8(IDX:0-7),nvme:0~big1~",
    "gpu~up~30:00~down*~1~0/0/64/64~gpu:4~gpu:(null):0(IDX:N/A)~gpu7~",
)
_JOBS = (
    "1|gpu|RUNNING|7|None|1|1|cpu=1,gres/gpu=2|gres:gpu:2|N/A|1795782371|1795782372|1795782672|a|",
    "5_[1-3]|gpu|PENDING|7|Priority|2|1|cpu=1|gres:gpu:4|gres/gpu:1|1795782371|1795783860|N/A|b\nc|",
)
_METRICS = 'vllm:prompt_tokens_total{a="b"} 42.0\nvllm:time_to_first_token_seconds_bucket{le="0.08"} 3.0\n'


def _run(data: bytes) -> None:
    text = data.decode(errors="replace")
    _check_nodes(text.replace("~", SEPARATOR))
    _check_queue(text.replace("|", _MARK))
    told = told_in(text)
    assert min(told.prompt, told.generated, *apart(told.first)) >= 0, told


def _check_nodes(text: str) -> None:
    groups = parse_sinfo(text)
    for one in [*all_gpus(groups), *(gpu for part in partitions(groups) for gpu in part.gpus)]:
        assert one.in_use + one.free + one.down == one.total, one
        assert min(one.in_use, one.free, one.down) >= 0, one
    for part in partitions(groups):
        assert part.name and sum(part.nodes.values()) >= 0, part
        assert isinstance(part.cpus, Cpus)


def _check_queue(text: str) -> None:
    jobs = parse_queue(text, _MARK, 7)
    assert all(not job.state.ended and job.partition for job in jobs)
    known = turns(Queue(jobs))
    assert sum(known.pending.values()) + sum(known.running.values()) == len(jobs)
    mine = {job.job_id for job in jobs if job.mine}
    assert {job.job_id for job in known.mine} == mine >= known.places.keys()
    assert all(1 <= place <= len(jobs) for place in known.places.values())


_SEEDS = ["\n".join(_NODES), *_NODES, "\n".join(_JOBS), *_JOBS, _METRICS]
TARGET = Target(
    _run,
    seeds=[seed.encode() for seed in _SEEDS],
    words=[b"~" * 9, b"|" * len(FIELDS), b"gpu:", b"(IDX:0,3)", b"PENDING", b"1e999", b'le="+Inf"', b"[1-99999]"],
)
