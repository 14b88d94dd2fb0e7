"""What `tune` found, as one page to look at: no script, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from knnlm_store import pages
from knnlm_store.html.markup import Markup, joined, table, tag
from knnlm_store.tuning import sections
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
        sections.gains(tuned.groups, _grouped(tuned)),
        _neighbours(tuned.k, tuned),
    )


def check_place(path: Path) -> None:
    """Raise UsageError if a report cannot be written there; nothing is written."""
    pages.check_place(path, "report")


def write(path: Path, text: str) -> None:
    """Write a report. Raises UsageError if the file cannot be written after all."""
    kept = "The calibration is kept; run it again with another --report."
    pages.write(path, text, "report", hint=kept)


_TEST = "test text, which nothing was fitted to"


def _measured(tuned: Tuned) -> str:
    if tuned.measured == "test":
        return _TEST
    return "validation text, which the policy was fitted to as well"


def _grouped(tuned: Tuned) -> str:
    if tuned.measured == "test":
        return _TEST
    return "validation text, each token under a policy that was fitted to other folds of it"


def _summary(tuned: Tuned) -> Markup:
    kinds = {"valid": "validation"}
    read = ", ".join(f"{n:,} of {kinds.get(name, name)} text" for name, n in tuned.tokens.items())
    tokens = tag("p", f"Tokens looked at: {read}.", class_="soft")
    notes = joined(*(tag("p", note, class_="soft") for note in tuned.notes))
    chosen = tuned.calibration
    if chosen is None or not tuned.pays:
        told = "No policy pays on held-out text: eval and generate use the plain model."
        return joined(tag("p", told), tokens, notes)
    row, plain = tuned.rows[chosen.chosen], tuned.rows["plain"]
    text = "test" if "test" in row else "valid"
    before, after = plain[text]["perplexity"], row[text]["perplexity"]
    kind = "test text" if text == "test" else "held-out folds of the validation text"
    made = (
        f"{chosen.created}, to {chosen.entries:,} entries (index: {chosen.index}, keys: "
        f"{chosen.storage})"
    )
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
        notes,
        tag("p", f"Fitted {made}; for {model}.", class_="soft"),
    )


def _policies(tuned: Tuned) -> Markup:
    scored = "test" in tuned.rows["plain"]
    plain = tuned.rows["plain"]["valid"]["perplexity"]
    head = ["policy", "validation", "against plain", "foreign text"]
    head += [*(["test"] if scored else []), "helped", "hurt"]
    chosen = tuned.calibration.chosen if tuned.calibration else None
    rows = [_policy(name, values, plain, tuned.measured) for name, values in tuned.rows.items()]
    names = list(tuned.rows)
    return joined(
        tag("h2", "Policies"),
        tag(
            "p",
            "Perplexity. Validation: each token under a policy that was fitted to the other folds "
            "of the text. Foreign text: how much harder text becomes that the datastore is not "
            "for, of the kind that suffers most, under policies that did not see that kind. "
            f"Helped, hurt: share of {'test' if scored else 'validation'} tokens made likelier, "
            "unlikelier by over 1 %.",
        ),
        table("Policies", head, rows, names.index(chosen) if chosen in names else None),
    )


def _policy(name: str, values: dict[str, Any], plain: float, measured: str) -> list[object]:
    valid = values["valid"]["perplexity"]
    row: list[object] = [name, f"{valid:,.3f}"]
    if name == "plain":
        row += ["", ""]
    else:
        row += [change(valid, plain), percent(values["foreign_over_plain"] - 1, 2)]
    if measured == "test":
        row.append(f"{values['test']['perplexity']:,.3f}")
    shares = values[measured]
    row += [f"{100 * shares[what]:.0f} %" if name != "plain" else "" for what in _TURNED]
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
