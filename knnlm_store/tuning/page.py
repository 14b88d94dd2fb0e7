"""How the report looks beyond what all pages have: its figures."""

from __future__ import annotations

from knnlm_store.html.page import page as any_page

_STYLE = """
figure { margin: .75rem 0 0; overflow-x: auto; }
svg { display: block; max-width: 100%; min-width: 38rem; height: auto; }
text { fill: var(--ink); font-size: 13px; font-variant-numeric: tabular-nums; }
.tick, .note, .axis { fill: var(--soft); } .tick, .note { font-size: 12px; }
.strong { font-weight: 700; }
.grid { stroke: var(--faint); stroke-width: 1; } .base { stroke: var(--edge); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.series-1 { stroke: var(--one); } .series-2 { stroke: var(--two); }
.series-3 { stroke: var(--three); } .plain { stroke: var(--own); }
.fixed { stroke: var(--soft); stroke-dasharray: 5 4; stroke-width: 1.5; }
.dot { fill: var(--page); stroke-width: 2; } .whisker { stroke-width: 1.5; opacity: .6; }
.diagonal { stroke: var(--soft); stroke-dasharray: 3 4; }
.cell { stroke: none; shape-rendering: crispEdges; }
.better { fill: var(--better); } .worse { fill: var(--worse); }
.good { fill: none; stroke: var(--ink); stroke-width: 1.25; }
.ridge { fill: none; stroke: var(--ink); stroke-width: 1; opacity: .55; }
.frame { fill: none; stroke: var(--edge); }
.ridge-dot { fill: var(--ink); stroke: var(--page); stroke-width: .75; }
.ring { fill: none; stroke: var(--ink); stroke-width: 2; }
.own { fill: var(--own); } .bar.plain { fill: var(--own); stroke: none; }
.foreign { fill: none; stroke: var(--other); stroke-width: 1.5; }
.chosen { fill: var(--one); } .hot { fill: transparent; }
.cell:hover, .bar:hover { stroke: var(--ink); stroke-width: 1.5; }
.hot:hover { fill: var(--faint); opacity: .6; }
"""


def page(title: str, *parts: object) -> str:
    """Make the whole document."""
    return any_page(title, _STYLE, *parts)
