"""The tables of `selfflow evaluate`."""

import math
from collections.abc import Mapping

from selfflow.evaluation.compare import Comparison
from selfflow.evaluation.gather import SampleAccumulator
from selfflow.evaluation.physics.verify import PASSES


def print_tables(
    gathered: Mapping[str, SampleAccumulator], compared: Mapping[str, Mapping[str, Comparison]], samples: str
) -> None:
    """Prints distances, the world's laws and synchrony of samples beside what they are held beside.

    Args:
      gathered: by row.
      compared: by row, distances by the name of their features.
      samples: which of the rows the samples are.
    """
    for name in compared[samples]:
        _print_distances(name, {row: found[name] for row, found in compared.items()}, samples)
    verdicts = {row: verdict for row, found in gathered.items() if (verdict := found.verdict())}
    if verdicts:
        print(
            "\nThe world's laws (data/collisions/README.md): share of clips that pass, and how many a check applies to"
        )
        lines = {
            check if check in PASSES else f"{check} (a correlation)": {
                row: f"{told.value:.2f} ({told.n})" if (told := verdict.rows[check]).n else "-"
                for row, verdict in verdicts.items()
            }
            for check in next(iter(verdicts.values())).rows
        }
        swapped = {row: found.swapped() for row, found in gathered.items()}
        if any(swapped.values()):
            lines["own sound, not another's (AUC)"] = {
                row: f"{told.auc:.2f} ({told.n})" if told else "-" for row, told in swapped.items()
            }
        _print_rows([*verdicts], lines)
    known = {row: [v for v in found.in_step if math.isfinite(v)] for row, found in gathered.items()}
    if any(known.values()):
        print("\nSynchrony of onset strength and motion: mean peak of their correlation, and clips that have both")
        means = {row: f"{sum(v) / len(v):.2f} ({len(v)})" if v else "-" for row, v in known.items()}
        _print_rows([*known], {"peak": means})


def _print_distances(name: str, compared: dict[str, Comparison], samples: str) -> None:
    shown = lambda value: "-" if value is None else f"{value:.3g}"
    one = compared[samples]
    distance = name.split()[0]
    head = f"{distance} at n = {one.samples}"
    headline = "" if one.headline is None else f"; headline: {'KID' if one.headline == 'kid' else distance}"
    print(f"\n{name}{headline}")
    print(f"  {'':<16} {'KID':>22} {head:>24} {'precision':>10} {'recall':>7}")
    for row, c in compared.items():
        kid = "-" if c.kid is None else f"{c.kid:.3g} +- {c.kid_error:.2g}"
        print(f"  {row:<16} {kid:>22} {shown(c.frechet):>24} {shown(c.precision):>10} {shown(c.recall):>7}")
    why = (
        f" (it takes {2 * one.samples} clips, and there are {one.real})"
        if one.frechet_real is None and one.real
        else ""
    )
    print(f"  real against real, {distance} at the same n: {shown(one.frechet_real)}{why}")


def _print_rows(columns: list[str], lines: dict[str, dict[str, str]]) -> None:
    width = max(map(len, lines)) + 2
    print(f"  {'':<{width}}" + "".join(f"{column:>16}" for column in columns))
    for label, values in lines.items():
        print(f"  {label:<{width}}" + "".join(f"{values.get(column, '-'):>16}" for column in columns))
