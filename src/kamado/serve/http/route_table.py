"""Which route a method and a path mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .routes import Route

PARAMETER = re.compile(r"\{([a-z_]+)(:path)?\}")  # of a route's path: "{name}", or "{name:path}" with slashes in it


class RouteTable:
    """Finds routes: by a dict when the path has no parameter, else by expressions, longest fixed part first."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Two routes of one method and path are a fault of the program."""
        self._exact: dict[str, dict[str, Route]] = {}
        patterns: dict[str, dict[str, Route]] = {}
        for route in routes:
            group = patterns if "{" in route.path else self._exact
            methods = group.setdefault(route.path, {})
            assert route.method not in methods, f"two routes for {route.method} {route.path}"
            methods[route.method] = route
        self._patterns = sorted(
            ((_pattern(path), methods) for path, methods in patterns.items()), key=lambda p: -len(p[0].pattern)
        )

    def find(self, method: str, path: str) -> tuple[list[str], Route | None, dict[str, str]]:
        """The methods that the path has, the route of `method` (GET serves HEAD), and the path's parameters."""
        methods, parameters = self._exact.get(path), {}
        if methods is None:
            for pattern, candidates in self._patterns:
                match = pattern.fullmatch(path)
                if match is not None:
                    methods, parameters = candidates, match.groupdict()
                    break
        if methods is None:
            return [], None, {}
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        names = sorted({*methods, *({"HEAD"} if "GET" in methods else ())})
        return names, route, parameters


def _pattern(path: str) -> re.Pattern[str]:
    parts, end = [], 0
    for match in PARAMETER.finditer(path):
        parts.append(re.escape(path[end : match.start()]))
        parts.append(f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})")
        end = match.end()
    parts.append(re.escape(path[end:]))
    return re.compile("".join(parts), re.DOTALL)
