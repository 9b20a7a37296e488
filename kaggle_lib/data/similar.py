"""Texts that nearly repeat each other: the Jaccard similarity of their sets of character 5-grams.

MinHash proposes pairs and the exact similarity decides. With bands of r permutations, b of them, a pair of similarity s
is proposed with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4.2): for
5 and 25 that is 1 - 4e-7 at 0.85, and 1 - 2e-10 at 0.9.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

GRAM = 5
# Nobody should find a pair of 0.9 on both sides, also one who counts grams a little differently: hence the margin.
SIMILAR, JOINED = 0.9, 0.85
PERMUTATIONS_OF_A_BAND, BANDS = 5, 25
CHUNK = 1000  # texts whose grams exist at a time


class Groups:
    """Union-find: which of `count` things belong together."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def of(self, thing: int) -> int:
        """The group's representative, its first member."""
        while self._parent[thing] != thing:
            self._parent[thing] = self._parent[self._parent[thing]]
            thing = self._parent[thing]
        return thing

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.of(one), self.of(other)))
        self._parent[second] = first


def grams(text: str) -> frozenset[str]:
    """The character 5-grams of `text`, or the text itself where it is shorter."""
    return frozenset(text[at : at + GRAM] for at in range(max(1, len(text) - GRAM + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard: what both have ÷ what either has."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def join_similar(texts: Sequence[tuple[int, str]], groups: Groups) -> list[tuple[int, int]]:
    """Join in `groups` the owners of texts whose similarity is `JOINED` or more; returns the pairs that did it.

    `texts`: (owner, text). Texts of owners that are joined already are not compared.
    """
    keep = lru_cache(maxsize=20_000)(lambda place: grams(texts[place][1]))
    signed = _bands([text for _, text in texts])
    found = []
    compared: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[int, list[int]] = defaultdict(list)
        for place, keys in enumerate(signed):
            buckets[keys[band]].append(place)
        for places in buckets.values():
            for at, place in enumerate(places[1:], start=1):
                for earlier in places[:at]:
                    owners = texts[earlier][0], texts[place][0]
                    if groups.of(owners[0]) == groups.of(owners[1]) or (earlier, place) in compared:
                        continue
                    compared.add((earlier, place))
                    if similarity(keep(earlier), keep(place)) >= JOINED:
                        groups.join(*owners)
                        found.append(owners)
    return found


def _bands(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The key of each text in each band."""
    from rensa import RMinHash

    signed = []
    width = PERMUTATIONS_OF_A_BAND
    for start in range(0, len(texts), CHUNK):
        sets = [list(grams(text)) for text in texts[start : start + CHUNK]]
        for digest in RMinHash.digests_from_token_sets(sets, width * BANDS, 1):
            signed.append(tuple(hash(tuple(digest[at : at + width])) for at in range(0, len(digest), width)))
    return signed


def repeats(held_out: Sequence[str], others: Sequence[str], least: float = SIMILAR) -> Iterator[tuple[int, int]]:
    """Every pair (place in `held_out`, place in `others`) of similarity `least` or more, found without chance.

    Two sets that similar share a gram among the 1 + (1 - least) × size first of each, in any order of all grams (prefix
    filtering, Bayardo et al. 2007). The order here is by how rare a gram is in `held_out`.
    """
    sets = [grams(text) for text in held_out]
    common = Counter(gram for one in sets for gram in one)
    rank = {gram: place for place, gram in enumerate(sorted(common, key=lambda gram: (common[gram], gram)))}

    def first(one: frozenset[str]) -> list[int]:
        """Ranks of the first grams; those that `held_out` lacks come before all, and nobody else has them."""
        known = [rank[gram] for gram in one if gram in rank]
        spare = int((1 - least) * len(one) + 1e-9) + 1 - (len(one) - len(known))
        return sorted(known)[:spare] if spare > 0 else []

    # By size, so that of a gram's sets those are looked up alone whose size allows the similarity.
    inorder = sorted(range(len(sets)), key=lambda place: len(sets[place]))
    sizes = [len(sets[place]) for place in inorder]
    index: dict[int, list[int]] = defaultdict(list)
    for at, place in enumerate(inorder):
        for gram in first(sets[place]):
            index[gram].append(at)
    for other, text in enumerate(others):
        mine = grams(text)
        begin = bisect_left(sizes, least * len(mine) - 1e-9)
        end = bisect_right(sizes, len(mine) / least + 1e-9)
        near: set[int] = set()
        for gram in first(mine):
            if found := index.get(gram):
                near.update(found[bisect_left(found, begin) : bisect_left(found, end)])
        for place in sorted(inorder[at] for at in near):
            if similarity(sets[place], mine) >= least:
                yield place, other
