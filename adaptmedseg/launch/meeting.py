"""A meeting of all processes before training: who is there, who is different, which link is broken, who can't add."""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

from adaptmedseg.errors import UserError
from adaptmedseg.launch.address import broken_links, listen, open_store, reach_store
from adaptmedseg.launch.facts import Facts, contents, differences, gpu_trouble, versions

MEETING_SHARE = 0.6  # of the time, for all to arrive
PAYLOAD = 1 << 20  # float32 numbers, 4 MiB
POLL_SECONDS = 0.05
LAST_SECONDS = 1.0  # for the others to read bad news
PROCEED = "proceed"


class ToldByFirstError(UserError):
    """What the first process found and prints itself; the others only end."""


@dataclass(frozen=True)
class Place:
    """This process among all of them. `hosts` are those that ranks fill one after another, where they are known."""

    rank: int
    count: int
    local_rank: int
    address: str
    port: int
    backend: str
    hosts: list[str]
    seconds: float

    def named(self, rank: int) -> str:
        """A rank with the host that it should run on."""
        return f"rank {rank}" + (f" (on {self.hosts[rank * len(self.hosts) // self.count]})" if self.hosts else "")


class Meeting:
    """One process's part. Whatever is wrong becomes a UserError on all processes; the first one speaks for all."""

    def __init__(self, place: Place):
        self.place = place
        self.started = time.monotonic()
        self.ends = self.started + place.seconds

    def hold(self, files: Sequence[Path]) -> str:
        """The whole meeting; returns what is to be said when all is well. `files` have to be the same everywhere."""
        place = self.place
        same = versions() | contents(files) | {"the number of processes": str(place.count)}
        facts = Facts(socket.gethostname(), same, gpu_trouble(place.backend, place.local_rank))
        with listen() as door:
            facts = replace(facts, port=door.getsockname()[1])
            try:
                store, address = self._arrive()
                everyone = self._gather(store, replace(facts, address=address))
                self._try_links(store, everyone)
                speed = self._add_up(store)
            except RuntimeError as error:  # the store's own, where the first process is gone
                raise UserError(f"{place.named(0)} stopped answering ({' '.join(str(error).split())[:100]})") from None
        hosts = len({other.host for other in everyone.values()})
        return (
            f"{place.count} processes on {hosts} host{'s' * (hosts > 1)} are alike and reach each other over "
            f"{place.backend} ({speed}); {time.monotonic() - self.started:.1f} s"
        )

    def _left(self) -> float:
        return max(0.1, self.ends - time.monotonic())

    def _arrive(self) -> tuple[TCPStore, str]:
        place = self.place
        if place.rank == 0:
            return open_store(place.address, place.port, place.seconds), place.address
        return reach_store(place.address, place.port, self._left() * MEETING_SHARE)

    def _gather(self, store: TCPStore, facts: Facts) -> dict[int, Facts]:
        self._say(store, "here", facts.to_json())

        def judge() -> list[str]:
            words, missing = self._hear(store, "here", self._left() * MEETING_SHARE)
            if missing:
                return [f"{self.place.named(rank)} never arrived" for rank in missing]
            return differences({rank: Facts.from_json(word) for rank, word in words.items()})

        self._decide(store, "gathered", judge)
        words, _ = self._hear(store, "here", self._left())
        return {rank: Facts.from_json(word) for rank, word in words.items()}

    def _try_links(self, store: TCPStore, everyone: dict[int, Facts]) -> None:
        told = broken_links(self.place.rank, everyone) if self.place.local_rank == 0 else []
        self._say(store, "links", "\n".join(told))
        self._decide(store, "linked", lambda: self._complaints(store, "links"))

    def _add_up(self, store: TCPStore) -> str:
        place, speed, trouble = self.place, "", ""
        try:
            speed = self._sum(store)
        except (RuntimeError, ValueError) as error:
            trouble = (
                f"{place.named(place.rank)} could not add up over {place.backend} "
                f"({' '.join(str(error).split())[:200]}); where hosts have several networks, set "
                f"{place.backend.upper()}_SOCKET_IFNAME to the one that joins them"
            )
        self._say(store, "sum", trouble)
        self._decide(store, "summed", lambda: self._complaints(store, "sum"))
        return speed

    def _sum(self, store: TCPStore) -> str:
        place = self.place
        device = torch.device("cuda", place.local_rank) if place.backend == "nccl" else torch.device("cpu")
        if place.backend == "nccl":
            torch.cuda.set_device(device)
        limit = timedelta(seconds=max(2.0, self._left() * 0.7))
        group = PrefixStore("group", store)
        dist.init_process_group(place.backend, store=group, rank=place.rank, world_size=place.count, timeout=limit)
        numbers = torch.full((PAYLOAD,), float(place.rank + 1), device=device)
        started = time.perf_counter()
        dist.all_reduce(numbers)
        found, expected = numbers.unique().tolist(), place.count * (place.count + 1) / 2
        if found != [expected]:
            raise ValueError(f"the sum is {found[:3]} instead of {expected}")
        return f"{PAYLOAD * 4 >> 20} MiB summed in {(time.perf_counter() - started) * 1e3:.0f} ms"

    def _say(self, store: TCPStore, what: str, word: str) -> None:
        store.set(f"{what}/{self.place.rank}", word)

    def _hear(self, store: TCPStore, what: str, seconds: float) -> tuple[dict[int, str], list[int]]:
        """What each process said, and the ranks that said nothing in time."""
        ends, silent = time.monotonic() + seconds, set(range(self.place.count))
        while True:
            silent -= {rank for rank in silent if store.check([f"{what}/{rank}"])}
            if not silent or time.monotonic() > ends:
                break
            time.sleep(POLL_SECONDS)
        heard = sorted(set(range(self.place.count)) - silent)
        return {rank: store.get(f"{what}/{rank}").decode() for rank in heard}, sorted(silent)

    def _complaints(self, store: TCPStore, what: str) -> list[str]:
        words, silent = self._hear(store, what, self._left() * 0.9)
        told = [word for word in words.values() if word]
        return told + [f"{self.place.named(rank)} stopped answering" for rank in silent if not told]

    def _decide(self, store: TCPStore, what: str, judge: Callable[[], list[str]]) -> None:
        """The first process judges; all go on, or end."""
        told = judge() if self.place.rank == 0 else []
        if self.place.rank == 0:
            store.set(what, "\n".join(told) or PROCEED)
        else:
            store.wait([what], timedelta(seconds=self._left()))
            told = [] if store.get(what) == PROCEED.encode() else ["told"]
        self._say(store, f"{what} read", "")
        if self.place.rank == 0:  # the store ends with this process
            self._hear(store, f"{what} read", LAST_SECONDS if told else self._left())
            if told:
                raise UserError("\n".join(told))
        elif told:
            raise ToldByFirstError(f"{self.place.named(0)} says why")
