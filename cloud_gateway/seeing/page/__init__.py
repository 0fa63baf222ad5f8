"""The gateway's status page; `protocol.seeing.page` says what holds for every one."""

from __future__ import annotations

from protocol.seeing import page


def page_html() -> tuple[bytes, str]:
    """The page, UTF-8, and its ETag with quotes."""
    return page.page_html(__name__, who="gateway", command="cloud-gateway")
