"""Which runs may stand in one table: those with as many users, items and rows of both parts."""

from dataclasses import replace

import pytest

from recbole_llm.comparison.protocol import Measured, require_one_protocol
from recbole_llm.errors import SettingError

FIRST = Measured("first", {"repeatable": False}, True, {"users": 9, "items": 8, "valid": 7, "test": 6})


@pytest.mark.parametrize("name", ["users", "items", "valid", "test"])
@pytest.mark.parametrize("drawn", [None, 5])
def test_runs_of_other_sizes_are_refused_but_for_users_drawn_for_validation(name, drawn):
    other = replace(FIRST, name="other", counts={**FIRST.counts, name: 5}, valid_users=drawn)
    for runs in ([FIRST, other], [other, FIRST]):
        if name == "valid" and drawn is not None:
            require_one_protocol(runs)
            continue
        with pytest.raises(SettingError, match=f"cannot stand in one table: the number of {name} is "):
            require_one_protocol(runs)
