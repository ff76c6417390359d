"""The look of a report: light and dark, on paper, and from the width of a phone up."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --dim: #5c6570; --back: #fff; --box: #f4f5f7; --rule: #d5d9de;
  --c0: #0067a5; --c1: #c44e00; --c2: #00805c; --c3: #b0488a; --c4: #7d6200; --c5: #3a8fd0; --c6: #6a3fb5; --c7: #555;
  --c8: #d0021b; --c9: #5e8c00; --c10: #00838f; --c11: #8d5524; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9ba4ae; --back: #15181c; --box: #1f242a;
  --rule: #3a424b; --c0: #5ab4f0; --c1: #ff9350; --c2: #35cfa0; --c3: #ec9ccb; --c4: #e3c54d; --c5: #9fd2ff;
  --c6: #b99bf7; --c7: #b8bec5; --c8: #ff6b76; --c9: #b5dc5a; --c10: #4fd5e0; --c11: #d9a066; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 16px; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0.3em 0 0; } h2 { font-size: 1.25rem; margin: 2.2em 0 0.5em; padding-top: 0.4em;
  border-top: 1px solid var(--rule); } h3 { font-size: 1rem; margin: 1.6em 0 0.3em; }
p, ul { max-width: 46em; } .dim, small, figcaption { color: var(--dim); } small { font-size: 0.82rem; }
nav { font-size: 0.9rem; margin-top: 0.8em; } nav a { display: inline-block; padding: 0.3em 0.9em 0.3em 0; }
a { color: var(--c0); } code, pre { font: 0.82rem/1.45 ui-monospace, monospace; }
pre { background: var(--box); padding: 0.7em; overflow-x: auto; } code { overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: 0.2em 1.2em; margin: 0.5em 0; font-size: 0.9rem; }
.key i { display: inline-block; width: 1.4em; height: 0.28em; margin-right: 0.4em; vertical-align: middle; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.88rem; }
th, td { text-align: left; vertical-align: top; padding: 0.45em 0.9em 0.45em 0; border-bottom: 1px solid var(--rule); }
thead th { vertical-align: bottom; } th small, td small { display: block; font-weight: normal; }
td b { font-size: 1rem; } table.cards { margin-bottom: 1.2em; } thead th { max-width: 11em; overflow-wrap: normal; }
.shown { font-weight: 600; } .tag { font-size: 0.75rem; font-weight: normal;
  border: 1px solid var(--rule); border-radius: 3px; padding: 0 0.3em; color: var(--dim); white-space: nowrap; }
.beside { color: var(--dim); } .none { color: var(--dim); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 1em; }
figure { margin: 0; min-width: 0; } figcaption { font-size: 0.85rem; }
.panels figcaption { color: var(--ink); font-weight: 600; }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
svg .grid { stroke: var(--rule); stroke-width: 0.6; } svg .level { stroke: var(--dim); stroke-dasharray: 1.5 3; }
svg .line { fill: none; stroke-width: 1.7; stroke-linejoin: round; } svg .band { opacity: 0.16; }
.samples { display: flex; flex-wrap: wrap; gap: 1em; } .samples figure { width: 220px; }
.samples figure.sheet { width: 100%; max-width: 720px; } video, img { display: block; width: 100%; height: auto;
  background: var(--box); } audio { display: block; width: 100%; }
details > summary { cursor: pointer; font-weight: 600; padding: 0.4em 0; }
@media (max-width: 640px) {
  .cards thead { display: none; } .cards, .cards tbody, .cards tr, .cards th, .cards td { display: block; }
  .cards tbody th { font-size: 1.02rem; border: 0; padding: 1em 0 0.1em; } .cards td { padding: 0.4em 0; }
  .cards td::before { content: attr(data-label); display: block; font-weight: 600; }
  .cards td.none { display: none; } .cards .beside td { display: inline; border: 0; padding: 0 1em 0 0; }
  .cards .beside td::before { display: inline; font-weight: normal; content: attr(data-label) ": "; }
  .cards .beside th { font-size: 0.88rem; padding-top: 0.7em; } .cards .beside td.none { display: none; }
  .samples figure { width: calc(50% - 0.5em); } .samples figure.sheet { width: 100%; }
}
@media print { video, audio, nav { display: none; } }
"""
