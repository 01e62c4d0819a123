"""KV blocks of one replica: counted, and with prefix caching shared, kept after their use and found again.

A block is known by a key that stands for the tokens up to its end: equal keys mean equal prompts so far. Blocks nobody
uses keep what they hold until room is needed; the one unused for longest goes first, the tail of a sequence before
its head.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from tiercast_profiles.trace_file import HASH_BLOCK_TOKENS
from tiercast_profiles.workload import Request


def blocks_of(num_tokens: int, block_tokens: int) -> int:
    """KV blocks that hold ``num_tokens``."""
    return -(-num_tokens // block_tokens)


def prefix_keys(request: Request, block_tokens: int) -> tuple[Hashable, ...]:
    """Keys of the leading blocks of a prompt that other requests may share: whole blocks only.

    The ids of a trace stand for all tokens up to the end of their own block, so the one that holds a KV block's last
    token tells the whole prefix.
    """
    if request.hash_ids:
        known = min(request.prompt_tokens, len(request.hash_ids) * HASH_BLOCK_TOKENS)
        last_tokens = range(block_tokens - 1, known, block_tokens)
        return tuple((request.hash_ids[last // HASH_BLOCK_TOKENS], last) for last in last_tokens)
    return tuple(("shared", index) for index in range(request.shared_prefix_tokens // block_tokens))


@dataclass(slots=True, eq=False)
class BlockTable:
    """Blocks one sequence holds: those under a key, head first, and ``num_private`` behind or beside them."""

    request: Request
    keys: tuple[Hashable, ...]
    held: list[Hashable] = field(default_factory=list)
    num_keyed: int = 0
    num_private: int = 0

    @property
    def num_blocks(self) -> int:
        """All blocks held."""
        return len(self.held) + self.num_private


class KvBlocks:
    """The blocks of one replica.

    Invariant: ``num_free`` + blocks in use = ``num_blocks``; a block in use under a key counts once, whoever shares it.
    """

    def __init__(self, num_blocks: int, block_tokens: int, *, caches_prefixes: bool) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.caches_prefixes = caches_prefixes
        self._blank = num_blocks  # free, holding nothing that is known
        self._idle: OrderedDict[Hashable, None] = OrderedDict()  # free, known; unused for longest first
        self._users: dict[Hashable, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks nobody uses."""
        return self._blank + len(self._idle)

    def table(self, request: Request) -> BlockTable:
        """An empty table for a request."""
        return BlockTable(request, prefix_keys(request, self.block_tokens) if self.caches_prefixes else ())

    def num_cached_tokens(self, table: BlockTable, goal: int) -> int:
        """Leading tokens of the first ``goal`` that are there; the last one is always computed."""
        if not self.caches_prefixes:
            return 0
        num_blocks = 0
        limit = (goal - 1) // self.block_tokens
        while num_blocks < limit and self._is_there(self._key(table, num_blocks)):
            num_blocks += 1
        return num_blocks * self.block_tokens

    def start(self, table: BlockTable, num_cached_tokens: int, num_tokens: int) -> bool:
        """Take the cached head and room up to ``num_tokens`` for an empty table; False, and nothing taken, without."""
        num_cached = num_cached_tokens // self.block_tokens
        head = [self._key(table, index) for index in range(num_cached)]
        num_new = blocks_of(num_tokens, self.block_tokens) - num_cached
        if num_new + sum(key in self._idle for key in head) > self.num_free:
            return False
        for key in head:
            self._idle.pop(key, None)
            self._users[key] = self._users.get(key, 0) + 1
        table.held = head
        table.num_keyed = num_cached
        self._take(table, num_new)
        return True

    def grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Room for ``num_tokens``; False, taking nothing, where too few blocks are free."""
        num_new = blocks_of(num_tokens, self.block_tokens) - table.num_blocks
        if num_new <= 0:
            return True
        if num_new > self.num_free:
            return False
        self._take(table, num_new)
        return True

    def computed(self, table: BlockTable, num_tokens: int) -> None:
        """The first ``num_tokens`` are computed: whole blocks of the prompt can be found by others from now on."""
        self._publish(table, min(num_tokens // self.block_tokens, len(table.keys)))

    def release(self, table: BlockTable, num_tokens: int) -> None:
        """Give back every block of a sequence that has computed ``num_tokens``; what they hold stays known."""
        if self.caches_prefixes:
            self._publish(table, num_tokens // self.block_tokens)
            for key in reversed(table.held):
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]
                    self._idle[key] = None
        self._blank += table.num_private
        table.held, table.num_keyed, table.num_private = [], 0, 0

    def _publish(self, table: BlockTable, num_blocks: int) -> None:
        for index in range(table.num_keyed, num_blocks):
            key = self._key(table, index)
            if not self._is_there(key):  # two sequences computed the same block: the second keeps its own copy
                self._users[key] = 1
                table.held.append(key)
                table.num_private -= 1
        table.num_keyed = max(table.num_keyed, num_blocks)

    def _key(self, table: BlockTable, index: int) -> Hashable:
        """Behind what others may share a block is the request's own, of use when it comes back after preemption."""
        return table.keys[index] if index < len(table.keys) else ("own", table.request.request_id, index)

    def _is_there(self, key: Hashable) -> bool:
        return key in self._users or key in self._idle

    def _take(self, table: BlockTable, count: int) -> None:
        table.num_private += count
        from_blank = min(count, self._blank)
        self._blank -= from_blank
        for _ in range(count - from_blank):
            self._idle.popitem(last=False)
