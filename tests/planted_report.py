"""A report with every key that the page, the terminal and the exports draw, as evaluate would write it."""

import math
from typing import Any

import numpy as np

SHAPES = {"old_to_old": 2.2, "new_to_new": 3.4, "naive": 0.0, "transformed": 2.0}
"""How far genuine scores lie above impostor ones, in standard deviations."""
FARS = (1e-2, 1e-3, 1e-4, 1e-6)


def iv(value: float, width: float = 0.02) -> dict[str, float]:
    return {
        "value": value,
        "low": max(0.0, value - width) if value >= 0 else value - width,
        "high": min(1.0, value + width),
    }


def measures(recall: float) -> dict[str, Any]:
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "precision_at_10")
    names += ("mean_average_precision", "mean_reciprocal_rank", "ndcg_at_10")
    shares = (1, 1.12, 1.17, 0.6, 0.8, 1.05, 0.9)
    return {name: iv(min(0.985, recall * share)) for name, share in zip(names, shares, strict=True)}


def plant_report() -> dict[str, Any]:
    """Old 0.771, new 0.874, naive 0.004, transformed 0.752; group dusk loses most."""
    recalls = {"old_to_old": 0.771, "new_to_new": 0.874, "naive": 0.014, "transformed": 0.752}
    space = {"name": "resnet18", "fingerprint": "a" * 64, "dim": 512, "normalized": True, "similarity": "cosine"}
    return {
        "format_version": 1,
        "verdict": {
            "decision": "bridge_and_backfill",
            "reason": "The bridge keeps 97.5% (95% interval 95.1% to 99.8%) of the old system's recall@1 (0.752 "
            "against 0.771): serve it at once and re-embed the first 30% of the gallery behind it.",
            "needed": "about 2,400 queries would tell whether the loss is below 1%.",
            "limits": {"tolerated_loss": 0.02, "retention_floor": 0.9, "fewest_groups": 10},
        },
        "settings": {name: measures(recall) for name, recall in recalls.items()}
        | {"old_to_old_corrected": None, "transformed_uncorrected": None},
        "reasons": {},
        "retention": iv(0.975),
        "retention_reason": "",
        "update_gain": {"value": -0.184, "low": -0.4, "high": 0.02},
        "update_gain_reason": "",
        "relevance": "label",
        "queries_evaluated": 2000,
        "queries_excluded": 14,
        "groups": 400,
        "grouped_by": "label",
        "gallery": {"path": "faces/gallery-old", "space": space, "rows": 20_000},
        "queries": {"path": "faces/queries-new", "space": space | {"name": "resnet50"}, "rows": 2014},
        "transformer": {"family": "mlp", "direction": "new-to-old", "pairs": 12_000, "held_out": {"recall_at_1": 0.76}},
        "comparisons": [compared("ridge", 0.741, -0.011), compared("procrustes", 0.69, -0.062)],
        "notes": ["14 of 2014 queries are left out, for example 'q17': nothing in the gallery is relevant to them"],
        "by_group": {"column": "light", "rows": groups(), "worst": "dusk", "left_out": 31},
        "flips": {
            "negative": 131,
            "positive": 93,
            "negative_rate": iv(0.0655, 0.01),
            "before": "old_to_old",
            "after": "transformed",
            "items": [f"faces/{i:05d}.png" for i in range(100)],
        },
        "cmc": {"depth": list(range(1, 51)), "settings": {name: cmc(recall) for name, recall in recalls.items()}},
        "verification": verification(),
        "open_set": open_set(),
        "means": {"labels": 40, "recall_at_1": {"old_to_old": {"value": 0.5, "low": 0.4, "high": 0.6}}},
        "pair_list": {
            "genuine_pairs": 300,
            "impostor_pairs": 300,
            "settings": {"transformed": {"accuracy": {"mean": 0.91, "standard_error": 0.01}, "equal_error_rate": 0.09}},
        },
        "backfill": backfill(),
        "confidence": confidence(),
        "drift": {
            "queries": 5000,
            "expected_share": 0.05,
            "strange_share": iv(0.128, 0.009),
            "statistic": 0.171,
            "p_value": 3e-9,
            "verdict": "drifted",
            "strangest": [f"today/{i}.png" for i in range(20)],
            "reason": "12.8% of today's queries are stranger than 95% of what the map was fitted on; fit it again.",
        },
        "approximate": [
            {"setting": "transformed", "factory": factory, "recall_at_1": iv(recall), "agreement": agreement}
            for factory, recall, agreement in (("HNSW32", 0.751, 0.993), ("IVF256,PQ32x4fs,RFlat", 0.738, 0.94))
        ],
        "reproduce": {
            "command": "python -m compat.evaluate --gallery faces/gallery-old --queries faces/queries-new "
            "--old-queries faces/queries-old --transformer maps/faces --out faces/report --seed 0",
            "versions": {"embedding-compat": "0.1.0", "torch": "2.9.1", "numpy": "2.3.5", "faiss": "1.13.0"},
            "inputs": [
                {"role": role, "path": f"faces/{role}", "space": "resnet18", "rows": 20_000, "digest": "9f" * 32}
                for role in ("gallery", "queries", "transformer")
            ],
            "seed": 0,
            "options": {"relevance": "label", "resamples": 2000, "fars": list(FARS)},
        },
    }


def compared(name: str, recall: float, gain: float) -> dict[str, Any]:
    numbers = {"retention": iv(recall / 0.771), "update_gain": iv((recall - 0.771) / 0.103, 0.2)}
    return {"name": name, "family": name, "direction": "new-to-old", "measures": measures(recall), "notes": []} | {
        **numbers,
        "gain_over_best": iv(gain, 0.008),
        "correction": None,
    }


def groups() -> list[dict[str, Any]]:
    rows = []
    for i, name in enumerate(("dusk", "night", "flash", "backlit", "shade", *(f"room {n}" for n in range(9)), "noon")):
        old, change, width = 0.74 + 0.004 * i, -0.09 + 0.0095 * i, 0.03 if i % 4 or i == 0 else 0.09
        row = {"group": name, "queries": 40 if i % 4 == 0 and i else 210 - 3 * i, "small": i % 4 == 0 and i > 0}
        row |= {"old_to_old": iv(old, 0.03), "new_to_new": iv(old + 0.1, 0.03), "transformed": iv(old + change, 0.03)}
        rows.append(row | {"change": {"value": change, "low": change - width, "high": change + width}})
    return rows


def cmc(recall: float) -> list[float]:
    return [1 - (1 - recall) * k**-0.45 for k in range(1, 51)]


def tail(score: float) -> float:
    return 0.5 * math.erfc(score / math.sqrt(2))


def verification() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    thresholds = np.linspace(5.2, -3, 180)
    edges = np.linspace(-1, 1, 101)
    for name, shift in SHAPES.items():
        far = [round(tail(t) * 760_000) / 760_000 for t in thresholds]
        tar = [round(tail(t - shift) * 38_000) / 38_000 for t in thresholds]
        points = [
            {"far": f, "tar": iv(float(np.interp(f, far, tar)), 0.015), "threshold": 0.4, "reason": ""} for f in FARS
        ]
        points[-1] = {"far": 1e-6, "tar": None, "threshold": None, "reason": "FAR 1e-06 needs 1,000,000 impostor pairs"}
        middle = (edges[1:] + edges[:-1]) / 2
        impostor = np.exp(-0.5 * ((middle - 0.02) / 0.12) ** 2)
        genuine = np.exp(-0.5 * ((middle - 0.02 - 0.12 * shift) / 0.13) ** 2)
        settings[name] = {
            "genuine_pairs": 38_000,
            "impostor_pairs": 760_000,
            "equal_error_rate": tail(shift / 2),
            "tar_at_far": points,
            "roc": {"far": far, "tar": tar},
            "det": {"fmr": far, "fnmr": [1 - t for t in tar]},
            "precision_recall": {"recall": tar, "precision": [1 - f for f in far]},
            "histogram": {
                "edges": edges.tolist(),
                "genuine": (genuine / genuine.sum()).tolist(),
                "impostor": (impostor / impostor.sum()).tolist(),
            },
        }
    kept = {"far": 0.001, "frr": 0.813, "recalibrated": {"threshold": 0.391, "far": 0.001, "frr": 0.813}}
    moved = {"far": 0.0042, "frr": 0.71, "recalibrated": {"threshold": 0.431, "far": 0.00099, "frr": 0.862}}
    return {
        "settings": settings,
        "old_threshold": {"far": 1e-3, "threshold": 0.391, "settings": {"old_to_old": kept, "transformed": moved}},
        "reason": "",
    }


def open_set() -> dict[str, Any]:
    settings = {}
    fpir = np.geomspace(1e-3, 1, 60).tolist()
    for name, power in (("old_to_old", 0.16), ("new_to_new", 0.08), ("transformed", 0.18)):
        points = [{"fpir": f, "tpir": iv(0.9 * f**power), "threshold": 0.5, "reason": ""} for f in (0.1, 0.01)]
        points.append(
            {"fpir": 1e-4, "tpir": None, "threshold": None, "reason": "FPIR 0.0001 needs 10,000 unknown probes"}
        )
        settings[name] = {"fpir": fpir, "tpir": [0.9 * f**power for f in fpir], "tpir_at_fpir": points}
    return {"unknown_probes": 1000, "mated_probes": 1000, "withheld": True, "settings": settings}


def backfill() -> dict[str, Any]:
    fraction = np.linspace(0, 1, 101)
    orders = {}
    for name, power in (("random", 1.25), ("per_identity", 1.0), ("uncertainty", 0.6)):
        recall = 0.752 + 0.122 * fraction**power
        reaches = [("old_to_old", 0.771), ("99% of new_to_new", 0.865), ("0.9", 0.9)]
        orders[name] = {
            "fraction": fraction.tolist(),
            "recall_at_1": recall.tolist(),
            "area": float(recall.mean()),
            "reaches": [
                {"target": target, "fraction": float(fraction[recall >= at][0]) if (recall >= at).any() else None}
                for target, at in reaches
            ],
        }
    return {
        "gallery_rows": 20_000,
        "queries": 2000,
        "orders": orders,
        "calibrated": True,
        "reason": "",
        "targets": [{"name": "old_to_old", "recall_at_1": 0.771}, {"name": "99% of new_to_new", "recall_at_1": 0.865}],
        "reranked": [
            {"proposed_by": "bridged queries", "candidates": k, "recall_at_1": iv(r)}
            for k, r in ((10, 0.83), (50, 0.851), (100, 0.86))
        ],
    }


def confidence() -> dict[str, Any]:
    shares = [0.05 * i for i in range(11)]
    return {
        "abstained": shares,
        "recall_at_1": [iv(0.752 + 0.2 * x**0.7, 0.02 + 0.02 * x) for x in shares],
        "area": 0.171,
        "random_area": 0.248,
        "score": "Mahalanobis distance to the training queries",
        "helps": True,
        "threshold": [1 - x for x in shares],
        "reason": "leaving out the strangest 20% raises recall@1 from 0.752 to 0.817",
    }
