"""The schedule by which nodes exchange data in pairs, so that a slow node can be identified."""

from collections.abc import Mapping, Sequence

MOST_ROUNDS = 4  # partners of each node; with one partner it would not be known which of the two is slow


def ranks_by_node(nodes: Sequence[str]) -> dict[str, list[int]]:
    """Ranks of each node, nodes in the order of their first rank. `nodes` has the node of each rank."""
    ranks: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        ranks.setdefault(node, []).append(rank)
    return ranks


def pairings(num_nodes: int, most_rounds: int = MOST_ROUNDS) -> list[list[tuple[int, int]]]:
    """Rounds of disjoint pairs of nodes, in which no pair occurs twice (the circle method).

    With an odd number of nodes, one node is idle in each round.
    """
    places = num_nodes + num_nodes % 2
    rounds = []
    for turn in range(min(places - 1, most_rounds if num_nodes % 2 == 0 else most_rounds + 1)):
        ring = [0, *(1 + (turn + i) % (places - 1) for i in range(places - 1))]
        pairs = [(ring[i], ring[-1 - i]) for i in range(places // 2)]
        rounds.append([(min(pair), max(pair)) for pair in pairs if max(pair) < num_nodes])
    return rounds


def partners(rank: int, ranks: Mapping[str, Sequence[int]]) -> list[int | None]:
    """The rank that `rank` exchanges data with in each round; None if it is idle.

    All corresponding ranks of two nodes exchange data at the same time, so that every network card is used.
    """
    members = list(ranks.values())
    own = next(index for index, node in enumerate(members) if rank in node)
    place = members[own].index(rank)
    found: list[int | None] = []
    for pairs in pairings(len(members)):
        others = [a + b - own for a, b in pairs if own in (a, b)]
        found.append(members[others[0]][place] if others and place < len(members[others[0]]) else None)
    return found
