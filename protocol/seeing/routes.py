"""Routes of whoever may be looked at: metrics, the status document, the page. Looking runs off the event loop."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from protocol.oip.routes import Answer, Call, Route
from protocol.seeing.views import Views

HTML = "text/html; charset=utf-8"
# A page cannot forbid in itself that others frame it.
NO_FRAMES = ((b"content-security-policy", b"frame-ancestors 'none'"), (b"x-content-type-options", b"nosniff"))

Scene = TypeVar("Scene")


class ViewRoutes(Generic[Scene]):
    """Mount what `routes` gives beside the standard protocol's own."""

    def __init__(self, views: Views[Scene]) -> None:
        self._views = views

    def routes(self, *, metrics: bool = True, page: bool = True) -> list[Route]:
        """`/metrics` where `metrics`; `/status` and `/status.json` where `page`. The page itself holds no numbers."""
        found = []
        if metrics:
            found.append(Route("GET", "/metrics", "metrics", "Metrics for Prometheus", self._metrics))
        if page:
            found.append(Route("GET", "/status", "open", "The status page", self._page))
            found.append(Route("GET", "/status.json", "metrics", "Everything the page shows", self.status))
        return found

    async def status(self, _: Call) -> Answer:
        """The status document; also for a route of another name."""
        return Answer(await asyncio.to_thread(self._views.status_json))

    async def _metrics(self, _: Call) -> Answer:
        content_type, text = await asyncio.to_thread(self._views.metrics_text)
        return Answer(text, content_type)

    async def _page(self, call: Call) -> Answer:
        html, etag = self._views.page()
        tag = (b"etag", etag.encode())
        if call.headers.get(b"if-none-match") == etag.encode():
            return Answer(status=304, headers=(tag,))
        return Answer(html, HTML, headers=(tag, (b"cache-control", b"no-cache"), *NO_FRAMES))
