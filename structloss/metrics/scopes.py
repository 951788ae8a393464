"""Which names each scope of a Python program binds, and which scope a name belongs to."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(eq=False)
class Scope:
    """A module, function or class body.

    shared: names that an inner scope writes with ``nonlocal`` or ``global``; their definitions have no order.
    definitions: all definitions of each name, by number, filled in by the def-use analysis.
    """

    parent: Scope | None
    is_class: bool = False
    names: set[str] = field(default_factory=set)
    global_names: set[str] = field(default_factory=set)
    nonlocal_names: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    definitions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def owner(self, name: str) -> Scope | None:
        """The scope whose variable `name` means here; None for a name that the program does not bind."""
        if name in self.global_names:
            return self.module()
        if name in self.names and name not in self.nonlocal_names:
            return self
        scope = self.parent
        while scope is not None:
            if name in scope.names and not scope.is_class and name not in scope.nonlocal_names:
                return scope.module() if name in scope.global_names else scope
            scope = scope.parent
        return None

    def module(self) -> Scope:
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope


def collect_scopes(module: ast.Module) -> dict[ast.AST, Scope]:
    """The scope of the module and of every function and class in it.

    Lambdas and comprehensions have none: they are analysed where they stand, with their own names on top.
    """
    scopes: dict[ast.AST, Scope] = {module: Scope(parent=None)}
    pending: list[ast.AST] = [module]
    while pending:
        node = pending.pop()
        scope = scopes[node]
        if isinstance(node, Function):
            scope.names.update(argument.arg for _, argument in parameters(node.args))
        for inner in _collect(node, scope):
            scopes[inner] = Scope(parent=scope, is_class=isinstance(inner, ast.ClassDef))
            pending.append(inner)
    for scope in scopes.values():
        if scope.parent is None:
            scope.global_names.clear()
        scope.module().names |= scope.global_names
    for scope in scopes.values():
        for name in scope.global_names | scope.nonlocal_names:
            owner = scope.owner(name)
            if owner is not None and owner is not scope:
                owner.shared.add(name)
    return scopes


def _collect(root: ast.AST, scope: Scope) -> list[ast.AST]:
    """Enter the names that the body of `root` binds into `scope`; returns the functions and classes in it."""
    inner: list[ast.AST] = []
    stack: list[ast.AST] = list(getattr(root, "body", []))
    while stack:
        node = stack.pop()
        if isinstance(node, Function | ast.ClassDef):
            scope.names.add(node.name)
            inner.append(node)
            stack += node.decorator_list
            stack += node.bases if isinstance(node, ast.ClassDef) else defaults(node.args)
        elif isinstance(node, ast.Lambda):
            stack += defaults(node.args)
        elif isinstance(node, Comprehension):
            # Not the targets: they live inside. A walrus inside binds outside.
            stack += [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            for generator in node.generators:
                stack += [generator.iter, *generator.ifs]
        else:
            _enter(node, scope)
            stack += ast.iter_child_nodes(node)
    return inner


def _enter(node: ast.AST, scope: Scope) -> None:
    if isinstance(node, ast.Name):
        if not isinstance(node.ctx, ast.Load):
            scope.names.add(node.id)
    elif isinstance(node, ast.Global):
        scope.global_names.update(node.names)
    elif isinstance(node, ast.Nonlocal):
        scope.nonlocal_names.update(node.names)
    elif isinstance(node, ast.alias):
        scope.names.add(node.asname or node.name.partition(".")[0])
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        scope.names.update([node.name] if node.name else [])
    elif isinstance(node, ast.MatchMapping):
        scope.names.update([node.rest] if node.rest else [])


def parameters(arguments: ast.arguments) -> list[tuple[str, ast.arg]]:
    """Kind and node of each parameter; the kind holds the position, not the name."""
    positional = [*arguments.posonlyargs, *arguments.args]
    found = [(f"parameter {i}", argument) for i, argument in enumerate(positional)]
    found += [(f"keyword parameter {i}", argument) for i, argument in enumerate(arguments.kwonlyargs)]
    found += [("*parameter", arguments.vararg)] if arguments.vararg else []
    found += [("**parameter", arguments.kwarg)] if arguments.kwarg else []
    return found


def defaults(arguments: ast.arguments) -> list[ast.expr]:
    """Default values of all parameters."""
    return [*arguments.defaults, *(value for value in arguments.kw_defaults if value is not None)]
