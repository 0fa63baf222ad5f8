"""Status pages: one static HTML file each that loads nothing but `status.json` beside it, every two seconds.

A page holds no numbers itself, so it can be cached. A policy inside names its own script and style by their digests and
forbids everything else; what a model is called reaches the page as text, never as markup. The frame around
what is shown, and how numbers are written and drawn, is here; the sections, `status.html`, and `status.js` come with
the daemon that shows them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources

_HERE = "protocol.seeing.page"
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


@functools.cache
def page_html(package: str, *, who: str, command: str) -> tuple[bytes, str]:
    """The page of the package that holds its `status.html` (the sections) and `status.js`, UTF-8, and its ETag with
    quotes. `who` tells, and `command` tells the same to a terminal."""
    frame = _read(_HERE, "frame.html").replace("@who@", who).replace("@command@", command)
    html, style = frame.replace("@sections@", _read(package, "status.html")), _read(_HERE, "status.css")
    script = "\n".join((_read(_HERE, "drawing.js"), _read(package, "status.js"), _read(_HERE, "asking.js")))
    policy = _POLICY.format(script=_source(script), style=_source(style))
    page = html.replace("@policy@", policy).replace("@style@", style).replace("@script@", script).encode()
    return page, f'"{hashlib.sha256(page).hexdigest()[:16]}"'


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")


def _source(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style: the digest of what stands between its tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
