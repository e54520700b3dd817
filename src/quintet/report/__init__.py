"""Report: compare.json and the cell folders in, one self-contained HTML page out. No model code."""

from quintet.report.page import write_report

__all__ = ["write_report"]
