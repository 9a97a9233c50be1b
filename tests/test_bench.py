"""Benchmarks: what they count and report. How fast anything is belongs to no test."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from spheregen import Recipe, SpheregenError
from spheregen.benchmark import PARTS, benchmark, peak_memory
from spheregen.cli.bench import parse_pairs, show
from spheregen.flops import count_flops


def test_flops_of_a_linear_layer_and_of_attention() -> None:
    layer, x = nn.Linear(30, 50), torch.randn(7, 30)
    assert count_flops(lambda: layer(x)) == 2 * 7 * 30 * 50
    # The gradient of the weight costs as much again; x needs none.
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * (2 * 7 * 30 * 50)
    q = torch.randn(2, 4, 16, 32)
    forward = 2 * (2 * 2 * 4 * 16 * 16 * 32)  # two products: scores, and their average of the values
    assert count_flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == forward
    with torch.device("meta"):
        layer, x = nn.Linear(30, 50), torch.randn(7, 30)
    assert count_flops(lambda: layer(x)) == 2 * 7 * 30 * 50


@pytest.mark.parametrize("share", [False, True])
def test_a_report_holds_what_it_promises(
    tiny: Callable[..., Recipe], share: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spheregen.benchmark.peak_memory", lambda *_, **__: 2**20)  # has a test of its own
    report = benchmark(tiny(), rounds=1, steps_a_round=1, sampling=[(2, 1.5)], samples=4, baseline=True, share=share)
    training = report["training"]
    assert set(training["seconds_by_part"]) == {*PARTS, "other"}
    assert all(training["seconds_by_part"][part] > 0 for part in PARTS if part != "perceptual")
    assert training["seconds_by_part"]["perceptual"] == 0
    assert training["flops_per_image"] > 0
    peak = report["matmul_peak_flops"][report["precision"]]
    assert set(report["matmul_peak_flops"]) == {"float32", "bfloat16"}
    flops_a_second = training["flops_per_image"] * training["images_per_second"]
    assert training["share_of_peak"] == pytest.approx(flops_a_second / peak)
    assert training["seconds_of_first_step"] > 0
    assert training["baseline"]["shares_decodings"] is share
    assert report["sampling"][0]["network_passes"] == 6
    assert report["sampling"][0]["precision"] == {"float32": "fp32", "bfloat16": "bf16"}[report["precision"]]
    json.dumps(report)
    show(report)
    shown = capsys.readouterr().out
    assert "2 steps (6 network passes), guidance 1.5, " in shown
    assert "the first step took" in shown


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sampling_is_in_the_recipes_precision(
    tiny: Callable[..., Recipe], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spheregen.benchmark.peak_memory", lambda *_, **__: 2**20)
    asked: list[str] = []
    monkeypatch.setattr("spheregen.benchmark.sample", lambda *_, **way: asked.append(way["precision"]))
    recipe = tiny(f"training.precision={precision!r}")
    report = benchmark(recipe, rounds=1, steps_a_round=1, sampling=[(1, 1.0)], samples=2)
    assert set(asked) == {precision} == {report["sampling"][0]["precision"]}


def test_random_images_stand_in_for_missing_ones(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny("data.use=image-folder", f"data.root={str(tmp_path / 'none')!r}", "data.image_size=8",
                  "data.classes=3")  # fmt: skip
    report = benchmark(recipe, rounds=1, steps_a_round=1, sampling=[], baseline=False)
    assert report["images"] == "random"
    # A process of its own measured it; the networks alone are smaller than a step.
    assert report["training"]["peak_memory"] > 2**18


def test_memory_grows_with_the_batch(tiny: Callable[..., Recipe]) -> None:
    small, large = (
        peak_memory(tiny("encoder.width=64", "decoder.width=64", f"training.batch_size={size}")) for size in (16, 2048)
    )
    assert small is not None
    assert large is not None
    assert large > small + 100 * 2**20


def _killed(*_: object) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_step_that_takes_more_memory_than_there_is(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system kills the process that measures; the rates are told all the same."""
    monkeypatch.setattr("spheregen.benchmark._measure_memory", _killed)
    report = benchmark(tiny(), rounds=1, steps_a_round=1, sampling=[])
    assert report["training"]["peak_memory"] is None
    show(report)
    assert "peak memory more than there is" in capsys.readouterr().out


def test_pairs_are_read() -> None:
    assert parse_pairs("1:1,4:1.4,6") == [(1, 1.0), (4, 1.4), (6, 1.0)]
    with pytest.raises(SpheregenError, match="--sampling x:2: expected STEPS:SCALE"):
        parse_pairs("x:2")
