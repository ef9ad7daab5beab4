"""What can be wrong with a corpus, and with what one is made from."""


class CorpusError(ValueError):
    """A corpus cannot be made or read: one sentence says what was met and what was expected."""


class IngestError(Exception):
    """A call of ctm-ingest asks for what cannot be; no ValueError, which tyro would put into a box."""
