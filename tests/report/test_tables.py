from __future__ import annotations

import json
import math

import numpy as np
import pytest

from graphopt_gym.report.tables import Table, format_cell, heading
from graphopt_gym.units import format_bytes, format_cost, format_count, format_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "123 ms"), (1.0, "1.00 s"), (2e-6, "2.00 µs"), (0.0, "0 s"), (75.25, "75.2 s"), (math.inf, "-"),
     (0.9999, "1000 ms"), (3e-10, "0.300 ns")],
)  # fmt: skip
def test_format_seconds__three_digits_in_the_largest_unit(value, text):
    assert format_seconds(value) == text


def test_format__bytes_counts_and_costs():
    assert [format_bytes(v) for v in (0, 1023, 1024, 2**30, 3 * 2**41)] == [
        "0 B", "1023 B", "1.00 KiB", "1.00 GiB", "6.00 TiB",
    ]  # fmt: skip
    assert format_count(1.5e12, "FLOP") == "1.50 TFLOP"
    assert format_count(12) == "12"
    assert format_cost(0.5, "s/sample") == "500 ms/sample"
    assert format_cost(None, "s") == format_cost(math.inf, "s") == "-"
    assert format_cost(3.0, "cycles") == "3 cycles"


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("step_time_s", 0.5, "500 ms"),
        ("peak_bytes", [2**30, 2**29], "1.00 / 0.50 GiB"),
        ("speed_per_s", 12_345.0, "12.3 k/s"),
        ("link_bytes_per_s", 1e9, "1.00 GB/s"),
        ("vs_expert_percent", 3.21, "+3.2 %"),
        ("vs_expert_percent", -3.21, "-3.2 %"),
        ("ops", 12345, "12,345"),
        ("ratio", 0.123456, "0.1235"),
        ("valid", True, "yes"),
        ("median_error", 0.0559, "5.6 %"),
        ("median_error_all", 0.5, "50.0 %"),
        ("step_time_s", None, "-"),
        ("step_time_s", float("nan"), "-"),
        ("ratio", np.float64(2.5), "2.5"),
    ],
)
def test_format_cell__by_the_unit_in_the_columns_name(column, value, text):
    assert format_cell(column, value) == text


def test_heading__leaves_the_unit_to_the_cells():
    assert heading("step_time_s") == "step time"
    assert heading("vs_expert_percent") == "vs expert"
    assert heading("ops") == "ops"


def test_table__of_takes_rows_by_column_and_in_order():
    by_column = Table.of({"title": "t", "rows": [{"a": 1}, {"a": 2, "b_s": 0.1}], "notes": "n"})
    in_order = Table.of({"title": "t", "columns": ["a", "b_s"], "rows": [[1, None], [2, 0.1]], "notes": ["n"]})
    assert by_column == in_order
    assert Table.of(by_column) is by_column
    assert json.loads(json.dumps(by_column.to_json()))["rows"] == [{"a": 1, "b_s": None}, {"a": 2, "b_s": 0.1}]


def test_table__markdown_escapes_and_aligns():
    table = Table("t", ("name", "time_s"), (("a|b", 0.5), ("c", None)), ("a note",))
    assert table.to_markdown() == "| name | time |\n| --- | ---: |\n| a\\|b | 500 ms |\n| c | - |\n\na note\n"


def test_table__rich_prints_brackets_as_they_are():
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Table("[title]", ("name",), (("mm[12] [red]",),), ("[note]",)).print(Console(file=out, width=80))
    assert {"[title]", "mm[12] [red]", "[note]"} <= {line.strip() for line in out.getvalue().splitlines()}


def test_table__narrow_terminal__leaves_columns_out_by_name_and_cuts_nothing():
    from io import StringIO

    from rich.console import Console

    table = Table("t", ("name", "what", "ops", "source"), (("a_rather_long_name", "w" * 40, 123_456_789, "s" * 30),))
    for width, missing in ((200, []), (70, ["source"]), (45, ["what", "source"]), (24, ["what", "ops", "source"])):
        out = StringIO()
        table.print(Console(file=out, width=width))
        text = out.getvalue()
        assert "a_rather_long_name" in text
        assert "…" not in text
        assert ("123,456,789" in text) == ("ops" not in missing)
        said = " ".join(text.split())
        assert f"No room here for: {', '.join(missing)}." in said if missing else "No room" not in said
