"""Prometheus text: read, labelled, merged and written. Text in, text out; the grammar is prometheus_client's."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from orchestrator.errors import EngineError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds since 1970: the years 2001 to 33658.
_FIRST_TIME, _LAST_TIME = 1e9, 1e12


def parse(text: str) -> list[Metric]:
    """The families of a text in format 0.0.4, or in OpenMetrics, which must end with `# EOF`; exemplars are dropped.

    Counters get OpenMetrics' name: where the engine's has no `_total` at its end it will have. Raises EngineError.
    """
    read = parse_openmetrics if text.rstrip().endswith("# EOF") else parse_plain
    try:
        return [_checked(family) for family in read(text)]
    except (ValueError, LookupError, OverflowError) as exc:  # the parsers' ways to say that a text is none
        words = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise EngineError(f"its metrics are not Prometheus text: {words}") from exc


def _checked(family: Metric) -> Metric:
    samples = [_sample(sample) for sample in family.samples]
    return _family(family, samples)


def _sample(sample: Sample) -> Sample:
    """Without its exemplar. Raises ValueError for a time that is none, OverflowError for a value beyond any float."""
    time = None if sample.timestamp is None else float(sample.timestamp)
    if time is not None and not _FIRST_TIME <= time < _LAST_TIME:
        # The lax parser takes the end of an exemplar, which plain text must not have, for a time.
        raise ValueError(f"{sample.name} has the time {time:g} s")
    return Sample(sample.name, sample.labels, float(sample.value), time)


def labelled(families: Iterable[Metric], labels: Mapping[str, str]) -> list[Metric]:
    """The same with `labels` in every sample. A sample's own label of such a name becomes `exported_…`."""

    def with_labels(sample: Sample) -> Sample:
        own = {f"exported_{name}" if name in labels else name: value for name, value in sample.labels.items()}
        return sample._replace(labels=own | dict(labels))

    return [_family(family, [with_labels(sample) for sample in family.samples]) for family in families]


def merged(families: Iterable[Metric]) -> list[Metric]:
    """One family for each name, as the format demands, with the type and the words of the first."""
    by_name: dict[str, Metric] = {}
    for family in families:
        by_name.setdefault(family.name, _family(family, [])).samples.extend(family.samples)
    return [family for family in by_name.values() if family.samples]


def gauge(name: str, words: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    family = Metric(name, words, "gauge")
    for labels, value in samples:
        family.add_sample(name, dict(labels), value)
    return family


def counter(name: str, words: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    """`name` is without the `_total` that its samples get."""
    family = Metric(name, words, "counter")
    for labels, value in samples:
        family.add_sample(f"{name}_total", dict(labels), value)
    return family


def summary(name: str, words: str, samples: Iterable[tuple[Mapping[str, str], int, float]]) -> Metric:
    """How many there were, and their sum."""
    family = Metric(name, words, "summary")
    for labels, number, total in samples:
        family.add_sample(f"{name}_count", dict(labels), number)
        family.add_sample(f"{name}_sum", dict(labels), total)
    return family


def counted(registry: CollectorRegistry) -> list[Metric]:
    """What is in a registry of ours, without `…_created`: they double the text and tell only when we were started."""
    families = [(f, [s for s in f.samples if not s.name.endswith("_created")]) for f in registry.collect()]
    return [_family(family, samples) for family, samples in families]


def render(families: Iterable[Metric], notes: Iterable[str] = ()) -> bytes:
    """Text in format 0.0.4. `notes` are for people: comments, which Prometheus skips, at its end."""
    comments = "".join(f"# {' '.join(note.split())}\n" for note in notes)
    return generate_latest(_Families(families)) + comments.encode("utf-8", "replace")


def _family(like: Metric, samples: list[Sample]) -> Metric:
    family = Metric(like.name, like.documentation, like.type)
    family.samples = samples
    return family


class _Families(Collector):
    """Families as prometheus_client's renderer wants them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
