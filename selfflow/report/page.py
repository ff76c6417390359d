"""A report as one HTML page that needs no network and no script."""

import datetime
import json
from html import escape
from typing import Any

from selfflow import __version__
from selfflow.report.curves import Panel
from selfflow.report.measures import FEW, Measure
from selfflow.report.results import in_short, tables
from selfflow.report.samples import Sample
from selfflow.report.settings import Origin
from selfflow.report.study import Study
from selfflow.report.style import STYLE
from selfflow.report.svg import COLOURS, draw

# The page may load nothing, from nowhere, and run nothing, whatever the names in it say.
_HEALTH = (
    "Features of student and teacher. A cosine that is as high with another sample's teacher tells of where a token "
    "is, and nothing of what is in it; an effective rank that falls towards 1 is a collapse. "
)
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def page(
    study: Study,
    measures: list[Measure],
    panels: dict[str, list[Panel]],
    samples: list[Sample],
    differing: dict[str, dict[str, Any]],
    origins: list[Origin],
    notes: list[str],
    files: list[str],
) -> str:
    """The page.

    Args:
      study: the runs.
      measures: what is compared.
      panels: curves, by the name of their CSV: learning, probes, alignment.
      samples: to see and hear.
      differing: settings that differ, as `settings.differences` gives them.
      origins: what members were made with.
      notes: what was left out, and why.
      files: names of the CSV files beside the page.
    """
    lines = dict.fromkeys([*study.arms, *(line.arm for some in panels.values() for p in some for line in p.lines)])
    colours = {name: number for number, name in enumerate(lines)}
    parts = {
        "question": ("Question", _question(study)),
        "short": ("In short", in_short(study, measures)),
        "results": ("Results", tables(study, measures)),
        "learning": ("Learning curves", _curves(panels["learning"], colours, "No member has metrics.")),
        "probes": ("Probes by layer", _curves(panels["probes"], colours, "No probes: `selfflow probe` makes some.")),
        "alignment": ("Alignment health", _curves(panels["alignment"], colours, "No diagnostics of alignment.", True)),
        "samples": ("Samples", _samples(study, samples)),
        "settings": ("Settings that differ", _settings(study, differing)),
        "again": ("Members, and how to make them again", _again(study, origins)),
        "rest": ("Left out, and files", _rest(notes, files)),
    }
    nav = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in parts.items())
    body = "".join(f"<section><h2 id={key}>{title}</h2>{text}</section>" for key, (title, text) in parts.items())
    done, every = len(study.done()), len(study.members)
    held = f"; baseline {escape(study.baseline)}" if study.baseline else ""
    counted = (
        f"{every} member{'s' * (every > 1)} of {len(study.arms)} arm{'s' * (len(study.arms) > 1)}, {done} done{held}"
    )
    today = datetime.date.today().isoformat()
    return (
        '<!doctype html><html lang=en><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(study.name)}</title><style>{STYLE}</style></head><body>'
        f"<header><h1>{escape(study.name)}</h1><p class=dim>{counted}. Written {today} by selfflow {__version__}.</p>"
        f"<nav>{nav}</nav></header><main>{body}</main></body></html>\n"
    )


def _question(study: Study) -> str:
    if not study.question.strip():
        return "<p class=dim>No file says what was asked: sweeps keep the docstring of their experiment file.</p>"
    asked_in = f"<p><small>From {escape(study.asked_in)}.</small></p>"
    return "".join(map(_paragraph, study.question.strip().split("\n\n"))) + asked_in


def _paragraph(text: str) -> str:
    """Running text flows; what is laid out in columns or indented stays as it is."""
    lines = text.strip("\n").split("\n")
    if any(line.startswith((" ", "\t")) or "  " in line.strip() for line in lines):
        return f"<pre>{escape(text)}</pre>"
    return f"<p>{escape(' '.join(lines))}</p>"


def _curves(panels: list[Panel], colours: dict[str, int], none: str, folded: bool = False) -> str:
    if not panels:
        return f"<p class=dim>{escape(none)}</p>"
    arms = sorted({line.arm for panel in panels for line in panel.lines}, key=colours.__getitem__)
    key = "".join(
        f'<span><i style="background:var(--c{colours[arm] % COLOURS})"></i>{escape(arm)}</span>' for arm in arms
    )
    dashes = ("solid", "dashed", "dotted")
    parts = [
        f"<p class=dim>{_HEALTH * folded}Lines are means over seeds, bands their 95 % t intervals: two seeds have "
        f"none, for it is wider than a plot, and those of fewer than {FEW} may be cut off at its edge.</p>"
    ]
    for section in dict.fromkeys(panel.section for panel in panels):
        some = [panel for panel in panels if panel.section == section]
        kinds = max((list(dict.fromkeys(line.kind for line in panel.lines)) for panel in some), key=len)
        told = [f"{dashes[i % 3]}: {kind or 'trained'}" for i, kind in enumerate(kinds) if kinds != [""]]
        told += ["level: chance"] * any(panel.level is not None for panel in some)
        more = f"<small>{escape('; '.join(told))}</small>"
        figures = "".join(
            f"<figure><figcaption>{escape(panel.title)}</figcaption>{draw(panel, colours)}</figure>" for panel in some
        )
        inner = f"<div class=key>{key}</div>{more}<div class=panels>{figures}</div>"
        title = escape(section)
        parts.append(
            f"<details{' open' * (not parts[1:])}><summary>{title}</summary>{inner}</details>"
            if folded
            else f"<h3>{title}</h3>{inner}"
        )
    return "".join(parts)


def _samples(study: Study, samples: list[Sample]) -> str:
    if not samples:
        return "<p class=dim>No samples of members that are done.</p>"
    parts = ["<p class=dim>Of the first member of each arm that has any, as they were drawn: none was chosen.</p>"]
    for arm in study.arms:
        some = [sample for sample in samples if sample.member.arm == arm]
        if not some:
            continue
        clips, sheets = [s for s in some if not _is_sheet(s)], [s for s in some if _is_sheet(s)]
        parts.append(f"<h3>{escape(arm)} <small>{escape(some[0].member.name)}</small></h3>")
        parts.append(f"<div class=samples>{''.join(map(_sample, clips))}</div>")
        if sheets:
            inner = f"<div class=samples>{''.join(map(_sample, sheets))}</div>"
            parts.append(
                f"<details><summary>Sheets: real clips and samples, with spectrograms</summary>{inner}</details>"
            )
    return "".join(parts)


def _is_sheet(sample: Sample) -> bool:
    return sample.kind == "image/png" and sample.size[0] > 400


def _sample(sample: Sample) -> str:
    width, height = sample.size
    size, title = f"width={width} height={height}", escape(sample.title)
    if sample.kind == "video/mp4":
        inner = f'<video controls preload=none playsinline {size} poster="{sample.poster}" src="{sample.data}"></video>'
    elif sample.kind == "audio/wav":
        inner = f'<audio controls preload=none src="{sample.data}"></audio>'
    else:
        inner = f'<img loading=lazy {size} alt="{title}" src="{sample.data}">'
    sheet = " class=sheet" if _is_sheet(sample) else ""
    return f"<figure{sheet}>{inner}<figcaption>{title}</figcaption></figure>"


def _settings(study: Study, differing: dict[str, dict[str, Any]]) -> str:
    if not differing:
        return "<p class=dim>None: there is one arm, or arms differ in their seeds alone.</p>"
    arms = list(next(iter(differing.values())))
    head = "".join(f"<th scope=col>{escape(arm)}</th>" for arm in arms)
    rows = []
    for name, values in differing.items():
        base = values.get(study.baseline)
        cells = "".join(
            f'<td data-label="{escape(arm)}"><code>{"<b>" * (value != base)}{escape(json.dumps(value))}'
            f"{'</b>' * (value != base)}</code></td>"
            for arm, value in values.items()
        )
        rows.append(f"<tr><th scope=row><code>{escape(name)}</code></th>{cells}</tr>")
    told = "<p class=dim>Seeds apart; null: the arm has no such field. Bold: not as in the baseline.</p>"
    head = f"<thead><tr><th scope=col>field</th>{head}</tr></thead>"
    return f"{told}<div class=wide><table class=cards>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def _again(study: Study, origins: list[Origin]) -> str:
    """A table of members, and what they were made with, said once for those that share it."""
    starts = {origin.member.name: origin.started_from for origin in origins}
    rows = []
    for member in study.members:
        start = f"<small>starts from {escape(started)}</small>" if (started := starts.get(member.name)) else ""
        command = f"<code>{escape(member.command)}</code>" if member.command else "not recorded"
        minutes = member.summary.get("minutes") if member.summary else None
        took = f", {minutes:g} minutes" if isinstance(minutes, int | float) else ""
        rows.append(
            f"<tr><th scope=row>{escape(member.name)}<small>{escape(member.arm)}, seed {member.seed}</small></th>"
            f'<td data-label="state">{escape(member.state)}{took}</td>'
            f'<td data-label="command">{command}{start}</td></tr>'
        )
    head = "".join(f"<th scope=col>{name}</th>" for name in ("member", "state", "command"))
    table = f"<table class=cards><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    shared: dict[tuple, list[str]] = {}
    for origin in origins:
        surroundings = ", then ".join(origin.commits), origin.versions, origin.devices, origin.data or "none"
        shared.setdefault(surroundings, []).append(origin.member.name)
    items = []
    for (commits, versions, devices, data), names in shared.items():
        whose = "all members that were begun" if len(names) == len(origins) else ", ".join(names)
        told = f"code <code>{escape(commits)}</code>; {escape(versions)}; on {escape(devices)}; data {escape(data)}"
        items.append(f"<li>{escape(whose)}: {told}</li>")
    told = "<p class=dim>Members that are not done are in no mean. Seeds stand in each run's experiment.json.</p>"
    return f"{told}<div class=wide>{table}</div><ul>{''.join(items)}</ul>"


def _rest(notes: list[str], files: list[str]) -> str:
    listed = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes)) or "<li>nothing was left out</li>"
    return f"<ul>{listed}</ul><p>The same figures as CSV, beside this page: {escape(', '.join(files))}.</p>"
