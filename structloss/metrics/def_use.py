"""Def-use edges of a Python program: which definition can reach which use, and where the use goes.

An abstract run of the program. The state `Env` says for each variable which definitions may have made its
value here. Branches run on copies that are joined, loops run until nothing changes, `break`, `continue`,
`return` and exceptions carry their state to where they lead. A function's body is run once, on its own; the
variables that it takes from outside have all their definitions there, since nobody knows when it is called.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import cast

from .scopes import Comprehension, Function, Scope, collect_scopes, parameters

Env = dict[str, frozenset[int]]
# A definition, or a variable of another scope (all its definitions).
Source = int | tuple[Scope, str]
# A source and the node that reads it.
Uses = set[tuple[Source, ast.AST]]
# A definition, or the role in which a value leaves the data flow: "return", "test", ...
Sink = int | str


@dataclass
class _Loop:
    breaks: list[Env] = field(default_factory=list)
    continues: list[Env] = field(default_factory=list)


class DefUse:
    """The def-use edges of `module`.

    kinds: the kind of each definition: "assign", "for", "parameter 0", "for[1]" (second element of an
    unpacked target), ...
    edges: pairs (definition, sink), one for each definition that reaches a use and each sink that the use
    flows to.
    """

    def __init__(self, module: ast.Module) -> None:
        self.kinds: list[str] = []
        self._definition_at: dict[tuple[ast.AST, str], int] = {}
        self._flows: set[tuple[Source, ast.AST, Sink]] = set()
        self._scopes = collect_scopes(module)
        self._scope = self._scopes[module]
        self._loops: list[_Loop] = []
        # The states in which an exception may leave each open `try`.
        self._raising: list[Env] = []
        self._loop_heads: dict[ast.AST, Env] = {}
        self._lambdas = 0
        self._functions: list[Function] = []

        self._block(module.body, {})
        done: set[ast.AST] = set()
        while self._functions:
            function = self._functions.pop()
            if function not in done:
                done.add(function)
                self._function_body(function)
        self.edges = [(definition, sink) for source, _, sink in self._flows for definition in self._expand(source)]

    def _expand(self, source: Source) -> list[int]:
        if isinstance(source, int):
            return [source]
        scope, name = source
        return sorted(scope.definitions[name])

    def _function_body(self, node: Function) -> None:
        self._scope, self._loops, self._raising = self._scopes[node], [], []
        env: Env = {}
        for kind, argument in parameters(node.args):
            self._define(argument.arg, argument, kind, set(), env)
        self._block(node.body, env)

    # Definitions and uses

    def _define(self, name: str, site: ast.AST, kind: str, uses: Uses, env: Env) -> int:
        """A definition of `name` at `site`, made from `uses`; it replaces those that reached this point."""
        definition = self._definition(site, kind)
        self._flow_to(uses, definition)
        owner = self._scope.owner(name) or self._scope
        owner.definitions[name].add(definition)
        if owner is self._scope and name not in owner.shared:
            env[name] = frozenset([definition])
            self._may_raise(env)
        return definition

    def _definition(self, site: ast.AST, kind: str) -> int:
        number = self._definition_at.setdefault((site, kind), len(self.kinds))
        if number == len(self.kinds):
            self.kinds.append(kind)
        return number

    def _flow_to(self, uses: Uses, sink: Sink) -> None:
        self._flows.update((source, node, sink) for source, node in uses)

    def _may_raise(self, env: Env) -> None:
        for accumulated in self._raising:
            _join_into(accumulated, env)

    def _read(self, node: ast.Name, env: Env) -> Uses:
        if node.id in env:
            return {(definition, node) for definition in env[node.id]}
        owner = self._scope.owner(node.id)
        if owner is None:
            return set()
        if owner is not self._scope or node.id in owner.shared or self._lambdas:
            return {((owner, node.id), node)}
        return set()

    # Expressions

    def _uses(self, root: ast.AST | None, env: Env) -> Uses:
        """The uses whose values flow into the value of the expression. Walrus targets change `env`."""
        uses: Uses = set()
        stack = [root] if root is not None else []
        # A stack, not recursion: a sum of a thousand terms is a thousand levels deep.
        while stack:
            node = stack.pop()
            if isinstance(node, ast.Name):
                uses |= self._read(node, env)
            elif isinstance(node, ast.NamedExpr):
                value = self._uses(node.value, env)
                uses.add((self._define(node.target.id, node, "assign", value, env), node))
            elif isinstance(node, ast.Lambda):
                self._lambda(node, env)
            elif isinstance(node, Comprehension):
                uses |= self._comprehension(node, env)
            elif isinstance(node, ast.BoolOp):
                uses |= self._uses(node.values[0], env)
                for operand in node.values[1:]:
                    uses |= self._perhaps(operand, env)
            elif isinstance(node, ast.IfExp):
                uses |= self._uses(node.test, env)
                uses |= self._perhaps(node.body, env) | self._perhaps(node.orelse, env)
            elif isinstance(node, ast.Yield | ast.YieldFrom):
                self._flow_to(self._uses(node.value, env), "yield")
            else:
                stack += reversed(list(ast.iter_child_nodes(node)))
        return uses

    def _perhaps(self, node: ast.expr, env: Env) -> Uses:
        """Uses of an operand that may not be evaluated."""
        branch = dict(env)
        uses = self._uses(node, branch)
        _join_into(env, branch)
        return uses

    def _lambda(self, node: ast.Lambda, env: Env) -> None:
        inner = dict(env)
        self._parameter_defaults(node.args, env)
        for kind, argument in parameters(node.args):
            inner[argument.arg] = frozenset([self._definition(argument, kind)])
        self._lambdas += 1
        self._flow_to(self._uses(node.body, inner), "return")
        self._lambdas -= 1

    def _comprehension(self, node: Comprehension, env: Env) -> Uses:
        hidden: dict[str, frozenset[int] | None] = {}
        for generator in node.generators:
            elements = self._uses(generator.iter, env)
            for target, kind in _names_of(generator.target, "for"):
                hidden.setdefault(target.id, env.get(target.id))
                definition = self._definition(target, kind)
                self._flow_to(elements, definition)
                env[target.id] = frozenset([definition])
            for condition in generator.ifs:
                self._flow_to(self._uses(condition, env), "test")
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        uses: Uses = set()
        for part in parts:
            uses |= self._uses(part, env)
        for name, before in hidden.items():
            env.pop(name, None)
            if before is not None:
                env[name] = before
        return uses

    def _parameter_defaults(self, arguments: ast.arguments, env: Env) -> None:
        found = parameters(arguments)
        positional = [pair for pair in found if pair[0].startswith("parameter")]
        keywords = [pair for pair in found if pair[0].startswith("keyword")]
        first = len(positional) - len(arguments.defaults)
        pairs = [*zip(positional[first:], arguments.defaults, strict=True)]
        for (kind, argument), value in [*pairs, *zip(keywords, arguments.kw_defaults, strict=True)]:
            self._flow_to(self._uses(value, env), self._definition(argument, kind))

    # Assignment

    def _assign(self, target: ast.expr, value: ast.expr, env: Env) -> None:
        # All values first: `a, b = b, a`.
        for part, uses in self._pairs(target, value, env):
            self._bind(part, "assign", uses, env)

    def _pairs(self, target: ast.expr, value: ast.expr, env: Env) -> list[tuple[ast.expr, Uses]]:
        """Targets with the uses that flow to each; written-out tuples are taken apart."""
        sequence = ast.Tuple | ast.List
        if isinstance(target, sequence) and isinstance(value, sequence) and len(target.elts) == len(value.elts):
            both = list(zip(target.elts, value.elts, strict=True))
            if not any(isinstance(part, ast.Starred) for pair in both for part in pair):
                return [pair for t, v in both for pair in self._pairs(t, v, env)]
        return [(target, self._uses(value, env))]

    def _bind(self, target: ast.expr, kind: str, uses: Uses, env: Env) -> None:
        for name, name_kind in _names_of(target, kind):
            self._define(name.id, name, name_kind, uses, env)
        for place in _places_of(target):
            self._store(place, uses, env)

    def _store(self, place: ast.expr, uses: Uses, env: Env) -> None:
        """``x[i] = v`` and ``x.a = v``: a new definition of x, made from x, i and v."""
        uses = uses | self._uses(place, env)
        root = place
        while isinstance(root, ast.Attribute | ast.Subscript | ast.Starred):
            root = root.value
        if isinstance(root, ast.Name) and root.id in env and self._scope.owner(root.id) is self._scope:
            self._define(root.id, place, "store", uses, env)
        else:
            self._flow_to(uses, "store")

    # Statements. Each takes a state that it may change, and returns the state after it, None if nothing
    # follows.

    def _block(self, statements: list[ast.stmt], env: Env | None) -> Env | None:
        for statement in statements:
            if env is None:
                break
            env = self._statement(statement, env)
        return env

    def _statement(self, node: ast.stmt, env: Env) -> Env | None:
        match node:
            case ast.Assign():
                for target in node.targets:
                    self._assign(target, node.value, env)
            case ast.AnnAssign():
                if node.value is not None:
                    self._assign(node.target, node.value, env)
            case ast.AugAssign():
                uses = self._uses(node.value, env)
                if isinstance(node.target, ast.Name):
                    uses |= self._read(node.target, env)
                self._bind(node.target, "assign", uses, env)
            case ast.Return():
                self._flow_to(self._uses(node.value, env), "return")
                return None
            case ast.Raise():
                self._flow_to(self._uses(node.exc, env) | self._uses(node.cause, env), "raise")
                return None
            case ast.Break() | ast.Continue():
                if self._loops:
                    loop = self._loops[-1]
                    (loop.breaks if isinstance(node, ast.Break) else loop.continues).append(env)
                return None
            case ast.If():
                return self._if(node, env)
            case ast.For() | ast.AsyncFor() | ast.While():
                return self._loop(node, env)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    uses = self._uses(item.context_expr, env)
                    if item.optional_vars is None:
                        self._flow_to(uses, "with")
                    else:
                        self._bind(item.optional_vars, "with", uses, env)
                return self._block(node.body, env)
            case ast.Match():
                return self._match(node, env)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._parameter_defaults(node.args, env)
                self._define(node.name, node, "function", self._all_uses(node.decorator_list, env), env)
                self._functions.append(node)
            case ast.ClassDef():
                self._class(node, env)
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    if alias.name != "*":
                        self._define(alias.asname or alias.name.partition(".")[0], alias, "import", set(), env)
            case ast.Delete():
                for target in node.targets:
                    for name, _ in _names_of(target, ""):
                        env.pop(name.id, None)
                    self._flow_to(self._all_uses(_places_of(target), env), "delete")
            case ast.Assert():
                self._flow_to(self._uses(node.test, env), "test")
                self._flow_to(self._uses(node.msg, env), "raise")
            case ast.Expr():
                self._flow_to(self._uses(node.value, env), "expression")
            case _ if type(node).__name__ in ("Try", "TryStar"):  # the second exists since Python 3.11
                return self._try(cast(ast.Try, node), env)
        return env

    def _all_uses(self, nodes: list[ast.expr], env: Env) -> Uses:
        uses: Uses = set()
        for node in nodes:
            uses |= self._uses(node, env)
        return uses

    def _if(self, node: ast.If, env: Env) -> Env | None:
        ends: list[Env | None] = []
        # A loop over `elif`: each one is nested in the one before.
        while True:
            self._flow_to(self._uses(node.test, env), "test")
            ends.append(self._block(node.body, dict(env)))
            if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
                node = node.orelse[0]
                continue
            ends.append(self._block(node.orelse, env))
            return _join(ends)

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While, env: Env) -> Env | None:
        elements = self._uses(node.iter, env) if not isinstance(node, ast.While) else set()
        # The states only grow while an outer loop repeats, so the last head is a valid start, and nested
        # loops stay cheap.
        head = dict(env)
        _join_into(head, self._loop_heads.get(node, {}))
        while True:
            loop = _Loop()
            self._loops.append(loop)
            body = dict(head)
            if isinstance(node, ast.While):
                self._flow_to(self._uses(node.test, body), "test")
                leave: Env | None = None if _always_true(node.test) else dict(body)
            else:
                leave = dict(head)
                self._bind(node.target, "for", elements, body)
            end = self._block(node.body, body)
            self._loops.pop()
            grown = _join([head, end, *loop.continues])
            if grown == head or grown is None:
                break
            head = grown
        self._loop_heads[node] = head
        return _join([self._block(node.orelse, leave), *loop.breaks])

    def _try(self, node: ast.Try, env: Env) -> Env | None:
        outside = dict(env)
        if node.finalbody:
            self._raising.append(outside)
        inside = dict(env)
        self._raising.append(inside)
        end = self._block(node.body, env)
        self._raising.pop()
        ends = [self._block(node.orelse, end)]
        for handler in node.handlers:
            state = dict(inside)
            self._flow_to(self._uses(handler.type, state), "except")
            if handler.name:
                self._define(handler.name, handler, "except", set(), state)
            after = self._block(handler.body, state)
            if after is not None and handler.name:
                after.pop(handler.name, None)
            ends.append(after)
        end = _join(ends)
        if node.finalbody:
            self._raising.pop()
            after = self._block(node.finalbody, None if end is None else dict(end))
            # Once more for the ways out that do not come back here.
            self._block(node.finalbody, _join([outside, end]))
            return after
        return end

    def _match(self, node: ast.Match, env: Env) -> Env | None:
        subject = self._uses(node.subject, env)
        self._flow_to(subject, "test")
        ends: list[Env | None] = []
        for case in node.cases:
            state = dict(env)
            for pattern in ast.walk(case.pattern):
                name = getattr(pattern, "rest" if isinstance(pattern, ast.MatchMapping) else "name", None)
                if isinstance(pattern, ast.pattern) and name:
                    self._define(name, pattern, "match", subject, state)
                elif isinstance(pattern, ast.expr) and not isinstance(pattern, ast.Constant):
                    self._flow_to(self._uses(pattern, state), "test")
            self._flow_to(self._uses(case.guard, state), "test")
            ends.append(self._block(case.body, state))
            if case.guard is None and _matches_all(case.pattern):
                return _join(ends)
        return _join([*ends, env])

    def _class(self, node: ast.ClassDef, env: Env) -> None:
        uses = self._all_uses([*node.decorator_list, *node.bases, *(k.value for k in node.keywords)], env)
        outer = self._scope
        self._scope = self._scopes[node]
        self._block(node.body, dict(env))
        self._scope = outer
        self._define(node.name, node, "class", uses, env)


def _join_into(env: Env, other: Env) -> None:
    for name, definitions in other.items():
        env[name] = env.get(name, frozenset()) | definitions


def _join(states: list[Env | None] | list[Env]) -> Env | None:
    """The state where several paths meet; None if none of them gets there."""
    reached = [state for state in states if state is not None]
    if not reached:
        return None
    joined: Env = {}
    for state in reached:
        _join_into(joined, state)
    return joined


def _names_of(target: ast.expr, kind: str) -> list[tuple[ast.Name, str]]:
    """The names that a target binds, with the kind of each: ``kind`` and its place in the pattern."""
    match target:
        case ast.Name():
            return [(target, kind)]
        case ast.Starred():
            return _names_of(target.value, kind)
        case ast.Tuple() | ast.List():
            return [pair for i, part in enumerate(target.elts) for pair in _names_of(part, f"{kind}[{i}]")]
    return []


def _places_of(target: ast.expr) -> list[ast.expr]:
    """The attributes and subscripts among the parts of a target."""
    match target:
        case ast.Attribute() | ast.Subscript():
            return [target]
        case ast.Starred():
            return _places_of(target.value)
        case ast.Tuple() | ast.List():
            return [place for part in target.elts for place in _places_of(part)]
    return []


def _always_true(test: ast.expr) -> bool:
    return isinstance(test, ast.Constant) and bool(test.value)


def _matches_all(pattern: ast.pattern) -> bool:
    return isinstance(pattern, ast.MatchAs) and (pattern.pattern is None or _matches_all(pattern.pattern))
