"""What is asked of a Qdrant twice: of qdrant-client's own memory, and over HTTP. The answers must be the same."""

import random
from collections.abc import Callable
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client import models as m

PLAIN, NAMED = "plain", "named"
COLOURS = ("red", "green", "blue")


def vector(numbers: random.Random, size: int) -> list[float]:
    return [round(numbers.uniform(-1, 1), 3) for _ in range(size)]


def fill(client: QdrantClient) -> None:
    """Two collections of 30 points, always the same."""
    numbers = random.Random(7)
    client.create_collection(PLAIN, vectors_config=m.VectorParams(size=8, distance=m.Distance.COSINE))
    client.upsert(PLAIN, [m.PointStruct(id=i, vector=vector(numbers, 8), payload=payload(i)) for i in range(30)])
    client.create_collection(
        NAMED,
        vectors_config={
            "text": m.VectorParams(size=4, distance=m.Distance.DOT),
            "image": m.VectorParams(size=6, distance=m.Distance.EUCLID),
            "late": m.VectorParams(
                size=3,
                distance=m.Distance.MANHATTAN,
                multivector_config=m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM),
            ),
        },
        sparse_vectors_config={"words": m.SparseVectorParams()},
    )
    client.upsert(NAMED, [m.PointStruct(id=i, vector=vectors(numbers, i), payload=payload(i)) for i in range(30)])


def payload(i: int) -> dict[str, Any]:
    return {
        "colour": COLOURS[i % 3],
        "price": i * 1.5,
        "count": i,
        "sold": i % 2 == 0,
        "made": f"2026-01-{i % 28 + 1:02}T12:00:00Z",
        "tags": [f"t{i % 5}", "all"],
        "text": f"document number {i} about {COLOURS[i % 3]} boats",
        "shop": {"lat": 49.0 + i / 10, "lon": 6.0},
        "parts": [{"name": "keel", "kilos": i}, {"name": "mast", "kilos": 30 - i}],
        "none": None,
        "quotes": 'it\'s "x" \\ ß 漢 \u2028',
    }


def vectors(numbers: random.Random, i: int) -> dict[str, Any]:
    return {
        "text": vector(numbers, 4),
        "image": vector(numbers, 6),
        "late": [vector(numbers, 3) for _ in range(1 + i % 3)],
        "words": m.SparseVector(indices=[i, 100 + i % 4], values=[1.0, 0.5]),
    }


def where(**conditions: Any) -> m.Filter:
    return m.Filter(**conditions)


def has(key: str, value: Any) -> m.FieldCondition:
    return m.FieldCondition(key=key, match=m.MatchValue(value=value))


def all_points(client: QdrantClient, collection: str = PLAIN) -> Any:
    return client.scroll(collection, limit=100, with_vectors=True)


def changed(change: Callable[[QdrantClient], Any], collection: str = PLAIN) -> Callable[[QdrantClient], Any]:
    """The answer to a change, and what the collection holds afterwards."""
    return lambda client: [change(client), all_points(client, collection)]


def pages(client: QdrantClient) -> Any:
    found, offset = [], None
    while True:
        points, offset = client.scroll(PLAIN, limit=7, offset=offset, with_payload=["count"])
        found.append([point.id for point in points])
        if offset is None:
            return found


def aliased(client: QdrantClient) -> Any:
    create = m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name=PLAIN, alias_name="other"))
    rename = m.RenameAliasOperation(rename_alias=m.RenameAlias(old_alias_name="other", new_alias_name="third"))
    done = client.update_collection_aliases([create, rename])
    return [done, client.get_aliases(), client.get_collection_aliases(PLAIN), client.count("third")]


def batch(client: QdrantClient) -> Any:
    return client.batch_update_points(
        PLAIN,
        [
            m.UpsertOperation(upsert=m.PointsList(points=[m.PointStruct(id=90, vector=[0.5] * 8, payload={"a": 1})])),
            m.SetPayloadOperation(set_payload=m.SetPayload(payload={"b": 2}, points=[1, 90])),
            m.DeletePayloadOperation(delete_payload=m.DeletePayload(keys=["text"], points=[2])),
            m.ClearPayloadOperation(clear_payload=m.PointIdsList(points=[3])),
            m.DeleteOperation(delete=m.PointIdsList(points=[4, 5])),
        ],
    )


def with_a_new_vector(client: QdrantClient) -> Any:
    config = m.DenseVectorNameConfig(dense=m.DenseVectorConfig(size=2, distance=m.Distance.DOT))
    client.create_vector_name(NAMED, "extra", config)
    client.update_vectors(NAMED, [m.PointVectors(id=1, vector={"extra": [1.0, 2.0]})])
    before = client.retrieve(NAMED, [1], with_vectors=True)
    client.delete_vector_name(NAMED, "extra")
    return [before, client.retrieve(NAMED, [1], with_vectors=True)]


NEAR = [0.1, -0.2, 0.3, 0.4, -0.5, 0.6, 0.7, -0.8]
FUSED = [
    m.Prefetch(query=[0.1, 0.2, 0.3, 0.4], using="text", limit=10),
    m.Prefetch(query=m.SparseVector(indices=[3, 101], values=[1.0, 2.0]), using="words", limit=10),
]

QUESTIONS: dict[str, Callable[[QdrantClient], Any]] = {
    "collections": lambda c: sorted(found.name for found in c.get_collections().collections),
    "collection-info": lambda c: [c.get_collection(NAMED).config.params, c.get_collection(NAMED).points_count],
    "exists": lambda c: [c.collection_exists(PLAIN), c.collection_exists("other")],
    "count": lambda c: c.count(PLAIN),
    "count-filtered": lambda c: c.count(PLAIN, where(must=[has("colour", "red")])),
    "retrieve": lambda c: c.retrieve(PLAIN, [3, 1, 77]),
    "retrieve-vectors": lambda c: c.retrieve(NAMED, [3], with_payload=False, with_vectors=["text", "words"]),
    "retrieve-all-vectors": lambda c: c.retrieve(NAMED, [4], with_vectors=True),
    "scroll": all_points,
    "scroll-pages": pages,
    "scroll-filtered": lambda c: c.scroll(PLAIN, where(must_not=[has("sold", True)]), limit=50),
    "scroll-ordered": lambda c: c.scroll(PLAIN, order_by=m.OrderBy(key="price", direction=m.Direction.DESC), limit=5),
    "scroll-include": lambda c: c.scroll(PLAIN, with_payload=m.PayloadSelectorInclude(include=["shop.lat"]), limit=3),
    "scroll-exclude": lambda c: c.scroll(PLAIN, with_payload=m.PayloadSelectorExclude(exclude=["parts"]), limit=3),
    "query": lambda c: c.query_points(PLAIN, NEAR),
    "query-payload": lambda c: c.query_points(PLAIN, NEAR, with_payload=False, with_vectors=True, limit=3),
    "query-by-id": lambda c: c.query_points(PLAIN, 5, limit=4),
    "query-none": lambda c: c.query_points(PLAIN, limit=4),
    "query-page": lambda c: c.query_points(PLAIN, NEAR, limit=4, offset=6),
    "query-threshold": lambda c: c.query_points(PLAIN, NEAR, score_threshold=0.3, limit=30),
    "query-filtered": lambda c: c.query_points(PLAIN, NEAR, query_filter=where(should=[has("tags", "t1")])),
    "query-named": lambda c: c.query_points(NAMED, [0.1, 0.2, 0.3, 0.4], using="text"),
    "query-euclid": lambda c: c.query_points(NAMED, [0.1] * 6, using="image", limit=5),
    "query-sparse": lambda c: c.query_points(NAMED, m.SparseVector(indices=[3, 101], values=[1, 2]), using="words"),
    "query-multivector": lambda c: c.query_points(NAMED, [[0.1, 0.2, 0.3], [0.5, 0.1, 0.0]], using="late", limit=5),
    "query-order-by": lambda c: c.query_points(PLAIN, m.OrderByQuery(order_by="price"), limit=5),
    "recommend": lambda c: c.query_points(
        PLAIN, m.RecommendQuery(recommend=m.RecommendInput(positive=[1, NEAR], negative=[2])), limit=5
    ),
    "discover": lambda c: c.query_points(
        PLAIN,
        m.DiscoverQuery(discover=m.DiscoverInput(target=NEAR, context=[m.ContextPair(positive=1, negative=2)])),
        limit=5,
    ),
    "context": lambda c: c.query_points(
        PLAIN, m.ContextQuery(context=[m.ContextPair(positive=3, negative=4)]), limit=5
    ),
    "fusion": lambda c: c.query_points(NAMED, m.FusionQuery(fusion=m.Fusion.RRF), prefetch=FUSED, limit=6),
    "rescored": lambda c: c.query_points(NAMED, [0.2] * 6, using="image", prefetch=FUSED, limit=6),
    "lookup": lambda c: c.query_points(
        PLAIN,
        m.RecommendQuery(recommend=m.RecommendInput(positive=[2])),
        lookup_from=m.LookupLocation(collection=PLAIN),
        limit=3,
    ),
    "query-batch": lambda c: c.query_batch_points(
        PLAIN, [m.QueryRequest(query=NEAR, limit=3), m.QueryRequest(query=7, limit=2, with_payload=True)]
    ),
    "query-groups": lambda c: c.query_points_groups(PLAIN, "colour", NEAR, limit=2, group_size=2),
    "facet": lambda c: c.facet(PLAIN, "colour"),
    "facet-filtered": lambda c: c.facet(PLAIN, "tags", facet_filter=where(must=[has("sold", True)]), limit=3),
    "matrix": lambda c: len(c.search_matrix_pairs(PLAIN, sample=30, limit=2).pairs),
    "matrix-offsets": lambda c: sorted(map(str, c.search_matrix_offsets(PLAIN, sample=30, limit=2).ids)),
    "filter-range": lambda c: c.count(PLAIN, where(must=[m.FieldCondition(key="price", range=m.Range(gt=3, lte=30))])),
    "filter-dates": lambda c: c.count(
        PLAIN, where(must=[m.FieldCondition(key="made", range=m.DatetimeRange(gte="2026-01-10T00:00:00Z"))])
    ),
    "filter-any": lambda c: c.count(PLAIN, where(must=[m.FieldCondition(key="count", match=m.MatchAny(any=[1, 2]))])),
    "filter-text": lambda c: c.count(PLAIN, where(must=[m.FieldCondition(key="text", match=m.MatchText(text="blue"))])),
    "filter-geo": lambda c: c.count(
        PLAIN,
        where(
            must=[m.FieldCondition(key="shop", geo_radius=m.GeoRadius(center=m.GeoPoint(lat=49, lon=6), radius=5e4))]
        ),
    ),
    "filter-nested": lambda c: c.count(
        PLAIN,
        where(
            must=[
                m.NestedCondition(
                    nested=m.Nested(
                        key="parts",
                        filter=where(must=[has("name", "keel"), m.FieldCondition(key="kilos", range=m.Range(gte=20))]),
                    )
                )
            ]
        ),
    ),
    "filter-null": lambda c: c.count(PLAIN, where(must=[m.IsNullCondition(is_null=m.PayloadField(key="none"))])),
    "filter-empty": lambda c: c.count(PLAIN, where(must=[m.IsEmptyCondition(is_empty=m.PayloadField(key="lacking"))])),
    "filter-ids": lambda c: c.count(PLAIN, where(must=[m.HasIdCondition(has_id=[1, 2, 99])])),
    "filter-vector": lambda c: c.count(NAMED, where(must=[m.HasVectorCondition(has_vector="words")])),
    "filter-at-least": lambda c: c.count(
        PLAIN, where(min_should=m.MinShould(conditions=[has("sold", True), has("colour", "red")], min_count=2))
    ),
    "index": lambda c: [
        c.create_payload_index(PLAIN, "colour", m.PayloadSchemaType.KEYWORD),
        c.delete_payload_index(PLAIN, "colour"),
    ],
}

CHANGES: dict[str, Callable[[QdrantClient], Any]] = {
    "delete-collection": lambda c: [c.delete_collection(PLAIN), c.delete_collection(PLAIN), c.collection_exists(PLAIN)],
    "metadata": lambda c: [
        c.update_collection(PLAIN, metadata={"owner": "ada"}),
        c.get_collection(PLAIN).config.metadata,
    ],
    "aliases": aliased,
    "upsert": changed(lambda c: c.upsert(PLAIN, [m.PointStruct(id=3, vector=NEAR, payload={"new": True})])),
    "upsert-batch": changed(lambda c: c.upsert(PLAIN, m.Batch(ids=[50, 51], vectors=[NEAR, NEAR], payloads=[{}, {}]))),
    "upsert-uuid": changed(
        lambda c: c.upsert(PLAIN, [m.PointStruct(id="f0e09527-b096-42a8-94e9-ea94d342b925", vector=NEAR)])
    ),
    "delete": changed(lambda c: c.delete(PLAIN, [1, 2, 3, 99])),
    "delete-filtered": changed(lambda c: c.delete(PLAIN, where(must=[has("colour", "blue")]))),
    "set-payload": changed(lambda c: c.set_payload(PLAIN, {"a": {"b": [1, None]}}, points=[1, 2])),
    "set-payload-key": changed(lambda c: c.set_payload(PLAIN, {"alt": 300}, points=[1], key="shop")),
    "set-payload-filtered": changed(lambda c: c.set_payload(PLAIN, {"x": 1}, points=where(must=[has("sold", True)]))),
    "overwrite-payload": changed(lambda c: c.overwrite_payload(PLAIN, {"only": 1}, points=[1])),
    "delete-payload": changed(lambda c: c.delete_payload(PLAIN, ["text", "shop.lat"], points=[1, 2])),
    "clear-payload": changed(lambda c: c.clear_payload(PLAIN, [1, 2])),
    "update-vectors": changed(lambda c: c.update_vectors(PLAIN, [m.PointVectors(id=1, vector=NEAR)])),
    "delete-vectors": changed(lambda c: c.delete_vectors(NAMED, ["image"], points=[1, 2]), NAMED),
    "batch-update": changed(batch),
    "new-vector": with_a_new_vector,
}

# What both refuse, and Qdrant's status for it.
REFUSED: dict[str, tuple[int, Callable[[QdrantClient], Any]]] = {
    "wrong-size": (400, lambda c: c.upsert(PLAIN, [m.PointStruct(id=1, vector=[0.1, 0.2, 0.3, 0.4])])),
    "query-size": (400, lambda c: c.query_points(PLAIN, [0.1, 0.2])),
    "no-such-vector": (400, lambda c: c.query_points(NAMED, [0.1], using="none")),
    "no-such-collection": (404, lambda c: c.query_points("none", NEAR)),
    "no-such-point": (404, lambda c: c.query_points(PLAIN, 999)),
    "no-such-lookup": (404, lambda c: c.query_points(PLAIN, 1, lookup_from=m.LookupLocation(collection="none"))),
    "there-already": (409, lambda c: c.create_collection(PLAIN, vectors_config=m.VectorParams(size=1, distance="Dot"))),
    "name": (400, lambda c: c.create_collection("a<b", vectors_config=m.VectorParams(size=1, distance="Dot"))),
    "limit": (400, lambda c: c.scroll(PLAIN, limit=0)),
    "no-points": (400, lambda c: c.upsert(PLAIN, [])),
}
