"""Search over source papers and methods: ranked, forgiving of typos, British or American.

A small BM25F: each field counts by how much it says, rare words count more than common ones. A word that occurs nowhere
stands for the words it begins, is misspelt from, or is glued together from. Everything is in memory; the whole index is
built in two tenths of a second, so none is stored.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

from lossary.catalogue import coverage, evidence, schema, source
from lossary.errors import UnknownName, need

#: how much a word in each field counts
FIELDS = {
    "key": 8.0,
    "name": 8.0,
    "title": 5.0,
    "problems": 4.0,
    "family": 3.0,
    "summary": 2.0,
    "offers": 1.0,
    "more": 1.0,
}
SATURATION, LENGTH = 1.2, 0.4  # of BM25: k1 and b
NAMED = 100.0  # what it is worth to be called exactly what is asked for
RUNS = {"works": 1.25, "partly": 1.1, "not yet": 1.0}  # what runs is a better answer than what does not
STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by for from how i in is it my of on or that the to use used using what which with",
    )
)
KINDS = (*schema.KINDS, *schema.ROLES, "alias")
_ENDINGS = (
    *(
        "isation",
        "ization",
        "ation",
        "ating",
        "ated",
        "ate",
        "ising",
        "izing",
        "ised",
        "ized",
        "iser",
        "izer",
        "ise",
        "ize",
    ),
    *("ysing", "yzing", "yse", "yze", "ion", "ness", "ing", "edly", "ed", "ly", "e", "y"),
)


@dataclass(frozen=True)
class Entry:
    """Something that can be found: a method (its key as `id`) or a paper (its row)."""

    id: str
    name: str
    title: str
    family: str
    kind: str
    year: int
    state: str
    use: str
    text: Mapping[str, str] = field(repr=False)

    @cached_property
    def level(self) -> str:
        """Of its evidence."""
        if self.id in schema.methods():
            return evidence.evidence(self.id).level
        return coverage.states()[self.id].level


@dataclass(frozen=True)
class Hit:
    """An entry with its score, higher is better."""

    entry: Entry
    score: float

    def plain(self) -> dict[str, Any]:
        """Plain JSON."""
        names = ("id", "name", "title", "family", "kind", "year", "state", "level", "use")
        return {"score": round(self.score, 3), **{n: getattr(self.entry, n) for n in names}}


@cache
def stem(word: str) -> str:
    """The word without ending and spelling variants: labelled, labeling -> label; normalise, normalized -> normal."""
    if len(word) <= 3 or not word.isalpha():
        return word
    word = re.sub(r"ies$", "y", word) if len(word) > 4 else word
    word = re.sub(r"(?<=[^siu])s$|(?<=ss)es$|(?<=x)es$", "", word)
    word = re.sub(r"(?<=\w{3})our(?=$|ed$|ing$|al$)", "or", word)  # behaviour; not hour
    word = re.sub(r"(?<=\w{3})tre$", "ter", word)
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word[: -len(ending)]
            break
    word = word[:-1] if len(word) > 4 and word[-1] in "ei" else word
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "s" else word


def tokens(text: str) -> list[str]:
    """The words of a text as written, in order; `dual_focal`, `ALDR-KL` and `MixUp` come apart, stop words fall out."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)
    return [w for w in re.findall(r"[a-z]+\d*|\d+", text.lower()) if w not in STOP]


def words(text: str) -> list[str]:
    """The stems of a text, in order."""
    return [stem(w) for w in tokens(text)]


@cache
def entries() -> tuple[Entry, ...]:
    """Everything that can be found."""
    code, states, out = source.methods(), coverage.states(), []
    for key, made in schema.methods().items():
        text = {
            "key": key.replace("_", " ") + " " + key.replace("_", ""),
            "title": made.title,
            "family": made.family.replace("/", " ") + " " + made.role,
            "problems": made.use_when,
            "summary": made.summary,
            "offers": made.paper,
            "more": made.authors,
        }
        kind = "alias" if made.alias_of else made.role
        use = code[made.alias_of or key].call({n: _default(h.default) for n, h in made.hyper.items()})
        use = use.replace(f"{made.alias_of}(", f"{key}(") if made.alias_of else use
        out.append(Entry(key, key, made.title, made.family, kind, made.year, "works", use, text))
    for row, paper in schema.papers().items():
        state = states[row]
        text = {
            "key": row,
            "name": paper.name,
            "title": paper.title,
            "problems": "; ".join(paper.problems),
            "family": paper.family,
            "summary": paper.summary,
            "offers": paper.offers,
        }
        use = ", ".join(state.uses) if state.state != "not yet" else ""
        out.append(Entry(row, paper.name, paper.title, paper.family, paper.kind, paper.year, state.state, use, text))
    return tuple(out)


def _default(value: Any) -> Any:
    return source.REQUIRED if value is None else value


class Index:
    """The words of the entries, by field, and how to score a query against them."""

    def __init__(self, given: Sequence[Entry]) -> None:
        self.entries = given
        written = [{name: tokens(text) for name, text in e.text.items()} for e in given]
        every = dict.fromkeys(w for fields in written for text in fields.values() for w in text)
        self.stems = {w: stem(w) for w in every}  # as written -> indexed
        stems = [{name: [self.stems[w] for w in text] for name, text in fields.items()} for fields in written]
        usual = {f: sum(len(t[f]) for t in stems if f in t) / len(stems) or 1.0 for f in FIELDS}
        self.found: dict[str, dict[int, float]] = defaultdict(dict)  # word -> entry -> its weighted frequency
        self.pairs: list[set[tuple[str, str]]] = []  # of words side by side, by entry
        self.names: dict[str, list[int]] = defaultdict(list)
        for at, fields in enumerate(stems):
            for name, text in fields.items():
                size = 1 - LENGTH + LENGTH * len(text) / usual[name]
                for word, n in Counter(text).items():
                    self.found[word][at] = self.found[word].get(at, 0.0) + FIELDS[name] * n / size
            self.pairs.append({p for f in ("key", "name", "title", "problems") for p in pairwise(fields.get(f, []))})
            for name in {"".join(words(given[at].id)), "".join(words(given[at].name))}:
                self.names[name].append(at)

    def rarity(self, word: str) -> float:
        """Inverse document frequency."""
        n = len(self.found[word])
        return math.log(1 + (len(self.entries) - n + 0.5) / (n + 0.5))

    def meant(self, token: str) -> dict[str, float]:
        """The indexed words that a query's word may stand for, each with how sure that is."""
        word = stem(token)
        if word in self.found:  # as such, or another form of a known word, or perhaps a typo that looks like one
            return {word: 1.0} if token in self.stems else {**self._misspelt(token, 1, 0.7), word: 0.9}
        begun = {w: 0.8 for w in self.found if len(token) >= 3 and w.startswith(token)}
        if begun:
            return dict(sorted(begun.items(), key=lambda x: len(x[0]))[:8])
        near = self._misspelt(token, 1, 0.7)
        for at in range(3, len(token) - 2) if not near else ():  # two words written as one
            parts = [stem(token[:at]), stem(token[at:])]
            if all(part in self.found for part in parts):
                return dict.fromkeys(parts, 0.8)
        return near or (self._misspelt(token, 2, 0.5) if len(token) > 5 else {})

    def _misspelt(self, token: str, allowed: int, sure: float) -> dict[str, float]:
        """Words at an edit distance of `allowed` (a swap of neighbours is one edit), the first letter counting most."""
        if len(token) < 4 or not token.isalpha():
            return {}
        osa = need("rapidfuzz.distance", "cli").OSA
        close = [w for w in self.stems if abs(len(w) - len(token)) <= allowed and w.isalpha() and len(w) > 3]
        close = [w for w in close if osa.distance(token, w, score_cutoff=allowed) <= allowed]
        same = [w for w in close if w[0] == token[0]]
        return {self.stems[w]: sure if same else 0.7 * sure for w in same or close}

    def scores(self, query: str) -> dict[int, float]:
        """Entry -> score. Entries with more of the query's words come first by far."""
        asked = list(dict.fromkeys(tokens(query)))
        glued = [a + b for a, b in pairwise(asked) if stem(a + b) in self.found]  # "sig lip" may be one word
        total: dict[int, float] = defaultdict(float)
        matched: dict[int, float] = defaultdict(float)
        for token in [*asked, *glued]:
            here: dict[int, float] = {}
            for known, sure in self.meant(token).items():
                for at, weight in self.found[known].items():
                    gain = sure * self.rarity(known) * weight * (SATURATION + 1) / (weight + SATURATION)
                    here[at] = max(here.get(at, 0.0), gain)
            for at, gain in here.items():
                total[at] += gain
                matched[at] += 1
        side = set(pairwise([max(self.meant(t), key=self.meant(t).__getitem__, default=t) for t in asked]))
        out = {}
        for at, score in total.items():
            every = min(1.0, matched[at] / len(asked)) ** 2
            out[at] = score * every * (1 + 0.2 * len(side & self.pairs[at])) * RUNS[self.entries[at].state]
        for at in self.names.get("".join(stem(t) for t in asked), []):
            out[at] = out.get(at, 0.0) + NAMED
        return out

    def nearest(self, query: str, n: int = 5) -> list[str]:
        """Words of the catalogue that look like those of a query."""
        process, osa = need("rapidfuzz.process", "cli"), need("rapidfuzz.distance", "cli").OSA
        known = [w for w in self.stems if w.isalpha() and len(w) > 3]
        seen: dict[str, float] = {}
        for token in tokens(query):
            for near, score, _ in process.extract(token, known, scorer=osa.normalized_similarity, limit=n):
                seen[near] = max(seen.get(near, 0.0), score)
        return sorted(seen, key=lambda w: (-seen[w], w))[:n]


@cache
def index() -> Index:
    """The index of everything, built when first asked for."""
    return Index(entries())


def search(
    query: str = "", *, family: str = "", year: str = "", state: str = "", kind: str = "", limit: int | None = None
) -> list[Hit]:
    """What fits the query, best first; everything that passes the filters if the query is empty.

    family: as papers have it ("noise") or methods ("classification/noise", also either half). year: "2020",
    "2020-2023", "2020-" or "-2015". state: "works", "partly" or "not-yet". kind: of a paper (method, analysis,
    benchmark, survey, report), or formula, weight, reduce, track, alias.
    """
    keep = list(_filter(entries(), family, year, state, kind))
    if not tokens(query):
        if query.strip():
            return []
        hits = [Hit(entries()[at], 0.0) for at in keep]
    else:
        scores = index().scores(query)
        hits = [Hit(entries()[at], scores[at]) for at in keep if scores.get(at, 0.0) > 0]
        hits.sort(key=lambda h: -h.score)
        best = max((h.score if h.score < NAMED else h.score - NAMED for h in hits), default=0.0)
        hits = [h for h in hits if h.score >= 0.1 * best]
    return hits[:limit]


def _filter(given: Iterable[Entry], family: str, year: str, state: str, kind: str) -> Iterator[int]:
    state = state.replace("-", " ")
    families = {part for e in entries() for part in (e.family, *e.family.split("/"))}
    for name, value, known in (("family", family, families), ("state", state, coverage.STATES), ("kind", kind, KINDS)):
        if value and value not in known:
            raise UnknownName.of(name, value, known)
    low, high = years(year)
    for at, e in enumerate(given):
        if family and family != e.family and family not in e.family.split("/"):
            continue
        if (state and state != e.state) or (kind and kind != e.kind) or not low <= e.year <= high:
            continue
        yield at


def years(text: str) -> tuple[int, int]:
    """First and last year of "2020", "2020-2023", "2020-" or "-2015"."""
    found = re.fullmatch(r"\s*(\d{4})?\s*(-)?\s*(\d{4})?\s*", text)
    if found is None or (found[2] is None and found[3]):
        raise UnknownName(f"cannot read the year {text!r}", needed="2020, 2020-2023, 2020- or -2015")
    first, last = int(found[1] or 0), int(found[3] or 9999)
    return (first, last) if found[2] or not found[1] else (first, first)
