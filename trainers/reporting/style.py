"""How a report looks: on a wide screen, on a phone, in the dark and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16191f; --quiet: #596273; --rule: #e0e4ea; --accent: #2457c5;
  --tint: #eaf0fd; --good: #14713a; --good-tint: #e3f4e9; --wait: #8a4b06; --wait-tint: #fdf0dc;
  --c0: #2457c5; --c1: #c2410c; --c2: #15803d; --c3: #8b2fd6; --c4: #b91c5c; --c5: #0e7490; --c6: #85520a;
  --c7: #4b5563;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0f1217; --card: #171b22; --ink: #e8ebf0; --quiet: #9aa4b4; --rule: #2b313c; --accent: #8db3ff;
    --tint: #1c2942; --good: #6fd79a; --good-tint: #15301f; --wait: #f3bd72; --wait-tint: #372711;
    --c0: #7aa9ff; --c1: #ff9b5e; --c2: #5fd38d; --c3: #c79bff; --c4: #ff84b1; --c5: #56cfe1; --c6: #e0b45c;
    --c7: #a8b0bd;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, footer, nav > ul { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 44px; padding-bottom: 22px; }
.eyebrow {
  margin: 0 0 6px; color: var(--quiet); font-size: 13px; letter-spacing: .06em; text-transform: uppercase;
}
h1 { margin: 0; font-size: clamp(26px, 4.4vw, 40px); line-height: 1.15; letter-spacing: -.02em; }
h1, h2, h3, p, li, dd, td, th, figcaption { overflow-wrap: anywhere; }
.lead { margin: 12px 0 0; color: var(--quiet); font-size: 17px; max-width: 54em; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--rule); }
nav > ul {
  display: flex; gap: 4px 20px; overflow-x: auto; list-style: none; font-size: 14px; scrollbar-width: none;
}
nav a { display: block; padding: 10px 0; color: var(--quiet); text-decoration: none; white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { padding-top: 36px; scroll-margin-top: 30px; }
h2 { margin: 0 0 4px; font-size: 22px; letter-spacing: -.01em; }
h3 { margin: 26px 0 8px; font-size: 16px; }
.note { margin: 0 0 14px; color: var(--quiet); font-size: 14.5px; max-width: 56em; }
code, .value { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; }
.pill {
  display: inline-block; margin: 14px 8px 0 0; padding: 3px 12px; border-radius: 99px; font-size: 13.5px;
  background: var(--good-tint); color: var(--good);
}
.pill.wait { background: var(--wait-tint); color: var(--wait); }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 14px 0 0;
}
.cards > div, .scroll, .chartbox, .weight, .settings {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
}
.cards > div { padding: 14px 16px; }
.cards dt { color: var(--quiet); font-size: 13px; line-height: 1.35; }
.cards dd { margin: 4px 0 0; font-size: 26px; line-height: 1.2; font-weight: 600; letter-spacing: -.015em; }
.cards dd small { display: block; font-size: 13px; font-weight: 400; letter-spacing: 0; color: var(--quiet); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 14px; }
figure { margin: 0; }
.chartbox { padding: 14px 12px 8px; break-inside: avoid; }
.chartbox figcaption { padding: 0 4px 4px; font-weight: 600; font-size: 14.5px; }
.chartbox figcaption small, .pair figcaption small {
  display: block; font-weight: 400; color: var(--quiet); font-size: 13px;
}
.chart { display: block; width: 100%; height: auto; font-size: 11px; font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart text { fill: var(--quiet); }
.chart .end { text-anchor: end; } .chart .middle { text-anchor: middle; }
.chart .line {
  fill: none; stroke: currentColor; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round;
}
.chart circle { fill: currentColor; }
.chart .best { fill: var(--card); stroke: currentColor; stroke-width: 2; }
.chart .name { fill: currentColor; font-weight: 600; }
.d1 .line { stroke-dasharray: 6 4; } .d2 .line { stroke-dasharray: 2 4; }
.at rect { fill: transparent; }
.at line { stroke: var(--quiet); stroke-width: 1; }
.at line, .at circle { visibility: hidden; pointer-events: none; }
.at:hover line, .at:hover circle { visibility: visible; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 8px 0 12px; padding: 0;
  font-size: 13.5px;
}
.chartbox .legend { margin: 4px; font-size: 12.5px; }
.letter { display: inline-block; text-align: left; min-width: 1.4em; font-weight: 700; }
.scroll { overflow-x: auto; }
.scroll.tall { max-height: 30rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; padding: 10px 14px 2px; color: var(--quiet); font-size: 13px; }
th, td { padding: 7px 14px; text-align: right; border-top: 1px solid var(--rule); vertical-align: top; }
td { white-space: nowrap; } thead th { overflow-wrap: normal; }
thead th { border-top: 0; color: var(--quiet); font-weight: 600; font-size: 13px; vertical-align: bottom; }
.tall thead th { position: sticky; top: 0; background: var(--card); box-shadow: 0 1px 0 var(--rule); }
tbody th { font-weight: 500; } th:first-child { text-align: left; }
tbody tr:first-child > * { border-top-color: var(--rule); }
td.text, th.text { text-align: left; white-space: normal; min-width: min(11em, 30vw); }
tbody th.text { min-width: min(15em, 36vw); }
td.text, tbody th.text { overflow-wrap: anywhere; }
.runs { list-style: none; margin: 14px 0 0; padding: 0; display: grid; gap: 8px; }
.runs small { color: var(--quiet); font-size: 14.5px; padding-left: 1.75em; display: block; }
tr.best > * { background: var(--tint); }
.tag {
  margin-left: 8px; padding: 1px 8px; border-radius: 99px; background: var(--accent); color: var(--card);
  font-size: 11.5px; font-weight: 600;
}
.settings { padding: 8px 16px; columns: 3 250px; column-gap: 28px; margin: 0; font-size: 14px; }
.settings > div {
  display: flex; justify-content: space-between; gap: 14px; padding: 4px 0; break-inside: avoid;
  border-bottom: 1px solid var(--rule);
}
.settings dt { color: var(--quiet); } .settings dd { margin: 0; text-align: right; }
.weights {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 12px;
  grid-auto-flow: dense; margin-top: 14px;
}
.weight { padding: 14px 16px; break-inside: avoid; min-width: 0; }
.weight.wide { grid-column: 1 / -1; }
.weight h4 { margin: 0 0 10px; font-size: 14.5px; }
.weight h4 small { font-weight: 400; color: var(--quiet); font-size: 13px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr)); gap: 14px; }
.pair > div { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.pair img {
  display: block; width: 100%; aspect-ratio: 1; background: var(--page); border-radius: 4px;
  border: 1px solid var(--rule); image-rendering: pixelated;
}
.pair figcaption { font-size: 13px; padding-top: 5px; }
.pair span { display: block; color: var(--quiet); font-size: 11.5px; padding-top: 2px; }
.missing {
  margin: 8px 0 0; padding: 12px 16px 12px 34px; background: var(--wait-tint); color: var(--wait);
  border-radius: 12px; font-size: 14.5px;
}
footer { padding-top: 40px; padding-bottom: 48px; color: var(--quiet); font-size: 13.5px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
@media (max-width: 600px) {
  main, header, footer, nav > ul { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 28px; }
  .cards { grid-template-columns: 1fr 1fr; } .cards dd { font-size: 22px; }
  th, td { padding: 6px 10px; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  :root { color-scheme: light; --page: #ffffff; }
  body { font-size: 11pt; }
  nav { display: none; }
  .scroll, .scroll.tall { overflow: visible; max-height: none; }
  .grid { grid-template-columns: 1fr 1fr; }
  h2, h3, h4, .note, caption { break-after: avoid; } tr, .cards > div { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
