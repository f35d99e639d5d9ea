"""Values of the command line: YAML 1.2, then Python's literals, then text."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.utils.values import parse_value, write_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # YAML
        ("3", 3), ("-3", -3), ("+3", 3), ("0", 0), ("0x10", 16), ("0o17", 15), ("1_000", 1000),
        ("1e-3", 0.001), ("5e-5", 5e-5), ("0.1", 0.1), (".5", 0.5), ("5.", 5.0), ("-0.1", -0.1), (".inf", math.inf),
        ("true", True), ("True", True), ("false", False), ("False", False),
        ("~", None), ("null", None), ("None", None),
        ("[a, b]", ["a", "b"]), ("[1e-3, ~, yes]", [0.001, None, "yes"]), ("[]", []), ("{}", {}),
        ("{epochs: 100}", {"epochs": 100}), ("{a: {b: [1, true]}}", {"a": {"b": [1, True]}}),
        ("'quoted'", "quoted"), ('"quoted"', "quoted"), ("'5'", "5"), ("'it''s'", "it's"), ("''", ""), ('"~"', "~"),
        # Python, where YAML has nothing of the kind
        ("{'valid': 'full'}", {"valid": "full"}), ("[None, True]", [None, True]), ("(1, 2)", (1, 2)), ("1,2", (1, 2)),
        ("'a', 'b'", ("a", "b")),
    ],
)  # fmt: skip
def test_what_a_value_is(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "word", "two words", "", "a,b", "yes", "no", "on", "off", "Yes", "NO", "0123", "2014-01-02", "2014-10-12",
        "1:30", "12:30:45", "nan", "inf", "{title}", "{title} by {brand}", "[{title}]", "{noun}, {history}",
        "Title: {title}", "a: b", "- a", "a # b", "*a", "&a b", "!!python/name:os.system", "<|endoftext|>", "ml-100k",
        "NDCG@10", "opt-1.3b", "saved/*", "'", "[", "{a", "[a", "%x", "@x", "`x`", "|", ">", "?", "-", "1.2.3",
        "__import__('os')", "[!!python/object/apply:os.system [x]]", "9" * 5000,
    ],
)  # fmt: skip
def test_all_else_is_text(text):
    assert parse_value(text) == text


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(PLAIN)
def test_what_is_written_is_read_again(value):
    found = parse_value(write_value(value))
    assert found == value
    assert type(found) is type(value)


FINITE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.lists(FINITE) | st.dictionaries(st.text(), FINITE))
def test_containers_are_read_again(value):
    assert parse_value(write_value(value)) == value


@given(
    st.recursive(
        st.booleans() | st.integers() | st.from_regex(r"[b-mo-z][a-mo-z_]{0,8}", fullmatch=True),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, (list, dict)))
)
def test_flow_style_is_read_as_pyyaml_writes_it(value):
    """PyYAML, whose rules differ for scalars alone, is the other reader."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    assert parse_value(text) == yaml.safe_load(text) == value
