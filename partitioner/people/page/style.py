"""How the page looks: one column of text, one accent, three hues for device, link and cloud. Pure.

Colours are told apart without red against green: teal (device), amber (link) and slate (cloud) differ in lightness too.
Nothing is loaded: fonts are the reader's own. Dark where the reader's system is dark, and always light on paper.
"""

from __future__ import annotations

_LIGHT = """
  --paper: #fcfcfa; --ink: #1b1d21; --soft: #5d636e; --faint: #c9ccd1; --line: #e4e5e3; --wash: #f2f3ef;
  --accent: #0b6478; --accent-wash: #e3f0f2; --warn: #a9500f;
  --device: #0b6478; --encoding: #63aebd; --upload: #dd8421; --trip: #efb871; --download: #f8dcb4; --cloud: #737b88;
"""
_DARK = """
  --paper: #15171a; --ink: #e9e9e6; --soft: #9aa1ab; --faint: #464b53; --line: #2b2f35; --wash: #1d2024;
  --accent: #5cc0d4; --accent-wash: #17303a; --warn: #f0a25c;
  --device: #4fb4c9; --encoding: #27707f; --upload: #e8983c; --trip: #a8702c; --download: #6b4c25; --cloud: #7e8795;
"""

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 56px 28px 72px; }}
h1, h2, .figures b {{ font-family: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "Noto Serif",
  "DejaVu Serif", serif; font-weight: 600; letter-spacing: -.012em; text-wrap: balance; }}
h1 {{ font-size: clamp(27px, 4.4vw, 44px); line-height: 1.12; margin: 6px 0 14px; overflow-wrap: anywhere; }}
h2 {{ font-size: 24px; line-height: 1.2; margin: 0 0 6px; }}
h3 {{ font-size: 14px; margin: 0 0 4px; font-weight: 600; }} section > h3 {{ margin-top: 34px; }}
p {{ margin: 0 0 10px; max-width: 74ch; overflow-wrap: anywhere; }}
section {{ margin-top: 54px; padding-top: 22px; border-top: 1px solid var(--line); }}
.over {{ font-size: 13px; letter-spacing: .02em; color: var(--soft); margin: 0; }}
.lede {{ font-size: 18px; line-height: 1.5; }}
.soft, figcaption {{ color: var(--soft); font-size: 14px; }}
figure {{ margin: 20px 0 0; }}
figcaption {{ margin-top: 8px; max-width: 80ch; }}
svg {{ display: block; width: 100%; height: auto; overflow: visible; }}
svg text {{ font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
  fill: var(--ink); font-variant-numeric: tabular-nums; }}
svg .small {{ font-size: 11px; }}
svg .muted {{ fill: var(--soft); }}
svg .strong {{ font-weight: 650; }}
svg .loud {{ fill: var(--accent); font-weight: 650; }}
svg .halo {{ paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }}
svg .grid {{ stroke: var(--line); stroke-width: 1; }}
svg .axis {{ stroke: var(--faint); stroke-width: 1; }}
svg .other {{ fill: none; stroke: var(--faint); stroke-width: 1.25; }}
svg .winner {{ fill: none; stroke: var(--soft); stroke-width: 1.25; }}
svg .best {{ fill: none; stroke: var(--accent); stroke-width: 3.5; stroke-linejoin: round; stroke-linecap: round; }}
svg .switch {{ stroke: var(--accent); stroke-width: 1; stroke-dasharray: 2 4; }}
svg .mark {{ fill: var(--paper); stroke: var(--accent); stroke-width: 2.5; }}
svg .full {{ fill: var(--accent); }}
svg .hollow {{ fill: var(--paper); stroke: var(--soft); stroke-width: 1.5; }}
svg .short {{ fill: var(--warn); }}
svg .device {{ fill: var(--device); }} svg .encoding {{ fill: var(--encoding); }}
svg .upload {{ fill: var(--upload); }} svg .trip {{ fill: var(--trip); }} svg .download {{ fill: var(--download); }}
svg .cloud {{ fill: var(--cloud); }}
svg .box {{ fill: var(--wash); stroke: var(--faint); stroke-width: 1; }}
svg .box.head {{ fill: var(--accent-wash); stroke: var(--device); }}
svg .box.both {{ stroke-dasharray: 4 3; }}
svg .wire {{ fill: none; stroke: var(--soft); stroke-width: 1.25; }}
svg .wire.crosses {{ stroke: var(--upload); stroke-width: 3; }}
svg .cutline {{ stroke: var(--upload); stroke-width: 1.5; stroke-dasharray: 6 5; }}
.keys {{ display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 4px; padding: 0; list-style: none;
  font-size: 14px; }}
.keys i {{ display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 18px 28px;
  margin: 30px 0 0; }}
.figures div {{ border-top: 2px solid var(--accent); padding-top: 9px; }}
.figures b {{ display: block; font-size: 25px; line-height: 1.15; font-variant-numeric: tabular-nums; }}
.figures span {{ color: var(--soft); font-size: 14px; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 30px 36px; }}
.panels figure {{ margin: 12px 0 0; }}
.beside {{ display: grid; grid-template-columns: minmax(0, 460px) minmax(0, 1fr); gap: 40px; align-items: start; }}
.narrow {{ display: none; }}
/* A shadow where more of a table follows: two patches that scroll with it hide two that do not. */
.wide {{ overflow-x: auto; margin-top: 16px; background:
  linear-gradient(90deg, var(--paper) 50%, transparent) 0 / 40px 100%,
  linear-gradient(270deg, var(--paper) 50%, transparent) 100% / 40px 100%,
  linear-gradient(90deg, var(--faint), transparent) 0 / 14px 100%,
  linear-gradient(270deg, var(--faint), transparent) 100% / 14px 100%;
  background-attachment: local, local, scroll, scroll; background-repeat: no-repeat; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; vertical-align: bottom; color: var(--soft); font-weight: 500; padding: 6px 16px 6px 0;
  border-bottom: 1px solid var(--faint); }}
td {{ padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }}
td.name {{ white-space: normal; overflow-wrap: anywhere; min-width: 17ch; max-width: 34ch; }}
th:last-child, td:last-child {{ padding-right: 0; }}
td.n, th.n {{ text-align: right; white-space: nowrap; }}
td svg {{ width: 150px; margin-top: 3px; }}
tr.best td {{ background: var(--accent-wash); }} tr.best td:first-child {{ box-shadow: -8px 0 0 var(--accent-wash); }}
tr.best td.id {{ font-weight: 650; color: var(--accent); }}
td.n.short {{ color: var(--warn); }}
dl {{ display: grid; grid-template-columns: minmax(130px, 200px) 1fr; gap: 6px 24px; margin: 16px 0 0;
  font-size: 15px; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; overflow-wrap: anywhere; }}
ul.notes {{ margin: 12px 0 0; padding-left: 20px; font-size: 15px; }}
ul.notes li {{ margin-bottom: 6px; overflow-wrap: anywhere; }}
footer {{ margin-top: 54px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft); font-size: 13px;
  overflow-wrap: anywhere; }}
.beside svg {{ max-width: 460px; }}
@media (max-width: 960px) {{ .beside {{ grid-template-columns: minmax(0, 1fr); gap: 18px; }} }}
@media (max-width: 720px) {{
  main {{ padding: 32px 18px 48px; }} section {{ margin-top: 40px; }}
  .broad {{ display: none; }} .narrow {{ display: block; }}
  table {{ font-size: 13px; }} th, td {{ padding-right: 10px; }} td svg {{ width: 76px; }}
  td.name {{ min-width: 12ch; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }} dd {{ margin-bottom: 10px; }}
}}
@media print {{
  main {{ max-width: none; padding: 0; }} body {{ font-size: 11pt; }} section {{ margin-top: 26px; }}
  h2 {{ break-after: avoid; }} figure, tr, .figures {{ break-inside: avoid; }} .wide {{ overflow: visible; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
}}
"""
