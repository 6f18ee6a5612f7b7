"""What doctor says of a machine that lacks something."""

from __future__ import annotations

import pytest

from trtllm_scaffold import console, doctor


@pytest.mark.parametrize(
    ("version", "bounds", "holds"),
    [
        ("9.19.1", "<10,>=9.19", True),
        ("9.18", "<10,>=9.19", False),
        ("10.0", "<10,>=9.19", False),
        ("10", "<10.0", False),
        ("2.13.0+cpu", ">=2.6", True),
        ("5.0.0rc1", ">=4.57.3", True),
        ("1.26", ">=1.26.0", True),
        ("0.17.6", "==0.17.6", True),
        ("anything", "", True),
    ],
)
def test_version_bounds(version, bounds, holds):
    assert doctor.satisfies(version, bounds) is holds


def test_missing_and_old_packages_say_what_to_do(monkeypatch, capsys):
    versions = {"torch": None, "transformers": "4.0"}
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: versions.get(name, real(name) or "99"))
    monkeypatch.setattr(
        doctor, "requirements", lambda: {"torch": ">=2.6", "transformers": ">=4.57"}
    )
    document = doctor.examine()
    assert not document["ok"]
    assert {"what": "torch", "do": 'pip install "torch>=2.6"'} in document["missing"]
    assert {"what": "transformers", "do": 'pip install "transformers>=4.57"'} in document["missing"]
    assert console.print_doctor(document, as_json=False) == 5
    out = capsys.readouterr().out
    assert 'to do  pip install "torch>=2.6"\n' in out
    assert "4.0, but >=4.57 is needed" in out


def test_the_runtime_is_the_real_one_unless_asked(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "1.2.1")
    monkeypatch.delenv(doctor.RUNTIME_VARIABLE, raising=False)
    assert doctor.examine()["runtime"]["name"] == "tensorrt_llm"
    monkeypatch.setenv(doctor.RUNTIME_VARIABLE, "standin")
    assert doctor.examine()["runtime"]["name"] == "standin"


def test_no_git_is_missing(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert {"what": "git", "do": "install git"} in doctor.examine()["missing"]
