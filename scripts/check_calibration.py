"""Calibrates this processor and compares it with models that really run: ``python scripts/check_calibration.py``.

Runs ``graphopt calibrate`` (two to three minutes) and ``graphopt bench calibration`` (two minutes) and keeps, in
``envs_data/calibration``, the kernel times, the device file and the table, which it also writes into
``docs/calibrate.md``. Times are of one thread; run it while nothing else does.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from graphopt_gym.benchmarks.calibration import GENERIC, calibration_report
from graphopt_gym.data import data_path
from graphopt_gym.files import write_file, write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "calibrate.md"
BEGIN, END = "<!-- the table: scripts/check_calibration.py -->", "<!-- end of the table -->"


def calibrate(folder: Path, refit: bool) -> None:
    """Times the kernels (``refit``: takes those that are there), writes ``kernels.csv.gz`` and ``my_cpu.toml``."""
    with tempfile.TemporaryDirectory() as work:
        if refit:
            write_file(Path(work, "my_cpu.csv"), gzip.decompress((folder / "kernels.csv.gz").read_bytes()))
        command = [sys.executable, "-m", "graphopt_gym", "calibrate", "--name", "my_cpu", "--out"]
        command += [f"{work}/my_cpu.toml", *(["--resume"] if refit else [])]
        subprocess.run(command, check=True, cwd=ROOT)
        write_file(folder / "my_cpu.toml", Path(work, "my_cpu.toml").read_bytes(), make_folders=True)
        table = Path(work, "my_cpu.csv").read_bytes()
    write_file(folder / "kernels.csv.gz", gzip.compress(table, mtime=0))


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as a CSV file, numbers with four digits."""
    with tempfile.TemporaryFile("w+", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        file.seek(0)
        write_text(path, file.read())


def page_table(report: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"| model | step | ops | measured, ms | calibrated, ms | error | {GENERIC}, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["models"]:
        times = [f"{1e3 * row[key]:.1f}" for key in ("measured_s", "calibrated_s")]
        generic = f"{1e3 * row[f'{GENERIC}_s']:.1f}"
        cells = [
            f"{row['model']} ({row['kind']})",
            row["mode"],
            f"{row['ops']:,}",
            *times,
            f"{100 * row['error']:+.1f} %",
        ]
        lines.append("| " + " | ".join([*cells, generic]) + " |")
    lines += [
        "",
        "| kind | steps | mean error | worst error | " + f"mean error of {GENERIC} |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in report["summary"]:
        errors = [f"{100 * row[key]:.1f} %" for key in ("mean_error", "worst_error", f"mean_{GENERIC}_error")]
        lines.append("| " + " | ".join([row["kind"], str(row["steps"]), *errors]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_path("calibration"), help="a folder")
    parser.add_argument("--bench-only", action="store_true", help="take the device file that is there")
    parser.add_argument(
        "--refit", action="store_true", help="keep the kernel times that are there; run the small steps"
    )
    parser.add_argument("--no-page", action="store_true", help="leave docs/calibrate.md as it is")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.bench_only:
        calibrate(arguments.out, arguments.refit)
    report = calibration_report(lambda text: print(text, file=sys.stderr), str(arguments.out / "my_cpu.toml"))
    keep(arguments.out / "steps.csv", report["models"])
    table = page_table(report)
    print(table)
    if not arguments.no_page:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        write_text(PAGE, f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    main()
