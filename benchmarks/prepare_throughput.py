"""Throughput and peak memory of `prepare` on a generated Amazon-type pair, beside a plain `json.loads` loop.

    python benchmarks/prepare_throughput.py [--gigabytes=2.2] [--words=55] [--loop=yes] [--folder=FOLDER]

The pair looks like Amazon Reviews 2018: reviews of about 500 bytes (`--words` sets the mean length) with a long tail
of users and items, metadata with HTML, lists, an item listed twice now and then, a Python literal in a thousand lines
and a broken line in five thousand. It is written gzipped into a temporary folder, which is removed at the end. Each
reader runs in a process of its own; MB/s are unpacked megabytes (10^6 bytes) over the whole run, from opening the files
to closing the results. The machine may be shared, so CPU seconds are given beside wall seconds. Prints one JSON line.
"""

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

SETTINGS = {
    "format": "amazon-2018",
    "sources": {"interactions": {"file": "reviews.json.gz"}, "items": {"file": "meta.json.gz"}},
    "item_fields": ["title", "brand", "categories"],
    "filters": [{"titles": {"empty": "drop"}}, {"repeats": {"keep": "all"}}, {"minimum_length": {"interactions": 4}}],
}
WORDS = [
    "the",
    "great",
    "and",
    "works",
    "perfectly",
    "sturdy",
    "color",
    "size",
    "fits",
    "kitchen",
    "daughter",
    "quality",
]
REVIEW_SHARE = 0.7


def generate(folder: Path, gigabytes: float, words: int) -> dict[str, int]:
    """Write the pair; return its unpacked bytes and its numbers of lines."""
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 2 * words - 1))) for _ in range(2000)]
    budget = int(gigabytes * 1e9)
    reviews = int(budget * REVIEW_SHARE / (250 + 6 * words))
    users, items = max(1, reviews // 9), max(1, reviews // 40)
    sizes = {"reviews": 0, "meta": 0, "review_lines": 0, "meta_lines": 0}
    with gzip.open(folder / "reviews.json.gz", "wb", compresslevel=1) as file:
        while sizes["reviews"] < budget * REVIEW_SHARE:
            lines = "".join(_review(draw, texts, users, items) for _ in range(2000)).encode()
            file.write(lines)
            sizes["reviews"] += len(lines)
            sizes["review_lines"] += 2000
    with gzip.open(folder / "meta.json.gz", "wb", compresslevel=1) as file:
        number = 0
        while sizes["meta"] < budget * (1 - REVIEW_SHARE):
            lines = "".join(_meta(draw, texts, number + k, items) for k in range(2000)).encode()
            number += 2000
            file.write(lines)
            sizes["meta"] += len(lines)
        sizes["meta_lines"] = number
    return sizes


def _review(draw: random.Random, texts: list[str], users: int, items: int) -> str:
    user, item = int(users * draw.random() ** 2), int(items * draw.random() ** 3)
    return (
        f'{{"overall": {draw.randint(1, 5)}.0, "verified": true, "reviewTime": "09 13, 2009", "reviewerID": '
        f'"A{user:013}", "asin": "B{item:09}", "style": {{"Color:": " Red"}}, "reviewerName": "N. N.", "reviewText": '
        f'"{draw.choice(texts)}", "summary": "Five Stars", "unixReviewTime": {draw.randint(946684800, 1538352000)}}}\n'
    )


def _meta(draw: random.Random, texts: list[str], number: int, items: int) -> str:
    if number % 5000 == 4999:
        return '{"category": ["broken\n'
    entry = {
        "category": ["Industrial &amp; Scientific", "Lab", draw.choice(WORDS)],
        "tech1": "",
        "description": [draw.choice(texts), draw.choice(texts)],
        "title": f"{draw.choice(WORDS)} &quot;{draw.choice(WORDS)}&quot; <b>{draw.choice(WORDS)}</b> {number}",
        "also_buy": [f"B{draw.randrange(items):09}" for _ in range(20)],
        "brand": draw.choice(WORDS),
        "feature": [draw.choice(texts)],
        "rank": "123,456 in Lab (",
        "asin": f"B{number % max(1, int(items * 1.2)):09}",
        "imageURLHighRes": [],
    }
    return (repr(entry) if number % 1000 == 999 else json.dumps(entry)) + "\n"


def with_prepare(folder: Path) -> int:
    """Run `prepare`; return the interactions kept."""
    from recbole_llm.prepare import prepare

    settings = folder / "pair.yaml"
    settings.write_text(yaml.safe_dump({"prepare": SETTINGS}, sort_keys=False))
    return prepare(str(settings), raw=folder, out=folder / "out").counts.interactions


def with_loop(folder: Path) -> int:
    """Do the same in the way of the papers' scripts: json.loads a line, dictionaries, a sort a user; no HTML undone."""
    titles, histories = {}, {}
    with gzip.open(folder / "meta.json.gz") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("title") and entry["asin"] not in titles:
                titles[entry["asin"]] = (entry["title"], entry["brand"], " ".join(entry["category"]))
    with gzip.open(folder / "reviews.json.gz") as file:
        for line in file:
            review = json.loads(line)
            if review["asin"] in titles:
                histories.setdefault(review["reviewerID"], []).append((review["asin"], review["unixReviewTime"]))
    kept = {user: sorted(seen, key=lambda one: one[1]) for user, seen in histories.items() if len(seen) > 3}
    with (folder / "loop.inter").open("w") as out:
        for user, seen in kept.items():
            out.writelines(f"{user}\t{item}\t{when}\n" for item, when in seen)
    return sum(map(len, kept.values()))


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Run one reader in a process of its own; return its seconds, peak resident memory and result."""
    answer = subprocess.run(
        [sys.executable, __file__, f"--child={kind}", f"--folder={folder}"], check=True, capture_output=True, text=True
    )
    return json.loads(answer.stdout.splitlines()[-1])


def child(kind: str, folder: Path) -> None:
    """Run one reader and print its measurements."""
    start = time.perf_counter()
    kept = with_prepare(folder) if kind == "prepare" else with_loop(folder)
    seconds, cpu = time.perf_counter() - start, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu, 1),
                "peak_gib": round(peak, 2),
                "interactions": kept,
            }
        )
    )


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--words", type=int, default=55, help="mean words of a review")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    parser.add_argument("--loop", choices=["yes", "no"], default="yes", help="whether to run the plain loop as well")
    parser.add_argument("--child", choices=["prepare", "loop"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sizes = generate(folder, options.gigabytes, options.words)
        megabytes = (sizes["reviews"] + sizes["meta"]) / 1e6
        result = {"unpacked_mb": round(megabytes), "reviews": sizes["review_lines"], "metadata": sizes["meta_lines"]}
        for kind in ["prepare"] + ["loop"] * (options.loop == "yes"):
            result[kind] = measure(kind, folder)
            result[kind]["mb_per_s"] = round(megabytes / result[kind]["seconds"], 1)
        print(json.dumps(result))


if __name__ == "__main__":
    main()
