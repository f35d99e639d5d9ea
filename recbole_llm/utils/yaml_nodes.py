"""What YAML allows and no file of settings means: a name given twice, and a value that contains itself."""

import yaml

_MOST = 1_000_000  # values of a file with all its references written out


def check(node: yaml.Node | None) -> None:
    """Refuse a mapping that names a key twice, a node within itself, and references that multiply beyond all bounds.

    Raises:
        yaml.YAMLError: which says where.
    """
    if node is not None and _count(node, {}, set()) > _MOST:
        raise yaml.YAMLError(f"its references stand for more than {_MOST:,} values")


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Return how many values a node stands for; `known` counts nodes, `above` are those that contain it."""
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "a value contains itself", node.start_mark)
    if id(node) in known:
        return known[id(node)]
    above.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_count(child, known, above) for child in children)
    above.remove(id(node))
    return known[id(node)]


def _refuse_twice(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add((key.tag, key.value))
