"""What can go wrong in an export, each said in one line."""


class ExportError(Exception):
    """The export cannot be made as asked; the sentence says what was met and what is allowed."""


class DisagreementError(ExportError):
    """An artefact does not compute what eager does. Nothing was published."""
