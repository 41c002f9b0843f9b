"""CEL as Kubernetes speaks it: the standard language, its extensions, and Kubernetes' libraries.

In: expressions and values. Out: results as plain Python values, or a text that says why there is
none. Wraps Google's own engine (`cel_expr_python`). Two-variable comprehensions, indexOf of lists, and
the semver and authorizer libraries are not there: such an expression does not compile, and its text says so.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import re2
from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_encoders, ext_math, ext_optional, ext_strings

from localkube.apiserver import validation_formats as formats

_OLD_STATE = "__oldState"
_RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
_ESCAPES = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))

_BOOL, _INT, _STRING, _DYN = cel.Type.BOOL, cel.Type.INT, cel.Type.STRING, cel.Type.DYN
_LIST = cel.Type.List(_DYN)
# Quantities, URLs, addresses and networks travel as small maps with one tagged string.
_TAGGED = cel.Type.Map(_STRING, _STRING)


def mentions(expression: str, name: str) -> bool:
    """Whether an expression uses the variable `name`."""
    return re.search(rf"\b{name}\b", expression) is not None


# -- Kubernetes' function libraries -----------------------------------------------------------


def _tag(kind: str, text: str) -> dict[str, str]:
    return {kind: text}


def _quantity(text: str) -> dict[str, str]:
    number = formats.parse_quantity(text)
    if number is None:
        raise ValueError(formats.QUANTITY_PROBLEM)
    return _tag("quantity", format(number.normalize(), "f"))


def _number(tagged: dict[str, str]) -> Decimal:
    return Decimal(tagged["quantity"])


def _compare(left: dict[str, str], right: dict[str, str]) -> int:
    first, second = _number(left), _number(right)
    return (first > second) - (first < second)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc) or text.startswith("/")


def _url(text: str) -> dict[str, str]:
    if not _is_url(text):
        raise ValueError(f"URL parse error during conversion from string: {text}")
    return _tag("url", text)


def _url_port(tagged: dict[str, str]) -> str:
    port = urlsplit(tagged["url"]).port
    return "" if port is None else str(port)


def _is_ip(text: str) -> bool:
    return formats.check_ip(text) is None


def _family(tagged: dict[str, str]) -> int:
    text = tagged.get("ip") or tagged["cidr"]
    return ipaddress.ip_interface(text).version


def _contains_ip(network: dict[str, str], address: str) -> bool:
    inside = ipaddress.ip_address(address)
    return inside in ipaddress.ip_network(network["cidr"], strict=False)


def _find(text: str, pattern: str) -> str:
    match = re2.search(pattern, text)
    return match.group(0) if match else ""


def _find_all(text: str, pattern: str) -> list[str]:
    return [match.group(0) for match in re2.finditer(pattern, text)]


def _is_sorted(items: list[Any]) -> bool:
    return all(a <= b for a, b in itertools.pairwise(items))


def _contains_all(items: list[Any], wanted: list[Any]) -> bool:
    return all(item in items for item in wanted)


def _intersects(items: list[Any], other: list[Any]) -> bool:
    return any(item in items for item in other)


def _equivalent(items: list[Any], other: list[Any]) -> bool:
    return _contains_all(items, other) and _contains_all(other, items)


_Signature = tuple[str, Any, list[Any], bool, Callable[..., Any]]
_FUNCTIONS: list[_Signature] = [
    ("quantity", _TAGGED, [_STRING], False, _quantity),
    ("isQuantity", _BOOL, [_STRING], False, lambda s: formats.parse_quantity(s) is not None),
    ("isGreaterThan", _BOOL, [_TAGGED, _TAGGED], True, lambda a, b: _compare(a, b) > 0),
    ("isLessThan", _BOOL, [_TAGGED, _TAGGED], True, lambda a, b: _compare(a, b) < 0),
    ("compareTo", _INT, [_TAGGED, _TAGGED], True, _compare),
    ("asInteger", _INT, [_TAGGED], True, lambda q: int(_number(q))),
    ("asApproximateFloat", cel.Type.DOUBLE, [_TAGGED], True, lambda q: float(_number(q))),
    ("isURL", _BOOL, [_STRING], False, _is_url),
    ("url", _TAGGED, [_STRING], False, _url),
    ("getScheme", _STRING, [_TAGGED], True, lambda u: urlsplit(u["url"]).scheme),
    ("getHost", _STRING, [_TAGGED], True, lambda u: urlsplit(u["url"]).netloc.rpartition("@")[2]),
    ("getHostname", _STRING, [_TAGGED], True, lambda u: urlsplit(u["url"]).hostname or ""),
    ("getPort", _STRING, [_TAGGED], True, _url_port),
    ("getEscapedPath", _STRING, [_TAGGED], True, lambda u: quote(urlsplit(u["url"]).path, "/%")),
    ("getQuery", _DYN, [_TAGGED], True, lambda u: parse_qs(urlsplit(u["url"]).query)),
    ("isIP", _BOOL, [_STRING], False, _is_ip),
    ("ip", _TAGGED, [_STRING], False, lambda s: _tag("ip", str(ipaddress.ip_address(s)))),
    ("family", _INT, [_TAGGED], True, _family),
    ("isCIDR", _BOOL, [_STRING], False, lambda s: formats.check_cidr(s) is None),
    ("cidr", _TAGGED, [_STRING], False, lambda s: _tag("cidr", str(ipaddress.ip_interface(s)))),
    ("containsIP", _BOOL, [_TAGGED, _STRING], True, _contains_ip),
    ("find", _STRING, [_STRING, _STRING], True, _find),
    ("findAll", cel.Type.List(_STRING), [_STRING, _STRING], True, _find_all),
    ("isSorted", _BOOL, [_LIST], True, _is_sorted),
    ("sum", _DYN, [_LIST], True, sum),
    ("min", _DYN, [_LIST], True, min),
    ("max", _DYN, [_LIST], True, max),
    ("sets.contains", _BOOL, [_LIST, _LIST], False, _contains_all),
    ("sets.intersects", _BOOL, [_LIST, _LIST], False, _intersects),
    ("sets.equivalent", _BOOL, [_LIST, _LIST], False, _equivalent),
]


def _declarations() -> list[Any]:
    found = []
    for name, result, parameters, member, implementation in _FUNCTIONS:
        overload = cel.Overload(
            f"kubernetes_{name.replace('.', '_')}", result, parameters, member, implementation
        )
        found.append(cel.FunctionDecl(name, [overload]))
    return found


@lru_cache(maxsize=1)
def _environment() -> Any:
    names = ("self", "oldSelf", _OLD_STATE, "object", "oldObject", "request", "params", "variables")
    return cel.NewEnv(
        variables=dict.fromkeys(names, _DYN),
        extensions=[
            ext_bindings.ExtBindings(),
            ext_optional.ExtOptional(),
            ext_strings.ExtStrings(),
            ext_math.ExtMath(),
            ext_encoders.ExtEncoders(),
        ],
        functions=_declarations(),
    )


# -- compiling and evaluating -----------------------------------------------------------------


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> tuple[Any, str]:
    """(program, "") or (None, why not)."""
    try:
        return _environment().compile(expression), ""
    except (RuntimeError, ValueError, TypeError) as error:
        return None, _first_line(str(error))


def _first_line(text: str) -> str:
    text = text.partition("\n")[0].removeprefix("INVALID_ARGUMENT: ")
    return re.sub(r"^ERROR: <input>:\d+:\d+: ", "", text).strip()


def compile_problem(expression: str) -> str:
    """Why an expression cannot be compiled; empty when it can."""
    return _compiled(expression)[1]


class OptionalOld:
    """An `oldSelf` that may be absent, for rules with optionalOldSelf."""

    def __init__(self, value: Any, *, present: bool) -> None:
        self.state = {"value": value} if present else {}


def _run(expression: str, values: dict[str, Any]) -> tuple[Any, str]:
    """(plain result, "") or (None, why there is none)."""
    old = values.get("oldSelf")
    if isinstance(old, OptionalOld):
        values = {**values, _OLD_STATE: old.state}
        del values["oldSelf"]
        expression = (
            f"cel.bind(oldSelf, has({_OLD_STATE}.value) ? optional.of({_OLD_STATE}.value) : "
            f"optional.none(), {expression})"
        )
    program, problem = _compiled(expression)
    if program is None:
        return None, problem
    try:
        result = program.eval(data=values)
        if result.type().name() == "ERROR":
            return None, _error_text(str(result.plain_value()))
        return result.plain_value(), ""
    except (RuntimeError, TypeError, ValueError) as error:
        return None, _error_text(str(error))


def _error_text(text: str) -> str:
    text = re.sub(r"^(UNKNOWN|NOT_FOUND|INVALID_ARGUMENT|OUT_OF_RANGE|INTERNAL): ", "", text)
    if text.startswith("Key not found in map"):
        return text.replace("Key not found in map : ", "no such key: ").replace('"', "")
    if text.startswith("No matching overloads found"):
        return "no such overload"
    return _first_line(text)


def evaluate(expression: str, values: dict[str, Any]) -> bool | str:
    """True or False, or a text that says why the expression has no boolean value."""
    result, problem = _run(expression, values)
    if problem:
        return problem
    return result if isinstance(result, bool) else "the expression is not a boolean"


def evaluate_text(expression: str, values: dict[str, Any]) -> str | None:
    """The string that an expression makes, None when it makes none."""
    result, problem = _run(expression, values)
    return result if not problem and isinstance(result, str) else None


# -- values -----------------------------------------------------------------------------------


def typed(schema: dict[str, Any], value: Any) -> Any:
    """A JSON value as its schema means it: numbers as doubles, bytes decoded, names escaped."""
    kind = schema.get("type")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        if kind == "number":
            return float(value)
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, str):
        if schema.get("format") == "byte":
            try:
                return base64.b64decode(value)
            except binascii.Error:
                return value
        return value
    if isinstance(value, list):
        items = schema.get("items")
        inner = items if isinstance(items, dict) else {}
        return [typed(inner, item) for item in value]
    properties = schema.get("properties") or {}
    values = schema.get("additionalProperties")
    rest = values if isinstance(values, dict) else {}
    return {
        (escape(name) if name in properties else name): typed(properties.get(name, rest), member)
        for name, member in value.items()
        if member is not None
    }


def escape(name: str) -> str:
    """A property's name as rules write it: `namespace` is `__namespace__`, `a-b` `a__dash__b`."""
    if name in _RESERVED:
        return f"__{name}__"
    for plain, escaped in _ESCAPES:
        if plain in name:
            name = name.replace(plain, escaped)
    return name


def first_false(expressions: Iterable[str], values: dict[str, Any]) -> str | None:
    """The first expression that is not true, None when all are; errors raise ValueError."""
    for expression in expressions:
        outcome = evaluate(expression, values)
        if isinstance(outcome, str):
            raise ValueError(outcome)
        if not outcome:
            return expression
    return None
