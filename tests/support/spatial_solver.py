"""Answers generated questions from their words alone: it shares no code with the generators and knows nothing of their scenes."""

import cmath
import math
import re
from collections import deque
from itertools import pairwise

import numpy as np

HEADINGS = {"north": 1j, "east": 1, "south": -1j, "west": -1}
HEADINGS |= {f"{a}-{b}": HEADINGS[a] + HEADINGS[b] for a in ("north", "south") for b in ("east", "west")}


class Undecided(AssertionError):
    """The words leave more than one answer open."""


def right_options(text: str) -> list[str]:
    """Every offered option that is right."""
    told, _, last = text.rpartition("\n")
    asked, offered = re.fullmatch(r"(.*\?) Answer with (.*)\.", last).groups()
    options = re.split(r", | or ", offered)
    for start, holds in (("A map", map_holds), ("A maze", maze_holds), ("A grid", grid_holds)):
        if start in told:
            holding = holds(told[told.index(start) :], asked)
            return [option for option in options if holding(option)]
    raise ValueError(f"no scene in {text!r}")


def positions(told: str) -> dict[str, complex]:
    """Each place as blocks east + blocks north * 1j, by linear equations; their solution must be unique up to moving the whole map."""
    count, listed = re.search(r"A map shows (\d+) places and no others: ([\w, ]+)\.", told).groups()
    names = listed.split(", ")
    assert len(set(names)) == int(count)
    rows, ways = [], []
    for subject, way, other in re.findall(r"(\w+) is ((?:\d+ blocks? \w+(?: and )?)+) of (\w+)\.", told):
        rows.append([(name == subject) - (name == other) for name in names])
        ways.append(sum(int(n) * HEADINGS[word] for n, word in re.findall(r"(\d+) blocks? (\w+)", way)))
    if np.linalg.matrix_rank(rows) != len(names) - 1:
        raise Undecided("the statements do not fix every place")
    solved = np.linalg.lstsq(np.array(rows, complex), np.array(ways), rcond=None)[0]
    assert np.allclose(np.array(rows) @ solved, ways), "the statements contradict each other"
    solved = np.round(solved - solved[0])
    return dict(zip(names, solved.tolist(), strict=True))


def degrees(way: complex, word: str) -> float:
    return abs(math.degrees(cmath.phase(way / HEADINGS[word])))


def lies(way: complex, word: str) -> bool:
    """Whether a way leads in a direction; refuses what a reader could dispute."""
    off = degrees(way, word)
    if 16 < off < 45:
        raise Undecided(f"{way} is {off:.0f} degrees off {word}")
    return off <= 16


def map_holds(told, asked):
    at = positions(told)
    if found := re.fullmatch(r"In which direction from (\w+) is (\w+)\?", asked):
        way = at[found[2]] - at[found[1]]
        return lambda option: lies(way, option)
    if found := re.fullmatch(r"Which of these places is ([\w-]+) of (\w+)\?", asked):
        return lambda option: option != found[2] and lies(at[option] - at[found[2]], found[1])
    further, name = re.fullmatch(r"How many of the other places are (.*) than (\w+)\?", asked).groups()
    count = 0
    for other in at.keys() - {name}:
        ahead = [((at[other] - at[name]) / HEADINGS[side]).real for side in re.findall(r"further (\w+)", further)]
        if 0 in ahead:
            raise Undecided(f"{other} is level with {name}")
        count += all(distance > 0 for distance in ahead)
    return lambda option: int(option) == count


def maze_rows(told: str) -> list[str]:
    return [line for line in told.splitlines() if re.fullmatch(r"[#.SE*]+", line)]


def maze_path(rows: list[str]) -> list[tuple[int, int]]:
    """The way from S to E by breadth-first search that ignores the marks; the floor must be a tree and the marks must agree."""
    assert len({len(row) for row in rows}) == 1
    signs = {(r, c): sign for r, row in enumerate(rows) for c, sign in enumerate(row) if sign != "#"}
    near = {(r, c): [s for s in ((r - 1, c), (r, c + 1), (r + 1, c), (r, c - 1)) if s in signs] for r, c in signs}
    start, end = ([s for s, sign in signs.items() if sign == letter] for letter in "SE")
    assert len(start) == len(end) == 1
    came, queue = {start[0]: None}, deque(start)
    while queue:
        here = queue.popleft()
        for there in near[here]:
            if there not in came:
                came[there] = here
                queue.append(there)
    if len(came) != len(signs) or sum(map(len, near.values())) != 2 * (len(signs) - 1):
        raise Undecided("the floor is no tree: there may be several paths, or none")
    path = [end[0]]
    while path[-1] != start[0]:
        path.append(came[path[-1]])
    assert set(path[1:-1]) == {s for s, sign in signs.items() if sign == "*"}, "the marks are not the path"
    return path[::-1]


def maze_holds(told, asked):
    path = maze_path(maze_rows(told))
    (r0, c0), (r1, c1) = path[0], path[-1]
    if asked == "Where is the exit relative to the start, seen from above?":
        true = {"above": r1 < r0, "below": r1 > r0, "left": c1 < c0, "right": c1 > c0}
        return lambda option: all(true[word] for word in option.split())
    clock = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    headings = [clock.index((b[0] - a[0], b[1] - a[1])) for a, b in pairwise(path)]
    turned = [(b - a) % 4 for a, b in pairwise(headings)]
    assert 2 not in turned
    right, left = turned.count(1), turned.count(3)
    for words, count in (
        ("how many times does one turn right", right),
        ("how many times does one turn left", left),
        ("how many turns does one make, left and right together", right + left),
        ("how many steps does one take", len(path) - 1),
    ):
        if words in asked:
            return lambda option, count=count: int(option) == count
    raise ValueError(asked)


def grid_cells(told: str) -> dict[tuple[int, int], str]:
    """(row, column), from 1 -> word."""
    height, width = map(int, re.search(r"has (\d+) rows and (\d+) columns", told).groups())
    cells = {(int(r), c): word for r, row in re.findall(r"Row (\d+): ([\w, ]+)\.", told) for c, word in enumerate(row.split(", "), 1)}
    assert set(cells) == {(r, c) for r in range(1, height + 1) for c in range(1, width + 1)}
    return cells


def grid_holds(told, asked):
    cells = grid_cells(told)
    if found := re.fullmatch(r"How many cells hold a (\w+)\?", asked):
        return lambda option: int(option) == list(cells.values()).count(found[1])
    if found := re.fullmatch(r"Which symbol is in row (\d+), column (\d+)\?", asked):
        return lambda option: cells[int(found[1]), int(found[2])] == option
    way, place = re.fullmatch(r"Which symbol is (.*) the (symbol in .*|only .*)\?", asked).groups()
    if found := re.fullmatch(r"symbol in row (\d+), column (\d+)", place):
        row, column = int(found[1]), int(found[2])
    else:
        holding = [cell for cell, word in cells.items() if word == place.removeprefix("only ")]
        if len(holding) != 1:
            raise Undecided(f"{len(holding)} cells hold the {place}")
        row, column = holding[0]
    assert way.startswith("diagonally" if " and " in way else "directly")
    target = row - ("above" in way) + ("below" in way), column - ("left" in way) + ("right" in way)
    return lambda option: cells[target] == option
