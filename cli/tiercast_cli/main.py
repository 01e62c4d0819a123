"""The ``tiercast`` program: its commands, and the one place where deliberate errors become exit codes.

Nothing heavy is imported here or at the top of a command module, so that ``--help`` answers at once and the core
install works without torch.
"""

import contextlib
import errno
import io
import os
import signal
import sys
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from tiercast_cli import (
    allocate,
    bench,
    catalogue,
    cost,
    demo,
    diff,
    doctor,
    fit,
    locality,
    plan,
    profile,
    published,
    rows,
    simulate,
    validate,
    what_if,
)
from tiercast_cli.report import command as report
from tiercast_profiles import __version__
from tiercast_profiles.errors import FileProblem, TiercastError, shown

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_TERMINATED = 143  # 128 + SIGTERM
# What typer raises for any wrong command line; it exports no name for it, only for this child of it.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

ABOUT = """Where should an Engram table live, what does it cost in speed, and what does it save in dollars?

Results go to stdout, progress and warnings to stderr. Every command takes --json.

\b
Exit codes: 0 done
            1 a result fails a check that was asked for
            2 bad input: a file, a name or a value
            3 infeasible: well formed, but it does not fit
            4 this machine or this install lacks what is needed

\b
Example: tiercast profile --quick -o profile.yaml
         tiercast validate --profile profile.yaml
         tiercast simulate v41-dram
"""


class TiercastGroup(TyperGroup):
    """The root command: turns every deliberate error into one line on stderr and its exit code."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # the documented name of the same class
        """Run the chosen command.

        Raises:
            typer.Exit: with the exit code of a deliberate error.
        """
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except TiercastError as error:
            _complain(" ".join(str(error).split()))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # the reader has what it wanted, as in `tiercast … | head`
            _discard_output()
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # from any look at whether a name is a file's
                _complain(f"{shown(error.filename)}: longer than a file's name can be ({error.strerror})")
                raise typer.Exit(FileProblem.exit_code) from None
            if error.errno not in (errno.ENOSPC, errno.EIO):
                raise
            _discard_output()
            _complain(f"standard output cannot be written ({error.strerror})")
            raise typer.Exit(FileProblem.exit_code) from None
        except USAGE_ERROR as error:
            raise _usage_exit(error) from None
        return result

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options before the command.

        Raises:
            typer.Exit: with the exit code of bad input.
        """
        try:
            return super().make_context(*args, **kwargs)
        except USAGE_ERROR as error:
            raise _usage_exit(error) from None


def _usage_exit(error: Any) -> Exception:
    """The way out of a wrong command line: one line that says where to read, and exit code 2.

    A bare ``tiercast`` is no mistake: the error that carries the help text comes back as it is.
    """
    text = error.format_message()
    if "\n" in text:
        return cast("Exception", error)
    command = error.ctx.command_path if error.ctx else "tiercast"
    _complain(f"{text.rstrip('.')}; see '{command} --help'")
    return typer.Exit(error.exit_code)


def _complain(text: str) -> None:
    typer.echo(f"tiercast: {text}", err=True)


def _discard_output() -> None:
    """Let the interpreter's own flush at exit succeed: what is left in the buffer has nowhere to go."""
    with contextlib.suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    name="tiercast",
    cls=TiercastGroup,
    help=ABOUT,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tiercast {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options that come before a command; the help text is ABOUT."""


profile.register(app)
bench.register(app)
simulate.register(app)
validate.register(app)
published.register(app)
what_if.register(app)
diff.register(app)
report.register(app)
cost.register(app)
plan.register(app)
fit.register(app)
doctor.register(app)
allocate.register(app)
locality.register(app)
rows.register(app)
catalogue.register(app)
demo.register(app)


def main() -> None:
    """Entry point of the ``tiercast`` program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII pipe shows '?' for a sign it lacks, and works
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(_number: int, _frame: object) -> None:
    """End through the ordinary way out, so that temporary files go too."""
    raise SystemExit(EXIT_TERMINATED)


if __name__ == "__main__":
    main()
