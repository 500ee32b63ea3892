"""The command line. Exit codes: 0 done, 1 failed, 2 bad input."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click

from ..datasets.errors import AitiaError, InputError
from ..datasets.files.remote import as_path
from ..datasets.plain import PlainFormatter, one_line, plain, without_secrets
from .workers.processes import begin_importing, silence_pygame

# Nothing here imports torch or Dask before a command runs: `aitia --help` answers at once.
ESTIMANDS = ("interactive", "replay")
Command = TypeVar("Command", bound=Callable[..., Any])


def _count_or_all(ctx: click.Context, param: click.Parameter, value: str) -> int | Literal["all"]:
    """Read a count from 0, or `all`."""
    if value == "all":
        return "all"
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r} was given, expected a number from 0, or all")


def _no_more_taken(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Refuse an option that moved to another command."""
    if value is not None:
        raise click.UsageError(
            f"--illustrate {value} was given, but report draws nothing any more: `aitia illustrate RUN {value}` draws, "
            "then `aitia report RUN` shows it"
        )


def _unused(command: Command) -> Command:
    """Take, and ignore, the options of stages that compute: a script may give them to every stage."""
    wrapped: Any = click.option("--scheduler", hidden=True)(command)
    return cast(Command, click.option("--workers", type=click.IntRange(min=0), hidden=True)(wrapped))


def _computing(command: Command) -> Command:
    """Add the options of every stage that computes."""
    workers = click.option(
        "--workers", type=click.IntRange(min=0), help="Local Dask processes (default: the cores; 0: none but this one)."
    )
    scheduler = click.option(
        "--scheduler", metavar="ADDRESS", help="Use an existing Dask cluster instead (or its scheduler file, .json)."
    )
    tls = [
        click.option(f"--tls-{name}", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help=help)
        for name, help in (
            ("ca", "TLS: certificate of the authority that signed the others (PEM); with tls:// addresses."),
            ("cert", "TLS: certificate of this command."),
            ("key", "TLS: its key, where the certificate's file does not hold it."),
        )
    ]

    @functools.wraps(command)
    def encrypted(*args: Any, tls_ca: str | None, tls_cert: str | None, tls_key: str | None, **options: Any) -> Any:
        if options["scheduler"] is None and options["workers"] != 0 and "task" not in options:  # tasks: checked first
            begin_importing()
        with _tls(options["scheduler"], tls_ca, tls_cert, tls_key):
            return command(*args, **options)

    wrapped: Any = encrypted
    for option in (*reversed(tls), scheduler, workers):
        wrapped = option(wrapped)
    return cast(Command, wrapped)


@contextlib.contextmanager
def _tls(scheduler: str | None, ca: str | None, cert: str | None, key: str | None) -> Iterator[None]:
    """Encrypt what is sent to a scheduler: the options are Dask's own settings, for this command only."""
    given = {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key}
    if not any(given.values()):
        yield
        return
    if scheduler is None or ca is None or cert is None:
        names = ", ".join(name for name, value in given.items() if value)
        raise click.UsageError(f"{names} was given, expected --tls-ca, --tls-cert and --scheduler tls://... together")
    import dask
    import distributed  # noqa: F401 (it brings the settings that are changed)

    settings = {"require-encryption": True, "tls.ca-file": ca, "tls.client.cert": cert, "tls.client.key": key}
    with dask.config.set({f"distributed.comm.{name}": value for name, value in settings.items()}):
        yield


_accept = click.option(
    "--accept-changes",
    is_flag=True,
    help="Go on though code or versions changed since the run began; it is recorded.",
)
_task = click.argument("task", metavar="TASK.yaml", type=as_path)
_run = click.argument("run", metavar="RUN", type=as_path)
_out = click.option("--out", metavar="RUN", required=True, type=as_path, help="The run folder, or s3://...")
_edits = click.option("--edits", metavar="FILE", type=as_path, help="Rewards to correct while training (edits.yaml).")
_trust = click.option(
    "--trust", is_flag=True, help="Run the code that the run's task names, although it was made elsewhere."
)
_set = click.option("--set", "set_", metavar="NAME", default="test", show_default=True, help="The evaluation set.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="aitia")
def cli() -> None:
    """Say what caused a reinforcement-learning agent to misbehave: its training rewards, or not."""


@cli.command()
@click.option("--out", metavar="DIR", default="runs", show_default=True, help="Folder of the two runs.")
@_computing
def demo(out: str, **options: Any) -> None:
    """Both twins of the arrow maze, end to end (about 4 minutes on two cores)."""
    from . import commands

    summaries = commands.demo(out, **options)
    _print_table(summaries)
    for name in summaries:
        _say(f"{name}: {_page(as_path(out) / name, 'test')}")


@cli.command()
@_task
@_edits
@click.option("--workers", type=click.IntRange(min=0), help="Processes that would work (default: the cores).")
def check(task: Path, edits: Path | None, workers: int | None) -> None:
    """Say in seconds what a task will do, what it lacks, and how long it takes."""
    _announce(task)
    from . import commands
    from .stages.check import check_in_words, estimate_in_words

    found = commands.check(task, edits, workers)
    for line in (*check_in_words(found), estimate_in_words(found["estimate"])):
        _say(line)
    for key, said in found["keys"].items():
        if not said["told"]:
            _say(f"info['{key}'] is not told: {said['without']}")
    for warning in found["warnings"]:
        _say(f"warning: {warning}")


@cli.command()
@_task
@_out
@_edits
@_accept
@_computing
def run(task: Path, out: Path, **options: Any) -> None:
    """All stages of a task."""
    _announce(task)
    from . import commands

    summaries = commands.run(task, out, **options)
    _print_table(summaries)
    for name in summaries:
        _say(f"{name}: {_page(out, name)}")


@cli.command()
@_task
@_out
@_edits
@_accept
@_computing
def train(task: Path, out: Path, **options: Any) -> None:
    """Train the ensemble and record every transition."""
    _announce(task)
    from . import commands

    commands.train(task, out, **options)


@cli.command()
@_run
@_set
@_accept
@_trust
@_computing
def evaluate(run: Path, set_: str, **options: Any) -> None:
    """Play the episodes of an evaluation set."""
    from . import commands

    commands.evaluate(run, set_, **options)


@cli.command()
@_run
@click.argument("further", nargs=-1, metavar="[ID ...]")
@_set
@click.option("--failure", metavar="ID ...", multiple=True, help="Only these failures (SEED-EPISODE).")
@click.option(
    "--estimator",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto: exact TRAK, or projected where it must be.",
)
@click.option("--effects", metavar="NAME,...", default="", help="Also: raw, value, lambdas. No report reads them.")
@_accept
@_trust
@_computing
def attribute(
    run: Path,
    further: tuple[str, ...],
    set_: str,
    failure: tuple[str, ...],
    estimator: str,
    effects: str,
    **options: Any,
) -> None:
    """Attribute failures to training rewards."""
    from . import commands

    if further and not failure:
        raise click.UsageError(f"{' '.join(further)} was given after RUN; to name failures, write --failure ID ...")
    asked = [name.strip() for name in effects.split(",") if name.strip()]
    commands.attribute(run, set_, (*failure, *further), estimator, effects=asked, **options)


@cli.command()
@_run
@_set
@_accept
@_trust
@_computing
def verify(run: Path, set_: str, **options: Any) -> None:
    """Train again with corrected rewards: the counterfactual bank."""
    from . import commands

    commands.verify(run, set_, **options)


@cli.command()
@_run
@_set
@click.option("--masks", metavar="N", default=12, show_default=True, type=int, help="Random correction sets.")
@_accept
@_trust
@_computing
def validate(run: Path, set_: str, masks: int, **options: Any) -> None:
    """Ask whether predictions foretell retraining: LDS and its noise ceiling."""
    from . import commands

    found = commands.validate(run, set_, masks, **options)
    _print_rows(("", *ESTIMANDS), _validation_rows(found))
    _say(str(run / "validation" / set_ / "validation.json"))


@cli.command()
@_run
@click.argument("number", metavar="[N|all]", default="all", callback=_count_or_all)
@_set
@_accept
@_trust
@_computing
def illustrate(run: Path, number: int | Literal["all"], set_: str, **options: Any) -> None:
    """Draw failures, and the training states on their pages; report shows them."""
    from . import commands

    commands.illustrate(run, number, set_, **options)
    _say(f"drawn; `aitia report {run} --set {set_}` shows them")


@cli.command()
@_run
@_set
@click.option("--out", metavar="FOLDER", type=as_path, help="Default: RUN/reports/SET.")
@click.option("--illustrate", hidden=True, callback=_no_more_taken)
@_unused
def report(run: Path, set_: str, out: Path | None, **options: Any) -> None:
    """Write verdicts and a page for every failure; runs nothing of the run."""
    from . import commands

    summary = commands.report(run, set_, out, **options)
    _print_table({set_: summary})
    _say(_page(run, set_) if out is None else str(out / "index.html"))


@cli.command()
@click.argument("run_a", metavar="RUN_A", type=as_path)
@click.argument("run_b", metavar="RUN_B", type=as_path)
@_set
@click.option("--out", metavar="FOLDER", type=as_path, help="Default: RUN_B/reports/SET/compare/NAME_OF_RUN_A.")
def compare(run_a: Path, run_b: Path, set_: str, out: Path | None) -> None:
    """Compare two runs, before and after a fix, with paired failures."""
    from . import commands
    from .stages.compare import comparison_folder

    found = commands.compare(run_a, run_b, set_, out)
    rows = [
        (name.replace("_", " "), *(_interval(rate[key]) for key in ("a", "b", "difference")))
        for name, rate in found["rates"].items()
    ]
    _print_rows(("", "A", "B", "B - A"), rows)
    _say(found["words"][-1])
    _say(str(comparison_folder(run_a, run_b, set_, out) / "index.html"))


@cli.command()
@click.option("--cases", metavar="NAME ...", multiple=True, help="Only these cases or families.")
@click.argument("further", nargs=-1, metavar="[NAME ...]")
@click.option("--out", metavar="DIR", default="runs/suite", show_default=True, help="Folder of the suite.")
@_computing
def suite(cases: tuple[str, ...], further: tuple[str, ...], out: str, **options: Any) -> None:
    """Run every case with a planted cause, and score the verdicts."""
    from . import commands

    if further and not cases:
        raise click.UsageError(f"{' '.join(further)} was given; to name cases, write --cases NAME ...")
    found = commands.suite(out, (*cases, *further), **options)
    rows = [(c["name"], c["truth"] or "not known", c["verdict"], str(c["rule"])) for c in found["cases"]]
    _print_rows(("case", "truth", "verdict", "rule"), rows)
    score = found["scores"]["all"]
    right = "-" if score["right"] is None else f"{score['right']:.3f}"
    _say(f"right {right} of determined verdicts, {score['confidently_wrong']} confidently wrong")
    _say(str(Path(out) / "index.html"))


def main() -> None:
    """Run the command line and exit."""
    _take_any_text()
    _log_to_stderr()
    silence_pygame()
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        _say(shown.getvalue().rstrip("\n"), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("aitia: interrupted; finished pieces are kept, the same command continues", err=True)
        sys.exit(1)
    except InputError as error:
        _say_error(str(error))
        sys.exit(2)
    except PermissionError as error:
        _say_error(f"{error.filename}: permission denied; expected a file or folder that this user may read and write")
        sys.exit(2)
    except AitiaError as error:
        _say_error(str(error))
        sys.exit(1)


def _say(text: str, err: bool = False) -> None:
    """Print text, which may have been written by anyone: nothing in it steers the terminal, no secret is in it."""
    click.echo(
        plain(without_secrets(text)), file=sys.stderr if err else sys.stdout
    )  # click itself takes ASCII for UTF-8


def _say_error(message: str) -> None:
    """Print an error; a further line of its message does not look like one of ours."""
    _say("aitia: " + message.replace("\n", "\n  "), err=True)


def _take_any_text() -> None:
    """Let output that cannot hold a letter, such as one in ASCII, show its number instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _log_to_stderr() -> None:
    log = logging.getLogger("aitia")
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _announce(task: Path) -> None:
    logging.getLogger("aitia").info("check %s: reading the task and making its environments", task)


def _page(run: Path, set_name: str) -> str:
    return str(run / "reports" / set_name / "index.html")


def _print_table(summaries: dict[str, dict[str, Any]]) -> None:
    """Print task, misbehaviour rate before and after, verdict and outer share."""
    header = ("", "misbehaviour, as paid", "all corrected", "verdict", "outer share")
    rows = [
        (
            name,
            _interval(summary["misbehaviour_rate"]["uncorrected"]),
            _interval(summary["misbehaviour_rate"]["all_corrected"]),
            summary["verdict"]
            + (f" ({summary['ease']['kind']})" if summary["ease"] and summary["ease"]["kind"] else ""),
            _interval(summary["outer_share"]),
        )
        for name, summary in summaries.items()
    ]
    _print_rows(header, rows)


def _print_rows(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    rows = [tuple(map(one_line, row)) for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _validation_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the LDS of each estimator and the noise ceiling, one column an estimand, and the AUC of causes."""
    names = found["interactive"]["lds"]
    rows = [(f"LDS, {name}", *(_interval(found[e]["lds"][name]) for e in ESTIMANDS)) for name in names]
    for name in found["interactive"]["lds_given_size"]:
        cells = (_interval(found[e]["lds_given_size"][name]) for e in ESTIMANDS)
        rows.append((f"LDS given how many are corrected, {name}", *cells))
    rows.append(("noise ceiling", *(_interval(found[e]["noise_ceiling"]) for e in ESTIMANDS)))
    causes = found["causes"]["auc"] if found["causes"] else {}
    for name, auc in causes.items():
        rows.append((f"AUC of the declared cause, {name}", f"{auc['auc']:.3f}", ""))
    return rows


def _interval(value: dict[str, float | None]) -> str:
    if value["value"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.2f} (no interval)"
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
