"""Tables of `selfflow probe`."""

from selfflow.representation.comparison import compare_methods
from selfflow.representation.probes.probe_run import Row, best

_MAX_RUNS = 6  # for more runs only the comparison of methods is printed


def print_rows(rows: list[Row], baseline: str) -> None:
    """Prints a table of layers and a comparison of methods for each target and source.

    Args:
      rows: probe results of one or more runs.
      baseline: method that the others are compared with; empty for the method of the first row.
    """
    several = len({(row.run, row.weights) for row in rows}) > 1
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.target, row.source), []).append(row)
    for (target, source), group in groups.items():
        first = group[0]
        metric = first.metric.replace("_", " ").replace("r2", "R^2")
        chance = f", chance {first.chance:.3f}" if first.chance else ""
        print(f"\n{target} from {source}: {metric} of the {first.probe} on {first.split}{chance}")
        if not first.layer:  # 0 for scores of the whole network
            _print_whole_network(group, several, baseline)
        elif several:
            _print_several(group, baseline)
        else:
            _print_one(group)


def _print_whole_network(rows: list[Row], several: bool, baseline: str) -> None:
    """Prints scores of the network as a whole, such as retrieval."""
    if several:
        _print_comparison(rows, baseline)
        return
    for row in rows:
        print(f"  {row.method}: {row.test:.3f}")


def _print_one(rows: list[Row]) -> None:
    _print_layers(rows)
    for row in best(rows):
        has_interval = row.low == row.low  # not NaN
        interval = f" [{row.low:.3f}, {row.high:.3f}], by a bootstrap over test clips" if has_interval else ""
        print(f"  chosen on validation: block {row.layer}, tau {row.tau:g}: {row.test:.3f}{interval}")


def _print_several(rows: list[Row], baseline: str) -> None:
    chosen = best(rows)  # for each run, on the validation split; empty without that split
    if len({(row.run, row.weights) for row in rows}) <= _MAX_RUNS or not chosen:
        _print_layers(rows)
    if chosen:
        print("  with the layer and the tau chosen on validation for each run:")
        _print_comparison(chosen, baseline)
    elif len({(row.layer, row.tau) for row in rows}) == 1:
        _print_comparison(rows, baseline)


def _print_layers(rows: list[Row]) -> None:
    """Prints one row for each run and tau, and one column for each block."""
    layers, width = sorted({row.layer for row in rows}), max(len(row.method) for row in rows)
    header = " ".join(f"{f'block {layer}':>8}" for layer in layers)
    print(f"  {'':<{width}}  {'tau':>5}  {header}")
    lines: dict[tuple[str, str, float], dict[int, float]] = {}
    for row in rows:
        lines.setdefault((row.run, row.method, row.tau), {})[row.layer] = row.test
    for (_, method, tau), scores in lines.items():
        # Runs may differ in their number of blocks.
        cells = [f"{scores[layer]:>8.3f}" if layer in scores else f"{'-':>8}" for layer in layers]
        print(f"  {method:<{width}}  {tau:>5g}  " + " ".join(cells))


def _print_comparison(rows: list[Row], baseline: str) -> None:
    """Prints means of methods over seeds, and their differences from the baseline."""
    note = "  in brackets: 95 %, Student's t over training seeds"
    if baseline and baseline not in {row.method for row in rows}:  # such as a baseline without this modality
        for method in compare_methods(rows):
            print(f"  {method._replace(difference=None).summary()}")
        print(f"{note}; without differences: {baseline} has no such rows")
        return
    for method in compare_methods(rows, baseline):
        print(f"  {method.summary()}")
    print(f"{note}; differences from {baseline or rows[0].method}, by seed")
