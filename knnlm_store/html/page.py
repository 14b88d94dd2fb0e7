"""The document round a page: nothing in it is fetched, and nothing runs."""

from __future__ import annotations

import base64
import hashlib

from knnlm_store.html.markup import Markup, joined, tag

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1a1d21; --soft: #565d66;
  --faint: #e4e7eb; --edge: #9aa2ac; --panel: #f5f6f8; --better: #1f66c9; --worse: #c75a10;
  --one: #1f66c9; --two: #c2255c; --three: #12805c; --own: #8b95a1; --mark: #fff3cf;
  --other: #c75a10; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --ink: #e8eaed; --soft: #a6adb7; --faint: #2c3138; --edge: #6d757f;
    --panel: #1d2126; --better: #3b78cf; --worse: #c96a22; --one: #5b9cf5; --two: #f0709c;
    --three: #45c08f; --own: #78828e; --mark: #3a3213;
    --other: #f2a65e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 47rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0; }
p { margin: .25rem 0 .75rem; overflow-wrap: anywhere; }
.soft, small { color: var(--soft); }
.warning { border-left: 4px solid var(--worse); background: var(--panel); padding: .5rem .75rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; } thead th { color: var(--soft); border-bottom: 1px solid var(--edge); }
tbody th { font-weight: 400; } tbody tr { border-bottom: 1px solid var(--faint); }
th:first-child { text-align: left; padding-left: .5rem; }
.marked { background: var(--mark); } .marked th, .marked td { font-weight: 600; }
details { margin: .5rem 0 0; } summary { color: var(--soft); cursor: pointer; }
"""


def page(title: str, style: str, *parts: object) -> str:
    """Make a whole document, well-formed as XML too. style: CSS beyond what all pages have."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(_STYLE + style)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(_STYLE + style)),
    )
    body = tag("body", tag("main", *parts))
    return joined(Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), "\n")


def _policy(style: str) -> str:
    """Allow this one style sheet, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def folded(name: str, inside: Markup) -> Markup:
    """Make what is only shown when asked for."""
    return tag("details", tag("summary", name), inside)
