"""How the page of a report looks: one style sheet, light and dark, wide and narrow, screen and paper."""

CSS = """
:root { --ink: #1f2328; --muted: #5b6570; --grid: #d5dae0; --back: #ffffff; --soft: #f5f7f9; --link: #0b62a8;
  --blue: #0072b2; --green: #009e73;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --muted: #9aa4af; --grid: #3a424b; --back: #14171b;
  --soft: #1d2228; --link: #7cbcf2; --blue: #4fa8ea; --green: #1fc79a; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 var(--sans);
  display: grid; grid-template-columns: minmax(11rem, 15rem) minmax(0, 67rem); gap: 0 2.4rem; justify-content: center; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 3rem 0 2rem 1.5rem;
  font-size: .9rem; }
nav ol { list-style: none; padding: 0; margin: .6rem 0; }
nav li { padding: .22rem 0; }
nav a { color: var(--muted); text-decoration: none; }
nav a:hover { color: var(--ink); }
main { padding: 2.6rem 1.5rem 6rem 0; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .7rem; padding-top: 1rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
a { color: var(--link); }
.question { font-size: 1.15rem; color: var(--muted); margin: 0 0 .3rem; }
.facts { color: var(--muted); font-size: .9rem; margin: 0; }
#summary { background: var(--soft); border-radius: .6rem; padding: .3rem 1.4rem 1rem; margin-top: 1.8rem; }
#summary h2 { border: 0; margin: .9rem 0 0; padding: 0; }
#summary h3 { margin: 1rem 0 .2rem; font-size: .82rem; font-weight: 600; text-transform: uppercase;
  letter-spacing: .05em; }
#summary h3 a { color: var(--muted); text-decoration: none; }
#summary ul { margin: 0; padding-left: 1.1rem; }
section > ul { padding-left: 1.1rem; }
li { margin: .15rem 0; }
figure { margin: 1.4rem 0 2rem; }
figcaption { font-size: .875rem; color: var(--muted); max-width: 54rem; margin-top: .4rem; }
figcaption b { color: var(--ink); }
.scroll { overflow-x: auto; }
svg { max-width: 100%; height: auto; display: block; }
img { max-width: 100%; border-radius: .4rem; background: #fff; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem 1rem .32rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
table.wide { font-size: .8rem; }
table.wide :is(th, td) { padding-right: .7rem; }
th { font-weight: 600; color: var(--muted); white-space: nowrap; }
td.short { white-space: nowrap; }
td.noise { color: var(--muted); font-style: italic; }
td.lines { white-space: pre-wrap; font: .8rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
.notes { font-size: .82rem; color: var(--muted); padding-left: 1.1rem; margin: .5rem 0 0; max-width: 54rem; }
.links { font-size: .75rem; font-weight: 400; white-space: nowrap; margin-left: .3rem; }
.links a { color: var(--muted); }
details { margin: .9rem 0; }
summary { cursor: pointer; font-size: .92rem; }
.missing { border-left: 3px solid #e69f00; padding: .1rem 0 .1rem .9rem; font-size: .88rem; color: var(--muted); }
.missing ul { margin: .3rem 0; padding-left: 1.1rem; columns: 2; }
@media (max-width: 60rem) { body { display: block; }
  nav { position: static; padding: 1.2rem 1.2rem 0; max-height: none; }
  main { padding: 1rem 1.2rem 4rem; } .missing ul { columns: 1; } figure svg { min-width: 34rem; } }
@media print { nav { display: none; } body { display: block; } figure, tr { break-inside: avoid; } }
"""
