"""The chat page, in Chromium against a stand-in for the server: tests/page_server.py."""

import base64
import hashlib
import json
import re
import shutil
import struct

import pytest
from page_server import BREAK, ENDLESS, PAGE, WAIT, Refusal, StandIn, call, fault, finish, progress, text, thought

WIDE, NARROW = (1280, 800), (375, 740)


# ---- the files -----------------------------------------------------------------------------------------------------


def sources(pattern):
    return {path.name: path.read_text("utf-8") for path in sorted(PAGE.glob(pattern))}


def test_what_is_vendored_is_what_it_says_and_has_its_licence():
    rows = re.findall(
        r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (PAGE / "vendor/README.md").read_text("utf-8"), re.M
    )
    there = {
        path.relative_to(PAGE / "vendor").as_posix(): path
        for path in (PAGE / "vendor").rglob("*.*")
        if path.suffix != ".md"
    }
    assert sorted(name for name, _ in rows) == sorted(there)
    for name, digest in rows:
        assert hashlib.sha256(there[name].read_bytes()).hexdigest() == digest, name
        assert (PAGE / "vendor" / name.split("/")[0] / "LICENSE").is_file(), name


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    html = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", html)
    for name, source in {**sources("*.js"), **sources("*.html"), **sources("*.css")}.items():
        addresses = set(re.findall(r"https?://[\w.]+", source)) - {"http://www.w3.org"}
        assert not addresses, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", source), name


def test_every_text_is_in_the_table_in_both_languages():
    scripts, html = sources("*.js"), (PAGE / "index.html").read_text("utf-8")
    table = dict(re.findall(r"^  (\w+): \[(.*?)\],$", scripts["strings.js"].split("\nexport")[0], re.M | re.S))
    for name, both in table.items():
        assert len(re.findall(r'"(?:[^"\\]|\\.)+"', both)) == 2, name
    used = re.findall(r'data-t(?:-label|-placeholder)?="(\w+)"', html)
    used += re.findall(r'(?:\bt\(|\bbutton\("\w+", )"(\w+)"', "".join(scripts.values()))
    assert len(used) > 100 and set(used) <= table.keys()


# ---- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip("no Chromium on the PATH to test the page with")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def server():
    with StandIn() as running:
        yield running


# A browser's own word on an answer that is an error, or none.
EXPECTED = re.compile(r"Failed to load resource")
WATCH = (
    "addEventListener('securitypolicyviolation', e => console.error('violation', e.violatedDirective, e.blockedURI))"
)


@pytest.fixture
def visit(browser, server):
    """visit(size=, language=, dark=, at=) -> a page in a profile of its own. Afterwards: no request went elsewhere, no
    script failed, the policy had nothing to stop."""
    contexts, requests, errors = [], [], []

    def open_page(size=WIDE, language="en-US", dark=False, context=None):
        if context is None:
            width, height = size
            context = browser.new_context(
                viewport={"width": width, "height": height},
                locale=language,
                color_scheme="dark" if dark else "light",
            )
            context.set_default_timeout(10_000)
            context.add_init_script(WATCH)
            contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.goto(server.address)
        ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith((server.address, "blob:", "data:"))] == []
    assert [error for error in errors if not EXPECTED.search(error)] == []


def ready(page):
    page.wait_for_selector("html[data-ready]", state="attached")


def ask(page, words):
    page.fill("#text", words)
    page.press("#text", "Enter")


def settled(page):
    """Waits until no answer is being written."""
    page.wait_for_selector("#send:visible")


def exported(page, folder):
    """The file that the page's export writes, and what is in it."""
    page.click("#tune")
    with page.expect_download() as download:
        page.click("#export")
    file = folder / "all.json"
    download.value.save_as(file)
    return file, json.loads(file.read_text("utf-8"))


def see(page, selector, words):
    page.wait_for_selector(f"{selector} >> text={json.dumps(words, ensure_ascii=False)}")


def texts(page, selector):
    return [element.inner_text().strip() for element in page.query_selector_all(selector)]


def shown(page):
    return texts(page, ".bubble, .assistant > .prose")


# -- asking


def test_an_answer_is_streamed_and_its_numbers_are_shown(visit, server):
    server.scripts["Hello"] = [text("**Good** mor"), WAIT, text("ning\n\nYou")]
    page = visit()
    assert page.is_visible("#welcome")
    ask(page, "Hello")
    page.wait_for_selector("strong >> text=Good")
    assert shown(page) == ["Hello", "Good mor"]
    assert page.is_visible("#stop") and not page.is_visible("#send")
    server.go()
    settled(page)
    assert shown(page) == ["Hello", "Good morning\n\nYou"]
    assert texts(page, ".stats")[-1] == "42 tokens/s · 48 tokens · prompt 1,000 · 900 kept from before"
    assert page.get_attribute("#context", "aria-label") == "Context: 1,048 of 4,096 tokens"
    assert page.title() == "Hello – glmlite" and page.inner_text("#title") == "Hello"
    (body,) = server.asked
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "timings_per_token": True,
    }
    ask(page, "More")
    settled(page)
    assert [message["role"] for message in server.asked[1]["messages"]] == ["user", "assistant", "user"]
    assert server.asked[1]["messages"][1] == {"role": "assistant", "content": "**Good** morning\n\nYou"}


def test_the_progress_of_the_prompt_is_shown(visit, server):
    server.scripts["Long"] = [progress(512, 2048), WAIT, progress(2048, 2048), text("ok")]
    page = visit()
    ask(page, "Long")
    see(page, ".state", "Reading the prompt, 512 of 2,048")
    server.go()
    settled(page)
    assert not page.is_visible(".state")


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stop(visit, server, how):
    server.scripts["Count"] = [ENDLESS]
    page = visit()
    ask(page, "Count")
    page.wait_for_selector(".assistant >> text=word3")
    page.keyboard.press("Escape") if how == "Escape" else page.click("#stop")
    settled(page)
    assert server.left.wait(10)
    see(page, ".note", "Stopped.")
    assert shown(page)[1].startswith("word0 word1")
    ask(page, "Next")
    settled(page)
    assert server.asked[1]["messages"][1]["content"].startswith("word0 word1")


def test_edit_and_regenerate_make_branches(visit, server):
    page = visit()
    ask(page, "One")
    settled(page)
    server.scripts["One"] = [text("another")]
    page.click(".assistant [aria-label='Answer again']")
    see(page, ".assistant .branches", "2 / 2")
    settled(page)
    assert shown(page) == ["One", "another"]
    page.click(".assistant [aria-label='Previous alternative']")
    see(page, ".assistant .branches", "1 / 2")
    assert shown(page) == ["One", "You said: One"]

    page.hover(".bubble")
    page.click("[aria-label='Edit and resend']")
    page.fill(".editing textarea", "Two")
    page.press(".editing textarea", "Escape")
    assert shown(page) == ["One", "You said: One"]
    page.hover(".bubble")
    page.click("[aria-label='Edit and resend']")
    page.fill(".editing textarea", "Two")
    page.press(".editing textarea", "Enter")
    settled(page)
    see(page, ".user .branches", "2 / 2")
    assert shown(page) == ["Two", "You said: Two"]
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "Two"}]
    page.click(".user [aria-label='Previous alternative']")
    see(page, ".user .branches", "1 / 2")
    assert shown(page) == ["One", "You said: One"]
    assert texts(page, ".assistant .branches") == ["1 / 2"]

    page.reload()
    ready(page)
    assert shown(page) == ["One", "You said: One"]
    assert texts(page, ".branches") == ["1 / 2", "1 / 2"]


def test_keys(visit, server):
    page = visit()
    page.fill("#text", "a")
    page.press("#text", "Shift+Enter")
    page.type("#text", "b")
    # The Enter that ends the choice of a Chinese word sends nothing.
    page.dispatch_event("#text", "keydown", {"key": "Enter", "isComposing": True})
    assert server.asked == []
    page.press("#text", "Enter")
    settled(page)
    assert server.asked[0]["messages"][0]["content"] == "a\nb"
    page.keyboard.press("Control+k")
    page.keyboard.press("Enter")
    page.wait_for_selector("#welcome:visible")
    page.keyboard.press("Control+k")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    see(page, ".bubble", "a b")


# -- thoughts and tools


def test_a_thought_is_open_while_it_is_written_and_folded_then(visit, server):
    server.scripts["Why"] = [thought("Let me *see*"), WAIT, text("Because"), WAIT]
    page = visit()
    ask(page, "Why")
    page.wait_for_selector(".thought em >> text=see")
    assert page.get_attribute(".thought", "open") is not None and texts(page, ".thought > summary") == ["Thinking"]
    server.go()
    page.wait_for_selector(".assistant >> text=Because")
    assert page.get_attribute(".thought", "open") is None and not page.is_visible(".thought em")
    server.go()
    settled(page)
    assert re.fullmatch(r"Thought for \d.*", texts(page, ".thought > summary")[0])
    page.click(".thought > summary")
    assert page.is_visible(".thought em")
    ask(page, "And")
    settled(page)
    assert server.asked[1]["messages"][1]["reasoning_content"] == "Let me *see*"


def test_tool_calls_are_shown_and_their_results_entered(visit, server):
    weather = [*call(0, "weather", '{"city":"北京",', '"days":[1,2]}'), *call(1, "clock", "{}")]
    server.scripts["Weather"] = [text("I look."), *weather]
    tools = [{"name": "weather", "parameters": {"type": "object"}}, {"type": "function", "function": {"name": "clock"}}]
    page = visit()
    page.click("#tune")
    page.click("#tools-box > summary")
    page.fill("#tools", '{"name": "weather"}')
    see(page, "#tools-bad", "This is not a JSON list of functions: it should begin with [")
    page.fill("#tools", json.dumps(tools))
    assert not page.is_visible("#tools-bad")
    page.click("#settings-close")
    ask(page, "Weather")
    settled(page)
    assert [tool["function"]["name"] for tool in server.asked[0]["tools"]] == ["weather", "clock"]
    assert texts(page, ".call .name") == ["Calls weather", "Calls clock"]
    assert texts(page, ".call code") == ['{\n  "city": "北京",\n  "days": [\n    1,\n    2\n  ]\n}', "{}"]
    fields = page.query_selector_all(".call textarea")
    fields[0].fill('{"sky":"clear"}')
    fields[1].fill("noon")
    page.click("text=Send the results")
    settled(page)
    sent = server.asked[1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["tool_calls"][0] == {
        "id": "call_0",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"北京","days":[1,2]}'},
    }
    assert sent[2:] == [
        {"role": "tool", "tool_call_id": "call_0", "name": "weather", "content": '{"sky":"clear"}'},
        {"role": "tool", "tool_call_id": "call_1", "name": "clock", "content": "noon"},
    ]
    assert texts(page, ".result summary") == ["Result of weather", "Result of clock"]
    assert not page.query_selector(".call textarea")


def test_a_call_that_was_cut_is_none(visit, server):
    cut = call(1, "remove", '{"path":"/tm')
    server.scripts["Both"] = [text("I look."), *call(0, "clock", "{}"), *cut, finish("length")]
    server.scripts["One"] = [text("So."), *call(0, "remove", '{"path":"/tm'), finish("length")]
    page = visit()
    ask(page, "Both")
    settled(page)
    assert texts(page, ".call .name") == ["Calls clock", "Calls remove"]
    (field,) = page.query_selector_all(".call textarea")
    field.fill("noon")
    page.click("text=Send the result")
    settled(page)
    sent = server.asked[1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert [each["function"]["name"] for each in sent[1]["tool_calls"]] == ["clock"]
    ask(page, "One")
    settled(page)
    assert not page.query_selector(".call textarea")
    ask(page, "Next")
    settled(page)
    assert server.asked[-1]["messages"][-2] == {"role": "assistant", "content": "So."}


# -- what is kept


def test_a_conversation_is_found_again(visit, server):
    server.scripts["The moon"] = [text("It is made of basalt.")]
    page = visit()
    for question in ("The moon", "And the sun"):
        page.click("#new")
        ask(page, question)
        settled(page)
    page.reload()
    ready(page)
    assert shown(page)[0] == "And the sun"
    assert texts(page, "#list a") == ["And the sun", "The moon"]
    page.keyboard.press("Control+k")
    page.fill("#query", "basalt MOON")
    see(page, "#found small", "It is made of basalt.")
    page.keyboard.press("Enter")
    see(page, ".assistant", "It is made of basalt.")
    page.click("#search")
    page.fill("#query", "nowhere")
    see(page, "#found", "Nothing found.")
    page.keyboard.press("Escape")

    page.hover("#list a >> text=The moon")
    page.click("li:has-text('The moon') [aria-label=Rename]")
    page.fill("#list input", "Luna")
    page.press("#list input", "Enter")
    see(page, "#list", "Luna")
    assert page.inner_text("#title") == "Luna"
    page.hover("#list a >> text=Luna")
    page.click("li:has-text('Luna') [aria-label=Delete]")
    see(page, "#toast", "“Luna” is deleted.")
    assert texts(page, "#list a") == ["And the sun"]
    page.click("#toast button")
    see(page, "#list", "Luna")
    page.reload()
    ready(page)
    assert shown(page) == ["The moon", "It is made of basalt."]


def test_an_answer_goes_on_while_another_conversation_is_shown(visit, server):
    server.scripts["Slow"] = [text("first"), WAIT, text(" second")]
    page = visit()
    ask(page, "Slow")
    see(page, ".assistant", "first")
    page.click("#new")
    page.wait_for_selector("#welcome:visible")
    assert len(page.query_selector_all("#list li.live")) == 1
    ask(page, "Quick")
    see(page, ".assistant", "You said: Quick")
    server.go()
    page.wait_for_selector("#list li.live", state="detached")
    page.click("#list a >> text=Slow")
    see(page, ".assistant", "first second")


def test_a_page_that_is_reloaded_keeps_what_was_written(visit, server):
    server.scripts["Slow"] = [text("first"), WAIT, text(" second")]
    page = visit()
    ask(page, "Slow")
    see(page, ".assistant", "first")
    page.reload()
    ready(page)
    assert shown(page) == ["Slow", "first"]
    see(page, ".note", "Stopped.")
    server.go()


def test_export_and_import(visit, server, tmp_path):
    page = visit()
    ask(page, "Keep me")
    settled(page)
    page.hover(".bubble")
    page.click("[aria-label='Edit and resend']")
    page.fill(".editing textarea", "Keep me too")
    page.press(".editing textarea", "Enter")
    settled(page)
    file, kept = exported(page, tmp_path)
    assert kept["format"] == "glmlite.conversations" and len(kept["conversations"]) == 1
    assert [n["content"] for n in kept["conversations"][0]["nodes"].values() if n["role"] == "user"] == [
        "Keep me",
        "Keep me too",
    ]

    page = visit()
    page.set_input_files("#pick-import", file)
    see(page, "#toast", "Imported: 1. Already here: 0.")
    page.set_input_files("#pick-import", file)
    see(page, "#toast", "Imported: 0. Already here: 1.")
    page.click("#list a")
    see(page, ".bubble", "Keep me too")
    assert texts(page, ".user .branches") == ["2 / 2"]

    for content, why in [
        ("{", "JSON"),
        ("[]", '"format" is not "glmlite.conversations"'),
        (json.dumps({**kept, "version": 9}), '"version" is 9, not 1'),
    ]:
        bad = tmp_path / "bad.json"
        bad.write_text(content, "utf-8")
        page.set_input_files("#pick-import", bad)
        page.wait_for_selector(f"#toast:has-text({json.dumps(why)})")


def test_an_imported_file_may_hold_anything(visit, server, tmp_path):
    ids = [f"c{i:024x}" for i in range(9)]
    nodes = [
        {"id": ids[0], "parent": "", "role": "user", "content": 7, "files": "x"},
        {
            "id": ids[1],
            "parent": ids[0],
            "role": "assistant",
            "content": "fine",
            "calls": [None, {"name": 3}],
            "stats": {"prompt": "x"},
        },
        {"id": ids[2], "parent": ids[3], "role": "user", "content": "circle"},
        {"id": ids[3], "parent": ids[2], "role": "user", "content": "circle"},
        {"id": "__proto__", "parent": "", "role": "user", "content": "x"},
        {"id": ids[4], "parent": ids[1], "role": "constructor"},
        None,
    ]
    odd = [
        None,
        5,
        {"nodes": nodes},
        {"title": "Odd", "nodes": dict(enumerate(nodes)), "chosen": {"": "nowhere", "__proto__": 1}},
    ]
    file = tmp_path / "odd.json"
    file.write_text(json.dumps({"format": "glmlite.conversations", "version": 1, "conversations": odd}), "utf-8")
    page = visit()
    page.set_input_files("#pick-import", file)
    see(page, "#toast", "Imported: 4. Already here: 0.")
    page.click("#list a >> text=Odd")
    see(page, ".assistant", "fine")
    assert texts(page, ".bubble") == [""]
    page.click("#search")
    page.fill("#query", "circle")
    see(page, "#found", "Nothing found.")


# -- settings


def test_settings_show_the_servers_defaults_and_send_what_is_changed(visit, server):
    page = visit()
    page.click("#tune")
    assert page.get_attribute("#set-temperature", "placeholder") == "0.3"
    assert page.get_attribute("#set-seed", "placeholder") == "random"
    page.fill("#system", "Be brief.")
    page.fill("#set-temperature", "0")
    page.fill("#set-top_p", "7")  # impossible: not sent
    page.fill("#set-max_tokens", "64")
    page.select_option("#thinking", "off")
    page.click("#use-for-new")
    page.keyboard.press("Escape")
    ask(page, "Hi")
    settled(page)
    body = server.asked[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"]) == (0, 64) and "top_p" not in body and "seed" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    page.reload()
    ready(page)
    for new in (False, True):
        if new:
            page.click("#new")
        page.click("#tune")
        assert page.input_value("#system") == "Be brief." and page.input_value("#set-temperature") == "0"
        page.click("#settings-close")
    page.click("#tune")
    page.click("#reset")
    assert page.input_value("#system") == "" and page.input_value("#set-temperature") == ""


def test_the_model_can_be_chosen_if_there_are_several(visit, server):
    server.models = ("small", "large")
    page = visit()
    assert page.input_value("#model") == "small"
    page.select_option("#model", "large")
    ask(page, "Hi")
    settled(page)
    assert server.asked[0]["model"] == "large"
    page.reload()
    ready(page)
    assert page.input_value("#model") == "large"


def test_the_key_is_sent_and_kept_only_if_asked(visit, server):
    server.key = "sesame"
    page = visit()
    see(page, "#banner", "The server asks for an API key.")
    page.click("#banner button")
    page.fill("#key", "wrong")
    page.press("#key", "Tab")
    page.click("#settings-close")
    see(page, "#banner", "The server asks for an API key, and this one is not it.")
    page.click("#banner button")
    page.fill("#key", "sesame")
    page.press("#key", "Tab")
    page.wait_for_selector("#banner", state="hidden")
    page.click("#settings-close")
    ask(page, "Hi")
    settled(page)
    assert server.keys == ["Bearer sesame"]
    page.reload()
    ready(page)
    assert page.is_visible("#banner")
    page.click("#banner button")
    page.fill("#key", "sesame")
    page.check("#remember")
    page.reload()
    ready(page)
    assert not page.is_visible("#banner")


def test_dark_and_light(visit, server):
    def brightness(page):
        colour = page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    page = visit(dark=True)
    assert brightness(page) < 150
    page.click("#theme")
    assert brightness(page) > 600 and page.get_attribute("#theme", "title") == "Appearance: light"
    page.reload()
    ready(page)
    assert brightness(page) > 600
    assert brightness(visit()) > 600


def test_chinese_and_english(visit, server):
    page = visit(language="zh-CN")
    assert page.inner_text("#welcome h2") == "今天想聊些什么？" and page.get_attribute("html", "lang") == "zh-CN"
    ask(page, "你好")
    settled(page)
    assert texts(page, ".stats")[-1] == "42 token/秒 · 48 个 token · 提示 1,000 · 其中 900 沿用"
    page.click("#language")
    assert page.inner_text("#new").strip() == "New chat" and shown(page) == ["你好", "You said: 你好"]
    page.reload()
    ready(page)
    assert page.get_attribute("html", "lang") == "en"


# -- files

UNSEEN = [
    "tiny sees no pictures. A vision model does, served with its mmproj file.",
    "tiny 看不到图片。请使用视觉模型，并同时加载它的 mmproj 文件。",
]


def test_text_files_go_with_a_message(visit, server, tmp_path):
    for name, content in [
        ("a.py", b"print('```')\r\n"),
        ("b.txt", "你好".encode("gb18030")),
        ("c.png", b"\x89PNG\r\n\x1a\n\0"),
        ("e.bin", b"\0"),
    ]:
        (tmp_path / name).write_bytes(content)
    page = visit()
    page.set_input_files("#pick", [tmp_path / "a.py", tmp_path / "b.txt", tmp_path / "c.png"])
    page.wait_for_selector("#toast.shown")
    see(page, "#toast", UNSEEN[0])
    page.set_input_files("#pick", tmp_path / "e.bin")
    see(page, "#toast", "e.bin is not a text file.")
    page.set_input_files("#pick", {"name": "d.txt", "mimeType": "text/plain", "buffer": b"x" * (2 << 20)})
    see(page, "#toast", "d.txt is longer than 1 MB.")
    for kind, event in [("drop", "DragEvent"), ("paste", "ClipboardEvent")]:
        page.evaluate(
            """([kind, event]) => {
              const data = new DataTransfer();
              data.items.add(new File([kind], `${kind}.txt`));
              const init = { dataTransfer: data, clipboardData: data, bubbles: true, cancelable: true };
              document.getElementById("text").dispatchEvent(new window[event](kind, init));
            }""",
            [kind, event],
        )
        see(page, ".chip", f"{kind}.txt")
    assert texts(page, ".chip") == ["a.py", "b.txt", "drop.txt", "paste.txt"]
    page.click("[aria-label='Remove drop.txt']")
    ask(page, "Look")
    settled(page)
    content = "a.py:\n````\nprint('```')\n````\n\nb.txt:\n```\n你好\n```\n\npaste.txt:\n```\npaste\n```\n\nLook"
    assert server.asked[0]["messages"][0]["content"] == content
    assert texts(page, ".file summary") == ["a.py", "b.txt", "paste.txt"] and not page.query_selector(".chip")


# -- pictures

DRAW = """async ([width, height, kind]) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = "teal";
  context.fillRect(0, 0, width, height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, kind));
  return [...new Uint8Array(await blob.arrayBuffer())];
}"""
GIVE = """([how, event, bytes, name, type]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type }));
  const init = { dataTransfer: data, clipboardData: data, bubbles: true, cancelable: true };
  document.getElementById("text").dispatchEvent(new window[event](how, init));
}"""


def drawn(page, width=60, height=40, kind="image/png"):
    return page.evaluate(DRAW, [width, height, kind])


def test_pictures_go_with_a_message(visit, server):
    server.capabilities.append("vision")
    page = visit()
    small = drawn(page)
    page.set_input_files("#pick-picture", {"name": "a.png", "mimeType": "image/png", "buffer": bytes(small)})
    page.wait_for_selector(".chip img")
    page.evaluate(GIVE, ["paste", "ClipboardEvent", small, "image.png", "image/png"])
    see(page, ".chip", "image.png")
    large = drawn(page, 4000, 3000, "image/webp")
    page.evaluate(GIVE, ["drop", "DragEvent", large, "large.webp", "image/webp"])
    see(page, ".chip", "large.webp")
    page.evaluate(GIVE, ["paste", "ClipboardEvent", [1, 2, 3], "bad.png", "image/png"])
    see(page, "#toast", "bad.png is no picture that this browser can read, or too large.")
    page.evaluate(GIVE, ["drop", "DragEvent", list(b"<svg/>"), "c.svg", "image/svg+xml"])
    see(page, ".chip", "c.svg")
    assert texts(page, ".chip") == ["a.png", "image.png", "large.webp", "c.svg"]
    page.click("[aria-label='Remove image.png']")
    ask(page, "What is it?")
    settled(page)
    *pictures, words = server.asked[0]["messages"][0]["content"]
    assert words == {"type": "text", "text": "c.svg:\n```\n<svg/>\n```\n\nWhat is it?"}
    assert [part["type"] for part in pictures] == ["image_url"] * 2
    first, second = (part["image_url"]["url"].partition(";base64,") for part in pictures)
    assert first[0] == "data:image/png" and base64.b64decode(first[2]) == bytes(small)
    data = base64.b64decode(second[2])
    assert second[0] == "data:image/png" and struct.unpack(">II", data[16:24]) == (2534, 1900)  # 4.8 million pixels
    assert [image.get_attribute("alt") for image in page.query_selector_all(".bubble img")] == ["a.png", "large.webp"]
    assert not page.query_selector(".chip")

    # They stay with the conversation: after a reload, in the next question, in an edited one.
    page.reload()
    ready(page)
    assert page.evaluate("() => [...document.querySelectorAll('.bubble img')].every((i) => i.naturalWidth > 0)")
    ask(page, "And now?")
    settled(page)
    assert server.asked[1]["messages"][0]["content"][:2] == pictures
    page.hover(".bubble")
    page.click("[aria-label='Edit and resend'] >> nth=0")
    page.fill(".editing textarea", "")
    page.click(".editing >> text=Send")
    settled(page)
    assert server.asked[2]["messages"][-1]["content"][:2] == pictures


def test_a_picture_alone_and_exported(visit, server, tmp_path):
    server.capabilities.append("vision")
    page = visit()
    page.evaluate(GIVE, ["paste", "ClipboardEvent", drawn(page), "image.png", "image/png"])
    page.wait_for_selector(".chip img")
    page.press("#text", "Enter")
    settled(page)
    (part,) = server.asked[0]["messages"][0]["content"]
    assert page.title() == "image.png – glmlite"
    file, kept = exported(page, tmp_path)
    (asked,) = [n for n in kept["conversations"][0]["nodes"].values() if n["role"] == "user"]
    good = asked["pictures"][0]
    assert good == {"name": "image.png", "url": part["image_url"]["url"], "width": 60, "height": 40}
    asked["pictures"] += [
        {**good, "url": "https://example.org/a.png"},
        {**good, "url": "data:image/svg+xml;base64,AAAA"},
        {**good, "url": good["url"] + "x" * 4_000_000},
        {**good, "width": -1},
        None,
    ]
    kept["conversations"][0]["updated"] += 1
    file.write_text(json.dumps(kept), "utf-8")
    page = visit()
    page.set_input_files("#pick-import", file)
    see(page, "#toast", "Imported: 1. Already here: 0.")
    page.click("#list a")
    page.wait_for_selector(".bubble img")
    assert len(page.query_selector_all(".bubble img")) == 1


def test_a_message_has_a_bounded_number_of_pictures(visit, server):
    server.capabilities.append("vision")
    page = visit()
    small = {"mimeType": "image/png", "buffer": bytes(drawn(page))}
    page.set_input_files("#pick-picture", [{"name": f"{i}.png", **small} for i in range(17)])
    see(page, "#toast", "A message can have 16 pictures.")
    assert len(page.query_selector_all(".chip")) == 16


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_a_model_without_eyes_says_so(visit, server, language):
    page = visit(language=language)
    assert not page.is_visible("#picture")
    page.evaluate(GIVE, ["paste", "ClipboardEvent", drawn(page), "image.png", "image/png"])
    see(page, "#toast", UNSEEN[language == "zh-CN"])
    assert not page.query_selector(".chip")
    server.capabilities.append("vision")
    page.reload()
    ready(page)
    label = page.get_attribute("#picture", "aria-label")
    assert page.is_visible("#picture") and label == ("Add pictures" if language == "en-US" else "添加图片")
    with page.expect_file_chooser() as chooser:
        page.focus("#picture")
        page.keyboard.press("Enter")
    assert chooser.value.is_multiple()


# -- errors

LIMIT = "maximum context length is 4096 tokens"
ERRORS = {
    "busy": (Refusal(429, "queue full", Retry_After="7"), "The server is busy. Try again in 7 s."),
    "overflow": (
        Refusal(400, LIMIT, "context_length_exceeded"),
        "The conversation does not fit into the model's context.",
    ),
    "bad": (Refusal(400, "temperature: -1, expected >= 0"), "The server could not use this request."),
    "missing": (Refusal(404, "no model x"), "The server has no such model."),
    "large": (Refusal(413, "body"), "The message is larger than the server takes."),
    "loading": (Refusal(503, "Loading model"), "The model is still being loaded."),
    "server": (Refusal(500, "boom"), "The server met an error."),
    "key": (Refusal(401, "invalid API key"), "The server asks for an API key, and this one is not it."),
    "fault": ([text("Some"), fault("the engine stopped")], "The server met an error."),
    "cut": ([text("Some"), BREAK], "The connection broke before the answer was complete."),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_said_in_words_and_can_be_tried_again(visit, server, name):
    script, words = ERRORS[name]
    server.scripts["Hi"] = script
    page = visit()
    ask(page, "Hi")
    page.wait_for_selector(f".failure:has-text({json.dumps(words)})")
    if isinstance(script, Refusal):
        see(page, ".failure .detail", f"The server says: {script.body['error']['message']}")
    assert page.is_visible(".failure >> text=Enter the key") == (name == "key")
    server.scripts["Hi"] = [text("now it works")]
    page.click(".failure button:has-text('Try again')")
    see(page, ".assistant", "now it works")
    settled(page)
    # What came to nothing leaves no alternative behind; what had begun does.
    assert texts(page, ".branches") == ([] if isinstance(script, Refusal) else ["2 / 2"])


def test_an_answer_at_its_limit_says_so(visit, server):
    server.scripts["Hi"] = [text("cut of"), finish("length")]
    page = visit()
    ask(page, "Hi")
    see(page, ".note", "The answer reached its length limit.")


def test_a_server_that_is_gone_is_found_again(visit, server):
    page = visit()
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "Hi")
    see(page, ".failure", "The server does not answer. Is glmlite serve still running?")
    page.wait_for_selector("#banner:visible")
    page.unroute("**/v1/**")
    page.wait_for_selector("#banner", state="hidden")


# -- what models write

HOSTILE = """<script>document.title = "broken"; fetch("http://elsewhere.invalid/a")</script>

<img src="http://elsewhere.invalid/b" onerror="document.title = 'broken'"> and ![a cat](http://elsewhere.invalid/c.png)

[click](javascript:document.title='broken') [fine](https://elsewhere.invalid/d) <b onclick="x">bold</b> <b>bold</b>

<iframe src="http://elsewhere.invalid/e"></iframe><style>body { background: url(http://elsewhere.invalid/f) }</style>
<form action="http://elsewhere.invalid/g"><a href="/v1/models">local</a></form>

| a | b |
|---|---|
| ![x](data:image/svg+xml;base64,PHN2Zy8+) | $\\href{javascript:x}{y}$ <svg onload=x> |

```html"><img src=http://elsewhere.invalid/h>
<script>x</script>
```
![dot](data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7)
"""


def test_what_a_model_writes_does_nothing(visit, server):
    server.scripts["Go"] = [text(HOSTILE[:9]), text(HOSTILE[9:100]), text(HOSTILE[100:]), WAIT]
    page = visit()
    ask(page, "Go")
    page.wait_for_selector(".assistant td")
    assert not page.query_selector(".assistant img")
    server.go()
    settled(page)
    # `visit` asserts that nothing was requested elsewhere.
    assert page.title() == "Go – glmlite"
    body = page.query_selector(".assistant > .prose")
    bad = "script, iframe, style, form, svg:not(.icon), [onclick], [onerror], [style]:not(.katex *), a[href^='/']"
    assert not body.query_selector(bad)
    assert [a.get_attribute("href") for a in body.query_selector_all("a")] == [
        "http://elsewhere.invalid/c.png",
        "https://elsewhere.invalid/d",
    ]
    assert {a.get_attribute("rel") for a in body.query_selector_all("a")} == {"noopener noreferrer"}
    assert [i.get_attribute("src")[:15] for i in body.query_selector_all("img")] == ["data:image/gif;"]
    shown_text = body.inner_text()
    for words in ("<script>document.title", "<img src=", "image: a cat", "<iframe", '<b onclick="x">', "<form"):
        assert words in shown_text, words
    for question in ("<script>document.title='x'</script>", HOSTILE):  # what a person pastes is text
        ask(page, question)
        settled(page)
        assert question.strip() in texts(page, ".bubble")


RICH = r"""# A title

Text with **bold**, `code`, a line
break, a [link][1] and $e^{i\pi} = -1$; it costs $5 and $6.

- one
  - nested

  loose
- two

1. first

$$\frac{a}{b}$$

\[
x = \fcolorbox{red}{blue}{$y$} \pmb{z}
\]

```python
def f(x):
    return "a" + x  # 你好
```

| a | b |
|:--|--:|
| 1 | \(x\) |

> quote
> - in it

$$\broken{$$

Heading
---

[1]: https://example.invalid/
last"""


def test_a_text_that_grows_ends_as_the_whole(visit, server):
    """However an answer is cut, and also in the middle what is complete is shown as at the end."""
    page = visit()
    server.scripts["Whole"] = [text(RICH)]
    ask(page, "Whole")
    settled(page)
    page.wait_for_selector(".assistant math")
    differ = page.evaluate(
        """async (source) => {
          const { Growing } = await import("./render.js");
          const settle = () => new Promise((resolve) => setTimeout(resolve, 30));
          const whole = document.createElement("div");
          new Growing(whole).update(source, true);
          await settle();
          const bad = [];
          for (const step of [1, 2, 3, 7, 16, 50]) {
            const element = document.createElement("div");
            const growing = new Growing(element);
            for (let end = step; end < source.length; end += step) growing.update(source.slice(0, end), false);
            growing.update(source, true);
            await settle();
            if (element.innerHTML !== whole.innerHTML) bad.push([step, element.innerHTML, whole.innerHTML]);
          }
          return bad;
        }""",
        RICH,
    )
    assert differ == []
    prose = page.query_selector(".assistant > .prose")
    assert len(prose.query_selector_all("math")) == 4 and texts(page, ".math.wrong") == [r"\broken{"]
    assert "it costs $5 and $6." in prose.inner_text()
    assert prose.query_selector(".hljs-keyword").inner_text() == "def"
    assert prose.query_selector("a").get_attribute("href") == "https://example.invalid/"
    page.click("[aria-label='Copy code']")
    page.wait_for_selector(".code use[href='#i-check']", state="attached")


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "![",
        "*a ",
        "_a_b ",
        "`",
        "> ",
        "- ",
        "$a",
        r"\(",
        r"\[",
        "$$",
        "<",
        "<b>",
        "|a",
        "&",
        "~~",
        "1. \n",
        "a@b.c ",
        "\n",
    ],
)
def test_no_text_is_too_odd(visit, server, unit):
    server.scripts["Odd"] = [text(unit * 2000), text("\n\nend" if unit != "`" else "end")]
    page = visit()
    ask(page, "Odd")
    settled(page)
    assert page.query_selector(".assistant > .prose").inner_text().rstrip().endswith("end")


# -- widths, and people who do not see it


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_widths(visit, server, size):
    server.scripts["Wide"] = [
        text("x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\n|" + "a|" * 40 + "\n|" + "-|" * 40),
        WAIT,
    ]
    page = visit(size=size)
    assert page.is_visible("#side") == (size == WIDE)
    ask(page, "Wide")
    page.wait_for_selector("table")
    server.go()
    settled(page)
    overflow = (
        "() => document.documentElement.scrollWidth - innerWidth + Math.max(0, scroll.scrollWidth - scroll.clientWidth)"
    )
    assert page.evaluate(overflow.replace("scroll.", "document.getElementById('scroll').")) == 0
    # Words are broken, code and tables can be scrolled.
    assert page.eval_on_selector(".assistant > .prose", "e => e.scrollWidth - e.clientWidth") == 0
    for wide in (".code pre", ".table"):
        assert page.eval_on_selector(wide, "e => ((e.scrollLeft = 9), e.scrollLeft)") == 9
    for selector in ("#text", "#send", "#tune", "#title"):
        box = page.query_selector(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0] and box["y"] + box["height"] <= size[1], selector
    if size == NARROW:
        page.click("#side-open")
        page.click("#list a")
        page.wait_for_selector("#side", state="hidden")
    page.click("#tune")
    assert page.query_selector("#settings").bounding_box()["width"] <= size[0] + 0.5


def test_all_controls_have_names_and_what_happens_is_said(visit, server):
    server.scripts["Hi"] = [*call(0, "f", "{}")]
    page = visit()
    ask(page, "Hi")
    settled(page)
    assert page.inner_text("#live") == "The answer is complete."
    page.click("#tune")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [role=listbox], nav, dialog")]
          .filter((e) => !e.matches("[aria-hidden=true]"))
          .filter((e) => !e.ariaLabel && !e.ariaLabelledByElements?.length && !e.labels?.length && !e.textContent)
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    page.click("#settings-close")
    page.focus("#text")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("() => document.activeElement !== document.body")
