"""Run folders in, one self-contained HTML file out. Imports no torch: any laptop reads any run."""

from contrapose.report.page import write_report
from contrapose.report.run_folder import FORMAT, Run, read_run

__all__ = ["FORMAT", "Run", "read_run", "write_report"]
