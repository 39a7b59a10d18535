"""Results as text for people: rich tables."""

from collections.abc import Mapping

import numpy as np
from rich.markup import escape
from rich.table import Table

from .depth import BANDS, DepthProfile
from .measurement import Measurement
from .skip_tolerance import SkipTolerance
from .statistics import PairedTest, paired_test
from .throughput import Benchmark


def depth_table(profile: DepthProfile) -> Table:
    """Accuracy of the first k blocks, by difficulty."""
    table = Table(title="accuracy of the first k blocks, by difficulty [%]")
    for heading in ("blocks", "all", *(f"{b / BANDS:.1f} to {(b + 1) / BANDS:.1f}" for b in range(BANDS))):
        table.add_column(heading, justify="right")
    for k, (accuracy, row) in enumerate(zip(profile.accuracy, profile.by_difficulty, strict=True)):
        table.add_row(str(k), *(_percent(value) for value in (accuracy, *row)))
    table.add_section()
    table.add_row("needed", f"rank corr. {_number(profile.correlation)}", *map(_number, profile.blocks_needed))
    return table


def skip_table(tolerance: SkipTolerance) -> Table:
    """Accuracy at the compute of k blocks, by the way of skipping."""
    table = Table(title=f"accuracy under skipping [%]; the full net has {_percent(tolerance.full)}")
    for heading in ("blocks' worth", "MACs [%]", *tolerance.accuracy):
        table.add_column(escape(heading), justify="right")
    for k, fraction in enumerate(tolerance.macs_fraction):
        accuracies = (_percent(column[k]) for column in tolerance.accuracy.values())
        table.add_row(str(k + 1), _percent(fraction), *accuracies)
    return table


def comparison_table(title: str, reference: Measurement, rows: Mapping[str, Measurement]) -> Table:
    """One line per network: accuracy, compute, paths, and the paired test against the first one's images.

    Args:
        title: of the table.
        reference: network that the differences are taken against.
        rows: by name.
    """
    table = Table(title=title)
    for heading in ("network", "acc. [%]", "units", "MACs [%]", "paths", "corr."):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    table.add_column(escape("against run-all [points]"), justify="right")
    table.add_column("p", justify="right")
    for name, row in rows.items():
        test = paired_test(row.correct, reference.correct)
        table.add_row(
            escape(name),
            _percent(row.accuracy),
            f"{row.units_run:.2f}",
            _percent(row.macs_fraction),
            str(row.distinct_paths),
            _number(row.difficulty_correlation),
            format_test(test),
            f"{test.p_value:.3g}",
        )
    return table


def benchmark_table(result: Benchmark) -> Table:
    """One line per batch size, then mean, geometric mean and worst; a column for the speed-up of each rival."""
    table = Table(title="throughput, medians, dense and dynamic in turn on the same images")
    headings = ("batch", "dense [images/s]", "dynamic [images/s]", "speed-up", "quartiles", "ideal (MACs)")
    for heading in (*headings, *result.timings[0].rivals):
        table.add_column(escape(heading), justify="right")
    for timing in result.timings:
        low, high = timing.spread
        table.add_row(
            str(timing.batch_size),
            f"{timing.dense_throughput:,.0f}",
            f"{timing.dynamic_throughput:,.0f}",
            f"{timing.speed_up:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{1 / timing.macs_fraction:.2f}",
            *(f"{speed_up:.2f}" for speed_up in timing.rival_speed_ups.values()),
        )
    summary = result.summary()
    table.add_section()
    table.add_row("mean", "", "", f"{summary['speed_up_mean']:.2f}")
    table.add_row("geo. mean", "", "", f"{summary['speed_up_geometric_mean']:.2f}")
    table.add_row("worst", "", "", f"{summary['speed_up_worst']:.2f}", f"batch {summary['worst_batch_size']}")
    return table


def format_test(test: PairedTest) -> str:
    """Difference with its interval, in percentage points."""
    return f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}]"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f}"
