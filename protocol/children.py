"""Processes of ours: how one that is started in any folder finds the very packages that started it. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # where our packages lie, installed or not


def environment(mine: Mapping[str, str]) -> dict[str, str]:
    """`mine`, with our own packages before whatever else its Python looks into."""
    path = os.pathsep.join(each for each in (str(ROOT), mine.get("PYTHONPATH", "")) if each)
    return {**mine, "PYTHONPATH": path}
