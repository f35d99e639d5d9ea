"""Raw files in the publishers' formats, small enough to work out by hand."""

import gzip
import json
from pathlib import Path

REVIEWS = [
    # u1 is first in the file; B comes earlier in time; A twice at the same second, and the tie keeps the file's order.
    {"overall": 5.0, "reviewerID": "u1", "asin": "A", "reviewText": 'tab\there "quoted"', "unixReviewTime": 300},
    {"overall": 4.0, "reviewerID": "u2", "asin": "A", "unixReviewTime": 50, "style": {"Color:": " Red"}},
    {"overall": 3.0, "reviewerID": "u1", "asin": "B", "unixReviewTime": 100},
    {"overall": 3.0, "reviewerID": "u1", "asin": "C", "unixReviewTime": 300},
    {"overall": 1.0, "reviewerID": "u1", "asin": "A", "unixReviewTime": 300},
    {"overall": 1.0, "reviewerID": "u2", "asin": "D", "unixReviewTime": 40},  # no title
    {"overall": 1.0, "reviewerID": "u2", "asin": "E", "unixReviewTime": 45},  # no metadata
    {"overall": 1.0, "reviewerID": "u2", "asin": "B", "unixReviewTime": 60},
    {"overall": 1.0, "reviewerID": "u2", "asin": "C", "unixReviewTime": 10},
    {"overall": 1.0, "reviewerID": "u2", "asin": "B", "unixReviewTime": 60},
    {"overall": 1.0, "reviewerID": "u3", "asin": "A", "unixReviewTime": 1},  # three interactions only
    {"overall": 1.0, "reviewerID": "u3", "asin": "B", "unixReviewTime": 2},
    {"overall": 1.0, "reviewerID": "u3", "asin": "C", "unixReviewTime": 3},
    {"overall": 1.0, "asin": "C", "unixReviewTime": 3},  # no user
]
METADATA = [
    json.dumps({"asin": "A", "title": "", "brand": "first entry", "category": ["x"]}),  # A again, first without a title
    "{'asin': 'A', 'title': u'\"Quoted\" &amp;quot;box&amp;quot; <b>bold</b>\\ttab', 'brand': 'None', "
    "'category': ['Top', 'Sub']}",
    json.dumps({"asin": "A", "title": "a later entry loses", "brand": "x", "category": []}),
    '{"asin": "B", "title": "broken',
    json.dumps({"asin": "B", "title": "5 < 6 and I <3 this\nline", "brand": "", "category": [["Deep", "Er"], "er"]}),
    json.dumps({"asin": "Z", "title": "nobody met it"}),
    "",
    "not a line at all",
    json.dumps(
        {"asin": "C", "title": "Caf\u00e9 &amp; <script>var x = '<b>';</script> bar", "category": "plain"},
        ensure_ascii=False,
    ),
    json.dumps({"asin": "D", "title": "<br>", "brand": "empty after HTML"}),
]
INTER = (
    "user_id:token\titem_id:token\ttimestamp:float\n"
    "u1\tB\t100\nu1\tA\t300\nu1\tC\t300\nu1\tA\t300\n"
    "u2\tC\t10\nu2\tA\t50\nu2\tB\t60\nu2\tB\t60\n"
)
ITEM = (
    "item_id:token\ttitle:token_seq\tbrand:token_seq\tcategories:token_seq\n"
    "B\t5 < 6 and I <3 this line\t\tDeep, Er, er\n"
    'A\t "Quoted" "box" bold tab\t None\tTop, Sub\n'
    "C\tCaf\u00e9 & bar\t\tplain\n"
)
SETTINGS = {
    "format": "amazon-2018",
    "sources": {"interactions": {"file": "reviews_5.json.gz"}, "items": {"file": "meta.json.gz"}},
    "item_fields": ["title", "brand", "categories"],
    "filters": [
        {"titles": {"empty": "drop"}},
        {"repeats": {"keep": "all"}},
        {"minimum_length": {"interactions": 4}},
        {"sample_users": {"one_in": None}},
    ],
    "seed": 1,
}


def pack(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0))
    return path
