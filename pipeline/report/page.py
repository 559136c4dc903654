"""The shell of a self-contained HTML page: head, style, nothing from elsewhere."""

from pipeline.report.markup import Markup, element

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""No script runs and nothing is fetched, whatever the page holds."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf7; --card: #ffffff; --ink: #211f1c; --soft: #6a655d; --line: #e3ded5;
  --accent: #0f6b6b; --c1: #0f6b6b; --c2: #b4652a; --c3: #6c5aa8; --c4: #93863a; --c5: #a8456b;
  --s1: #6bb0aa; --s2: #459590; --s3: #267a77; --s4: #125b5a; --s5: #073737;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #151413; --card: #1d1c1a; --ink: #ebe7df; --soft: #a39d93; --line: #34312d;
    --accent: #6cc5be; --c1: #6cc5be; --c2: #e0a06c; --c3: #a99ae0; --c4: #c9bc6d; --c5: #dd86a8;
    --s1: #4a8581; --s2: #60a39e; --s3: #80c2bc; --s4: #aae0da; --s5: #dcf8f4;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; padding: 3.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1.0625rem/1.6 var(--serif); overflow-wrap: anywhere;
}
main { max-width: 68rem; margin: 0 auto; }
h1 { margin: 0 0 1rem; font-size: clamp(2rem, 6vw, 3.1rem); font-weight: 400; line-height: 1.1;
  letter-spacing: -0.015em; text-wrap: balance; }
h2 { margin: 4.5rem 0 .4rem; padding-top: 1.1rem; border-top: 1px solid var(--line);
  font-size: 1.6rem; font-weight: 400; line-height: 1.25; }
h3 { margin: 0 0 .25rem; font: 600 .95rem/1.4 var(--sans); }
p { margin: 0 0 1rem; max-width: 42rem; text-wrap: pretty; }
.lede { font-size: 1.2rem; line-height: 1.55; }
.eyebrow, .unit, .note, dt, th, .flow small, .bars, summary, .tick, .axis, .name {
  font-family: var(--sans);
}
.eyebrow { margin-bottom: .8rem; color: var(--accent); font-size: .8rem; font-weight: 600;
  letter-spacing: .09em; text-transform: uppercase; }
.note { display: block; color: var(--soft); font-size: .84rem; line-height: 1.5; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr));
  gap: 1.5rem 2rem; margin: 2.4rem 0 0; padding: 0; list-style: none; }
.numbers li { padding-top: .8rem; border-top: 2px solid var(--accent); }
.numbers b { display: block; font-size: 2.1rem; font-weight: 400; line-height: 1.2;
  font-variant-numeric: lining-nums tabular-nums; }
.unit { font-size: .9rem; color: var(--soft); }
.rows, .clips { display: grid; margin: 1.4rem 0 .6rem; padding: 0; list-style: none; }
.rows { grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1rem 2.2rem; }
.rows li { display: grid; gap: .3rem 0; }
.of3 { grid-template-columns: repeat(3, 1fr); }
.of2 { grid-template-columns: repeat(2, 1fr); }
.rows img, .clips img, .steps img { display: block; width: 100%; height: auto;
  background: var(--line); }
.rows span, .steps span { padding-left: .15rem; font: .78rem/1.4 var(--sans); color: var(--soft); }
.rows .new { color: var(--accent); font-weight: 600; }
.strip { position: relative; grid-column: 1 / -1; }
.strip::before, .strip::after { content: ""; position: absolute; inset: 0 auto; width: 4px;
  margin-left: -2px; background: var(--page); }
.of3 .strip::before { left: calc(100% / 3); }
.of3 .strip::after { left: calc(200% / 3); }
.of2 .strip::before { left: 50%; }
.of2 .strip::after { display: none; }
.steps { display: grid; grid-template-columns: repeat(var(--columns), minmax(3.4rem, 1fr));
  gap: .3rem 0; margin: 1.4rem 0 .6rem; overflow-x: auto; }
.steps .strip::before { display: none; }
.steps .strip::after { --wide: calc(100% / var(--columns)); inset: 0; width: auto; margin: 0;
  background: repeating-linear-gradient(to right, transparent 0 calc(var(--wide) - 4px),
    var(--page) calc(var(--wide) - 4px) var(--wide)); }
.clips { grid-template-columns: repeat(6, 1fr); gap: .6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: 0 2rem; margin-top: 1.6rem; }
.chart-card { display: grid; grid-row: span 2; grid-template-rows: subgrid; gap: 0; }
.chart-card .note { margin-bottom: .6rem; }
.chart { display: block; width: 100%; height: auto; max-width: 36rem; margin-bottom: 2.2rem; }
.chart.narrow { display: none; }
.chart .grid { stroke: var(--line); }
.chart .level { stroke: var(--soft); stroke-dasharray: 5 4; }
.chart .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.chart .tick, .chart .axis { fill: var(--soft); font-size: 12px;
  font-variant-numeric: tabular-nums; }
.chart .name { font-size: 12px; font-weight: 600; stroke: none; }
.chart .name.level { fill: var(--soft); font-weight: 400; }
.c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.c4 { --own: var(--c4); } .c5 { --own: var(--c5); }
.s1 { --own: var(--s1); } .s2 { --own: var(--s2); } .s3 { --own: var(--s3); }
.s4 { --own: var(--s4); } .s5 { --own: var(--s5); }
.chart .line { stroke: var(--own); }
.chart .dot { fill: var(--own); }
.chart .name { fill: var(--own); }
.measures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 2.2rem 3rem; margin: 1.8rem 0 1rem; }
.measures p { margin-bottom: .8rem; font-size: .98rem; line-height: 1.5; }
.bars { display: grid; grid-template-columns: max-content minmax(3rem, 1fr) max-content;
  gap: .3rem .8rem; align-items: center; margin: 0; font-size: .86rem; }
.bars dt, .bars dd { margin: 0; }
.bars dt { color: var(--soft); }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; }
.bar { height: .55rem; background: var(--own); min-width: 2px; }
.track { border-left: 1px solid var(--line); }
table { width: 100%; margin: 1.4rem 0 1rem; border-collapse: collapse; font-size: .98rem; }
th, td { padding: .7rem 1.4rem .7rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; line-height: 1.45; }
th { font-size: .9rem; font-weight: 600; white-space: nowrap; }
td.value { text-align: right; white-space: nowrap; font-family: var(--sans); font-size: .95rem;
  font-variant-numeric: tabular-nums; }
.flow { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1.1rem; margin: 1.6rem 0; padding: 0; list-style: none; counter-reset: step; }
.flow li { padding: 1.1rem 1.2rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; counter-increment: step; }
.flow h3::before { content: counter(step) "  "; color: var(--accent); }
.flow p { margin-bottom: .7rem; font-size: .98rem; line-height: 1.45; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .9rem;
  margin: 0; font-size: .84rem; line-height: 1.5; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; font-family: var(--sans); font-variant-numeric: tabular-nums; }
code, pre { font: .84em/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; font-weight: 600; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
pre { margin: .8rem 0 0; padding: 1rem 1.2rem; overflow-x: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; overflow-wrap: normal; }
footer { margin-top: 4.5rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  body { padding: 2rem 1.1rem 3rem; font-size: 1rem; }
  h2 { margin-top: 3.2rem; font-size: 1.4rem; }
  .lede { font-size: 1.1rem; }
  .clips { grid-template-columns: repeat(3, 1fr); gap: .4rem; }
  .chart.wide { display: none; }
  .chart.narrow { display: block; }
  table, tbody, tr, th, td { display: block; padding: 0; border: 0; }
  tr { display: grid; grid-template-columns: 1fr max-content; gap: .1rem 1rem; padding: .8rem 0;
    border-bottom: 1px solid var(--line); }
  th { white-space: normal; }
  td.meaning { grid-column: 1 / -1; font-size: .94rem; }
}
@media print {
  body { padding: 0; }
  .flow li, .measures > *, tr, .chart { break-inside: avoid; }
}
"""


def page(title: str, *body: str) -> str:
    """Makes a whole HTML page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    whole = element("html", head, element("body", element("main", *body)), lang="en")
    return f"<!doctype html>\n{whole}\n"
