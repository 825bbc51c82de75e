"""The style sheet of the page: system fonts, one accent, light and dark, phone and paper."""

from __future__ import annotations

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1b1d21; --soft: #646a73; --rule: #e3e5e9; --wash: #f5f6f8; --edge: #0000001a;
  --first: #2456c7; --second: #c2570c; --raw: #c3cad6; --mark: #fff3d6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141518; --ink: #e4e6ea; --soft: #979da8; --rule: #2c2f36; --wash: #1c1e23; --edge: #ffffff1a;
    --first: #7ea6ff; --second: #f0975a; --raw: #474d59; --mark: #332b17;
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
.scroll + .scroll { margin-top: 1.25rem; }

.comment { margin-top: .5rem; font-size: 1.125rem; max-width: 45rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem 1.5rem; }
.facts, nav { margin-top: 1.75rem; }
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dt { font-size: .8125rem; line-height: 1.35; color: var(--soft); }
.facts dd { font-size: 1.375rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.headline dd { font-size: 1.75rem; font-weight: 600; }
.facts.wide { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }

.samples { width: 100%; table-layout: fixed; margin-top: 1rem; }
.samples thead th { padding: .4rem 0; text-align: center; font-size: .875rem; }
.samples thead th { color: var(--soft); background: var(--page); }
.samples tbody th { padding: .9rem 0 .4rem; line-height: 1.4; font-weight: 500; }
.samples tbody:first-of-type th { padding-top: .4rem; }
.samples td { padding: 0 2px; }
.samples td:first-child { padding-left: 0; }
.samples td:last-child { padding-right: 0; }
.samples img { border-radius: 6px; }
.samples img, .card img, .shots img { outline: 1px solid var(--edge); outline-offset: -1px; }
.pill { display: inline-block; margin-left: .5em; padding: 0 .45em; border-radius: 99px; background: var(--mark);
  font-size: .75rem; font-weight: 500; color: var(--ink);
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }

.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: 1.75rem 1.5rem; }
.panel { break-inside: avoid; }
.panel figcaption { font-size: .8125rem; line-height: 1.35; margin-bottom: .75rem; }
.panel figcaption b { font-weight: 600; }
.panel figcaption span { display: block; color: var(--soft); font-size: .75rem; }
.panel svg { display: block; width: 100%; height: 6.5rem; margin-bottom: 2.5rem; overflow: visible; }
.panel text { font-size: .75rem; font-weight: 600; fill: var(--ink); font-variant-numeric: tabular-nums; }
.panel .value { font-weight: 400; fill: var(--soft); }
.panel .grid { stroke: var(--rule); }
.panel .marked { fill: var(--mark); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.panel .join { stroke: var(--dot); opacity: .4; }
.good { --dot: var(--first); }
.bad { --dot: var(--second); }
.whole { --dot: var(--ink); }
.whisker { stroke: var(--dot); stroke-width: 2; opacity: .55; }
circle { fill: var(--dot); }
span.good, span.bad { color: var(--dot); font-weight: 600; }
.dot { display: block; width: 100%; height: 1rem; overflow: visible; }
.dot .track { stroke: var(--rule); }
.dot .without { stroke: var(--soft); stroke-width: 2; }

.reading dl { display: grid; grid-template-columns: minmax(8rem, auto) 1fr; gap: .5rem 1.5rem; margin: 1rem 0 0; }
.reading, .reading p { font-size: .875rem; }
.reading p { margin-top: .75rem; max-width: 45rem; }
.reading dt { font-weight: 600; }
.reading i { display: block; font-style: normal; font-weight: 400; font-size: .75rem; color: var(--soft); }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0; padding: 0; list-style: none; }
.chips li { padding: .1rem .6rem; border-radius: 99px; background: var(--wash); font-size: .875rem; }
.leaks { width: 100%; table-layout: fixed; font-size: .8125rem; }
.leaks th { padding: .3rem .75rem .3rem 0; line-height: 1.35; }
.leaks thead { color: var(--soft); }
.leaks tr { border-top: 1px solid var(--rule); }
.leaks thead tr { border-top: 0; }
.leaks td { padding: .3rem 1.5rem .3rem .25rem; vertical-align: middle; }
.leaks td span { display: block; margin-top: -.15rem; font-size: .75rem; color: var(--soft); }
.leaks .none { color: var(--soft); }

.prompt + .prompt { margin-top: 2.5rem; }
h4, h5 { margin: 0; }
h4 { font-size: 1rem; line-height: 1.4; font-weight: 600; padding-bottom: .6rem; }
.prompts > .note { margin-bottom: 1.25rem; }
.cell { display: grid; grid-template-columns: 4.5rem minmax(0, 1fr) 19rem; gap: .5rem 1.25rem; padding: 1rem 0;
  border-top: 1px solid var(--rule); break-inside: avoid; }
.cell h5 { font-size: 1.125rem; line-height: 1.2; font-weight: 600; font-variant-numeric: tabular-nums; }
.cell h5 > span:first-child:not(.pill) { display: block; font-size: .75rem; font-weight: 400; color: var(--soft); }
.cell h5 .pill { display: table; margin: .25rem 0 0; }
.shots { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 3px; align-content: start; }
.shots img { border-radius: 3px; }
.measures { width: 100%; font-size: .75rem; line-height: 1.3; }
.measures th { width: 6.75rem; padding: 0; white-space: nowrap; color: var(--soft); }
.measures td { padding: 0; }
.measures td:nth-child(2) { padding: 0 .75rem; }
.measures td:last-child { width: 2.5rem; text-align: right; white-space: nowrap; }
.faint { opacity: .55; }
.beside .note { margin-top: .5rem; font-size: .75rem; line-height: 1.4; }

.graphs { display: grid; grid-template-columns: minmax(0, 26rem) minmax(0, 1fr); gap: 2rem 3rem; align-items: start; }
.graph { display: block; width: 100%; height: auto; margin: 1rem auto 0; font-size: 12.5px; }
.graph .box rect { fill: var(--wash); stroke: var(--rule); }
.graph .box text { fill: var(--ink); }
.graph .box .count { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
.graph .ran rect { stroke: var(--first); stroke-width: 2; }
.graph .arrow { fill: none; stroke: var(--soft); stroke-width: 1.2; opacity: .7; }
.graph marker path { fill: var(--soft); }
.kinds { width: 100%; font-size: .8125rem; }
.kinds tr { border-top: 1px solid var(--rule); }
.kinds thead tr { border-top: 0; }
.kinds thead, .kinds td:last-child { color: var(--soft); }
.kinds th, .kinds td { padding: .25rem 1rem .25rem 0; line-height: 1.35; overflow-wrap: normal; }
.kinds td:nth-child(2), .kinds th:nth-child(2) { text-align: right; }

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
.figures { font-size: .875rem; }
.figures { overflow-wrap: normal; }
.figures th, .figures td { padding: .35rem 2rem .35rem 0; white-space: nowrap; }
.figures td, .figures thead th + th { text-align: right; }
.figures thead th { color: var(--soft); }
.figures tr, .tags tr { border-top: 1px solid var(--rule); }
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

.times td:nth-child(3) { text-align: right; }
.kinds.times td:last-child { width: 50%; padding-right: 0; white-space: nowrap; }
.kinds.times td[colspan] { text-align: left; }
.times thead th:nth-child(3) { text-align: right; }
.kinds.files, #versions .chips { margin-top: .75rem; }
.files code { font: .75rem ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.files code { overflow-wrap: anywhere; }
.files td:nth-child(2) { white-space: nowrap; }

.overview { width: 100%; font-size: .875rem; overflow-wrap: normal; }
.overview tr { border-top: 1px solid var(--rule); }
.overview thead tr { border-top: 0; }
.overview thead th, .overview .none { color: var(--soft); }
.overview th, .overview td { padding: .4rem 1.25rem .4rem 0; vertical-align: top; line-height: 1.35; }
.overview td, .overview thead th + th { text-align: right; }
.overview td:last-child, .overview th:last-child { padding-right: 0; }
.overview td { white-space: nowrap; }
.overview .none { text-align: left; }
.lanes { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 2rem 2.5rem; }
.lanes { margin-top: 2rem; }
.lane { width: 100%; font-size: .75rem; line-height: 1.3; table-layout: fixed; break-inside: avoid; align-self: start; }
.lane caption { font-size: .8125rem; }
.lane caption span { margin-left: .35em; font-weight: 400; color: var(--soft); font-size: .75rem; }
.lane tr { border-top: 1px solid var(--rule); }
.lane th { width: 46%; padding: .2rem .5rem .2rem 0; line-height: 1.2; }
.lane td { padding: .2rem .5rem; }
.lane td:last-child { width: 2.75rem; padding: .2rem 0; text-align: right; white-space: nowrap; }
.lane .dot { height: .95rem; }
.equal { margin: -.5rem 0 1rem; padding-left: 1.25rem; font-size: .875rem; }
.overview td i { display: block; font-style: normal; font-size: .75rem; color: var(--soft); }
.mini { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .35rem .75rem; margin-top: .5rem; }
.mini dt { font-size: .6875rem; line-height: 1.2; color: var(--soft); }
.mini dd { font-size: .8125rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.versuses { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1.25rem 1.75rem; }
#prompts h3 + .note { margin: -.5rem 0 .75rem; }
.versus { break-inside: avoid; }
.versus figcaption { font-size: .8125rem; margin-bottom: .35rem; }
.versus figcaption .note { display: block; font-size: .75rem; }
.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 4px; }
.trio img { border-radius: 4px; outline: 1px solid var(--edge); outline-offset: -1px; }
.trio span { display: block; text-align: center; font-size: .75rem; color: var(--soft); border-radius: 99px; }
.trio .chosen span { background: var(--mark); color: var(--ink);
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.defs { position: absolute; }
.overlay { display: flex; flex-direction: column; justify-content: flex-end; }
.overlay svg { margin-bottom: 0; overflow: hidden; }
.overlay use, .overlay line { fill: none; vector-effect: non-scaling-stroke; }
.overlay .raw { stroke: var(--raw); }
.overlay .first { stroke: var(--first); stroke-width: 2; }
.values { margin: 0; font-size: .8125rem; }
.values dt { font-weight: 600; }
.values dd { margin: .25rem 0 1rem; }
.values pre { margin: 0; }

.recipe { columns: 2 24rem; column-gap: 3rem; }
pre { margin: 0 0 1.25rem; white-space: pre-wrap; font: .8125rem/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; }
.recipe pre { break-inside: avoid-column; }
.recipe b { font-weight: 600; color: var(--first); }
.recipe .default, .recipe .default .key { color: var(--soft); }
.recipe .key { color: var(--ink); }
footer { margin-top: 4rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); font-size: .8125rem; }

@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.75rem; }
  section { margin-top: 2.5rem; padding-top: 1.5rem; }
  .facts, .facts.wide { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .headline dd { font-size: 1.5rem; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.25rem 1.25rem; }
  .reading dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .reading dd { margin-bottom: .6rem; }
  .cell { grid-template-columns: minmax(0, 1fr); }
  .cell h5 > span:first-child:not(.pill), .cell h5 .pill { display: inline-block; }
  .cell h5 > span:first-child:not(.pill) { margin-right: .4em; }
  .cell h5 .pill { margin-left: .5em; }
  .shots { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .overview { font-size: .8125rem; }
  .overview th, .overview td { padding-right: .9rem; }
  .lanes { grid-template-columns: minmax(0, 1fr); }
  .versuses { grid-template-columns: minmax(0, 1fr); }
  .leaks td { padding-right: .5rem; }
  .files th, .files td { display: block; }
  .files thead { display: none; }
  .kinds.files td:nth-child(2) { text-align: left; }
  .leaks th:first-child { width: 32%; }
  .graphs { grid-template-columns: minmax(0, 1fr); }
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
    --raw: #bbb; --edge: #0002; --mark: #fff0c8; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, details { display: none; }
  section { margin-top: 2rem; padding-top: 1rem; }
  h2, h3, h4, .lead, caption { break-after: avoid; }
  .reading { display: block; }
  .reading::details-content { display: block; content-visibility: visible; }
  .lanes { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.25rem 2rem; }
  .graphs, .values dd { break-inside: avoid; }

  .versuses { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem; }
  .samples tbody, .chart { break-inside: avoid; }
  .samples thead th { position: static; }
  .sheet { grid-template-columns: repeat(5, 1fr); }
  .recipe { columns: 2 14rem; }
  .cell { grid-template-columns: 4.5rem minmax(0, 1fr) 15rem; padding: .5rem 0; }
  .panels { grid-template-columns: repeat(5, 1fr); gap: .75rem; }
  .panels.losses { grid-template-columns: repeat(4, 1fr); }
  .shots { grid-template-columns: repeat(8, minmax(0, 1fr)); }
  .graphs { grid-template-columns: 20rem 1fr; }
}
"""
