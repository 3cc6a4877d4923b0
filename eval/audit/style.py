"""The style of the report's page: light and dark, wide and narrow, printable; no outside asset."""

CSS = """
:root { color-scheme: light dark; --ground: #f6f7f5; --card: #fff; --line: #dfe3dc; --ink: #1b211d;
  --soft: #5b665f; --router: #14714f; --band: #14714f2b; --random: #8a948d; --wanted: #b35900;
  --strong: #6a3fb5; --weak: #3567c4; --good: #14714f; --good-ground: #e3f3eb; --no: #8a4b00;
  --no-ground: #fbf0df; --wait: #2b5797; --wait-ground: #e6eefa; }
@media (prefers-color-scheme: dark) { :root { --ground: #121614; --card: #1b211e; --line: #313a35;
  --ink: #e7ece9; --soft: #9ba8a1; --router: #54c596; --band: #54c59633; --random: #87938c;
  --wanted: #f0a14a; --strong: #c5a9f7; --weak: #7da6f2; --good: #66d3a4; --good-ground: #183a2c;
  --no: #f0b96a; --no-ground: #3a2c16; --wait: #9cc0f5; --wait-ground: #1c2c44; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 24px 20px 40px; }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 4px; }
h3 { font-size: 14px; margin: 18px 0 4px; }
p { margin: 0 0 10px; } .soft, .note { color: var(--soft); } .note { font-size: 13px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin-top: 16px; min-width: 0; overflow-wrap: anywhere; }
.verdict { border-left: 6px solid var(--wait); background: var(--wait-ground); }
.verdict.route, .verdict.weak-only { border-left-color: var(--good);
  background: var(--good-ground); }
.verdict.strong-only { border-left-color: var(--no); background: var(--no-ground); }
.kicker { font-size: 13px; font-weight: 650; color: var(--soft); margin: 0 0 4px; }
.warning { border-left: 4px solid var(--no); padding: 2px 0 2px 12px; margin: 10px 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(146px, 1fr)); gap: 12px;
  margin: 16px 0 0; padding: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; min-width: 0; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { margin: 2px 0 0; font-size: 13px; color: var(--soft); }
.tiles dd:first-of-type { font-size: 24px; font-weight: 650; letter-spacing: -.02em;
  color: var(--ink); line-height: 1.25; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12.5px; } svg text.wanted { fill: var(--wanted); }
.grid { stroke: var(--line); } .band { fill: var(--band); }
.router { fill: none; stroke: var(--router); stroke-width: 2.5; }
.random { fill: none; stroke: var(--random); stroke-width: 1.5; stroke-dasharray: 5 4; }
line.wanted { stroke: var(--wanted); stroke-width: 1.5; stroke-dasharray: 2 3; }
.whisker { stroke: var(--ink); stroke-width: 2; }
.chosen { fill: var(--router); stroke: var(--card); stroke-width: 2; }
.narrow { display: none; }
svg.whiskers { width: 150px; min-width: 110px; height: 20px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 13px;
  list-style: none; padding: 0; margin: 6px 0 0; }
.key i { display: inline-block; width: 20px; height: 0; border-top: 2.5px solid var(--router);
  vertical-align: middle; margin-right: 7px; }
.key i.r { border-top: 2px dashed var(--random); }
.key i.w { border-top: 2px dotted var(--wanted); }
.key i.b { height: 11px; border: 0; background: var(--band); }
.key i.c { width: 11px; height: 11px; border: 0; border-radius: 50%; background: var(--router); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line);
  white-space: nowrap; overflow-wrap: normal; }
th { color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
  min-width: 130px; overflow-wrap: anywhere; }
th:last-child, td:last-child { padding-right: 0; width: 160px; }
td small { display: block; color: var(--soft); font-size: 12px; font-weight: 400; }
tr:last-child td { border-bottom: 0; } tr.own td { font-weight: 650; }
.bar { display: grid; grid-template-columns: 150px minmax(0, 1fr) 90px; gap: 12px;
  align-items: center; margin-top: 8px; font-size: 14px; }
.bar div { background: var(--ground); border-radius: 4px; }
.bar i { display: block; height: 18px; border-radius: 4px; background: var(--router);
  min-width: 2px; }
.bar i.strong { background: var(--strong); } .bar i.weak { background: var(--weak); }
.bar i.random { background: var(--random); }
.bar b { text-align: right; font-variant-numeric: tabular-nums; }
.examples { list-style: none; margin: 0; padding: 0; }
.examples li { border-top: 1px solid var(--line); padding: 8px 0; }
.examples li:first-child { border-top: 0; }
.examples p { margin: 0; white-space: pre-wrap; }
code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Consolas, monospace;
  background: var(--ground);
  border-radius: 4px; padding: 1px 5px; }
pre { background: var(--ground); border-radius: 7px; padding: 10px 12px; margin: 4px 0 12px;
  white-space: pre-wrap; } pre code { padding: 0; background: none; }
ol, ul.plain { padding-left: 20px; margin: 6px 0; } ol li { margin-bottom: 8px; }
footer { color: var(--soft); font-size: 13px; margin-top: 16px; }
@media (max-width: 640px) {
  main { padding: 14px 12px 28px; } section { padding: 14px; } h1 { font-size: 19px; }
  .wide { display: none; } .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; } .tiles div { padding: 10px; }
  .tiles dd:first-of-type { font-size: 20px; }
  .bar { grid-template-columns: minmax(0, 1fr) 80px; gap: 2px 10px; }
  .bar span { grid-column: 1 / -1; }
  th, td { padding: 6px 7px; } th:first-child, td:first-child { min-width: 104px; }
  svg.whiskers, th:last-child { display: none; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
