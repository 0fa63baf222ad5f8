"""The status page: one static HTML file that loads nothing but `status.json` beside it, every two seconds.

It holds no numbers itself, so it can be cached. A policy inside names its own script and style by their digests and
forbids everything else; what a model is called reaches the page as text, never as markup.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources

_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


@functools.cache
def page_html() -> tuple[bytes, str]:
    """The page, UTF-8, and its ETag with quotes."""
    html, style, script = (_read(f"status.{kind}") for kind in ("html", "css", "js"))
    policy = _POLICY.format(script=_source(script), style=_source(style))
    page = html.replace("@policy@", policy).replace("@style@", style).replace("@script@", script).encode()
    return page, f'"{hashlib.sha256(page).hexdigest()[:16]}"'


def _read(name: str) -> str:
    return resources.files("cloud_gateway.seeing.page").joinpath(name).read_text("utf-8")


def _source(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style: the digest of what stands between its tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
