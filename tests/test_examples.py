"""The programs in examples/, each run on the built-in model as somebody would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glmlite
from glmlite import builtin

EXAMPLES = Path(__file__).parent.parent / "examples"
if not (EXAMPLES / "builtin_model" / "answers.json").is_file():
    pytest.skip("not a checkout with a built-in model: no examples/builtin_model/answers.json", allow_module_level=True)


def run(name, stdin=""):
    """The lines that a program prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(glmlite.__file__).parent.parent), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a library is silent where nobody has set up logging
    return done.stdout.splitlines()


def answers(name):
    """question -> answer"""
    lines = run(name)
    return {question.removeprefix("> "): answer for question, answer in zip(lines[::2], lines[1::2])}


def test_customer_service():
    said = answers("customer_service.py")
    assert "order number" in said["Where is my parcel?"]
    assert "48213" in said["It is 48213"]
    assert "退" in said["我想退货"] and "退" in said["多久能退款？"]


def test_chat_partner():
    said = run("chat_partner.py", "hello\n我今天很难过\n")
    assert len(said) == 2
    assert all(said)


def test_assistant():
    import datetime

    said = answers("assistant.py")
    now = datetime.date.today()
    assert f"{now:%A}" in said["What day is it today?"]
    assert str(now.day) in said["What is the date?"] and str(now.year) in said["What is the date?"]
    assert "31 days" in said["How many days does May have?"]
    assert "120" in said["Convert 2 hours to minutes."]


def test_tutor():
    said = answers("tutor.py")
    assert "Rome" in said["What is the capital of Italy?"]
    assert "马德里" in said["西班牙的首都是哪里？"]
    assert said["Anna went to the [MASK] to borrow a book."] == "Anna went to the library to borrow a book."
    assert said["小明去[MASK]借书。"] == "小明去图书馆借书。"
    assert said['The word "[MASK]" is "水" in Chinese.'] == 'The word "water" is "水" in Chinese.'


def test_game_character():
    said = answers("game_character.py")
    assert "Bram" in said["Who are you?"] and "老布" in said["你是谁？"]
    assert "50 gold" in said["How much is the sword?"]
    assert "五十金币" in said["这把剑多少钱？"]


def test_seed_chatglm():
    greeting, advice, continued = run("seed_chatglm.py")
    assert "你好" in greeting
    assert "睡" in advice
    assert continued.startswith("床前明月光，疑是地上霜。")


def test_every_program_is_tested():
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    source = Path(__file__).read_text("utf-8")
    assert [name for name in sorted(programs) if f'"{name}"' not in source] == []
    assert builtin.path().stat().st_size <= 8_000_000
