"""YAML as nodes that know their lines. Nothing is constructed: no dates, no floats, no objects, no aliases."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import yaml


@dataclass(frozen=True, slots=True)
class Problem:
    line: int
    text: str


class Refused(Exception):
    """The file cannot be applied; `problems` are all that were found, by line."""

    def __init__(self, problems: Collection[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.line, p.text))
        super().__init__("; ".join(f"line {p.line}: {p.text}" for p in self.problems))


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used in this file", mark)
        return super().compose_node(parent, index)


def line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def read(text: str) -> yaml.Node:
    """The document's root node. Raises Refused for what is not YAML."""
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise Refused([Problem(mark.line + 1 if mark else 1, f"This is not YAML: {exc.problem}.")]) from exc
    except yaml.YAMLError as exc:
        raise Refused([Problem(1, f"This is not YAML: {exc}.")]) from exc
    except RecursionError as exc:
        raise Refused([Problem(1, "The file is nested too deeply.")]) from exc
    if root is None:
        raise Refused([Problem(1, "The file is empty. Expected providers, models or tenants.")])
    return root


def fields(
    node: yaml.Node, what: str, known: Collection[str], problems: list[Problem], required: Collection[str] = ()
) -> Mapping[str, yaml.Node]:
    """The fields of a mapping that are known; unknown, repeated and missing ones become problems."""
    if not isinstance(node, yaml.MappingNode):
        problems.append(Problem(line_of(node), f"Expected the fields of {what}, such as {next(iter(known))}: …"))
        return {}
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "?"
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."
            problems.append(Problem(line_of(key), f"{what} has no field {name!r}. {hint}"))
        elif name in found:
            problems.append(Problem(line_of(key), f"{name!r} is stated twice, first on line {line_of(found[name])}."))
        else:
            found[name] = value
    for name in required:
        if name not in found:
            problems.append(Problem(line_of(node), f"{what} needs {name!r}."))
    return found


def items(node: yaml.Node, what: str, problems: list[Problem]) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        problems.append(Problem(line_of(node), f"Expected a list of {what}, each with a leading dash."))
        return []
    return list(node.value)
