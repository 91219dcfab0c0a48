"""The table and settings that `bigain classify` writes."""

import csv
from pathlib import Path
from typing import Any

from bigain.benchmark.classify import ClassifiedFolder, MethodPredictions
from bigain.results.files import whole_folder, write_result
from bigain.results.provenance import provenance

__all__ = ["accuracy_of", "changed_first", "changed_of", "differs", "write_classified"]


def accuracy_of(content: ClassifiedFolder, method: MethodPredictions) -> float | None:
    """Return the share of images of which one label was predicted; `None` where there are no labels."""
    if not content.labelled:
        return None
    pairs = zip(method.predicted.tolist(), content.images.labels, strict=True)
    return sum(predicted in labels for predicted, labels in pairs) / len(content.images)


def changed_of(content: ClassifiedFolder, method: MethodPredictions) -> int:
    """Count the images that the first method predicts otherwise."""
    return int((method.predicted != content.methods[0].predicted).sum())


def differs(content: ClassifiedFolder, row: int) -> bool:
    """Say whether the methods predict different classes of an image."""
    return len({int(one.predicted[row]) for one in content.methods}) > 1


def changed_first(content: ClassifiedFolder) -> list[int]:
    """Return the numbers of the images, those on which methods differ first: what a reader looks for."""
    return sorted(range(len(content.images)), key=lambda row: not differs(content, row))


def write_classified(place: Path, content: ClassifiedFolder) -> None:
    """Write the predictions, the images' names and `result.json`; the folder appears whole or not at all."""
    with whole_folder(place) as folder:
        with (folder / "predictions.csv").open("w", newline="") as target:
            table = csv.writer(target)
            names = [column for one in content.methods for column in (one.name, f"{one.name}_confidence")]
            table.writerow(["image", *(["label"] if content.labelled else []), *names])
            table.writerows(_rows(content))
        (folder / "manifest.txt").write_text("".join(f"{name}\n" for name in content.images.names), encoding="utf-8")
        write_result(folder / "result.json", _as_json(content))


def _rows(content: ClassifiedFolder) -> list[list[str]]:
    classes = content.images.classes
    rows = []
    for index, name in enumerate(content.images.names):
        label = [" | ".join(classes[one] for one in content.images.labels[index])] if content.labelled else []
        found = [
            cell
            for one in content.methods
            for cell in (classes[int(one.predicted[index])], f"{float(one.confidence[index]):.3f}")
        ]
        rows.append([name, *label, *found])
    return rows


def _as_json(content: ClassifiedFolder) -> dict[str, Any]:
    return {
        "kind": "classified folder",
        "images": len(content.images),
        "source": Path(content.images.source).resolve().name,
        "labelled": content.labelled,
        **({"left_out": content.images.left_out} if content.images.left_out else {}),
        **({"skipped": len(content.images.skipped)} if content.images.skipped else {}),
        "data": content.images.fingerprint,
        "settings": dict(content.settings),
        "evaluations_per_image": content.evaluations,
        "methods": [
            {
                "name": one.name,
                "method": one.method,
                "accuracy": accuracy_of(content, one),
                "changed": changed_of(content, one),
                "seconds_per_image": one.seconds,
                **one.cost.to_json(),
            }
            for one in content.methods
        ],
        **provenance(content.device),
    }
