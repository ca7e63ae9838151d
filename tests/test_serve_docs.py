"""docs/server.md against the application, and against its translation."""

import re
from pathlib import Path

import pytest

from glmlite.serve.app import ROUTES

DOCS = Path(__file__).resolve().parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="not a checkout")


def text(name):
    return (DOCS / name).read_text("utf-8")


def test_both_languages_show_the_same_blocks_and_paths():
    for pattern in (r"^ {4}.*\S.*$", r"`(/[\w/.-]+)`", r"`(--[\w-]+)"):
        found = [
            re.findall(pattern, text(name).split("## The page")[0], re.M) for name in ("server.md", "server.zh.md")
        ]
        assert found[0] == found[1]


def test_all_paths_are_told():
    plain = text("server.md").replace("/v1/", "/")
    untold = [path for path in ROUTES if f"`{path}`" not in plain]
    assert all(ROUTES[path].handler.__name__ == "not_here" or "input_tokens" in path for path in untold)
