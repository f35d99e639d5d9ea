"""MovieLens 100K, 1M and 20M (Harper and Konstan 2015), read inside the archive or from its unpacked folder.

`title` is the publisher's, with its year; `name` is the title without it; `genres` are separated by spaces.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from recbole_llm.prepare.formats.base import ITEM, RATING, TIME, USER, Files
from recbole_llm.prepare.raw import RawFile, Tally, ahead, blocks

# Order of the 19 flags at the end of a line of u.item, from the publisher's u.genre.
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
# Also "(1989-1990)", and "(1995) (V)" of films that went straight to video.
_YEAR = r"\((\d{4})[^()]*\)(?:\s*\([A-Z]+\))?\s*$"


@dataclass(frozen=True)
class MovieLens:
    """One edition.

    Args:
        separator: between the columns of the ratings.
        encoding: of the movies.
        header: whether the first line of each file names the columns.
    """

    separator: str
    encoding: str
    header: bool = False
    roles: tuple[str, ...] = ("interactions", "items")
    optional_roles: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset({"title", "name", "release_year", "genres"})
    list_fields: frozenset[str] = frozenset()
    html: bool = False
    options: frozenset[str] = frozenset()

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        names = (USER, ITEM, RATING, TIME)
        first = self.header
        with files["interactions"].open() as stream:
            for block in ahead(blocks(stream)):
                lines = pl.Series(block.decode("ascii", "replace").splitlines()[1 if first else 0 :], dtype=pl.String)
                first = False
                tally.count("interactions", len(lines))
                columns = lines.str.strip_chars().str.split_exact(self.separator, 4)
                yield columns.struct.rename_fields([*names, "rest"]).struct.unnest().select(names)

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        rows = list(self._movies(files["items"]))
        tally.count("items", len(rows))
        frame = pl.DataFrame(rows, schema={ITEM: pl.String, "title": pl.String, "genres": pl.String}, orient="row")
        title = pl.col("title")
        everything = frame.with_columns(
            title.str.replace(_YEAR, "").str.strip_chars().alias("name"),
            title.str.extract(_YEAR).alias("release_year"),
        )
        yield everything.select(ITEM, *fields)

    def _movies(self, raw: RawFile) -> Iterator[tuple[str, str, str]]:
        with raw.open() as stream:
            text = io.TextIOWrapper(stream, encoding=self.encoding, errors="replace", newline="")
            if self.header:
                for row in list(csv.reader(text))[1:]:
                    if len(row) == 3:
                        yield row[0], row[1], row[2].replace("|", " ")
                return
            for line in text:
                yield from self._movie(line.rstrip("\r\n"))

    def _movie(self, line: str) -> Iterator[tuple[str, str, str]]:
        if self.separator == "::":
            item, _, rest = line.partition("::")
            title, found, genres = rest.rpartition("::")
            if found:
                yield item, title, genres.replace("|", " ")
        else:
            columns = line.split("|")
            if len(columns) == 5 + len(_GENRES):
                flagged = [name for name, flag in zip(_GENRES, columns[5:], strict=True) if flag == "1"]
                yield columns[0], columns[1], " ".join(flagged)


MOVIELENS_100K = MovieLens("\t", "latin-1")
MOVIELENS_1M = MovieLens("::", "latin-1")
MOVIELENS_20M = MovieLens(",", "utf-8", header=True)
