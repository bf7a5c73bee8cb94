"""Man pages and --dry-run: both say what the parser knows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from hpcmesos.cli import commands_dir, man_pages
from hpcmesos.cli.main import root
from hpcmesos.pbs.echo import understood
from hpcmesos.pbs.man import page
from hpcmesos.pbs.option_table import COMMANDS
from hpcmesos.pbs.submission import SubmitContext, build_submission


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_page_has_every_option(command: str) -> None:
    table = COMMANDS[command]
    text = page(table)
    assert text.startswith(f'.TH {command.upper()} 1 "" hpcmesos')
    assert f"\n{table.name} \\- " in text
    written = [line for line in text.splitlines() if line.startswith("\\fB")]
    assert len(written) == len(table.options)
    for option, line in zip(table.options, written, strict=True):
        assert option.written.replace("-", "\\-") in line
    assert not [line for line in text.splitlines() if line.startswith("'")]


def test_every_command_of_the_directories_has_a_page(tmp_path: Path) -> None:
    path = man_pages.write(tmp_path)
    assert path == tmp_path / "man"
    assert {page.stem for page in (path / "man1").iterdir()} >= set(commands_dir.COMMANDS)


@pytest.mark.parametrize("command", ["cron", "report", "logs", "gateway"])
def test_our_own_commands_have_pages_made_of_their_help(tmp_path: Path, command: str) -> None:
    text = (man_pages.write(tmp_path) / "man1" / f"hpcmesos-{command}.1").read_text()
    assert text.startswith(f'.TH HPCMESOS\\-{command.upper()} 1 "" hpcmesos')
    found = root.get_command(click.Context(root), command)
    assert found is not None
    subcommands = list(found.commands.values()) if isinstance(found, click.Group) else [found]
    for one in subcommands:
        for parameter in one.params:
            for word in parameter.opts if isinstance(parameter, click.Option) else []:
                assert word.replace("-", "\\-") in text, word
    assert not [line for line in text.splitlines() if line.startswith("'")]


def test_what_was_understood() -> None:
    context = SubmitContext(
        "/home/ann/run", 0o22, "login1", "ann", "/home/ann", {}, "hpcm", datetime(2026, 1, 1, tzinfo=UTC)
    )
    argv = [
        "--dry-run",
        "-l",
        "nodes=2:ppn=4:gpus=2:fast,walltime=90,mem=8gb",
        "-N",
        "x",
        "-t",
        "0-9%2",
        "-h",
    ]
    built = build_submission([*argv, "-W", "depend=afterok:7", "job.sh"], "#!/bin/sh\n", context)
    assert built.dry_run
    lines = dict(line.split(" = ", 1) for line in understood(built, "gpu").splitlines())
    assert lines["queue"] == "gpu"
    assert lines["chunk"] == "2 x {4 CPUs, 2 GPUs, 4 slots, 4gb memory, feature fast}"
    assert lines["total"] == "2 pieces, 8 CPUs, 4 GPUs"
    assert (lines["walltime"], lines["array"], lines["hold"]) == ("00:01:30", "0-9%2 (10 elements)", "user")
    assert (lines["depend"], lines["placement"]) == ("afterok:7", "each on a node of its own")
    assert lines["output"] == "login1:/home/ann/run/"
