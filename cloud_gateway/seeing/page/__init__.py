"""The status page: one static HTML file that loads nothing but `status.json` beside it, a few times a minute.

It holds no numbers itself, so it can be cached; a policy inside forbids everything else. Whatever a model is called
reaches the page as text, never as markup.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources


@functools.cache
def page_html() -> tuple[bytes, str]:
    """The page, UTF-8, and its ETag with quotes."""
    page = resources.files(__package__ or __name__).joinpath("status.html").read_bytes()
    return page, f'"{hashlib.sha256(page).hexdigest()[:16]}"'
