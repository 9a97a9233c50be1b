"""Metrics of generated images, from features: torch-fidelity's own computations, under names that say what was used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from spheregen.errors import SpheregenError, suggest
from spheregen.reference import Features, Moments

METRICS = ("fid", "is", "kid", "prc", "coverage", "rfid")
NEIGHBOURS = 5  # k of density and coverage (Naeem et al. 2020)
KID_SUBSET = 1000  # torch-fidelity's, as everyone's
FULL = 50_000  # samples of an FID that may be called so


def check_metrics(names: Sequence[str], samples: int, reference: int) -> None:
    """Refuse unknown metrics, and samples too few for one. reference: images in the reference set."""
    for name in names:
        if name not in METRICS:
            raise SpheregenError(f"metrics: unknown metric '{name}'; {suggest(name, METRICS)}")
    for what, count in (("samples", samples), ("reference images", reference)):
        least = {"fid": 2, "rfid": 2, "is": 10, "kid": 2, "prc": 4, "coverage": NEIGHBOURS + 1}
        for name in names:
            if count < least[name] and not (name == "is" and what != "samples"):
                raise SpheregenError(f"metrics: {name} needs at least {least[name]} {what}, there are {count}")


def title(metric: str, label: str, samples: int) -> str:
    """What a figure is called: FID is Inception's alone, and of 50,000 samples unless another number stands beside it.

    >>> title("fid", "inception", 50_000), title("fid", "inception", 10_000), title("fid", "resnet50", 50_000)
    ('FID', 'FID-10k', 'FD(resnet50)')
    """
    inception = label == "inception"
    stem = metric.removeprefix("r")
    if stem == "fid":
        size = "" if samples == FULL or not inception else f"-{samples / 1000:g}k"
        return ("r" if metric == "rfid" else "") + (f"FID{size}" if inception else f"FD({label})")
    names = {"is": ("IS", "class score"), "kid": ("KID", "KD")}
    ours, theirs = names.get(metric, (metric, metric))
    return ours if inception else f"{theirs}({label})"


def frechet(a: Moments, b: Moments) -> float:
    """The Fréchet distance of two Gaussians."""
    from torch_fidelity import metric_fid

    pair = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (a, b)]
    return metric_fid.fid_statistics_to_metric(*pair, verbose=False)[metric_fid.KEY_METRIC_FID]


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over ten parts, from class scores [n, K]."""
    from torch_fidelity import metric_isc

    found = metric_isc.isc_features_to_metric(logits)
    return found[metric_isc.KEY_METRIC_ISC_MEAN], found[metric_isc.KEY_METRIC_ISC_STD]


def kernel_distance(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over a hundred subsets, of 1,000 images or as many as there are."""
    from torch_fidelity import metric_kid

    size = min(KID_SUBSET, len(samples), len(real))
    found = metric_kid.kid_features_to_metric(samples, real, kid_subset_size=size, verbose=False)
    return found[metric_kid.KEY_METRIC_KID_MEAN], found[metric_kid.KEY_METRIC_KID_STD]


def precision_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """By the distances to the third neighbour (Kynkäänniemi et al. 2019)."""
    from torch_fidelity import metric_prc

    found = metric_prc.prc_features_to_metric(samples, real, save_cpu_ram=True, verbose=False)
    return found[metric_prc.KEY_METRIC_PRECISION], found[metric_prc.KEY_METRIC_RECALL]


def density_coverage(samples: Tensor, real: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020): how many real images' neighbourhoods a sample lies in, over k; and the
    share of real images whose neighbourhood holds a sample. A neighbourhood reaches to the k-th real neighbour."""
    inside, covered = 0, 0
    for rows in real.split(2000):
        radii = torch.cdist(rows, real).kthvalue(k + 1, dim=1).values
        within = torch.cdist(rows, samples) <= radii.unsqueeze(1)
        inside += int(within.sum())
        covered += int(within.any(dim=1).sum())
    return inside / (k * len(samples)), covered / len(real)


def by_class(samples: Features, real: Features) -> dict[int, tuple[float, float]]:
    """Density and coverage of each class, for those with more than k real images and some samples."""
    found = {}
    for label in sorted({*real.labels.tolist()}):
        theirs, ours = real.features[real.labels == label], samples.features[samples.labels == label]
        if len(theirs) > NEIGHBOURS and len(ours):
            found[label] = density_coverage(ours, theirs)
    return found


def measure(
    metrics: Iterable[str], samples: Features, ours: Moments, real: Features, theirs: Moments, conditional: bool
) -> dict[str, Any]:
    """All of some metrics, by plain names: fid, is, is_std, kid, kid_std, precision, recall, density, coverage (of a
    conditional model, means over classes, with the worst class beside them)."""
    found: dict[str, Any] = {}
    wanted = set(metrics)
    if "fid" in wanted:
        found["fid"] = frechet(ours, theirs)
    if "is" in wanted and samples.logits is not None:
        found["is"], found["is_std"] = inception_score(samples.logits)
    if "kid" in wanted:
        found["kid"], found["kid_std"] = kernel_distance(samples.features, real.features)
    if "prc" in wanted:
        found["precision"], found["recall"] = precision_recall(samples.features, real.features)
    if "coverage" in wanted:
        classes = by_class(samples, real) if conditional else {}
        if classes:
            found["density"] = sum(d for d, _ in classes.values()) / len(classes)
            found["coverage"] = sum(c for _, c in classes.values()) / len(classes)
            worst = min(classes, key=lambda label: classes[label][1])
            found["worst_class"], found["worst_coverage"] = worst, classes[worst][1]
        else:
            found["density"], found["coverage"] = density_coverage(samples.features, real.features)
    return found
