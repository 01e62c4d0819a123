"""The findings of ``tiercast doctor``: a table, then the commands that mend."""

from typing import TYPE_CHECKING

from tiercast_cli import render

if TYPE_CHECKING:
    from tiercast_cli.doctoring import Examination


def show(result: "Examination") -> None:
    """Every check in order, then what to type."""
    render.line(f"{result.machine}, for {result.need.what}")
    rows = [
        [
            check.check_id,
            check.status.replace("_", " ") + (" (required)" if check.is_required and check.status == "fail" else ""),
            check.found,
            check.needed,
        ]
        for check in result.checks
    ]
    render.table("", ["check", "status", "found", "needed"], rows, left=4)
    mends = [check for check in result.checks if check.mend]
    if mends:
        render.heading("To mend")
    for check in mends:
        render.command(f"  {check.check_id}: {check.mend}")
