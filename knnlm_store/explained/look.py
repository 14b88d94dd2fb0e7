"""How the page looks: light and dark, wide and narrow, on paper.

A detail is displayed while its token is chosen, has the focus or is pointed at, all in one place:
beside the text where there is room, else at the foot of the window, and in the text where the
window is too low for that. They cover one another, that which is pointed at on top.
"""

STYLE = """
:root { --s1: #e3edf9; --s2: #cbdef6; --s3: #abcaf1; --s4: #8ab5ec; --s5: #6ea2e6; --line: #174a94;
  --high: min(45vh, 24rem); }
@media (prefers-color-scheme: dark) { :root { --s1: #1b2a3e; --s2: #1e3656; --s3: #224470;
  --s4: #26528a; --s5: #2b61a5; --line: #9cc4ff; } }
a { color: var(--one); } a:visited { color: var(--one); }
:focus-visible { outline: 2px solid var(--ink); outline-offset: 2px; }
.u { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; user-select: none; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
h2, h3, li { overflow-wrap: anywhere; } h2:focus, h3:focus { outline: none; }
small { overflow-wrap: anywhere; }

.documents { width: 100%; }
.documents th, .documents td { white-space: normal; vertical-align: top; }
.documents thead th { vertical-align: bottom; }
.documents .show { width: 1%; padding-left: .25rem; text-align: center; }
.documents .show input { width: 1.25rem; height: 1.25rem; margin: .1rem 0 0;
  accent-color: var(--one); }
.documents td.worth { white-space: nowrap; }
.documents th.document { text-align: left; overflow-wrap: anywhere; }
.documents td.raised, .documents th.raised { text-align: left; min-width: 11rem; }
span.raised { display: inline-block; margin-right: .75rem; overflow-wrap: anywhere; }
.documents small { display: block; }
.documents tr:target { background: var(--mark); }
.bar { fill: var(--one); margin-right: .5rem; } .bar rect { rx: 2px; }

.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none;
  margin: .25rem 0 .75rem; padding: 0; font-size: .9rem; }
.sign { font-size: .75rem; }
.c1, .c2 { --sign: var(--worse); } .c3, .c4 { --sign: var(--better); } .sign { color: var(--sign); }

.text { position: relative; margin: 1rem 0; font-size: 1.0625rem; line-height: 2.1;
  white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; unicode-bidi: plaintext; }
.plain, .q { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.prompt { color: var(--soft); }
.text input { position: absolute; width: 1px; height: 1.5em; margin: 0; opacity: 0;
  pointer-events: none; }
.w { position: relative; padding: .15em 0; border-radius: 2px; cursor: pointer;
  border-bottom: 2px solid transparent; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.legend .w { padding: .15em .4em; cursor: auto; }
.s1 { background: var(--s1); } .s2 { background: var(--s2); }
.s3 { background: var(--s3); border-bottom: 2px dotted var(--line); }
.s4 { background: var(--s4); border-bottom: 2px solid var(--line); }
.s5 { background: var(--s5); border-bottom: 4px solid var(--line); }
.blank { display: inline-block; line-height: 1.2; white-space: pre;
  box-shadow: inset 0 0 0 1px var(--edge); }
.g { font-weight: 400; opacity: .75; user-select: none; }
.text .c1::after, .text .c2::after, .text .c3::after, .text .c4::after { position: absolute;
  right: 0; left: 0; top: -.7em; text-align: center; font-size: .6em; line-height: 1;
  color: var(--sign); pointer-events: none; }
.c1::after { content: "\\25bd"; content: "\\25bd" / ""; }
.c2::after { content: "\\25bc"; content: "\\25bc" / ""; }
.c3::after { content: "\\25b3"; content: "\\25b3" / ""; }
.c4::after { content: "\\25b2"; content: "\\25b2" / ""; }
.legend .sign::after { content: none; }
.w:hover { outline: 1px solid var(--ink); }
:checked + .w, .none:checked ~ div > :target + .w { outline: 2px solid var(--one); }
:focus-visible + .w { outline: 3px solid var(--ink); }
.w:hover, :checked + .w, :focus + .w { z-index: 1; }

.d, .hint { display: none; position: fixed; right: 0; bottom: 0; left: 0; height: var(--high);
  padding: .75rem 1rem; overflow: auto; border-top: 2px solid var(--edge); background: var(--panel);
  font-size: .9rem; line-height: 1.5; white-space: normal; direction: ltr; unicode-bidi: isolate;
  text-align: left; cursor: auto; z-index: 1; }
.d { z-index: 2; } .d:focus-visible { outline-offset: -3px; }
:checked + .w + .d, :focus + .w + .d, .w:hover + .d, .d:hover, .d:focus-within,
.none:checked ~ div > :target + .w + .d, .none:focus-visible ~ .hint { display: block; }
.x:hover :checked + .w + .d, .x:focus-within :checked + .w + .d { z-index: 3; }
:focus + .w + .d, .d:focus-within { z-index: 4; } .w:hover + .d { z-index: 5; }
.close { display: none; position: fixed; right: 1rem; bottom: calc(var(--high) - 2.6rem);
  z-index: 6; padding: 0 .6rem; border: 1px solid var(--edge); border-radius: 4px;
  background: var(--page); font-size: .85rem; line-height: 1.7rem; cursor: pointer; }
.none:not(:checked) ~ .close { display: block; }
.k { margin: 0 4.5rem .5rem 0; } .k b { font-size: 1.1rem; margin-right: .5rem; }
.d dl { display: grid; grid-template-columns: repeat(4, auto); gap: .25rem 1rem; margin: 0 0 .5rem;
  justify-content: start; }
.hint dl { margin: 0; } .hint dd { margin: 0 0 .35rem; color: var(--soft); }
.d dt { color: var(--soft); font-size: .8rem; } sub { line-height: 0; } .d dd { margin: 0; }
.d dd, .d li > b, .d p > b { font-variant-numeric: tabular-nums; }
.d ol { list-style: none; margin: 0; padding: 0; }
.d li { margin: 0 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--faint);
  overflow-wrap: anywhere; }
.q { margin: .15rem 0 0; font-size: .85rem; color: var(--soft); }
.q::before, .q::after { content: "\\2026"; }
mark { padding: 0 .1em; background: var(--mark); color: var(--ink); font-weight: 700;
  text-decoration: underline; }

@media (max-width: 63.99rem) {
  html { scroll-padding: 2rem 0 calc(var(--high) + 2rem); }
  body { padding-bottom: calc(var(--high) + 2rem); }
}
@media (min-width: 64rem) {
  body { max-width: 78rem; padding-right: 28rem; }
  .d, .hint { top: 1rem; right: max(1rem, calc(50vw - 38rem)); bottom: 1rem; left: auto;
    width: 25rem; height: auto; border: 1px solid var(--edge); border-radius: 6px; }
  .hint { display: block; bottom: auto; }
  .close { top: 1.6rem; right: calc(max(1rem, 50vw - 38rem) + 1rem); bottom: auto; }
}
@media (max-width: 40rem) {
  .documents, .documents tbody { display: block; }
  .documents thead { position: absolute; clip-path: inset(50%); }
  .documents tr { display: grid; grid-template-columns: 2rem auto 1fr; padding: .35rem 0; }
  .documents td, .documents th { padding: 0 .5rem 0 0; text-align: left; }
  .documents .show { grid-row: span 3; width: auto; }
  .documents th.document { grid-column: 2 / 4; padding-left: 0; }
  .documents td.raised { grid-column: 2 / 4; min-width: 0; }
  .documents .in::before { content: "in "; } .documents .worth::before { content: "worth "; }
  .bar { display: none; }
}
@media (max-height: 26rem) and (max-width: 63.99rem) {
  html { scroll-padding: 2rem 0; } body { padding-bottom: 4rem; }
  .d, .hint { position: static; height: auto; border: 1px solid var(--edge); }
  .w:hover + .d { display: none; } :checked + .w + .d { display: block !important; }
  .close { bottom: .5rem; }
}
@media (forced-colors: active) { .s0, .s1, .s2 { border-bottom: 0; }
  .blank { border: 1px solid; } }
@media print {
  .d, .hint, .close, .skip { display: none !important; }
  body { max-width: none; padding: 0; } .w { print-color-adjust: exact; }
}
"""
