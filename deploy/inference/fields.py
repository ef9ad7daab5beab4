"""The messages of a generated module, as JSON: `fields.py MODULE`, a field's type, number and kind by its full name."""

import importlib
import json
import sys
from typing import Any


def fields(message: Any) -> dict[str, list[Any]]:
    found = {}
    for field in message.fields:
        kind = field.message_type or field.enum_type
        found[field.full_name] = [
            field.number,
            field.type,
            field.label == field.LABEL_REPEATED,
            kind and kind.full_name,
        ]
    for nested in message.nested_types:
        found |= fields(nested)
    return found


def described(module: str) -> dict[str, Any]:
    """Also the values of enums, and the methods of services with what they take and give."""
    file = importlib.import_module(module).DESCRIPTOR
    found: dict[str, Any] = {}
    for message in file.message_types_by_name.values():
        found |= fields(message)
    for enum in file.enum_types_by_name.values():
        found |= {f"{enum.full_name}.{value.name}": value.number for value in enum.values}
    for service in file.services_by_name.values():
        for method in service.methods:
            found[method.full_name] = [method.input_type.full_name, method.output_type.full_name]
    return found


if __name__ == "__main__":
    print(json.dumps([described(module) for module in sys.argv[1:]]))
