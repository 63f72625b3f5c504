"""Takes the place of `python` under a launcher such as srun, and has the work done by a process that is forked.

Usage: client.py SOCKET ARGUMENTS...; see `server.py`. Signals are passed on, output goes where this process's does, and
it ends as the other one ends.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Until the other process has ended."""
    address, *arguments = sys.argv[1:]
    ignored = [int(number) for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    order = {"arguments": arguments, "environ": dict(os.environ), "folder": os.getcwd(), "ignored": ignored}
    socket.send_fds(connection, [json.dumps({**order, "new_session": True}).encode()], [0, 1, 2])
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    code = -signal.SIGKILL  # of a server that has died
    while answer := connection.recv(1000):
        reply = json.loads(answer)
        if "refused" in reply:
            sys.exit(reply["refused"])
        code = reply.get("code", code)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
