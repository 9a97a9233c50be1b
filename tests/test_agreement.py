"""The classifier's view of samples, and its report a class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import agreement
import class_agreement
import numpy as np
import pytest
import torch
from conftest import scramble

import spheregen
from spheregen.checkpoint import RunFolder


def test_confusion_is_shares_of_each_class() -> None:
    class Fixed:
        def predict(self, images: agreement.Array) -> agreement.Labels:
            return images[:, 0].astype(np.int64)

    seen = np.array([[0], [0], [1], [2], [1], [1]], np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1])
    found = agreement.confusion(Fixed(), seen, labels, 3)  # type: ignore[arg-type]
    expected = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [np.nan] * 3])
    np.testing.assert_allclose(found, expected)
    told = class_agreement.as_json(found)
    assert told["agreement"] == [0.5, 1.0, None]
    assert told["mean"] == 0.75
    assert class_agreement.mistaken(told["confusion"][0], 0, ["a", "b", "c"]) in ("b (25%)", "c (25%)")
    assert class_agreement.mistaken(told["confusion"][1], 1, ["a", "b", "c"]) == ""


def test_rows_are_spread_over_the_source() -> None:
    source = spheregen.Recipe.read("digits").data.build()
    images, labels = agreement.rows_of(source)
    assert images.shape == (1437, 64)
    some, some_labels = agreement.rows_of(source, 100)
    assert len(some) == 100
    np.testing.assert_array_equal(some[[0, -1]], images[[0, -1]])
    np.testing.assert_array_equal(some_labels[[0, -1]], labels[[0, -1]])
    assert set(some_labels) == set(range(10))


def test_the_report_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of random weights: real digits are seen as what they are, its samples are not."""
    out = tmp_path / "agreement"
    class_agreement.main([str(run), "--steps", "1,2", "--samples", "5", "--sampler", "fixed:r=0.5", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "5 samples a class, fixed shared" in shown
    assert "held-out real" in shown
    report = json.loads((out / "agreement.json").read_text(encoding="utf-8"))
    assert report["held_out"]["mean"] > 0.97
    assert list(report["steps"]) == ["1", "2"]
    for column in report["steps"].values():
        assert column["mean"] < 0.5
        np.testing.assert_allclose(np.sum(column["confusion"], axis=1), 1)
        np.testing.assert_allclose(np.diagonal(column["confusion"]), column["agreement"])
    page = (out / "agreement.md").read_text(encoding="utf-8")
    assert "| class | held-out real | 1 step | 2 steps | seen as |" in page
    assert len([line for line in page.splitlines() if line.startswith("| ")]) == 1 + 1 + 10 + 1


def test_samples_that_are_real_digits_agree(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = spheregen.Recipe.read("digits").held_out()
    images = torch.stack([held_out[i][0] for i in range(len(held_out))]).float() / 255
    labels = torch.tensor([held_out[i][1] for i in range(len(held_out))])

    def real(_: object, asked: list[int], **__: object) -> torch.Tensor:
        return torch.stack([images[labels == label][i % 30] for i, label in enumerate(asked)])

    monkeypatch.setattr(spheregen, "sample", real)
    class_agreement.main([str(run), "--steps", "1", "--samples", "30", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "agreement.json").read_text(encoding="utf-8"))
    assert report["steps"]["1"]["mean"] > 0.97


def test_models_without_classes_are_refused(tiny: Callable[..., spheregen.Recipe], tmp_path: Path) -> None:
    recipe = tiny("conditioner.use=unconditional")
    folder = RunFolder(tmp_path / "run")
    folder.begin(recipe)
    folder.save_model(scramble(spheregen.SphereModel.from_recipe(recipe)), {})
    with pytest.raises(SystemExit, match=r"unconditional: no class is asked for"):
        class_agreement.main([str(folder.path)])
    with pytest.raises(SystemExit, match="not a run folder"):
        class_agreement.main([str(tmp_path / "none")])
