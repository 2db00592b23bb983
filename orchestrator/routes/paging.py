"""Long lists, a page at a time."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response

PAGE = 200  # in an answer when no limit is given

Limit = Annotated[int, Query(ge=1, le=10_000, description="At most so many; `Link` in the answer leads to the next.")]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="Leave out so many of the newest.")]


def tell_total(request: Request, response: Response, *, total: int, limit: int, offset: int) -> None:
    """Say in the answer's headers how many there are on all pages, and where the next page is (RFC 8288)."""
    response.headers["X-Total-Count"] = str(total)
    if offset + limit < total:
        query = request.query_params.multi_items()
        query = [(name, value) for name, value in query if name not in ("limit", "offset")]
        query += [("limit", str(limit)), ("offset", str(offset + limit))]
        # Relative to the address that was asked, whatever gateway or prefix stands before us.
        response.headers["Link"] = f'<?{urlencode(query)}>; rel="next"'
