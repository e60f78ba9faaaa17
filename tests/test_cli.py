"""The command line: quick where it should be; one clear line and exit code 2 for a mistake; nothing half-written."""

import errno
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from mesascope import api, cli
from mesascope.formulas import render_plain
from mesascope.store import Run
from mesascope.studies import registry
from mesascope.studies.published import list_statuses, load_published

QUICK = 0.5  # seconds of a processor: the machine may be busy with other tests


@pytest.mark.parametrize("words", [["--help"], ["list"], ["show", "affine"], ["cite", "affine"]], ids=" ".join)
def test_help_and_catalogue_answer_at_once_and_import_no_torch(words):
    script = (
        "import sys, time; began = time.process_time(); sys.argv = ['mesascope', *sys.argv[1:]];"
        "from mesascope.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, time.process_time() - began, file=sys.stderr)"
    )
    taken = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
        torch_there, seconds = done.stderr.split()[-2:]
        assert torch_there == "False"
        taken.append(float(seconds))
    assert min(taken) < QUICK


def test_list_names_every_study_and_task(command):
    code, out, _ = command("list")
    assert code == 0
    for word in ("affine", "affine-2d", "affine-4d", "polynomial", "Affine", "Polynomial"):
        assert word in out
    rows = json.loads(command("list", "--json")[1])
    (affine,) = (row for row in rows if row["name"] == "affine")
    assert (affine["kind"], affine["title"]) == ("study", "Affine recurrences in context")
    assert "last" not in next(row for row in rows if row["kind"] == "task")


def test_list_keeps_the_indentation_of_long_titles(command, monkeypatch):
    monkeypatch.setattr("mesascope.cli._app.out._width", 70)
    lines = command("list")[1].partition("Tasks (mesascope.tasks)\n")[2].splitlines()
    assert len(lines) > len(registry.list_tasks())
    column = lines[0].index("A 4-gram")
    assert all(line.startswith("  ") and line[column - 1] == " " != line[column] for line in lines)
    words = " ".join(" ".join(line[column:] for line in lines).split())
    assert all(render_plain(task.title) in words for task in registry.list_tasks())


def test_list_tells_paper_cost_and_last_verdicts(command, tmp_path):
    """Of the last run in a folder that decided anything; of what is published where there is none."""
    told = list_statuses(load_published()["affine"])
    counted = {word: told.count(word) for word in set(told)}
    (affine,) = (row for row in json.loads(command("list", tmp_path, "--json")[1]) if row["name"] == "affine")
    assert affine["paper"] == "Bhargav & Gu 2024"
    assert affine["minutes"]["paper"] == 170.0
    assert affine["last"] == {"run": None, "scale": "laptop", "verdicts": counted}
    for age, (name, word) in enumerate([("own", "contradicted"), ("older", "supported"), ("small", "not tested")]):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"study": "affine", "scale": "paper"}))
        file = folder / "verdicts.json"
        file.write_text(json.dumps([{"status": word}]))
        os.utime(file, (1e9 - (name == "older"), 1e9 + age - 3 * (name == "older")))
    code, out, _ = command("list", tmp_path)
    assert code == 0
    assert "Bhargav & Gu 2024; smoke" in out
    assert f"{tmp_path / 'own'}: 1 contradicted" in out
    assert "no verdicts yet" in out  # of studies that take longer than a laptop has


def test_the_index_is_what_the_studies_and_tasks_say():
    """`make index` writes the file."""
    from mesascope.studies import registry

    listed = [*registry.list_studies(), *registry.list_tasks()]
    assert listed == registry.build_index()
    for entry in registry.list_studies():
        study = registry.load_study(entry.name)
        assert (entry.title, entry.paper, entry.minutes) == (study.title, study.citation.short, {**study.minutes})
        assert [claim.name for claim in entry.summary.claims] == [claim.name for claim in study.claims]


def test_what_is_published_is_of_claims_that_are_still_made():
    from mesascope.studies import registry

    for name, found in load_published().items():
        assert {*found["verdicts"], *found["others"]} <= {claim.name for claim in registry.load_study(name).claims}


def test_show_tells_what_became_of_each_claim(command):
    published = load_published()["gradient-descent"]
    out = command("show", "gradient-descent")[1]
    assert "published verdicts at laptop scale" in out
    words = [*published["verdicts"].values(), *published.get("others", {}).values()]
    assert {word: out.count(f"  {word}: ") for word in set(words)} == {word: words.count(word) for word in set(words)}


def test_show_counts_the_verdicts_on_a_claim_that_was_judged_in_several_cells(command):
    entry = load_published()["affine"]
    cells = [entry, *entry["cells"].values()]
    out = " ".join(command("show", "affine")[1].split())
    assert f"published verdicts at laptop scale in {len(cells)} cells" in out
    for claim in registry.load_summary("affine").claims:
        statuses = [(cell["verdicts"] | cell.get("others", {}))[claim.name] for cell in cells]
        words = ", ".join(f"{status} {statuses.count(status)}" for status in dict.fromkeys(statuses))
        assert f"{words}: {' '.join(claim.statement.split())}" in out


def test_show_tells_setting_claims_and_cost(command):
    code, out, _ = command("show", "affine")
    assert code == 0
    assert "Bhargav" in out
    assert "2 000 steps" in out
    assert "Layer 0 learns to copy the last term" in " ".join(out.split())
    assert all(line.startswith("  ") for line in out.split("Claims and published")[1].splitlines()[1:])


def test_formulas_are_plain_text_in_the_terminal(command, tmp_path):
    out = " ".join(command("show", "affine")[1].split())
    assert "Sequences x′ = ax + b; a and b are drawn anew" in out
    assert "contracting: |a| < 1 (setting of the study" in out
    for name in ("affine", "norm-growth", "next-token-convergence"):
        assert not re.search(r"[$\\]", command("show", name)[1])
    assert not re.search(r"[$\\]", command("list")[1])
    verdict = {"name": "a", "status": "supported", "statement": r"[b] $x^2$ for \$5", "value": 1.0, "control": None}
    record = {"study": "affine", "scale": "smoke", "seeds": [0]}
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(record))
    (run / "verdicts.json").write_text(json.dumps([verdict | {"source": "ours", "kind": "replication"}]))
    assert "[b] x² for $5" in command("report", str(run))[1]
    assert "[b] x² for $5" in repr(Run.open(run))
    for form in ("latex", "csv"):
        assert r"[b] $x^2$ for \$5" in command("table", str(run), "--format", form)[1]
    assert r"\[b\] $x^2$ for \$5" in command("table", str(run), "--format", "markdown")[1]


def test_cite_prints_bibtex(command):
    code, out, _ = command("cite", "affine")
    assert code == 0
    assert out.startswith("@article{bhargav2024interpreting,")
    assert out.count("{") == out.count("}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "afine"], "a study must be one of affine, affine-2d"),
        (["show", "afine"], "a study must be one of"),
        (["cite", "afine"], "a study must be one of"),
        (["run", "nowhere.py"], "the file of a study must exist"),
        (["run", "affine", "--scale", "huge"], "a scale must be one of smoke, laptop, paper, but got 'huge'"),
        (["run", "affine", "--scale", "smoke", "--seeds", "0"], "seeds must be 1 or more, but got 0"),
        (["run", "affine", "--scale", "smoke", "--seeds", "-3"], "seeds must be 1 or more, but got -3"),
        (["run", "affine", "--device", "tpu"], "a device must be auto, cpu, cuda or mps, but got 'tpu'"),
        (["run", "affine", "--device", "cuda:99"], "cuda:99 must be on this machine"),
        (["run", "affine", "--on", "mars"], "an executor must be serial, processes, ray[:ADDRESS], slurm or torchrun"),
        (["report", "nowhere"], "a run directory must hold run.json"),
        (["inspect", "./nowhere.gguf"], "a .gguf file must exist"),
        (["inspect", "./nowhere", "--analyses", "aura"], "analyses must be among inner, norms, logit_lens"),
        (["inspect", "./nowhere", "--tokens", "2"], "tokens must be 9 or more"),
        (["inspect", "./nowhere", "--sequences", "0"], "sequences must be 1 or more"),
        (["inspect", "./nowhere", "--dtype", "int3"], "a dtype must be one of float32, bfloat16"),
        (["inspect", "./nowhere", "--steps", "first"], "a step must have a number in its name"),
        (["inspect", "./nowhere", "--text", "nowhere.txt"], "a text must be a readable file"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(command, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*words)
    assert code == 2
    assert line in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_refused_and_stays_as_it_was(command, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    code, _, err = command("run", "affine", "--scale", "smoke", "--out", file)
    assert (code, err.count("\n")) == (2, 1)
    assert "must be a folder" in err
    assert file.read_text() == "mine"


def test_an_output_that_cannot_be_written_is_refused(command):
    code, _, err = command("run", "affine", "--scale", "smoke", "--out", "/proc/mesascope")
    assert (code, err.count("\n")) == (2, 1)
    assert "must be writable" in err


def test_another_studys_run_is_refused_and_left_alone(command, tmp_path):
    path = Run.create(tmp_path / "run", {"study": "other", "title": "t", "scale": "smoke", "seeds": [0]}).path
    before = (path / "run.json").read_bytes()
    code, _, err = command("run", "affine", "--scale", "smoke", "--out", path)
    assert (code, err.count("\n")) == (2, 1)
    assert "must be empty or hold the same run" in err
    assert (path / "run.json").read_bytes() == before


@pytest.mark.parametrize("words", [["run", "affine", "--scale", "smoke", "--out"], ["report"]])
def test_a_corrupt_record_is_named(command, tmp_path, words):
    (tmp_path / "run.json").write_text('{"study": "aff')
    code, _, err = command(*words, tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "run.json must be JSON" in err


def test_a_full_disk_is_one_line_and_nothing_half_written(command, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr("os.fsync", full)
    code, _, err = command("run", "affine", "--scale", "smoke", "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "the disk must have room" in err
    assert [item.name for item in out.rglob("*") if item.name not in (".lock", ".lock-holder")] == []


def test_runs_shows_what_is_there_even_if_one_is_broken(command, tmp_path):
    for name, text in (("good", '{"study": "affine", "scale": "smoke"}'), ("bad", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    code, out, _ = command("runs", tmp_path)
    assert code == 0
    assert "unfinished" in out
    assert "unreadable" in out
    assert {row["state"].split(":")[0] for row in json.loads(command("runs", tmp_path, "--json")[1])} == {
        "unfinished, without checksums",
        "unreadable",
    }
    assert "no runs in" in command("runs", tmp_path / "none")[1]


def test_the_version_is_that_of_the_package(command):
    code, printed, _ = command("--version")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (code, printed) == (0, f"mesascope {project['version']}\n")


def test_a_shell_completes_commands_and_studies():
    def complete(line: str) -> str:
        shell = {
            "_MESASCOPE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        script = "import sys; sys.argv = ['mesascope']; from mesascope.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | shell, check=False
        ).stdout

    assert complete("mesascope whi").split() == ["which-algorithm"]
    assert complete("mesascope run aff").split() == ["affine", "affine-2d", "affine-4d"]


def test_the_flags_are_the_ones_that_were_promised(command):
    """The command line is an interface: a flag that comes or goes changes this list."""
    promised = {
        "run": {
            *(
                "--scale",
                "--seeds",
                "--out",
                "--device",
                "--on",
                "--vary",
                "--set",
                "--log-to",
                "--strict",
                "--no-strict",
                "--help",
            ),
        },
        "inspect": {
            *("--text", "--tokens", "--sequences", "--out", "--analyses", "--steps", "--device", "--dtype", "--help"),
            *("--token-ids", "--study", "--trust-remote-code", "--stream-layers", "--quantize"),
            "--device-map",
        },
        "circuit": {
            *("--pairs", "--study", "--condition", "--seed", "--num-pairs", "--steps", "--size", "--out", "--device"),
            *("--dtype", "--ablation", "--by", "--trust-remote-code", "--quantize", "--help"),
        },
        "list": {"--json", "--help"},
        "runs": {"--json", "--html", "--help"},
        "status": {"--json", "--help"},
        "report": {"--json", "--help"},
        "serve": {
            *("--port", "--study", "--condition", "--seed", "--device", "--dtype", "--trust-remote-code", "--help"),
        },
        "verify": {"--help"},
        "show": {"--help"},
        "cite": {"--help"},
        "compare": {"--out", "--help"},
        "table": {"--format", "--results", "--name", "--help"},
        "push": {"--private", "--help"},
        "sync": {"--help"},
        "log": {"--to", "--help"},
        "figures": {"--format", "--out", "--only", "--help"},
        "which-algorithm": {
            *(
                "--study",
                "--token-ids",
                "--sequences",
                "--seed",
                "--out",
                "--device",
                "--json",
                "--trust-remote-code",
            ),
            "--help",
        },
    }
    import typer.main

    group = typer.main.get_command(cli.app)
    found = {
        name: {flag for p in sub.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("--")} | {"--help"}
        for name, sub in group.commands.items()
    }
    assert found == promised


def test_help_loses_no_word_as_markup_and_marks_repetition_once():
    import typer.main
    from rich.text import Text

    for sub in typer.main.get_command(cli.app).commands.values():
        for line in (sub.help, *(getattr(p, "help", None) for p in sub.params)):
            assert line is None or Text.from_markup(line).plain == line
        assert "...}..." not in sub.get_usage(sub.context_class(sub, info_name=sub.name))


def test_an_interrupt_says_how_to_go_on(command, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mesascope.api.run", interrupted)
    code, _, err = command("run", "affine")
    assert code == 130
    assert "run the same command again" in err


@pytest.mark.parametrize("is_available", [False, True])
def test_an_apple_gpu_is_used_where_there_is_one(monkeypatch, is_available):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: is_available)
    assert api.choose_device("auto") != "mps"
    if is_available:
        assert api.choose_device("mps") == "mps"
    else:
        with pytest.raises(ValueError, match="the device mps must be on this machine, but is not; use the device cpu"):
            api.choose_device("mps")


def test_double_precision_on_an_apple_gpu_is_one_line(command, monkeypatch):
    def fail(*_, **__):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr("mesascope.api.run", fail)
    code, out, err = command("run", "affine")
    assert (code, out) == (2, "")
    assert "the device mps has no float64, which this command needs; use the device cpu" in " ".join(err.split())


def test_a_bug_keeps_its_traceback(command, monkeypatch):
    def bug(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr("mesascope.api.run", bug)
    with pytest.raises(TypeError, match="a bug"):
        command("run", "affine")


def test_time_is_not_spent_on_importing_the_package():
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mesascope"], check=True)
    assert time.perf_counter() - began < 2.0
