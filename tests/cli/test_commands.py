"""Every command's output and exit code, with the functions behind them replaced by fakes."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trtllm_scaffold import __version__
from trtllm_scaffold.cli import run
from trtllm_scaffold.errors import CheckFailed, InputError, Refused, UpdateConflict

PASSED = {
    "name": "parity fp32 prefill",
    "status": "passed",
    "measured": {"max_error": 1.25e-6, "positions": 40},
    "bound": {"max_error": 1e-4},
    "reason": "",
}
FAILED = PASSED | {"status": "failed", "reason": "first differs in model.layers.0.mlp"}
SKIPPED = {
    "name": "cuda graph",
    "status": "skipped",
    "measured": {},
    "bound": {},
    "reason": "no GPU",
}
SUPPORT = {"level": "native", "because": []}
INSPECTION = {
    "model": {"id": None, "source": "m/config.json", "model_type": "llama", "architecture": "L"},
    "spec": {
        "hidden_size": 64,
        "dtype": "bfloat16",
        "attention": {"kind": "GQA", "num_attention_heads": 4, "q_bias": False, "window": None},
        "position": {"kind": "rope", "style": "neox", "scaling": {"kind": "llama3", "factor": 8.0}},
        "norm": {"kind": "rmsnorm", "placement": "pre", "eps": 1e-05},
        "layers": [{"kind": "a"}, {"kind": "b", "sinks": True}],
    },
    "evidence": {
        "attention.kind": [
            {"witness": "config", "where": "m/config.json: num_key_value_heads", "value": 2},
            {"witness": "trace", "where": "self_attn", "value": "GQA"},
        ]
    },
    "proven": True,
    "support": {"1.2": SUPPORT, "1.4": {"level": "refused", "because": ["attention: softcap"]}},
}


@dataclass
class Fake:
    """Stands for a result object and for the function that returns it."""

    document: dict[str, Any]
    files: tuple[str, ...] = ("pyproject.toml", "llama_port/__init__.py")
    error: Exception | None = None
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Fake:
        self.calls.append((args, kwargs))
        if "progress" in kwargs:
            kwargs["progress"]("working on \x1b[31mit")
        if self.error:
            raise self.error
        return self

    def to_json(self) -> dict[str, Any]:
        return self.document

    def __iter__(self) -> Any:
        return iter([Fake(check) for check in self.document["checks"]])


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    """Put a module made of fakes in the place of one of ours."""
    fake = ModuleType(f"trtllm_scaffold.{name}")
    vars(fake).update(names)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


@pytest.fixture
def new(monkeypatch):
    document = {"port": "p", "package": "llama_port", "support": SUPPORT, "checks": [PASSED]}
    fake = Fake(document | {"passed": True})
    module(monkeypatch, "pipeline", new_port=fake, inspect_model=Fake(INSPECTION))
    return fake


@pytest.fixture
def check(monkeypatch):
    fake = Fake({"checks": [PASSED]})
    module(monkeypatch, "verify.check", check_port=fake)
    return fake


@pytest.fixture
def prove(monkeypatch):
    document = {
        "port": "p",
        "runtime": {"name": "standin", "version": "1.2.1+standin"},
        "device": "cpu",
        "reference": {"transformers": "5.0.0"},
        "checks": [PASSED, SKIPPED],
        "passed": True,
    }
    fake = Fake(document)
    module(monkeypatch, "verify.prove", prove_port=fake)
    return fake


@pytest.fixture
def config(write_config, llama):
    return str(write_config(llama))


def test_version_and_help(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"trtllm-scaffold {__version__}\n"
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ("new", "inspect", "check", "prove", "doctor"))
    assert "..." not in out.replace("[ARGS]...", "")
    for name in ("new", "inspect", "check", "prove", "doctor"):
        assert run([name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_new_passes_its_options_on(new, config, capsys):
    options = ["--name", "x", "--package", "y", "--trtllm", "1.4", "--no-prove", "--force"]
    options += ["--allow-unproven", "--trust-remote-code", "--dry-run"]
    assert run(["new", "here", "--config", config, *options]) == 0
    (sources, dest), keys = new.calls[0]
    assert sources.where == config and sources.header is None
    assert dest == Path("here")
    progress = keys.pop("progress")
    assert callable(progress)
    assert keys == {
        "name": "x",
        "package": "y",
        "trtllm": "1.4",
        "prove": False,
        "allow_unproven": True,
        "trust_remote_code": True,
        "dry_run": True,
        "force": True,
        "in_tree": None,
    }
    out = capsys.readouterr().out
    assert "p (not written: dry run)" in out and "  llama_port/__init__.py" in out


def test_new_prints_a_table_and_what_to_do_next(new, config, capsys):
    assert run(["new", "--config", config]) == 0
    assert new.calls[0][0][1] == Path("llama-trtllm")
    out, err = capsys.readouterr()
    assert err == "  working on \\x1b[31mit\n"
    assert out == (
        "port     p\n"
        "package  llama_port\n"
        "support  native\n"
        "\n"
        "check                result  measured\n"
        "parity fp32 prefill  passed  max error 1.25e-06 (bound 0.0001), positions 40\n"
        "\n"
        "next  cd p && pytest\n"
        "      read p/README.md\n"
    )


@pytest.mark.parametrize(
    ("checks", "passed", "options", "code"),
    [
        ([PASSED], True, [], 0),
        ([PASSED, SKIPPED], True, [], 0),
        ([PASSED, FAILED], False, [], 1),
        ([], False, [], 1),
        ([], False, ["--no-prove"], 0),
        ([FAILED], False, ["--no-prove"], 1),
        ([], False, ["--dry-run"], 0),
        ([SKIPPED], False, ["--allow-unproven"], 0),
        ([FAILED], False, ["--allow-unproven"], 1),
    ],
)
def test_new_exits_by_its_checks(new, config, capsys, checks, passed, options, code):
    new.document |= {"checks": checks, "passed": passed}
    assert run(["new", "--config", config, *options, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == new.document


def test_a_new_port_that_failed_is_not_offered(new, config, capsys):
    new.document |= {"checks": [FAILED], "passed": False}
    assert run(["new", "--config", config]) == 1
    out = capsys.readouterr().out
    assert "p (not written: a check failed)" in out and "next" not in out


def test_inspect_prints_facts_support_and_evidence(new, config, capsys):
    assert run(["inspect", config, "--explain"]) == 0
    assert capsys.readouterr().out == (
        "m/config.json  llama  L\n"
        "\n"
        "  sizes      hidden 64, dtype bfloat16\n"
        "  attention  GQA, heads 4\n"
        "  position   rope, style neox, scaling (llama3, factor 8)\n"
        "  norm       rmsnorm, placement pre, eps 1e-05\n"
        "  layers     a | b, sinks\n"
        "\n"
        "  facts             traced\n"
        "  TensorRT-LLM 1.2  native\n"
        "  TensorRT-LLM 1.4  refused  attention: softcap\n"
        "\n"
        "fact            value  witness  where\n"
        "attention.kind  2      config   num_key_value_heads\n"
        "                GQA    trace    self_attn\n"
    )
    assert run(["inspect", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == INSPECTION


def test_check_exits_by_its_checks(check, capsys):
    assert run(["check", "p", "--trtllm", "all", "--checkpoint", "c"]) == 0
    assert check.calls[0] == ((Path("p"),), {"checkpoint": Path("c"), "trtllm": "all"})
    assert capsys.readouterr().out.endswith("\n\npassed\n")
    check.document["checks"] = [PASSED, FAILED]
    assert run(["check", "p", "--trtllm", "1.2"]) == 1
    out = capsys.readouterr().out
    assert "(bound 0.0001), positions 40; first differs in model.layers.0.mlp" in out
    assert out.endswith("\n\nfailed\n")
    assert run(["check", "p", "--trtllm", "1.2", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document == {"port": "p", "checks": [PASSED, FAILED], "passed": False}
    check.document["checks"] = []
    assert run(["check", "p", "--trtllm", "1.2"]) == 1


def test_prove_passes_its_options_on_and_writes_the_report(prove, monkeypatch, capsys):
    written = []
    module(monkeypatch, "verify.html", write_html=lambda *call: written.append(call))
    options = ["--checkpoint", "c", "--tp", "1, 2,8", "--device", "cuda", "--dtype", "bfloat16"]
    options += ["--runtime", "standin", "--trtllm", "1.4", "--report", "r.html"]
    assert run(["prove", "p", *options]) == 0
    args, keys = prove.calls[0]
    keys.pop("progress")
    assert args == (Path("p"),)
    assert keys == {
        "checkpoint": Path("c"),
        "tp": (1, 2, 8),
        "device": "cuda",
        "dtype": "bfloat16",
        "runtime": "standin",
        "trtllm": "1.4",
    }
    assert written == [(prove, Path("r.html"))]
    assert capsys.readouterr().out == (
        "runtime    standin 1.2.1+standin on cpu\n"
        "reference  transformers 5.0.0\n"
        "\n"
        "check                result   measured\n"
        "parity fp32 prefill  passed   max error 1.25e-06 (bound 0.0001), positions 40\n"
        "cuda graph           skipped  no GPU\n"
        "\n"
        "passed\n"
    )


def test_break_downs_are_shown_where_a_check_failed(check, capsys):
    figures = {"measured": {"unused": [], "by_run": {"tiny": 0.5}}, "bound": {"unused": 0, "n": 1}}
    check.document["checks"] = [PASSED | figures, FAILED | figures]
    run(["check", "p", "--trtllm", "1.2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("passed  unused none (bound 0)")
    assert "by run tiny 0.5, bound n 1; first differs" in lines[2]


def test_the_ports_own_generation_is_the_default(check, prove):
    run(["check", "p"])
    run(["prove", "p"])
    assert check.calls[0][1] == {"checkpoint": None, "trtllm": None}
    keys = prove.calls[0][1]
    assert (keys["trtllm"], keys["tp"], keys["dtype"]) == (None, (1, 2), "both")
    assert (keys["device"], keys["runtime"]) == ("cpu", "auto")


def test_a_failed_proof_exits_1(prove, capsys):
    prove.document |= {"passed": False, "checks": [FAILED | {"measured": {"e": float("nan")}}]}
    assert run(["prove", "p", "--trtllm", "1.2"]) == 1
    assert capsys.readouterr().out.endswith("failed\n")
    assert run(["prove", "p", "--trtllm", "1.2", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["checks"][0]["measured"] == {"e": "nan"}


@pytest.mark.parametrize("tp", ["", "0", "-1", "1,,2", "65", "a", "1;2", "10000", "²"])
def test_bad_tp_sizes_are_usage_errors(prove, capsys, tp):
    assert run(["prove", "p", f"--tp={tp}"]) == 2
    assert not prove.calls
    assert "is not a list of sizes" in capsys.readouterr().err


def test_doctor_reads_versions_without_torch(run_cli):
    done = run_cli("doctor", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == (0 if document["ok"] else 5)
    names = {item["name"]: item for item in document["found"]}
    assert {"python", "torch", "transformers", "copier", "safetensors", "git", "gpu"} <= set(names)
    assert {"huggingface_hub", "tensorrt_llm"} <= set(names)
    assert document["runtime"]["name"] in ("standin", "tensorrt_llm")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (CheckFailed("c"), 1, "check_failed"),
        (InputError("i", where="w", hint="h"), 3, "input"),
        (Refused("attention", "r"), 4, "refused"),
        (UpdateConflict("u"), 6, "conflict"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 5, "environment"),
        (PermissionError(13, "Permission denied", "/x"), 5, "environment"),
        (RuntimeError("first line\nsecond line"), 1, "error"),
    ],
)
def test_every_error_is_one_line_or_one_document(new, config, capsys, error, code, kind):
    new.error = error
    assert run(["new", "--config", config]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2 and err.splitlines()[1].startswith("error: ")
    assert run(["new", "--config", config, "--json"]) == code
    out, err = capsys.readouterr()
    document = json.loads(out)["error"]
    assert document["kind"] == kind
    assert set(document) == {"kind", "message", "where", "hint"}
    assert "Traceback" not in err
    assert "\n" not in document["message"]


def test_a_bug_asks_to_be_reported_and_hides_its_traceback(new, config, capsys, monkeypatch):
    new.error = RuntimeError("odd")
    assert run(["new", "--config", config]) == 1
    err = capsys.readouterr().err
    assert "unexpected RuntimeError: odd" in err and "please report it" in err
    monkeypatch.setenv("TRTLLM_SCAFFOLD_DEBUG", "1")
    with pytest.raises(RuntimeError, match="odd"):
        run(["new", "--config", config])


def test_interruption_exits_130(new, config, capsys):
    new.error = KeyboardInterrupt()
    assert run(["new", "--config", config]) == 130
    assert "error" not in capsys.readouterr().err


def test_secrets_and_terminal_escapes_stay_out(new, config, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    new.error = InputError("my-own-token hf_abcdefghij \x1b]0;x\x07 http://u:pw@host/ \u202e")
    for options in ([], ["--json"]):
        run(["new", "--config", config, *options])
        out, err = capsys.readouterr()
        text = out + err
        assert "http://***@host/" in text
        for secret in ("my-own-token", "hf_abc", "pw", "\x1b", "\x07", "\u202e"):
            assert secret not in text


@pytest.fixture
def timed(monkeypatch):
    """What `bench` was asked to measure; nothing is."""
    asked: list[Any] = []

    @contextlib.contextmanager
    def subject(port, config, changes, longest):
        asked.append((port, config, changes, longest))
        yield SimpleNamespace(runtime={"name": "standin", "version": "1.2"})

    def rows_of(name, _made, _machine, plan, _tell):
        asked.append((name, plan))
        row = {"metric": "decode", "batch": 8, "ours": 1.5, "hf_best": None, "unit": "ms/token"}
        return [row]

    @dataclass(frozen=True)
    class Plan:
        prompts: tuple[int, ...]
        batches: tuple[int, ...]
        compiled: bool
        longest: int = 99

    module(monkeypatch, "bench.subject", subject=subject, require_gpu=lambda: None)
    module(monkeypatch, "bench.run", rows_of=rows_of, Plan=Plan)
    module(monkeypatch, "bench.floors", measure_machine=lambda: None)
    return asked


def test_bench_measures_what_it_is_asked_to(timed, capsys):
    assert run(["bench", "p", "--prompts", "64, 128", "--batches", "8", "--no-compiled"]) == 0
    assert timed[0] == (Path("p"), Path("p/config.json"), {}, 99)
    name, plan = timed[1]
    assert (name, plan.prompts, plan.batches, plan.compiled) == ("p", (64, 128), (8,), False)
    shown = capsys.readouterr().out
    assert "decode  8      1.5" in shown and "runtime standin 1.2" in shown
    assert run(["bench", "p", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"][0]["hf_best"] is None and document["runtime"]["name"] == "standin"


@pytest.mark.parametrize("options", [["--batches", "0"], ["--prompts", "1,,2"]])
def test_bench_takes_counts_alone(options, capsys):
    assert run(["bench", "p", *options]) == 2
    assert "is no list of counts" in capsys.readouterr().err
