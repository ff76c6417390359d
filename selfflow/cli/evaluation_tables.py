"""Tables of `selfflow evaluate`."""

from selfflow.evaluation import metrics
from selfflow.evaluation.compare import Comparison
from selfflow.evaluation.metrics.metric import FeatureMetric, Metric, Value
from selfflow.tasks.evaluate_samples import SAMPLES, SampleReport


def print_report(report: SampleReport) -> None:
    """Prints metrics of samples, real clips and noise: one table for each feature space and for each other metric."""
    for space in report.rows[SAMPLES].comparisons:
        by_row = {row: of_row.comparisons[space] for row, of_row in report.rows.items()}
        _print_feature_space(space, by_row)
    for metric in metrics.METRICS:
        if metric.needs != "features":
            by_row = {row: _values_of(metric, of_row.values) for row, of_row in report.rows.items()}
            if any(by_row.values()):
                _print_metric(metric, by_row)


def _values_of(metric: Metric, values: dict[str, Value]) -> dict[str, Value]:
    return {key: value for key, value in values.items() if metrics.metric_of(key) is metric}


def _print_feature_space(space: str, comparisons: dict[str, Comparison]) -> None:
    """Prints one row for each set of samples and one column for each metric of features."""
    columns = [metric for metric in metrics.METRICS if metric.needs == "features"]
    cells = {}
    for row, comparison in comparisons.items():
        cells[row] = [_cell(comparison.values.get(metric.name)) for metric in columns]
    of_samples = comparisons[SAMPLES]
    headline = [metric.title for metric in columns if metric.name == of_samples.headline]
    note = f"; headline: {headline[0]}" if headline else ""
    print(f"\n{space}, n = {of_samples.samples}{note}")
    print_table([_header(metric) for metric in columns], cells)
    if of_samples.frechet_real is not None:
        real = f"{of_samples.frechet_real:.3g}"
    elif of_samples.real:  # the reference is too small to be split into two halves of this size
        real = f"- (requires {2 * of_samples.samples} clips, the reference has {of_samples.real})"
    else:
        real = "-"
    print(f"  FD of real clips from other real clips, same n: {real}")


def _header(metric: FeatureMetric) -> str:
    return f"{metric.title} ({metric.better})"


def _cell(value: Value | None) -> str:
    if value is None:
        return "-"
    return f"{value.value:.3g}" if value.error is None else f"{value.value:.3g} +- {value.error:.2g}"


def _print_metric(metric: Metric, by_row: dict[str, dict[str, Value]]) -> None:
    """Prints one row for each key of a metric and one column for each set of samples, with the number of clips."""
    print(f"\n{metric.title}: {metric.unit}; {metric.better} is better; in brackets the number of clips")
    keys = dict.fromkeys(key for values in by_row.values() for key in values)
    cells = {}
    for key in keys:
        cells[key] = [_cell_with_count(values.get(key)) for values in by_row.values()]
    print_table(list(by_row), cells)


def _cell_with_count(value: Value | None) -> str:
    if value is None or value.count == 0:
        return "-"
    number = f"{value.value:.2f}" if value.error is None else f"{value.value:.2f} +- {value.error:.2g}"
    return number if value.count is None else f"{number} ({value.count})"


def print_table(header: list[str], rows: dict[str, list[str]]) -> None:
    """Prints labelled rows with right-aligned columns."""
    lines = {"": header, **rows}
    label_width = max(map(len, rows)) + 2
    widths = [max(map(len, column)) + 2 for column in zip(*lines.values())]
    for label, cells in lines.items():
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths)]
        print(f"  {label:<{label_width}}" + "".join(aligned))
