"""Reports: one self-contained HTML file from a run folder or an experiment. Imports no torch."""

from contrapose.report.experiment import read_experiment, write_experiment
from contrapose.report.page import write_report
from contrapose.report.run_folder import FORMAT, Run, read_run
from contrapose.report.shortcuts import read_shortcuts, write_shortcuts
from contrapose.report.views import write_views

__all__ = [
    "FORMAT",
    "Run",
    "read_experiment",
    "read_run",
    "read_shortcuts",
    "write_experiment",
    "write_report",
    "write_shortcuts",
    "write_views",
]
