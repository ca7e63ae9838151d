"""Rows that no table could hold: sums, units, dates. Each function draws one, slot -> value."""

import random

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
MONTHS_ZH = ["一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月", "十一月", "十二月"]
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
UNITS = [  # from and to in both languages, factor, largest number
    ("kilometres|km", "metres|m|meters", "千米|公里", "米", 1000, 20),
    ("metres|m", "centimetres|cm", "米", "厘米", 100, 20),
    ("kilograms|kg|kilos", "grams|g", "千克|公斤", "克", 1000, 20),
    ("hours", "minutes", "小时|个小时", "分钟", 60, 12),
    ("minutes", "seconds", "分钟|分", "秒", 60, 12),
    ("days", "hours", "天", "小时", 24, 10),
    ("weeks", "days", "周|个星期|星期", "天", 7, 12),
    ("years", "months", "年", "个月", 12, 10),
    ("litres", "millilitres|ml", "升", "毫升", 1000, 20),
    ("metres", "millimetres|mm", "米", "毫米", 1000, 20),
    ("centimetres|cm", "millimetres|mm", "厘米", "毫米", 10, 20),
    ("tons|tonnes", "kilograms|kg", "吨", "千克|公斤", 1000, 20),
    ("feet", "inches", "英尺", "英寸", 12, 10),
    ("dozens", "pieces", "打", "个", 12, 10),
    ("jin", "grams", "斤", "克", 500, 10),
]


def add(r: random.Random) -> dict:
    while True:
        a, b = r.randint(1, 99), r.randint(1, 99)
        if a + b <= 100:
            return {"a": a, "b": b, "c": a + b}


def multiply(r: random.Random) -> dict:
    a, b = r.randint(1, 12), r.randint(1, 12)
    return {"a": a, "b": b, "c": a * b}


def number(r: random.Random) -> dict:
    n = r.choice([r.randint(1, 50), 10 * r.randint(1, 10)])
    parity = {"parity_en": ("even", "odd")[n % 2], "parity_zh": ("偶数", "奇数")[n % 2]}
    return {"n": n, "double": 2 * n, "next": n + 1, **parity}


def two(r: random.Random) -> dict:
    p, q = r.sample(range(1, 100), 2)
    return {"p": p, "q": q, "large": max(p, q), "small": min(p, q)}


def unit(r: random.Random) -> dict:
    *names, factor, most = r.choice(UNITS)
    source, *others = (r.choice(name.split("|")) for name in names)
    n = r.randint(1, most)
    if n == 1:
        source = {"feet": "foot"}.get(source, source.removesuffix("s"))
    return {"n": n, "m": n * factor, **dict(zip(("from_en", "to_en", "from_zh", "to_zh"), [source, *others]))}


def weekday(r: random.Random) -> dict:
    i = r.randrange(7)
    prefix = r.choice(["星期", "星期", "周", "礼拜"])
    row = {}
    for name, j in ("day", i), ("next", (i + 1) % 7), ("before", i - 1):
        row |= {f"{name}_en": DAYS[j], f"{name}_zh": prefix + "一二三四五六日"[j]}
    return row


def month(r: random.Random) -> dict:
    i = r.randrange(12)
    following = (i + 1) % 12
    spelled = MONTHS_ZH if r.random() < 0.5 else [f"{j}月" for j in range(1, 13)]
    return {
        "month_en": MONTHS[i],
        "next_en": MONTHS[following],
        "month_zh": spelled[i],
        "next_zh": spelled[following],
        "days": MONTH_DAYS[i],
        "number": i + 1,
        "ordinal": ORDINALS[i],
    }


def date(r: random.Random) -> dict:
    m = r.randrange(12)
    return {
        "year": r.randint(2020, 2035),
        "m": m + 1,
        "month_en": MONTHS[m],
        "d": r.randint(1, MONTH_DAYS[m]),
    } | weekday(r)


COMPUTED = {f.__name__: f for f in (add, multiply, number, two, unit, weekday, month, date)}
