"""How processes meet: an address that the first one owns and the others reach, and links between their hosts."""

import errno
import socket
import time
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import TCPStore

from adaptmedseg.errors import UserError
from adaptmedseg.launch.facts import Facts

RETRY_SECONDS = 0.3
LINK_SECONDS = 3.0


def open_store(address: str, port: int, seconds: float) -> TCPStore:
    """The first process's side. UserError where the address is another machine's or the port is taken."""
    host, refused = socket.gethostname(), None
    for family, kind, _, _, place in _resolved(address, port, host):
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(place)
                break
            except OSError as error:
                refused = (error.errno, place[0])
    else:
        if refused is not None and refused[0] == errno.EADDRINUSE:
            raise UserError(f"port {port} is taken on {host} by another program; choose another port")
        raise UserError(
            f"the master address {address} ({refused[1] if refused else 'no address'}) is not {host}'s, where rank 0 "
            "runs; set MASTER_ADDR to rank 0's host"
        )
    return TCPStore(address, port, None, True, timedelta(seconds=seconds), wait_for_workers=False)


def reach_store(address: str, port: int, seconds: float) -> tuple[TCPStore, str]:
    """The other processes' side, and this host's own address on the way there. UserError when time is over."""
    host, ends = socket.gethostname(), time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((address, port), timeout=max(0.1, ends - time.monotonic())) as way:
                own = way.getsockname()[0]
            break
        except OSError as error:
            if time.monotonic() + RETRY_SECONDS >= ends:
                _resolved(address, port, host)
                raise UserError(
                    f"rank 0 did not answer at {address}, port {port}, within {seconds:.0f} s ({_reason(error)}); it "
                    "has not started, the address is wrong or a firewall is between"
                ) from None
        time.sleep(RETRY_SECONDS)
    try:
        left = timedelta(seconds=max(1.0, ends - time.monotonic()))
        return TCPStore(address, port, None, False, left, wait_for_workers=False), own
    except RuntimeError:
        raise UserError(f"another program answers at {address}, port {port}; choose another port") from None


def listen() -> socket.socket:
    """A door on all of this host's addresses, on any free port; the others' `broken_links` knock at it."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def broken_links(rank: int, everyone: Mapping[int, Facts]) -> list[str]:
    """A sentence for every other host that this process cannot connect to."""
    here = everyone[rank].host
    hosts: dict[str, int] = {}
    for other, facts in sorted(everyone.items()):
        hosts.setdefault(facts.host, other)
    told = []
    for host, other in hosts.items():
        if host == here:
            continue
        place = (everyone[other].address, everyone[other].port)
        try:
            socket.create_connection(place, timeout=LINK_SECONDS).close()
        except OSError as error:
            told.append(f"{here} (rank {rank}) cannot reach {host} (rank {other}) at {place[0]}: {_reason(error)}")
    return told


def _resolved(address: str, port: int, host: str) -> list:
    try:
        return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError:
        raise UserError(
            f"the master address {address} is unknown on {host}; set MASTER_ADDR to rank 0's host"
        ) from None


def _reason(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
