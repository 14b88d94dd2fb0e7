"""What `tune` found, as one page to look at: no script, nothing fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knnlm_store.errors import UsageError
from knnlm_store.tuning import sections
from knnlm_store.tuning.markup import Markup, joined, table, tag
from knnlm_store.tuning.page import page
from knnlm_store.tuning.pictures import Pictures
from knnlm_store.tuning.written import change, percent

if TYPE_CHECKING:  # it runs models
    from knnlm_store.tuning.tune import Tuned


def render(tuned: Tuned, pictures: Pictures, store: str = "") -> str:
    """Give the page, HTML. store: the datastore's name."""
    title = f"Calibration of {store}" if store else "Calibration of a datastore"
    return page(
        title,
        tag("h1", title),
        _summary(tuned),
        *(tag("p", tag("strong", "Doubtful: "), each, class_="warning") for each in tuned.warnings),
        _policies(tuned),
        sections.landscape(pictures.landscape),
        sections.buckets(pictures.buckets) if pictures.buckets else "",
        sections.reliability(pictures.reliability, _measured(tuned)),
        sections.gains(tuned.groups, _measured(tuned)),
        _neighbours(tuned.k, tuned),
    )


def check_place(path: Path) -> None:
    """Raise UsageError if a report cannot be written there; nothing is written."""
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder, not a file for the report.",
            hint=f"Name a file, such as {path / 'report.html'}.",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"There is no folder {path.parent} for the report.", hint=f"mkdir -p {path.parent}"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(
            f"The report cannot be written to {path}.", hint="Name a file in a folder of yours."
        )


def write(path: Path, text: str) -> None:
    """Write a report. Raises UsageError if the file cannot be written after all."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"The report could not be written to {path}: {error.strerror}.",
            hint="The calibration is kept; run it again with another --report.",
        ) from error


def _measured(tuned: Tuned) -> str:
    if "test" in tuned.tokens:
        return "test text, which nothing was fitted to"
    return "validation text, which the policy was fitted to as well"


def _summary(tuned: Tuned) -> Markup:
    kinds = {"valid": "validation"}
    read = ", ".join(f"{n:,} of {kinds.get(name, name)} text" for name, n in tuned.tokens.items())
    tokens = tag("p", f"Tokens looked at: {read}.", class_="soft")
    chosen = tuned.calibration
    if chosen is None:
        return joined(
            tag(
                "p",
                "No policy helps this text: the plain model is best here, and no policy is kept.",
            ),
            tokens,
        )
    row, plain = tuned.rows[chosen.chosen], tuned.rows["plain"]
    text = "test" if "test" in row else "valid"
    before, after = plain[text]["perplexity"], row[text]["perplexity"]
    kind = "test text" if text == "test" else "held-out folds of the validation text"
    made = f"{chosen.created}, to {chosen.entries:,} entries (index: {chosen.index})"
    model = ", ".join(f"{name} {value}" for name, value in chosen.model.items() if value)
    return joined(
        tag(
            "p",
            "Chosen: ",
            tag("strong", chosen.chosen),
            f", k {chosen.mixture.k:,}, "
            f"temperature {chosen.mixture.temperature:,.4g}. Perplexity of the {kind}: ",
            tag("strong", f"{after:,.3f}"),
            f" instead of {before:,.3f} ({change(after, before)}).",
        ),
        tokens,
        tag("p", f"Fitted {made}; for {model}.", class_="soft"),
    )


def _policies(tuned: Tuned) -> Markup:
    scored = "test" in tuned.rows["plain"]
    plain = tuned.rows["plain"]["valid"]["perplexity"]
    head = ["policy", "validation", "against plain", "foreign text"]
    head += ["test", "helped", "hurt"] if scored else []
    chosen = tuned.calibration.chosen if tuned.calibration else None
    rows = [_policy(name, values, plain, scored) for name, values in tuned.rows.items()]
    names = list(tuned.rows)
    return joined(
        tag("h2", "Policies"),
        tag(
            "p",
            "Perplexity. Validation: each token under a policy that was fitted to the other folds "
            "of the text. Foreign text: how much harder text becomes that the datastore is not "
            "for. Helped, hurt: share of test tokens made likelier, unlikelier by over 1 %.",
        ),
        table("Policies", head, rows, names.index(chosen) if chosen in names else None),
    )


def _policy(name: str, values: dict[str, Any], plain: float, scored: bool) -> list[object]:
    valid = values["valid"]["perplexity"]
    row: list[object] = [name, f"{valid:,.3f}"]
    if name == "plain":
        row += ["", ""]
    else:
        row += [change(valid, plain), percent(values["foreign_over_plain"] - 1, 2)]
    if scored:
        test = values["test"]
        row.append(f"{test['perplexity']:,.3f}")
        row += [f"{100 * test[what]:.0f} %" if name != "plain" else "" for what in _TURNED]
    return row


_TURNED = ("helped", "hurt")


def _neighbours(k: dict[int, float], tuned: Tuned) -> Markup:
    if not k:
        return Markup()
    picked = tuned.calibration.mixture.k if tuned.calibration else None
    rows: list[list[object]] = [[f"{number:,}", f"{value:,.3f}"] for number, value in k.items()]
    return joined(
        tag("h2", "Number of neighbours"),
        tag(
            "p",
            "Perplexity of the validation text under the best lambda and temperature of each "
            "k; the smallest k that costs next to nothing is taken.",
        ),
        table(
            "Number of neighbours",
            ["k", "perplexity"],
            rows,
            list(k).index(picked) if picked in k else None,
        ),
    )
