"""Routing in an ONNX graph: language ids say which rows a branch is for, and none runs for nobody."""

from typing import Any

LANGUAGE_IDS = "language_ids"
"""The input, int64, ``(B,)``, that says which branch: a language's id, or -1 for the mixture."""
ENTRY = "entry"
"""What comes out of the trunk, ``(B, T, H)``."""


def rows_of(branch: int) -> str:
    """Name the rows that a branch is for, int64, ``(P,)``."""
    return f"rows_{branch}"


def states_of(branch: int) -> str:
    """Name what a branch sees of its rows, ``(P, T, H)``."""
    return f"states_{branch}"


def add_routing(model: Any, n_branches: int) -> None:
    """Compute the rows, which were inputs, and run a branch only where it has any.

    Args:
        model: An ``onnx.ModelProto`` as `traced_graph` gives it; it is changed.
        n_branches: Of the student.
    """
    graph = model.graph
    for branch in range(n_branches):
        _put_under_condition(graph, branch)
    _replace(graph.node, [*_nodes_that_find_rows(n_branches), *graph.node])
    del graph.value_info[:]  # onnxruntime finds the shapes out
    internal = {ENTRY, *map(rows_of, range(n_branches)), *map(states_of, range(n_branches))}
    for values in (graph.input, graph.output):
        _replace(values, [value for value in values if value.name not in internal])


def _nodes_that_find_rows(n_branches: int) -> list[Any]:
    """Make the nodes that give each branch's rows, and whether there are any. A single branch serves all."""
    from onnx import TensorProto, helper  # an extra, and slow

    node = helper.make_node
    own = "Equal" if n_branches > 1 else "GreaterOrEqual"
    nodes = [
        node("Constant", [], ["mixture_id"], value_ints=[-1]),
        node("Constant", [], ["first_axis"], value_ints=[0]),
        node("Equal", [LANGUAGE_IDS, "mixture_id"], ["is_mixture"]),
    ]
    for branch in range(n_branches):
        rows, goes = rows_of(branch), f"goes_to_{branch}"
        nodes += [
            node("Constant", [], [f"id_{branch}"], value_ints=[branch]),
            node(own, [LANGUAGE_IDS, f"id_{branch}"], [f"is_{branch}"]),
            node("Or", [f"is_{branch}", "is_mixture"], [goes]),
            node("NonZero", [goes], [f"{goes}_where"]),
            node("Squeeze", [f"{goes}_where", "first_axis"], [rows]),
            node("Size", [rows], [f"{rows}_count"]),
            node("Cast", [f"{rows}_count"], [f"{rows}_any"], to=TensorProto.BOOL),
        ]
    return nodes


def _put_under_condition(graph: Any, branch: int) -> None:
    """Move the nodes that work for one branch alone, and their weights, into an If."""
    from onnx import TensorProto, helper  # an extra, and slow

    rows, states = rows_of(branch), states_of(branch)
    inside = _nodes_for_one(graph, rows, states)
    outside = [node for index, node in enumerate(graph.node) if index not in inside]
    # The other branches' nodes are already within an If, and what all of them read stays outside.
    within = [other for node in outside for value in node.attribute for other in value.g.node]
    used_outside = {name for node in [*outside, *within] for name in node.input}
    used_inside = {name for index in inside for name in graph.node[index].input} - used_outside
    own_weights = [weight for weight in graph.initializer if weight.name in used_inside]
    other_weights = [weight for weight in graph.initializer if weight.name not in used_inside]

    def subgraph(nodes: list[Any], output: str, weights: list[Any]) -> Any:
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, output, [], [value], weights)

    *before, last = (graph.node[index] for index in sorted(inside))
    last.output[0] = f"{states}_seen"
    # Of no rows: what comes out of the trunk has the shape of what a branch makes of it.
    nothing = helper.make_node("Gather", [ENTRY, rows], [f"{states}_of_nobody"])
    choice = helper.make_node(
        "If",
        [f"{rows}_any"],
        [states],
        then_branch=subgraph([*before, last], f"{states}_seen", own_weights),
        else_branch=subgraph([nothing], f"{states}_of_nobody", []),
    )
    place = sum(index not in inside for index in range(max(inside)))
    _replace(graph.node, [*outside[:place], choice, *outside[place:]])
    _replace(graph.initializer, other_weights)


def _nodes_for_one(graph: Any, rows: str, states: str) -> set[int]:
    """Find the nodes between a branch's rows and what it sees of them whose results nobody else reads.

    Returns:
        Their positions; the last of them gives `states`.
    """
    depends = {rows}
    after = set()
    for index, node in enumerate(graph.node):
        if depends.intersection(node.input):
            depends.update(node.output)
            after.add(index)
    readers: dict[str, set[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, set()).add(index)
    inside: set[int] = set()
    for index in sorted(after, reverse=True):
        read_by = set().union(*(readers.get(name, set()) for name in graph.node[index].output))
        if states in graph.node[index].output or (read_by and read_by <= inside):
            inside.add(index)
    return inside


def _replace(values: Any, new: list[Any]) -> None:
    """Replace a repeated field's messages, some of which may be in it."""
    copies = [type(value).FromString(value.SerializeToString()) for value in new]
    del values[:]
    values.extend(copies)
