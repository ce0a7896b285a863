import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.__main__ import _toward_its_label, main
from service.answers import Answer
from service.settings import Settings, flag


@pytest.fixture(scope="module")
def served(tiny_bundle: Path):
    """The command itself, serving on a free port: its address, and the process."""
    command = [sys.executable, "-m", "service", "serve", "--grpc", "127.0.0.1:0", "--http", ""]
    command += ["--bundle", str(tiny_bundle), "--device", "cpu", "--log-level", "debug"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        assert line["event"] == "serving", line
        yield line["address"], process
        process.send_signal(signal.SIGTERM)
        log = process.stderr.read()
        assert process.wait(20) == 0
    assert [json.loads(text)["event"] for text in log.splitlines()][-2:] == ["draining", "stopped"]
    assert "gostei" not in log  # no user text


def test_json_holds_everything(served, capsys):
    address, _ = served
    texts = ["Não gostei nada", "I loved it"]
    assert main(["classify", *texts, "--explain", "--json", "--target", address]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert len(predictions) == 2
    for text, one in zip(texts, predictions, strict=True):
        assert set(one["probabilities"]) == {"negative", "positive"}
        total = sum(row[0] for row in one["contributions"]) + one["bias"]["negative"]
        assert total == pytest.approx(one["logits"]["negative"], abs=1e-4)
        assert all(t["text"] == text[t["start"] : t["end"]] for t in one["tokens"])


def test_words_are_shown_with_their_share(served, capsys):
    address, _ = served
    assert main(["classify", "Adorei este café", "--explain", "--target", address]) == 0
    output = capsys.readouterr().out
    assert "positive" in output
    assert "toward the answer" in output


def test_texts_come_from_standard_input(served):
    address, _ = served
    command = [sys.executable, "-m", "service", "classify", "-", "--json", "--target", address]
    output = subprocess.run(
        command, input="one\n\ntwo\n", capture_output=True, text=True, check=True
    ).stdout
    assert len(json.loads(output)["predictions"]) == 2


def test_lines_end_as_either_system_ends_them(served, capsys, monkeypatch):
    address, _ = served
    shown = []
    for ending in ("\n", "\r\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"one{ending} {ending}two{ending}"))
        assert main(["classify", "-", "--target", address]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_errors_are_one_line_with_a_hint(capsys):
    assert main(["classify", "a", "--target", "127.0.0.1:9", "--timeout", "5"]) == 1
    error = capsys.readouterr().err
    assert "UNAVAILABLE" in error
    assert "`make serve` starts one" in error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "tpu"], "realce: --device=tpu: "),
        (["--device", "cuda"], "realce: --device=cuda: this ONNX Runtime has only"),
        (["--bundle", "/nowhere"], "realce: /nowhere: no such folder"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_a_line(arguments, reason, tiny_bundle, capsys):
    place = ["--grpc", "127.0.0.1:0", "--http", ""]
    given = ["serve", "--bundle", str(tiny_bundle), *place, *arguments]
    assert main(given) == 2
    assert capsys.readouterr().err.startswith(reason)


def test_a_runtime_that_is_not_installed_is_told_with_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("realce: ONNX Runtime is missing; install one of the extras ")
    assert told.endswith(" in a checkout by pip install -e '.[cpu]'\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_has_not_begun(number):
    """Even the first process of a container, which the kernel spares what it does not listen to."""
    code = (
        "import os, service.__main__ as command; "
        f"command.load_settings = lambda flags: os.kill(os.getpid(), {int(number)}); "
        "command.main(['serve'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_inspect_verifies_and_tells(tiny_bundle, tmp_path, capsys):
    assert main(["inspect", str(tiny_bundle)]) == 0
    assert "tiny 1: verified" in capsys.readouterr().out
    assert main(["inspect", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_nothing_is_said_where_nobody_reads_any_more():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "service", "inspect"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_inspect_says_plainly_what_may_not_be_sold(tiny_bundle, tmp_path, capsys):
    restricted = shutil.copytree(tiny_bundle, tmp_path / "restricted")
    manifest = json.loads((restricted / "manifest.json").read_text())
    manifest["sources"][0] |= {"name": "shop", "license": "CC-BY-NC-SA-4.0"}
    (restricted / "manifest.json").write_text(json.dumps(manifest))
    assert main(["inspect", str(restricted)]) == 0
    assert "NON-COMMERCIAL, for what it was trained on: shop. " in capsys.readouterr().out
    assert main(["inspect", str(tiny_bundle)]) == 0
    assert "NON-COMMERCIAL" not in capsys.readouterr().out


def test_a_target_is_no_url(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["classify", "a", "--target", "http://127.0.0.1:50051"])
    assert "--target: http://127.0.0.1:50051: must be HOST:PORT, without" in capsys.readouterr().err


@pytest.mark.parametrize("timeout", ["0", "-1", "inf", "nan", "soon", "1e300"])
def test_a_timeout_must_be_seconds(timeout, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["classify", "a", "--timeout", timeout])
    assert "--timeout" in capsys.readouterr().err


def test_no_text_at_all_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n\n"))
    assert main(["classify", "-"]) == 2
    assert capsys.readouterr().err == "realce: standard input holds no text\n"


def test_who_gives_no_text_is_told_of_standard_input(capsys):
    assert main(["classify", "--json"]) == 2
    told = capsys.readouterr().err
    assert told == "realce: give a TEXT, or - to read one a line from standard input\n"


def test_many_lines_are_asked_for_in_several_calls(served, capsys, monkeypatch):
    address, _ = served
    monkeypatch.setattr(sys, "stdin", io.StringIO("I loved it\n" * 1500))
    assert main(["classify", "-", "--json", "--target", address]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 1500


def test_the_mark_that_some_editors_begin_a_file_with_is_no_text(served, capsys, monkeypatch):
    address, _ = served
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffI loved it\n\ufeff\n"))
    assert main(["classify", "-", "--json", "--explain", "--target", address]) == 0
    (prediction,) = json.loads(capsys.readouterr().out)["predictions"]
    assert prediction["tokens"][0]["start"] == 0
    assert "\ufeff" not in "".join(token["text"] for token in prediction["tokens"])


def test_what_is_answered_is_shown_whatever_comes_after_it(served, capsys, monkeypatch):
    address, _ = served
    lines = ["I loved it"] * 299 + ["x" * 300_000]
    for options, count in ([], 256), (["--json"], 256):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        assert main(["classify", "-", "--target", address, *options]) == 1
        output, error = capsys.readouterr()
        assert output.count("I loved it" if not options else '"label"') == count
        assert error.startswith("realce: texts 257 to 300: INVALID_ARGUMENT: texts[43]: 300000 ")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_bytes_that_are_no_text_are_refused(encoding):
    """As arguments and on standard input; not where they are text, as all are in Latin-1."""
    command = [sys.executable, "-m", "service", "classify", "--target", "127.0.0.1:9"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    stdin = b"bom\n\nn\xe3o\n"
    asked = [(["a", b"n\xe3o"], 2, b"text 2"), (["a", "-"], 1, b"line 3 of standard input")]
    for texts, in_latin_1, place in asked:
        code = 2 if encoding == "utf-8" else in_latin_1
        done = subprocess.run(
            [*command, *texts], input=stdin, capture_output=True, check=False, env=environment
        )
        assert done.returncode == code
        fault = place + b": 'n\\udce3o' is not UTF-8" if code == 2 else b"UNAVAILABLE"
        assert done.stderr.startswith(b"realce: " + fault)


def test_what_the_terminal_has_no_character_for_is_replaced(served):
    address, _ = served
    command = [sys.executable, "-m", "service", "classify", "bom 👍", "--target", address]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    shown = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    assert shown.endswith(b"  bom ?\n")
    told = subprocess.run([*command, "--json"], capture_output=True, check=True, env=environment)
    assert json.loads(told.stdout.decode("ascii"))["predictions"]


def test_a_full_disk_is_told(served):
    address, _ = served
    command = [sys.executable, "-m", "service", "classify", "bom", "--target", address]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "realce: No space left on device\n"


def test_help_of_serve_names_every_setting(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    output = capsys.readouterr().out
    assert all(flag(name) in output for name in Settings.model_fields)


def test_share_toward_the_answer_is_against_the_mean_of_the_others():
    import numpy as np

    answer = Answer(
        "b",
        0.5,
        {"a": 0.25, "b": 0.5, "c": 0.25},
        {},
        False,
        views={"contributions": np.array([[1.0, 4.0, 3.0], [0.0, -1.0, 0.0]])},
    )
    assert _toward_its_label(answer) == [2.0, -1.0]


def test_serving_never_loads_torch():
    modules = "sys, service.__main__, service.server, service.client, service.highlight"
    code = f"import {modules}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert output.stdout.strip() == "False"
