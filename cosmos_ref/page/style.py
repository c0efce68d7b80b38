"""How the report looks: one style sheet and the language switch, both written into the page."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1f27; --soft: #5c6472; --line: #e3e6ec; --page: #fbfbfd; --card: #ffffff;
  --accent: #3461e4; --given: #3461e4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #9ca4b4; --line: #2b303b; --page: #12141a;
  --card: #1a1d25; --accent: #86a4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.6;
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
header { display: grid; gap: .4rem; margin-bottom: 2.5rem; }
h1 { font-size: clamp(2rem, 5vw, 3.1rem); line-height: 1.1; letter-spacing: -.025em; margin: 0; }
h2 { font-size: 1.55rem; letter-spacing: -.015em; margin: 4rem 0 .4rem; line-height: 1.25; }
h2 .number { color: var(--accent); margin-right: .55em; font-variant-numeric: tabular-nums; }
h3 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p { margin: .5rem 0 1rem; max-width: 46rem; }
.lead { font-size: 1.2rem; color: var(--soft); }
.switch { justify-self: end; display: inline-flex; border: 1px solid var(--line); border-radius: 999px;
  overflow: hidden; }
.switch button { all: unset; cursor: pointer; padding: .15rem .85rem; font-size: .85rem; color: var(--soft); }
.switch button:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; border-radius: 999px; }
:root[lang=en] .switch [value=en], :root[lang=pt] .switch [value=pt] { background: var(--accent); color: var(--page); }
:root[lang=en] [lang=pt], :root[lang=pt] [lang=en] { display: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .9rem; margin: 1.5rem 0; }
.tile, figure, .table { background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.tile { padding: 1rem 1.15rem; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile small { color: var(--soft); font-size: .85rem; line-height: 1.35; display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--cell, 210px), 1fr)); gap: 1rem;
  margin: 1.2rem 0; }
.grid.wide { --cell: 310px; }
.grid.plots { --cell: 400px; }
figure { margin: 0; padding: .8rem; display: flex; flex-direction: column; gap: .5rem; min-width: 0; }
figure.single { margin: 1.2rem 0; }
figure.single video, figure.single .heads { width: 100%; max-width: 880px; margin: 0 auto; }
video { width: 100%; display: block; cursor: pointer; border-radius: 8px; image-rendering: pixelated;
  background: #efeff1; }
figcaption { font-size: .88rem; color: var(--soft); line-height: 1.45; }
figcaption b { color: var(--ink); font-weight: 600; }
.heads { display: flex; font-size: .78rem; font-weight: 600; text-align: center; color: var(--soft); }
.heads span { flex: 1; }
svg { width: 100%; height: auto; display: block; color: var(--soft); font-family: inherit; }
.table { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; color: var(--soft); }
td.number, th.number { text-align: right; }
.stages td:last-child { width: 45%; }
sup { line-height: 0; font-size: .7em; }
.bar { height: .5rem; border-radius: 4px; background: var(--accent); min-width: 2px; margin-top: .5rem; }
.limits { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem 1.2rem; margin: 1.5rem 0; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
@media (max-width: 560px) { .grid.plots, .grid.wide { --cell: 100%; } main { padding-top: 2rem; } }
"""

SCRIPT = """
for (const button of document.querySelectorAll('.switch button'))
  button.onclick = () => { document.documentElement.lang = button.value; };
// The controls would cover half of a small clip: a click, or the space bar, stops and starts it.
const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
for (const video of document.querySelectorAll('video')) {
  if (still) { video.autoplay = false; video.pause(); continue; }
  video.controls = false;
  video.tabIndex = 0;
  const toggle = () => { video.paused ? video.play() : video.pause(); };
  video.onclick = toggle;
  video.onkeydown = event => { if (event.key === ' ') { event.preventDefault(); toggle(); } };
}
"""
