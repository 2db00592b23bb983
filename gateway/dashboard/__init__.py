"""The dashboard: pages at `/` and below `/ui/`, rendered here, updated by htmx and by one stream of events.

How to add a page
-----------------
1. A module here, named by its noun, with handlers and one `PAGE`; it goes into the list in `contents.py`:

       async def show(request: Request) -> Response:
           queue = await asker_of(request).json("GET", "/api/v1/cluster")   # asking.py: the client's paths
           return page(request, "cluster.html", queue=queue)                # view.py: the whole page
           # fragment(request, "cluster_rows.html", …) for what htmx swaps in

       PAGE = Page(
           entries=(Entry("Cluster", "/ui/cluster", "cluster", needs=("GET", "/api/v1/cluster")),),   # the navigation
           routes=(Route("/ui/cluster", show),),
           topics=(Topic("cluster", look, every=2.0),),   # hub.py; only for a page that is live
       )

   `needs` is the API call without which the page is no use: keys that may not do it do not see the entry. A handler
   needs no try: `Refused` (the orchestrator's own answer, with its status and text) and `Away` (no orchestrator) become
   a page, or a fragment in place of the one that htmx has asked for (htmx 4 swaps errors too).

2. A template in `templates/` that begins with `{% extends "base.html" %}` and fills `title` and `main`. In templates:
   `static("x.js")` (the address of a file in `static/`, with its hash), `may("POST", "/api/v1/services")` (whether the
   key in use may do that: what it may not do is not offered), the macros of `parts.html`, and the filters `moment`,
   `duration`, `minutes`, `count`, `bytes` of `words.py`. Everything is escaped. There are no inline scripts, no
   `style=`, no `hx-on`, no `hx-vals="js:…"`: the CSP forbids them all. A page's own script is a file in `static/`,
   loaded in `{% block head %}` with `<script src="{{ static('x.js') }}" defer></script>`; its own styles are a file
   too, `<link rel="stylesheet" href="{{ static('x.css') }}">`, made of the variables at the top of `style.css`.

3. State is changed by POST only (the guard refuses one that does not come from our own pages), answered by
   `see_other(request, path)`, which htmx and plain forms both follow.

To push what changes
--------------------
A `Topic` has a function that looks: `async def look(asker: Asker) -> dict[str, str]` gives HTML by the id of the
element that it is. The hub calls it every `every` seconds while somebody watches, once for all tabs together, and
sends the pieces that are new or different. A page shows those within `<tbody data-live="cluster">` (new ones come
first, those that are gone go), or in the place of any element with a piece's id; it names its topics in
`{% block topics %}cluster{% endblock %}`. A new piece that belongs elsewhere has `data-elsewhere`; what a screen
reader is told of a piece that has changed stands in its `data-say`. A topic with `of_one=True` is watched as
`name:argument`, and its look is given the argument.

Nothing of a piece may depend on who looks. `static/live.js` shares one connection between all tabs of a browser. A
script can listen: `document.addEventListener("live:cluster", (event) => event.detail.pieces)`; so a topic may also have
pieces that are data, see `json_piece` in `hub.py`.

Streams of one page (logs, chat) need none of this: a script reads the API's own stream with `fetch`; the cookie of the
sign-in is taken there too.
"""
