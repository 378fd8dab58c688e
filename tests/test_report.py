"""The report as people see it and as programs read it."""

import dataclasses

from engine.report import Counts, Report

REPORT = Report(
    pipeline="orders",
    guarantee="exactly-once",
    resumed_at_epoch=37,
    this_run=Counts(8_000_000, 800_312, 0, 7_199_688),
    total=Counts(50_000_000, 5_001_204, 0, 44_998_796),
    rows_by_partition=(5_660_000, 5_580_000),
    epochs=5,
    elapsed_s=1.95,
    peak_memory_bytes=402 * 2**20,
    output="out/",
    output_files=40,
    state="state/orders",
)


def test_it_prints_itself() -> None:
    assert str(REPORT) == (
        "orders: complete, exactly-once, resumed at epoch 37\n"
        "              this run        total\n"
        "rows in      8,000,000   50,000,000\n"
        "duplicates     800,312    5,001,204   (null keys kept: 0)\n"
        "rows out     7,199,688   44,998,796   partitions min 5.58M, max 5.66M\n"
        "4.1 M rows/s · peak 402 MiB · 5 epochs · output out/ (40 files) · state state/orders"
    )


def test_small_runs_show_small_numbers() -> None:
    small = dataclasses.replace(
        REPORT, this_run=Counts(2_000), elapsed_s=1.0, epochs=1, output_files=1, rows_by_partition=(2_000,)
    )
    assert "2k rows/s · peak 402 MiB · 1 epoch · output out/ (1 file)" in str(small)
    assert "partitions" not in str(small)


def test_plain_values() -> None:
    values = REPORT.to_dict()
    assert values["this_run"]["rows_in"] == 8_000_000
    assert values["rows_per_s"] == REPORT.rows_per_s


def test_rows_that_are_in_no_files() -> None:
    report = dataclasses.replace(REPORT, output="out.db, table events", output_files=None)
    assert "5 epochs · output out.db, table events · state" in str(report)
    assert report.to_dict()["output_files"] is None
