"""What a command prints of a run or a task: it cannot steer the terminal, and it tells no secret."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bombs import sent_run, task_text
from command_line import Finished
from small_task import SMALL_TASK

import aitia
from aitia.datasets.plain import PlainFormatter, isolated, one_line, plain, without_secrets
from aitia.workflows import cli

SOURCE = Path(aitia.__file__).parent
HOSTILE = "red\x1b[31m\x1b]0;title\x07\x9b2J\u202eevil\u2066\r\x08"
SHOWN = r"red\x1b[31m\x1b]0;title\x07\x9b2J\u202eevil\u2066\r\x08"
UNSEEN = set(HOSTILE) - set(SHOWN)
Command = Callable[..., Finished]


def test_what_cannot_be_seen_is_written_as_an_escape() -> None:
    assert plain(HOSTILE) == SHOWN
    assert one_line("a\nb\tc\u2028") == r"a\nb\tc\u2028"
    assert plain("Καλημέρα, 世界: τ ≥ 0\n") == "Καλημέρα, 世界: τ ≥ 0\n", "letters of any script stay as they are"


def test_text_from_right_to_left_is_isolated_and_other_text_is_not() -> None:
    assert isolated("שלום") == "\u2068שלום\u2069"
    assert isolated("level 17") == "level 17"
    assert isolated("\u2069שלום") == "\u2068\\u2069שלום\u2069", "a name cannot end its own isolation"


def test_an_error_shows_the_names_in_a_task_and_obeys_none(tmp_path: Path, aitia_command: Command) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(task_text(verify={"sets": {f"{HOSTILE}\nok": ["17"]}}), encoding="utf-8")
    done = aitia_command("train", task, "--out", tmp_path / "run")
    assert done.code == 2 and SHOWN in done.err
    assert not UNSEEN & set(done.err)
    task.write_text(task_text() + json.dumps(f"{HOSTILE}\naitia: all is well") + ": 1\n", encoding="utf-8")
    done = aitia_command("train", task, "--out", tmp_path / "run")
    assert done.code == 2 and not UNSEEN & set(done.err)
    assert "\naitia: all is well" not in done.err, "a name wrote a line that looks like one of ours"


def test_a_comparison_prints_the_names_of_runs_without_obeying_them(tmp_path: Path, aitia_command: Command) -> None:
    run = sent_run(tmp_path / f"a{HOSTILE}")
    done = aitia_command("compare", run, sent_run(tmp_path / "b"), "--out", tmp_path / "out")
    assert done.code == 2 and not UNSEEN & set(done.err + done.out)


def test_rows_of_a_table_stay_rows(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_rows(("name", "value"), [(f"{HOSTILE}\nforged  1.00", "0.5")])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 and not UNSEEN & set(printed)


def test_a_log_line_is_one_line_without_escapes() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter("%(message)s"))
    handler.emit(logging.makeLogRecord({"msg": "train %s", "args": (f"{HOSTILE}\n12:00 forged s3://K:S@b",)}))
    assert stream.getvalue() == f"train {SHOWN}\\n12:00 forged s3://...@b\n"


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:SECRET@bucket/run",
        "s3://SECRET@bucket/run",
        "s3:/KEY:SECRET@bucket/run",
        "s3://KEY:SEC/SECRET@bucket/run",
        "s3://bucket/run?X-Amz-Signature=SECRET",
        "s3://bucket/run?X-Amz-Signature=SECRET&X-Amz-Date=1",
        "https://KEY:SECRET@host/run",
        "file://KEY:SECRET@host/run",
    ],
)
@pytest.mark.parametrize("command", ["compare", "train"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(
    command: str, address: str, tmp_path: Path, aitia_command: Command
) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(task_text(), encoding="utf-8")
    done = aitia_command(
        *(["compare", address, tmp_path] if command == "compare" else ["train", task, "--out", address])
    )
    assert done.code == 2 and "aitia: " in done.err
    assert "SECRET" not in done.err + done.out
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            'Could not connect to "http://user:pw@host:9000/bucket"',
            'Could not connect to "http://...@host:9000/bucket"',
        ),
        ("GET https://s3.host/b/run.json?X-Amz-Signature=pw&a=b failed", "GET https://s3.host/b/run.json?... failed"),
        ("s3://KEY:SE/CRET@bucket/run", "s3://...@bucket/run"),
        ("see https://host/page and tcp://10.0.0.1:8786", "see https://host/page and tcp://10.0.0.1:8786"),
    ],
)
def test_secrets_of_addresses_are_left_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_the_command_line_prints_in_one_place() -> None:
    calls = [
        ast.unparse(node.func)
        for path in (SOURCE / "workflows").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert calls.count("click.echo") == 1, "print with cli._say: text of runs may hold anything"
    assert "print" not in calls


def test_every_file_of_text_names_its_encoding() -> None:
    floors = ("attribution", "datasets", "reports", "training", "workflows")
    bare = []
    for path in (path for floor in floors for path in (SOURCE / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            if ast.unparse(node.func) == "os.open":
                continue  # a descriptor, which whoever opens it as text gives an encoding
            modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            binary = any("b" in mode for mode in modes if isinstance(mode, str))
            named = any(keyword.arg == "encoding" for keyword in node.keywords)
            if name in ("read_text", "write_text", "open") and not (binary or named or _of_ours(node)):
                bare.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not bare, "text in the encoding of whoever runs it"


def _of_ours(call: ast.Call) -> bool:
    """Whether it is `write_text` or `read_text` of `datasets.files`, which name it themselves."""
    return isinstance(call.func, ast.Name) and call.func.id in ("read_text", "write_text")


@pytest.mark.slow
def test_commands_work_where_text_is_no_utf8(tmp_path: Path) -> None:
    """Files are ASCII by the locale, and the terminal, Latin-1, has no Greek letters."""
    task = tmp_path / "τask-日本.yaml"
    task.write_text(task_text(name="τ-日本", agent={"algorithm": "ΠΠO"}), encoding="utf-8")
    environ = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "aitia", "train", str(task), "--out", str(tmp_path / "rün")],
        env={**environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    told = done.stderr.decode("latin-1")
    assert done.returncode == 2 and "Traceback" not in told, told
    assert r"`\u03a0\u03a0O` is not supported" in told


def test_a_folder_named_in_another_encoding_can_be_written_into_run_json(tmp_path: Path) -> None:
    from aitia.datasets.files.store import read_json, write_json

    write_json(tmp_path / "run.json", {"task_folder": "/tmp/\udcc3\udcbc"})  # as Python reads ü where LANG=C
    assert read_json(tmp_path / "run.json") == {"task_folder": "/tmp/\udcc3\udcbc"}


def permission_denied(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied", "/somewhere")


@pytest.mark.parametrize(
    "name", ["run.json", "evaluations/test/episodes.parquet", "checkpoints/seed=0/final.safetensors"]
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    name: str, tmp_path: Path, aitia_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sent_run(tmp_path / "run")
    (run / name).chmod(0)
    if os.access(run / name, os.R_OK):  # root may read everything
        import aitia.datasets.files.store as store

        reader = {"run.json": "read_text", "episodes.parquet": "read_parquet"}.get(Path(name).name, "safe_open")
        real = getattr(store, reader)
        monkeypatch.setattr(
            store,
            reader,
            lambda path, *a, **k: (real if Path(path) != run / name else permission_denied)(path, *a, **k),
        )
    done = (
        aitia_command("compare", run, sent_run(tmp_path / "b"))
        if "final" not in name
        else aitia_command("verify", run, "--trust")
    )
    assert done.code == 2
    assert "may not be read by this user" in done.err and "chmod" in done.err
    assert "damaged" not in done.err and "Delete" not in done.err


def test_a_folder_that_may_not_be_written_is_said_in_one_line(
    tmp_path: Path, aitia_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", permission_denied)
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps(SMALL_TASK), encoding="utf-8")
    done = aitia_command("train", task, "--out", tmp_path / "run" / "deep")
    assert done.code == 2 and len([line for line in done.err.splitlines() if line.startswith("aitia: ")]) == 1
    assert "Traceback" not in done.err
    assert "permission denied" in done.err and "may read and write" in done.err
