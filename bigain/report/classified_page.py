"""One self-contained HTML page of what `bigain classify` found."""

from dataclasses import dataclass
from pathlib import Path

from bigain.benchmark.at_work import cost_columns
from bigain.benchmark.classified_files import accuracy_of, changed_first, changed_of, differs
from bigain.benchmark.classify import ClassifiedFolder, MethodPredictions
from bigain.metrics.intervals import share
from bigain.report.palette import method_styles
from bigain.report.pictures import data_uri
from bigain.report.render import page_style, shown_provenance, shown_settings, template
from bigain.results.files import read_result, write_whole
from bigain.results.wording import MISSING, count, decimal, interval, listed, percent, quantity, ratio

__all__ = ["write_classified_page"]

_SHOWN = 200
"""Images on the page; the table beside it has all."""


@dataclass(frozen=True)
class _Answer:
    """A predicted class with its confidence, and whether it is right where that is known."""

    predicted: str
    confidence: str
    right: bool | None


@dataclass(frozen=True)
class _Image:
    """A row of the page: picture as a data URI, where images are shown; true classes, where they are known."""

    name: str
    picture: str | None
    truth: str
    changed: bool
    answers: tuple[_Answer, ...]


def write_classified_page(folder: Path, content: ClassifiedFolder, pictures: bool = False) -> Path:
    """Write `page.html` beside `result.json`: predictions, what changed first, accuracy and costs.

    Args:
        folder: What `bigain classify` wrote.
        content: What it found.
        pictures: Put the images into the page, as thumbnails of what the model saw. Without it, nothing
            of an image but its name stands there.

    Returns:
        The path of the page.

    Raises:
        DataError: `result.json` cannot be read, or an image cannot be read any more.
    """
    result = read_result(folder / "result.json")
    settings, versions = result["settings"], result["versions"]
    origin = {key: result[key] for key in ("finished", "device", "git_revision", "python", "data")}
    page = template("classified.html.j2").render(
        title=f"{result['source']}, classified",
        css=page_style(),
        subject=_subject(content),
        lead=_lead(content),
        styles=method_styles(one.name for one in content.methods),
        methods=content.methods,
        columns=_columns(content),
        images=[_image(content, row, pictures) for row in changed_first(content)[:_SHOWN]],
        total=len(content.images),
        changed=sum(differs(content, row) for row in range(len(content.images))),
        labelled=content.labelled,
        settings=shown_settings(settings),
        provenance=shown_provenance({**origin, "versions": versions}),
        command=result["command"],
    )
    with write_whole(folder / "page.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "page.html"


def _subject(content: ClassifiedFolder) -> str:
    classes = list(content.images.classes)
    between = listed(classes) if len(classes) <= 10 else f"{count(len(classes))} classes"
    labels = "with labels" if content.labelled else "without labels"
    model = f"{content.settings['backbone']} ({content.settings['model']})"
    return f"{quantity(len(content.images), 'image')} {labels}, between {between}, by {model}."


def _lead(content: ClassifiedFolder) -> str:
    first, *others = content.methods
    if not others:
        return f"{first.name}: {decimal(first.seconds)} s an image, nothing to compare with."
    return " ".join(_compared(content, one) for one in others)


def _compared(content: ClassifiedFolder, one: MethodPredictions) -> str:
    first = content.methods[0]
    changed = changed_of(content, one)
    images = quantity(len(content.images), "image")
    said = f"With {one.name}, {count(changed)} of {images} get{'s' if changed == 1 else ''} "
    said += f"another class, in {ratio(one.seconds, first.seconds)} the time"
    before, after = accuracy_of(content, first), accuracy_of(content, one)
    if before is not None and after is not None:
        same = before == after
        said += f"; accuracy {'stays' if same else f'goes from {percent(before)} to'} {percent(after)}"
    return f"{said}."


def _columns(content: ClassifiedFolder) -> dict[str, list[tuple[str, str]]]:
    """Return the columns of the methods' table: a heading, and a value with a detail for each method."""
    columns: dict[str, list[tuple[str, str]]] = {}
    if content.labelled:
        columns["Accuracy"] = [_accuracy(content, one) for one in content.methods]
    columns["Changed"] = [(count(changed_of(content, one)), "") for one in content.methods]
    first = content.methods[0].seconds
    columns["Seconds an image"] = [(decimal(one.seconds), ratio(one.seconds, first)) for one in content.methods]
    costs = cost_columns([one.cost for one in content.methods])
    return columns | {name: [(cell, "") for cell in cells] for name, cells in costs.items()}


def _accuracy(content: ClassifiedFolder, one: MethodPredictions) -> tuple[str, str]:
    accuracy = accuracy_of(content, one)
    if accuracy is None:
        return MISSING, ""
    found = share(round(accuracy * len(content.images)), len(content.images))
    return percent(found.value), interval(percent(found.low, unit=False), percent(found.high, unit=False))


def _image(content: ClassifiedFolder, row: int, pictures: bool) -> _Image:
    images, classes = content.images, content.images.classes
    answers = []
    for one in content.methods:
        label = int(one.predicted[row])
        right = label in images.labels[row] if content.labelled else None
        answers.append(_Answer(classes[label], f"{float(one.confidence[row]):.2f}", right))
    truth = " | ".join(classes[label] for label in images.labels[row])
    picture = data_uri(images[row]["image"]) if pictures else None
    return _Image(images.names[row], picture, truth, differs(content, row), tuple(answers))
