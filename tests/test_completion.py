"""`trocr-jax completion`: shells that have read its scripts complete commands, options, values and paths."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from trocr_jax import cli

pytest.importorskip("shtab", reason="the extra [test] has it")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("trocr-jax re", {"read"}),
        ("trocr-jax read --num", {"--num-beams"}),
        ("trocr-jax read --format t", {"text", "tsv"}),
        ("trocr-jax data s", {"show", "synthesize"}),
        ("trocr-jax read li", {"line.png"}),
        ("trocr-jax finetune --train li", {"line.png"}),
    ],
)
def test_bash_completes(line, wanted, tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    (tmp_path / "line.png").touch()
    words = line.split(" ")
    script = f"""
set -u
source ./completion
COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1} COMP_LINE={line!r} COMP_POINT={len(line)}
function=$(complete -p trocr-jax | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" trocr-jax {words[-1]} {words[-2]}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    told = subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert told.stderr == ""
    assert {word.strip() for word in told.stdout.splitlines()} == wanted


def test_zsh_has_a_script(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("#compdef trocr-jax")
    assert "--num-beams" in told
    assert "finetune" in told
    if shutil.which("zsh") is not None:
        subprocess.run(["zsh", "-n"], input=told, check=True, text=True)


def test_without_shtab(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "trocr-jax[completion]" in capsys.readouterr().err
