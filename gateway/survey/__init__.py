"""What is on a login node, found by one script for any POSIX shell and read from what it prints.

    SCRIPT   the script: run it there as `sh -s`, with this text on standard input; it ends with 0, after 80 s at most
    read     its output becomes a Survey; what is missing or cannot be read is None or empty
    site_file, summary   a first site file for `sluice orchestrator --config`; what was found, in lines for a person

Nothing is changed on the login node: the script only looks, and removes the folder for its own output.
"""

from gateway.survey.facts import (
    Account,
    Gpus,
    Index,
    Installed,
    Limits,
    Modules,
    OwnJob,
    Partition,
    Place,
    Process,
    Program,
    Python,
    Qos,
    Quota,
    Sessions,
    Slurm,
    Survey,
)
from gateway.survey.reading import SCRIPT, read
from gateway.survey.site import site_file
from gateway.survey.summary import summary

__all__ = [
    "SCRIPT", "Account", "Gpus", "Index", "Installed", "Limits", "Modules", "OwnJob", "Partition", "Place", "Process",
    "Program", "Python", "Qos", "Quota", "Sessions", "Slurm", "Survey", "read", "site_file", "summary",
]  # fmt: skip
