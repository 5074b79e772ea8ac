"""Which templates may run in this process: those of which no single step can take long, whatever it is given.

The guards of template_guards.py count steps and sizes. Between two steps Python works alone, and some of its operations
take the square of their input: a set or dict of numbers whose hashes collide, a search from the right, stripping many
characters. A plain template has none of these: it has only the operations that are listed here, each of which takes at
most milliseconds for values of a million characters. Published chat templates are plain.
"""

from __future__ import annotations

from jinja2 import nodes

# Arguments of these methods must be written in the template, and short.
_SHORT_ARGUMENT_NAMES = "strip lstrip rstrip rsplit rpartition rfind rindex"
_METHOD_NAMES = """
    split splitlines partition find index count startswith endswith removeprefix removesuffix replace upper lower title
    capitalize join items keys values get isdigit isalpha isalnum isspace copy
"""
_FILTER_NAMES = """
    capitalize count d default dictsort e escape first float int items join last length list lower map reject
    rejectattr replace reverse round safe select selectattr string title tojson trim upper
"""
_TEST_NAMES = """
    defined undefined string mapping sequence iterable number integer float boolean none true false equalto eq == ne !=
    in lt < le <= gt > ge >= odd even divisibleby
"""
_SHORT_ARGUMENT = frozenset(_SHORT_ARGUMENT_NAMES.split())
_METHODS = frozenset(_METHOD_NAMES.split()) | _SHORT_ARGUMENT
_FILTERS = frozenset(_FILTER_NAMES.split())
_TESTS = frozenset(_TEST_NAMES.split())
_FUNCTIONS = frozenset(("namespace", "range", "raise_exception", "strftime_now"))
# All names that a text's or a container's method could be fetched by: they may only be called at once.
_CALLABLE_NAMES = frozenset(name for kind in (str, dict, list, tuple, int, float) for name in dir(kind))
_NODES: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.For, nodes.If, nodes.CondExpr, nodes.Assign, nodes.AssignBlock, nodes.Call,
    nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos,
    nodes.Add, nodes.Sub, nodes.Concat, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.List, nodes.Tuple,
    nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Macro, nodes.Scope, nodes.Break, nodes.Continue,
)  # fmt: skip
_MAX_ARGUMENT = 64
_MAX_DEPTH = 60
_MAX_NODES = 20_000
_MAX_NUMBER = 1 << 31


def is_plain(tree: nodes.Template) -> bool:
    """Whether the parsed template (as its author wrote it, without our guards) may be rendered in this process."""
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx in ("store", "param")}
    callable_names = (macros | _FUNCTIONS) - assigned
    if macros & _FUNCTIONS:
        return False
    called: set[int] = set()
    todo: list[tuple[nodes.Node, int]] = [(tree, 0)]
    num_nodes = 0
    while todo:
        node, depth = todo.pop()
        num_nodes += 1
        if type(node) not in _NODES or depth > _MAX_DEPTH or num_nodes > _MAX_NODES:
            return False
        if isinstance(node, nodes.Call):
            if not _is_plain_call(node, callable_names):
                return False
            called.add(id(node.node))
        elif not _is_plain_node(node, called, callable_names):
            return False
        todo += ((child, depth + 1) for child in node.iter_child_nodes())
    return True


def _is_plain_call(node: nodes.Call, callable_names: set[str]) -> bool:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        return False
    if any(keyword.key in _CALLABLE_NAMES for keyword in node.kwargs):
        return False  # a namespace must not hold what looks like a method
    target = node.node
    if isinstance(target, nodes.Name):
        return target.name in callable_names
    if not isinstance(target, nodes.Getattr) or target.attr not in _METHODS:
        return False
    return target.attr not in _SHORT_ARGUMENT or all(map(_is_short, node.args))


def _is_plain_node(node: nodes.Node, called: set[int], callable_names: set[str]) -> bool:
    if isinstance(node, nodes.Const):
        return not isinstance(node.value, int) or abs(node.value) < _MAX_NUMBER
    if isinstance(node, nodes.Getattr):
        return id(node) in called or node.attr not in _CALLABLE_NAMES
    if isinstance(node, nodes.Getitem):
        return not (isinstance(node.arg, nodes.Const) and node.arg.value in _CALLABLE_NAMES)
    if isinstance(node, nodes.NSRef):
        return node.attr not in _CALLABLE_NAMES
    if isinstance(node, nodes.Dict):
        return all(isinstance(pair.key, nodes.Const) and isinstance(pair.key.value, str) for pair in node.items)
    if isinstance(node, nodes.For):
        return not node.recursive
    if isinstance(node, nodes.AssignBlock):
        return node.filter is None
    if isinstance(node, nodes.Test):
        return node.name in _TESTS
    return not isinstance(node, nodes.Filter) or _is_plain_filter(node)


def _is_plain_filter(node: nodes.Filter) -> bool:
    if node.name not in _FILTERS or node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
        return False
    if node.name == "trim":
        return all(map(_is_short, node.args)) and not node.kwargs
    if node.name == "dictsort":  # by keys, which are texts of the request; many values may be one long text
        return not node.args and not node.kwargs
    if node.name in ("map", "select", "reject"):  # they take a filter or a test by its name
        names = _FILTERS - {"map", "trim", "dictsort", "select", "reject"} if node.name == "map" else _TESTS
        return not node.args or (isinstance(node.args[0], nodes.Const) and node.args[0].value in names)
    if node.name in ("selectattr", "rejectattr") and len(node.args) > 1:
        return isinstance(node.args[1], nodes.Const) and node.args[1].value in _TESTS
    return True


def _is_short(node: nodes.Node) -> bool:
    if not isinstance(node, nodes.Const):
        return False
    return node.value is None or isinstance(node.value, int) or len(str(node.value)) <= _MAX_ARGUMENT
