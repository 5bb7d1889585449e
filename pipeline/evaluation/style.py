"""The style sheet of the evaluation's page: one column, light or dark as the reader's system is."""

STYLE = """
:root { --ink: #1d2126; --soft: #68707a; --paper: #fbfaf8; --card: #fff; --rule: #e3e0da; --a: #d9622b; --b: #2f6f9f;
  --c: #7a8a3c; --d: #8a5a9e; --e: #b08d2e; --f: #3d8f82; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e4df; --soft: #9aa0a8; --paper: #17191c; --card: #202327;
  --rule: #33373d; --a: #f08a55; --b: #6fb1e0; --c: #aebf66; --d: #c193d6; --e: #dcb95a; --f: #6cc3b4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 1160px; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header { border-bottom: 3px solid var(--a); padding-bottom: 1rem; }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .6rem; letter-spacing: -.02em; }
h2 { font-size: 1.5rem; margin: 3rem 0 .4rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h3 { font-size: 1.08rem; margin: 2.2rem 0 .5rem; }
h4 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; }
p { margin: .4rem 0; max-width: 46rem; }
.note, small, figcaption, dd { color: var(--soft); }
.note { font-size: .9rem; overflow-wrap: anywhere; }
a { color: inherit; text-decoration-color: var(--a); text-underline-offset: 3px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px; border-style: hidden; box-shadow: 0 0 0 1px var(--rule); }
th, td { padding: .38rem .75rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; font-size: .86rem; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td, tr:last-child th { border-bottom: 0; }
.overview { width: 100%; margin-top: 1rem; }
.overview td { font-size: 1.12rem; }
.overview td small { display: block; font-size: .76rem; }
.overview th { white-space: normal; min-width: 5rem; }
.overview th:first-child { white-space: nowrap; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.tables table { font-size: .9rem; flex: 1 1 22rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.5rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .8rem; }
figure { margin: .6rem 0 0; min-width: 0; }
figure img { width: 100%; display: block; border-radius: 6px; border: 1px solid var(--rule); }
figcaption { font-size: .84rem; margin-top: .25rem; }
svg { width: 100%; height: auto; display: block; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; padding: 6px; }
svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.axis { stroke: var(--soft); stroke-width: 1; }
.mark { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 3; }
.series-0 { --s: var(--a); } .series-1 { --s: var(--b); } .series-2 { --s: var(--c); } .series-3 { --s: var(--d); }
.series-4 { --s: var(--e); } .series-5 { --s: var(--f); }
.area { fill: var(--s); fill-opacity: .28; stroke: var(--s); stroke-width: 1.4; }
.line { fill: none; stroke: var(--s); stroke-width: 2; }
.dot, .bar { fill: var(--s); }
.key { font-size: .84rem; color: var(--soft); margin-top: .3rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; background: var(--s);
  margin-right: .4em; }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: .5rem 1.2rem; font-size: .92rem; }
dt { font-weight: 600; } dd { margin: 0; max-width: 52rem; }
pre { font-size: .8rem; overflow-x: auto; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } }
"""
