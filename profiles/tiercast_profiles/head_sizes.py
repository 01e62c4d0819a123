"""How many rows each hash head of each Engram layer has: consecutive primes, distinct over the whole model.

The reference code starts a search at ``rows_per_head − 1`` for every layer and order, takes the next primes and skips
any prime already used by an earlier layer or order (arXiv 2601.07372 §2.2; the published V4.1 totals 384,006,168 and
384,016,682 come out exactly). A dialect without that search (``longcat``) has the stated number of rows in every head.
"""

from functools import lru_cache

from tiercast_profiles.model import Engram

_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # exact below 3.3e24 (Sorenson & Webster 2015)


def is_prime(number: int) -> bool:
    """Deterministic Miller-Rabin test for any integer below 3.3e24."""
    if number < 2:
        return False
    for prime in _WITNESSES:
        if number % prime == 0:
            return number == prime
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in _WITNESSES:
        power = pow(witness, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def head_sizes(engram: Engram) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Table size of every head, ``[layer][order][head]``, layers in ``engram.layer_ids`` order.

    They are distinct primes where the dialect searches primes, else ``rows_per_head`` itself.
    """
    if not engram.rules.has_prime_sizes:
        layer = tuple((rows,) * engram.num_heads_per_order for rows in engram.rows_per_head)
        return (layer,) * len(engram.layer_ids)
    return _search(len(engram.layer_ids), engram.rows_per_head, engram.num_heads_per_order)


@lru_cache(maxsize=32)
def _search(num_layers: int, rows_per_head: tuple[int, ...], num_heads: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    seen: set[int] = set()
    layers = []
    for _ in range(num_layers):
        orders = []
        for start in rows_per_head:
            heads: list[int] = []
            candidate = start - 1
            while len(heads) < num_heads:
                candidate += 1
                if candidate not in seen and is_prime(candidate):
                    seen.add(candidate)
                    heads.append(candidate)
            orders.append(tuple(heads))
        layers.append(tuple(orders))
    return tuple(layers)


def table_rows(engram: Engram) -> tuple[int, ...]:
    """Rows of each layer's table: the sum of its head sizes, filled up to the dialect's multiple."""
    multiple = engram.rules.table_row_multiple
    totals = (sum(sum(heads) for heads in layer) for layer in head_sizes(engram))
    return tuple(-(-total // multiple) * multiple for total in totals)
