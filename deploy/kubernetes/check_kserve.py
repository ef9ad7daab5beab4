"""Hold KServe objects, documents of YAML on standard input, against the classes that KServe generates from its schemas.

Runs where the package `kserve` is installed. Prints a line for each field that is missing, of another type, or unknown,
and ends with status 1 if there are any.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

import kserve.models
import kubernetes.client.models
import yaml

KINDS = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
}
PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool, "object": object}
QUANTITY = r"[0-9.]+([munkMGTPE]|[KMGTPE]i)?"


def problems(value: Any, kind: str, path: str) -> Iterator[str]:
    """What a value has that its kind has not, and the other way round."""
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{path}: got {value!r}, expected a list"
            return
        for index, item in enumerate(value):
            yield from problems(item, match[1], f"{path}[{index}]")
    elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        if not isinstance(value, dict):
            yield f"{path}: got {value!r}, expected a table"
            return
        for key, item in value.items():
            yield from problems(item, match[1], f"{path}.{key}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind in ("int", "float")):
            yield f"{path}: got {value!r}, expected {kind}"
    elif kind == "ResourceQuantity":
        if not re.fullmatch(QUANTITY, str(value)):
            yield f"{path}: got {value!r}, expected a quantity"
    else:
        yield from _fields(value, kind, path)


def _fields(value: Any, kind: str, path: str) -> Iterator[str]:
    described = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind, None)
    if described is None:  # a union, such as a port's number or name
        return
    if not isinstance(value, dict):
        yield f"{path}: got {value!r}, expected a table"
        return
    names = {json: name for name, json in described.attribute_map.items()}
    for key, item in value.items():
        if key not in names:
            yield f"{path}: has {key}, known are {', '.join(sorted(names))}"
        else:
            yield from problems(item, described.openapi_types[names[key]], f"{path}.{key}")
    try:
        described(**{names[key]: item for key, item in value.items() if key in names})
    except ValueError as error:  # the generated setters know what is required
        yield f"{path}: {error}"


def main() -> int:
    found = []
    for document in yaml.safe_load_all(sys.stdin):
        kind = document["apiVersion"], document["kind"]
        assert kind in KINDS, f"got {kind}, expected one of {list(KINDS)}"
        found += problems(document, KINDS[kind], document["kind"])
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
