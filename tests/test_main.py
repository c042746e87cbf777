"""`python -m jattn`: what one pastes into a report."""

from importlib import metadata

import jax
import pytest

import jattn
from jattn import __main__ as about


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    about.main()
    return capsys.readouterr().out.splitlines()


def test_versions_devices_and_what_runs(capsys):
    lines = said(capsys)
    assert lines[0].startswith(f"jattn {jattn.__version__}, Python 3.")
    assert f"jax {jax.__version__}" in lines[1]
    assert f"flax {metadata.version('flax')}" in lines[1]
    assert lines[3].startswith(f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.devices()[0].platform})")
    assert lines[5] == "Attention, causal, 4,096 tokens, 8 heads of 64 features:"
    if jax.default_backend() == "cpu":
        assert lines[6:8] == [
            "  float32:",
            "    streaming: memory linear in the sequence, and faster than the matrix at this size.",
        ]


NEEDED = [
    "jax>=0.10",
    "flax",
    'matplotlib>=3.8; extra == "plots"',
    "nowhere[fast]<2; extra == 'own'",
    "jattn[plots,own]; python_version > '3' and extra == 'all'",
]


def test_extras(capsys, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: NEEDED)
    versions = {"jax": "0.10.2", "jaxlib": "0.10.2", "matplotlib": "3.8"}
    monkeypatch.setattr(about, "_version", versions.get)
    lines = said(capsys)
    assert lines[1] == "jaxlib 0.10.2, jax 0.10.2, flax missing"
    assert lines[lines.index("Extras:") + 1 :] == [
        '  all: without nowhere: pip install -e ".[all]"',
        '  own: without nowhere: pip install -e ".[own]"',
        "  plots: here",
    ]


def test_not_installed(capsys, monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert said(capsys)[-1] == "It is not installed, so which extras there are is not known."
