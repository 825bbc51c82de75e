"""The style sheet of the page: system fonts, one accent, light and dark, phone and paper."""

from __future__ import annotations

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1b1d21; --soft: #646a73; --rule: #e3e5e9; --wash: #f5f6f8; --edge: #0000001a;
  --first: #2456c7; --second: #c2570c; --raw: #c3cad6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141518; --ink: #e4e6ea; --soft: #979da8; --rule: #2c2f36; --wash: #1c1e23; --edge: #ffffff1a;
    --first: #7ea6ff; --second: #f0975a; --raw: #474d59;
  }
}
*, ::before, ::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 67rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1, h2, h3, p, dl, dd, figure { margin: 0; }
h1 { font-size: 2.25rem; line-height: 1.15; font-weight: 650; letter-spacing: -.02em; }
h2 { font-size: 1.4rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; }
h3 { font-size: 1rem; font-weight: 600; margin: 2rem 0 .75rem; }
h3 .note { margin-left: .35em; font-weight: 400; }
a { color: var(--first); text-underline-offset: .2em; text-decoration-thickness: 1px; }
a:not(:hover) { text-decoration-color: color-mix(in srgb, currentColor 35%, transparent); }
img { display: block; width: 100%; height: auto; image-rendering: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: inherit; text-align: left; }
section { margin-top: 3.5rem; padding-top: 2rem; border-top: 1px solid var(--rule); }
.note, .lead, .origin, footer { color: var(--soft); }
.note { font-size: .8125rem; }
.lead { margin: .25rem 0 1rem; }
.scroll { overflow-x: auto; }

.comment { margin-top: .5rem; font-size: 1.125rem; max-width: 45rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1rem 1.5rem; }
dl, nav { margin-top: 1.75rem; }
dl div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
dt { font-size: .8125rem; line-height: 1.35; color: var(--soft); }
dd { font-size: 1.375rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }

.samples { width: 100%; table-layout: fixed; margin-top: 1rem; }
.samples thead th { padding: .4rem 0; text-align: center; font-size: .875rem; }
.samples thead th { color: var(--soft); background: var(--page); }
.samples tbody th { padding: .9rem 0 .4rem; line-height: 1.4; font-weight: 500; }
.samples tbody:first-of-type th { padding-top: .4rem; }
.samples td { padding: 0; }
.strip { position: relative; overflow: hidden; border-radius: 6px; }
.strip img, .card img { outline: 1px solid var(--edge); outline-offset: -1px; }
.strip::after {
  content: ""; position: absolute; inset: 0; --part: calc(100% / var(--columns));
  background: repeating-linear-gradient(to right, var(--page) 0 2px, transparent 2px calc(var(--part) - 2px),
    var(--page) calc(var(--part) - 2px) var(--part));
  margin: 0 -2px; print-color-adjust: exact; -webkit-print-color-adjust: exact;
}

.chart { margin-bottom: 1.5rem; }
.chart > svg {
  display: block; overflow: visible; height: 17rem; width: calc(100% - 3.75rem); margin: 1.5rem 0 2.75rem 3.25rem;
}
.chart.low > svg { height: 10rem; }
.chart svg svg { overflow: visible; }
.chart text { font-size: .75rem; fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart polyline, .chart line { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.chart .grid { stroke: var(--rule); }
.chart .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.chart .raw { stroke: var(--raw); }
.chart .first { stroke: var(--first); stroke-width: 2; }
.chart .second { stroke: var(--second); stroke-width: 2; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; font-size: .8125rem; color: var(--soft); }
.key i { display: inline-block; width: 1.5em; margin-right: .5em; vertical-align: .25em; border-top: 2px solid; }
i.raw { border-color: var(--raw); }
i.first { border-color: var(--first); }
i.second { border-color: var(--second); }
i.mark { border-top: 1px dashed var(--soft); }

caption { padding-bottom: .4rem; text-align: left; font-weight: 600; }
.figures, .settings table { font-size: .875rem; }
.figures { overflow-wrap: normal; }
.figures th, .figures td { padding: .35rem 2rem .35rem 0; white-space: nowrap; }
.figures td, .figures thead th + th { text-align: right; }
.figures thead th { color: var(--soft); }
.figures tr, .settings tr, .tags tr { border-top: 1px solid var(--rule); }
.figures thead tr, .tags thead tr { border-top: 0; }

.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1.5rem 1.25rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); margin-top: 1rem; }
.card { break-inside: avoid; }
.card img { aspect-ratio: 1; object-fit: contain; background: var(--wash); border-radius: 6px; }
.card p { font-size: .8125rem; line-height: 1.4; margin-top: .4rem; }
.card p + p, .small p { font-size: .75rem; margin-top: .25rem; }
.shared { color: var(--soft); }
.columns { columns: 2 20rem; column-gap: 3rem; }
.tags { width: 100%; font-size: .875rem; table-layout: fixed; }
.tags th { width: 45%; padding: .25rem .75rem .25rem 0; line-height: 1.35; }
.tags thead { color: var(--soft); }
.tags td { padding: 0 2.5rem 0 0; white-space: nowrap; }
.bar { display: inline-block; height: .6rem; min-width: 2px; border-radius: 2px; }
.bar { background: var(--first); opacity: .75; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.count { margin-left: .5rem; color: var(--soft); }
details { margin-top: 2rem; }
summary { cursor: pointer; font-weight: 600; }

.settings { columns: 2 22rem; column-gap: 3rem; margin-top: 1.25rem; }
.settings table { width: 100%; margin-bottom: 1.75rem; break-inside: avoid; }
.settings th { width: 45%; padding: .3rem .75rem .3rem 0; color: var(--soft); vertical-align: top; }
.settings td { padding: .3rem 0; white-space: pre-line; vertical-align: top; }
footer { margin-top: 4rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); font-size: .8125rem; }

@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.75rem; }
  section { margin-top: 2.5rem; padding-top: 1.5rem; }
  dl { grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); }
  .samples { min-width: calc(var(--columns) * 5rem); }
  .sheet { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1.25rem 1rem; }
  .chart > svg { height: 13rem; }
  .figures th, .figures td { padding-right: .9rem; white-space: normal; }
  .figures { font-size: .8125rem; }
}
@media (min-width: 40.01rem) {
  .samples thead th { position: sticky; top: 0; z-index: 1; }
  .scroll { overflow-x: visible; }
}
@media print {
  :root { --page: #fff; --ink: #000; --soft: #555; --rule: #ccc; --wash: #f5f5f5; --first: #2456c7; --second: #c2570c;
    --raw: #bbb; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, details { display: none; }
  section { margin-top: 2rem; padding-top: 1rem; }
  h2, h3, caption { break-after: avoid; }
  .samples tbody, .chart { break-inside: avoid; }
  .samples thead th { position: static; }
  .sheet { grid-template-columns: repeat(5, 1fr); }
  .settings { columns: 2 14rem; }
}
"""
