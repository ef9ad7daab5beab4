"""A name server for tests: one name, whose addresses stand one a line in a file that is read at every question.

python names.py FILE, with dnslib installed; prints the port that it listens on, on 127.0.0.1.
"""

import sys
import time
from pathlib import Path

from dnslib import QTYPE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer


class Names(BaseResolver):
    """Every name has the addresses of the file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def resolve(self, request: DNSRecord, _handler: DNSHandler) -> DNSRecord:
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            for address in self._file.read_text().split():
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=1))
        return reply


if __name__ == "__main__":
    server = DNSServer(Names(Path(sys.argv[1])), address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply"))
    server.start_thread()
    print(server.server.server_address[1], flush=True)
    while server.isAlive():
        time.sleep(1)
