"""Hold Kubernetes objects, documents of YAML on standard input, against the schemas that Kubernetes publishes.

Runs where deploy/kubernetes/requirements.txt is installed. Prints a line for each field that is wrong or unknown, and
ends with status 1 if there are any.
"""

import sys

import kubernetes_validate
import yaml

OLDEST = "1.31"
"""The first of which all that these objects use is known; the newest is that of the installed schemas."""


def main() -> int:
    wrong = 0
    for document in yaml.safe_load_all(sys.stdin):
        for version in (OLDEST, kubernetes_validate.latest_version()):
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                print(f"{document['kind']} {document['metadata']['name']}, {version}: {path}: {error.message}")
                wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
