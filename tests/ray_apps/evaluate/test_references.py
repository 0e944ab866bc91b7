"""The question sets are whole, and every reference in them is right.

The code of a reference is run and compared with what its question asks for, mostly with another, slower way to the
same result. The answer of a reference in maths is computed anew.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from fractions import Fraction
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import sympy

from ray_apps.evaluate.questions import Question, load_questions

OPEN = ("generic", "knowledge", "roleplay", "common-sense", "fermi", "counterfactual")
COUNTS = {"english": {**dict.fromkeys(OPEN, 10), "coding": 7, "maths": 3, "writing": 10}}
COUNTS["chinese"] = dict.fromkeys(COUNTS["english"], 4)
PREFIXES = {"english": "", "chinese": "zh-"}
NUM_TURNS = {"english": 1, "chinese": 2}
SETS = {name: load_questions(name) for name in COUNTS}
QUESTIONS = {question.question_id: question for questions in SETS.values() for question in questions}
Key = tuple[str, int]
"""Question and turn, from 0."""


def turns_of(category: str) -> set[Key]:
    found = [question for question in QUESTIONS.values() if question.category == category]
    return {(question.question_id, turn) for question in found for turn in range(len(question.turns))}


def refuses(function: Callable[..., object], cases: Iterable[tuple[Any, ...]]) -> None:
    for case in cases:
        with pytest.raises(ValueError):
            print(function(*case), "for", case)


# Coding


def durations(code: SimpleNamespace) -> None:
    right = {"1h30m": 5400, "90m": 5400, "0s": 0, "45s": 45, "2d4h": 187200, "007m": 420, "1d1s": 86401}
    assert {text: code.parse_duration(text) for text in right} == right
    wrong = ["", " 1h", "1h 30m", "1h\n", "h", "5", "1h30", "30m1h", "1h1h"]
    wrong += ["1H", "-1h", "+1h", "1.5h", "1w", "٣h", "１h"]
    refuses(code.parse_duration, [(text,) for text in wrong])
    for parts in itertools.product((None, 0, 1, 75), repeat=4):
        text = "".join(f"{number}{unit}" for number, unit in zip(parts, "dhms", strict=True) if number is not None)
        if text:
            expected = sum((number or 0) * size for number, size in zip(parts, (86400, 3600, 60, 1), strict=True))
            assert code.parse_duration(text) == expected


def sorted_versions(code: SimpleNamespace) -> None:
    given = ["1.0.0", "1.0.0-rc.10", "1.0.0-rc.9", "0.9.12"]
    assert code.sort_versions(given) == ["0.9.12", "1.0.0-rc.9", "1.0.0-rc.10", "1.0.0"]
    assert given == ["1.0.0", "1.0.0-rc.10", "1.0.0-rc.9", "0.9.12"]
    assert code.sort_versions([]) == []
    assert code.sort_versions(["1.0.0", "0.0.0", "1.0.0"]) == ["0.0.0", "1.0.0", "1.0.0"]
    ordered = "0.0.9 0.1.0-0 0.1.0 0.2.0 0.10.0 1.0.0-0 1.0.0-0.a 1.0.0-2 1.0.0-11 1.0.0-0a 1.0.0-Z 1.0.0-a 1.0.0-a.1 "
    ordered += (
        "1.0.0-a.1.0 1.0.0-a.b 1.0.0-a0 1.0.0-ab.2 1.0.0-ab.11 1.0.0-b 1.0.0-b.0 1.0.0 1.0.1-a 1.0.1 9.0.0 10.0.0"
    )
    rng = random.Random(0)
    for _ in range(50):
        shuffled = rng.sample(ordered.split(), k=len(ordered.split()))
        assert code.sort_versions(shuffled) == ordered.split()
    wrong = (
        "1 1.0 1.0.0.0 01.0.0 1.00.0 1.0.0- 1.0.0-a. 1.0.0-.a 1.0.0-a..b 1.0.0-01 1.0.0-a_b 1.0.0-é v1.0.0 -1.0.0 1.0.٣"
    )
    for text in [*wrong.split(), "", "1.0.0\n", " 1.0.0", "1.0.0-a-b", "1.0.0+1", "1.0.0rc1"]:
        refuses(code.sort_versions, [([text],), (["1.0.0", text],)])


def rooms_needed(code: SimpleNamespace) -> None:
    assert code.rooms_needed([]) == 0
    assert code.rooms_needed([(0, 60), (60, 120)]) == 1
    assert code.rooms_needed([(5, 5), (5, 5)]) == 0
    assert code.rooms_needed([(0, 10), (5, 5)]) == 1
    refuses(code.rooms_needed, [([(0, 10), (9, 8)],)])
    rng = random.Random(0)
    for _ in range(200):
        meetings = [(start, start + rng.randrange(5)) for start in rng.choices(range(12), k=rng.randrange(9))]
        before = list(meetings)
        most = max(sum(start <= minute < end for start, end in meetings) for minute in range(20))
        assert code.rooms_needed(meetings) == most
        assert meetings == before


def calculate(code: SimpleNamespace) -> None:
    right = {"2 - 3 - 4": -5, "2*-(3+4)": -14, " 007 ": 7, "1+2*3": 7, "(1+2)*3": 9, "--5": 5, "2--3": 5, "- -(2)*3": 6}
    right |= {"7": 7, "((((1))))": 1, "2*3-4*-5": 26}
    assert {text: code.calculate(text) for text in right} == right
    wrong = ["", " ", "1 2", "2+ +3", "1\n", "1\t+1"]
    wrong += ["3+", "(4", "()", "2/1", "+3", "4)", ")(", "2(3)", "(2)3", "2**3", "1.5", "٣", "²", "-", "1_0", "a"]
    refuses(code.calculate, [(text,) for text in wrong])
    rng = random.Random(0)

    def some(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return str(rng.randrange(20))
        kind = rng.randrange(5)
        if kind == 3:
            return f"-{some(depth - 1)}"
        return f"({some(depth - 1)})" if kind == 4 else f"{some(depth - 1)} {'+-*'[kind]}{some(depth - 1)}"

    for _ in range(300):
        text = some(5)
        assert code.calculate(text) == eval(text)


def task_order(code: SimpleNamespace) -> None:
    assert code.task_order({"c": ["b"], "a": []}) == ["a", "b", "c"]
    assert code.task_order({}) == []
    assert code.task_order({"a": ["z", "z"], "b": []}) == ["b", "z", "a"]
    refuses(code.task_order, [({"a": ["a"]},), ({"a": ["b"], "b": ["a"], "c": []},)])
    rng = random.Random(0)
    for _ in range(150):
        needs = {name: rng.choices("abcde", k=rng.randrange(3)) for name in rng.sample("abcde", rng.randrange(1, 6))}
        before = {name: list(names) for name, names in needs.items()}
        orders = itertools.permutations(sorted({*needs, *itertools.chain(*needs.values())}))
        fits = (list(o) for o in orders if all(o.index(n) < o.index(task) for task in needs for n in needs[task]))
        expected = next(fits, None)
        if expected is None:
            refuses(code.task_order, [(needs,)])
        else:
            assert code.task_order(needs) == expected
        assert needs == before


def changes(code: SimpleNamespace) -> None:
    def found(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
        result = code.changes(old, new)
        assert set(result) == {"added", "removed", "changed"}
        return result["added"], result["removed"], result["changed"]

    assert found({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}, "b": {}}) == (["b"], [], ["a.y"])
    assert found({}, {}) == ([], [], [])
    assert found({"a": {"b": {"c": 1}}}, {"a": {}}) == ([], ["a.b"], [])
    assert found({"a": None}, {}) == ([], ["a"], [])
    assert found({"a": None, "b": None}, {"a": None, "b": 0}) == ([], [], ["b"])
    assert found({"a": {}}, {"a": 1}) == ([], [], ["a"])
    assert found({"a": [1, {"x": 1}]}, {"a": [1, {"x": 2}]}) == ([], [], ["a"])
    assert found({"a": 1}, {"a": 1.0}) == ([], [], [])
    assert found({}, {"b": 1, "a": {"z": 1}}) == (["a", "b"], [], [])
    assert found({"a": {"x": 1}, "a-b": 1}, {"a": {"x": 2}, "a-b": 2}) == ([], [], ["a-b", "a.x"])


def largest_field(code: SimpleNamespace) -> None:
    right: list[tuple[list[str], int]] = [
        (["a.a", "b.."], 2),
        ([], 0),
        (["", ""], 0),
        (["...", "..."], 0),
        (["a"], 1),
        (["a", "a", ".", "a"], 2),
        (["aa", "aa"], 4),
        (["ab", "ba"], 1),
        (["a.", "..", "a."], 1),
        (["x..y", "x..x", "..xx"], 5),
    ]
    assert [(grid, code.largest_field(grid)) for grid, _ in right] == right
    refuses(code.largest_field, [(["ab", "a"],), (["", "a"],)])
    assert code.largest_field(["c" * 500] * 400) == 200_000
    rng = random.Random(0)
    for _ in range(200):
        height, width = rng.randrange(1, 6), rng.randrange(1, 6)
        grid = ["".join(rng.choices("ab.", k=width)) for _ in range(height)]
        labels = {(row, column): row * width + column for row in range(height) for column in range(width)}
        for _, (row, column) in itertools.product(range(height * width), sorted(labels)):
            for other in ((row + 1, column), (row, (column + 1) % width)):
                if other in labels and grid[row][column] == grid[other[0]][other[1]]:
                    labels[row, column] = labels[other] = min(labels[row, column], labels[other])
        sizes = Counter(label for (row, column), label in labels.items() if grid[row][column] != ".")
        assert code.largest_field(grid) == max(sizes.values(), default=0)


def spelled(table: str) -> dict[int, str]:
    words = table.split()
    return dict(zip(map(int, words[::2]), words[1::2], strict=True))


def chinese_digits(code: SimpleNamespace) -> None:
    right = spelled(
        "0 零 2 二 10 十 15 十五 19 十九 20 二十 99 九十九 100 一百 101 一百零一 110 一百一十 "
        "115 一百一十五 1000 一千 1005 一千零五 1010 一千零一十 1100 一千一百 "
        "2020 二千零二十 9090 九千零九十 9999 九千九百九十九"
    )
    assert {n: code.to_chinese(n) for n in right} == right
    refuses(code.to_chinese, [(-1,), (10**8,)])
    assert [read_chinese(code.to_chinese(n)) for n in range(10_000)] == list(range(10_000))
    assert not any(re.search("零零|零$|零[百千十]", code.to_chinese(n)) for n in range(1, 10_000))


def chinese_digits_below_ten_thousand(code: SimpleNamespace) -> None:
    chinese_digits(code)
    refuses(code.to_chinese, [(10_000,)])


def chinese_digits_with_wan(code: SimpleNamespace) -> None:
    chinese_digits(code)
    right = spelled(
        "10000 一万 10001 一万零一 10010 一万零一十 10999 一万零九百九十九 11000 一万一千 "
        "100000 十万 100010 十万零一十 105000 十万五千 150000 十五万 200015 二十万零一十五 1010000 一百零一万 "
        "1100000 一百一十万 10000000 一千万 10100100 一千零一十万零一百 "
        "12345678 一千二百三十四万五千六百七十八 99999999 九千九百九十九万九千九百九十九"
    )
    assert {n: code.to_chinese(n) for n in right} == right
    numbers = random.Random(0).sample(range(10_000, 10**8), 5_000)
    assert [read_chinese(code.to_chinese(n)) for n in numbers] == numbers


def read_chinese(text: str) -> int:
    """The number, read from left to right by its units."""
    total = digit = 0
    for sign in text:
        if sign == "万":
            total, digit = (total + digit) * 10_000, 0
        elif sign in "十百千":
            total, digit = total + (digit or 1) * {"十": 10, "百": 100, "千": 1000}[sign], 0
        else:
            digit = "零一二三四五六七八九".index(sign)
    return total + digit


def with_check_code(first: str) -> str:
    """Of a number of 17 digits, that of 18, by ISO 7064 MOD 11-2: the digits weighted by powers of 2 sum to 1."""
    total = sum(int(digit) << place for place, digit in zip(range(17, 0, -1), first, strict=True))
    (code,) = (code for code in range(11) if (total + code) % 11 == 1)
    return first + ("X" if code == 10 else str(code))


def identity_numbers(code: SimpleNamespace) -> None:
    assert code.is_valid_id("11010519491231002X") is True
    assert code.is_valid_id("11010519491231002x") is True
    wrong = [
        "",
        "110105194912310021",
        "1101051949123100２X",
        "１１０１０５１９４９１２３１００２X",
        " 11010519491231002X",
    ]
    wrong += [
        "11010519491231002X\n",
        "11010519491231002",
        "11010519491231002XX",
        "1101051949123X002X",
        "11010519491231002Y",
    ]
    assert [number for number in wrong if code.is_valid_id(number) is not False] == []
    rng = random.Random(0)
    for _ in range(300):
        number = with_check_code("".join(rng.choices("0123456789", k=17)))
        assert code.is_valid_id(number) is True
        assert sum(code.is_valid_id(number[:17] + last) for last in "0123456789X") == 1


def identity_numbers_read(code: SimpleNamespace) -> None:
    identity_numbers(code)
    assert code.read_id("11010519491231002X") == (date(1949, 12, 31), "女")
    assert code.read_id("11010519491231002x") == (date(1949, 12, 31), "女")
    bad = [with_check_code(f"110105{born}001") for born in ("19990230", "19000229", "20001301", "20000100", "00000101")]
    refuses(code.read_id, [(number,) for number in [*bad, "", "110105194912310021"]])
    for day in range(0, 40_000, 37):
        born = date(1920, 1, 1) + timedelta(days=day)
        number = with_check_code(f"440301{born:%Y%m%d}{day % 1000:03d}")
        assert code.read_id(number) == (born, "男" if day % 2 else "女")
    assert code.read_id(with_check_code("11010520000229001")) == (date(2000, 2, 29), "男")


def sentences(text: str, closing: str) -> list[str]:
    """Character by character: a sentence is over when its end marks and what closes it are over."""
    found: list[str] = []
    for sign in text:
        ended = bool(found) and bool(re.search(f"[。！？][{closing}]*$" if closing else "[。！？]$", found[-1]))
        goes_on = not ended or sign in closing or (sign in "。！？" and found[-1][-1] in "。！？")
        if found and goes_on:
            found[-1] += sign
        else:
            found.append(sign)
    return found


def pieces(text: str, limit: int, closing: str) -> list[str]:
    parts: list[str] = []
    is_open = False
    for sentence in sentences(text, closing):
        if is_open and len(parts[-1]) + len(sentence) <= limit:
            parts[-1] += sentence
        else:
            parts += [sentence[start : start + limit] for start in range(0, len(sentence), limit)]
            is_open = len(sentence) <= limit
    return parts


def text_pieces(code: SimpleNamespace, closing: str = "") -> None:
    assert code.split_text("好。真的吗？真的！", 6) == ["好。真的吗？", "真的！"]
    assert code.split_text("", 5) == []
    assert code.split_text("没有标点", 10) == ["没有标点"]
    assert code.split_text("好。一二三四五六七。好。", 3) == ["好。", "一二三", "四五六", "七。", "好。"]
    assert code.split_text("好。一二三四五。好。", 3) == ["好。", "一二三", "四五。", "好。"]
    assert code.split_text("真的？！好。", 4) == ["真的？！", "好。"]
    assert code.split_text("。好\n。", 2) == ["。", "好\n", "。"]
    refuses(code.split_text, [("好。", 0), ("好。", -1), ("", 0)])
    rng = random.Random(0)
    for _ in range(2_000):
        text = "".join(rng.choices("天地人，。！”’）", k=rng.randrange(30)))
        limit = rng.randrange(1, 12)
        parts = code.split_text(text, limit)
        assert parts == pieces(text, limit, closing)
        assert "".join(parts) == text
        assert all(0 < len(part) <= limit for part in parts)


def text_pieces_with_quotes(code: SimpleNamespace) -> None:
    text_pieces(code, "”’」』）")
    assert code.split_text("他说：“走吧。”我们就走了。", 8) == ["他说：“走吧。”", "我们就走了。"]
    assert code.split_text("（他说：「走！」）好。", 9) == ["（他说：「走！」）", "好。"]


def shares(code: SimpleNamespace, *bounds: int) -> None:
    """Whatever can be shared out is, by the rules; of what cannot, nothing is."""
    state = random.getstate()
    for total, people in itertools.product(range(-1, 15), range(-1, 8)):
        for cap in bounds or (total,):
            given = (total, people, 7, *((cap,) if bounds else ()))
            if people < 1 or not people <= total <= people * cap:
                refuses(code.split_hongbao, [given])
                continue
            result = code.split_hongbao(*given)
            assert result == code.split_hongbao(*given)
            assert (len(result), sum(result), min(result) >= 1, max(result) <= cap) == (people, total, True, True)
            assert all(type(share) is int for share in result)
    assert random.getstate() == state


def hongbao(code: SimpleNamespace) -> None:
    shares(code)
    assert len({tuple(code.split_hongbao(10_000, 8, seed)) for seed in range(100)}) > 90
    assert {tuple(code.split_hongbao(5, 3, seed)) for seed in range(300)} == compositions(5, 3, cap=5)


def hongbao_with_cap(code: SimpleNamespace) -> None:
    shares(code, -1, 0, 1, 2, 3, 5, 20)
    assert len({tuple(code.split_hongbao(10_000, 8, seed, 2_000)) for seed in range(100)}) > 90
    assert sum(code.split_hongbao(20_000, 1_000, 1, 20)) == 20_000
    drawn = [code.split_hongbao(1_000, 4, seed, 400) for seed in range(4_000)]
    assert all(abs(sum(column) / len(drawn) - 250) < 10 for column in zip(*drawn, strict=True))


def compositions(total: int, people: int, cap: int) -> set[tuple[int, ...]]:
    return {found for found in itertools.product(range(1, cap + 1), repeat=people) if sum(found) == total}


CODING: dict[Key, Callable[[SimpleNamespace], None]] = {
    ("coding-1", 0): durations,
    ("coding-2", 0): sorted_versions,
    ("coding-3", 0): rooms_needed,
    ("coding-4", 0): calculate,
    ("coding-5", 0): task_order,
    ("coding-6", 0): changes,
    ("coding-7", 0): largest_field,
    ("zh-coding-1", 0): chinese_digits_below_ten_thousand,
    ("zh-coding-1", 1): chinese_digits_with_wan,
    ("zh-coding-2", 0): identity_numbers,
    ("zh-coding-2", 1): identity_numbers_read,
    ("zh-coding-3", 0): text_pieces,
    ("zh-coding-3", 1): text_pieces_with_quotes,
    ("zh-coding-4", 0): hongbao,
    ("zh-coding-4", 1): hongbao_with_cap,
}


# Maths


def tank() -> str:
    """Second by second, in parts of a tank that every rate divides."""
    parts = 6 * 4 * 12 * 3600
    level, second = 0, 8 * 3600
    while level < parts:
        level += parts // (6 * 3600)
        level += parts // (4 * 3600) if second >= 9 * 3600 else 0
        level -= parts // (12 * 3600) if second >= 10.5 * 3600 else 0
        second += 1
    assert level == parts
    return str(timedelta(seconds=second))


def digit_sums() -> str:
    return str(sum(n % 3 == 2 and sum(map(int, str(n))) % 5 == 0 for n in range(1, 1001)))


def chord() -> str:
    b, c, a = sympy.Point(0, 0), sympy.Point(14, 0), sympy.Point(5, 12)
    assert (a.distance(b), a.distance(c)) == (13, 15)
    d = sympy.Line(b, c).projection(a)
    circle = sympy.Circle(a.midpoint(d), a.distance(d) / 2)
    (e,) = (point for point in circle.intersection(sympy.Line(a, b)) if point != a)
    (f,) = (point for point in circle.intersection(sympy.Line(a, c)) if point != a)
    assert e in sympy.Segment(a, b)
    assert f in sympy.Segment(a, c)
    return str(e.distance(f))


def parked() -> str:
    ((three, four),) = ((n, 24 - n) for n in range(25) if 3 * n + 4 * (24 - n) == 86)
    return f"三轮车{three}辆，小汽车{four}辆"


def parked_later() -> str:
    (gone,) = (k for k in range(15) if 10 * 3 + (14 - k) * 4 + k * 2 == 24 * 3)
    left = {Fraction(n * 3 + (14 - gone) * 4 + gone * 2, n + 14) for n in range(11)}
    return f"开走{gone}辆小汽车，{'不改变' if left == {Fraction(3)} else '改变'}"


@cache
def draws() -> list[tuple[bool, ...]]:
    """Whether each of the three wins, for all ways to draw."""
    return [tuple(lot < 3 for lot in drawn) for drawn in itertools.permutations(range(10), 3)]


def two_win() -> str:
    return str(Fraction(sum(sum(won) == 2 for won in draws()), len(draws())))


def two_win_given_one() -> str:
    given = [won for won in draws() if any(won)]
    return (
        f"{Fraction(sum(sum(won) == 2 for won in given), len(given))}，{Fraction(sum(w[0] for w in given), len(given))}"
    )


def soldiers() -> str:
    (found,) = (n for n in range(1000, 1301) if (n % 5, n % 7, n % 9) == (4, 3, 2))
    return str(found)


def soldiers_left() -> str:
    (lost,) = (k for k in range(1, 100) if ((1109 - k) % 8, (1109 - k) % 11) == (3, 6))
    return f"剩{1109 - lost}人，伤亡{lost}人"


def square_box() -> str:
    volumes = {x: x * (24 - 2 * x) ** 2 for x in range(1, 12)}
    best = max(volumes.values())
    (x,) = (x for x, volume in volumes.items() if volume == best)
    return f"x={x}，容积{best}"


def oblong_box() -> str:
    x = sympy.Symbol("x", positive=True)
    volume = x * (30 - 2 * x) * (24 - 2 * x)
    critical = sympy.solveset(sympy.diff(volume, x), x, sympy.Interval.open(0, 12))
    (best,) = critical
    assert all(volume.subs(x, best) > volume.subs(x, sympy.Rational(n, 10)) for n in range(1, 120))
    return f"x={best}，{'更大' if best > 4 else '更小'}".replace("sqrt(21)", "√21").replace(" ", "")


MATHS: dict[Key, Callable[[], str]] = {
    ("maths-1", 0): tank,
    ("maths-2", 0): digit_sums,
    ("maths-3", 0): chord,
    ("zh-maths-1", 0): parked,
    ("zh-maths-1", 1): parked_later,
    ("zh-maths-2", 0): two_win,
    ("zh-maths-2", 1): two_win_given_one,
    ("zh-maths-3", 0): soldiers,
    ("zh-maths-3", 1): soldiers_left,
    ("zh-maths-4", 0): square_box,
    ("zh-maths-4", 1): oblong_box,
}


def test_every_reference_has_its_check() -> None:
    assert set(CODING) == turns_of("coding")
    assert set(MATHS) == turns_of("maths")
    with_references = {question.category for question in QUESTIONS.values() if question.references}
    assert with_references == {"coding", "maths"}


@pytest.mark.parametrize(("name", "turn"), CODING)
def test_the_code_of_a_reference_does_what_is_asked(name: str, turn: int) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", QUESTIONS[name].references[turn], re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(block, f"{name}, turn {turn}", "exec"), names)
    CODING[name, turn](SimpleNamespace(**names))


@pytest.mark.parametrize(("name", "turn"), MATHS)
def test_the_answer_of_a_reference_is_right(name: str, turn: int) -> None:
    *_, last = QUESTIONS[name].references[turn].splitlines()
    assert re.split("Answer: |答案：", last) == ["", MATHS[name, turn]()]


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_its_categories_in_order(name: str) -> None:
    expected = [(f"{PREFIXES[name]}{kind}-{n}", kind) for kind, num in COUNTS[name].items() for n in range(1, num + 1)]
    assert [(question.question_id, question.category) for question in SETS[name]] == expected
    assert len(QUESTIONS) == sum(map(len, SETS.values()))


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_is_whole(question: Question) -> None:
    is_chinese = question.question_id.startswith("zh-")
    assert len(question.turns) == NUM_TURNS["chinese" if is_chinese else "english"]
    texts = [*question.turns, *question.references]
    assert all(text == text.strip() and len(text) > 20 for text in texts)
    assert all(bool(re.search("[\u4e00-\u9fff]", text)) == is_chinese for text in texts)
    assert all(turn.endswith(("。", "？", "！") if is_chinese else (".", "?", ".'")) for turn in question.turns)


def test_no_question_is_asked_twice() -> None:
    turns = Counter(turn for question in QUESTIONS.values() for turn in question.turns)
    assert [turn for turn, times in turns.items() if times > 1] == []
