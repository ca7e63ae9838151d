"""Takes the pictures of the page in docs/: python tests/page_pictures.py [FOLDER], with playwright and Chromium.

The conversation is scripted (tests/page_server.py), so that the pictures show the page and not a model.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from page_server import StandIn, call, text, thought
from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1180, "height": 760}
PEAR = '''The volume of a pear, turned around its axis, is

$$V = \\pi \\int_0^h r(x)^2 \\, dx \\approx \\frac{\\pi h}{n} \\sum_{i=1}^{n} r_i^2$$

so a few measured radii are enough:

```python
from math import pi


def volume(radii: list[float], height: float) -> float:
    """Cubic centimetres, from radii at equal distances."""
    return pi * height * sum(r * r for r in radii) / len(radii)


print(volume([1.2, 2.1, 3.0, 3.4, 2.6], 9.5))  # 196.5
```

| radii | volume | error |
|:--|--:|--:|
| 5 | 196.5 cm³ | 4 % |
| 20 | 203.1 cm³ | 0.6 % |
'''
SNOW = """初雪落窗前，
炉火映旧篇。
一杯清茶暖，
不觉又新年。

要点：

- **起句**写景，点出时令；
- **结句**抒情，`新年` 与初雪呼应。
"""
ENGLISH = [
    ("Plan a weekend in Lisbon", [text("Day one: Alfama.")]),
    ("Regular expressions for dates", [text("Use `datetime`.")]),
    ("How do I measure the volume of a pear?", [thought("Slices along the axis."), text(PEAR)]),
]
CHINESE = [
    ("帮我润色一封邮件", [text("好的。")]),
    ("解释一下量化是什么", [text("用更少的位数存储权重。")]),
    ("北京明天冷吗？", [text("我查一下。"), *call(0, "weather", '{"city": "北京", "days": 1}')]),
    ("写四句关于初雪的诗。", [thought("五言，押韵。"), text(SNOW)]),
]


def converse(page: Page, server: StandIn, rounds: list[tuple[str, list[object]]]) -> None:
    for question, script in rounds:
        server.scripts[question] = script
        page.click("#new")
        page.fill("#text", question)
        page.press("#text", "Enter")
        page.wait_for_selector("#send:visible")
    page.wait_for_timeout(800)  # formulas, colours, the fading in
    page.evaluate("() => (document.getElementById('scroll').scrollTop = 0)")
    page.wait_for_timeout(300)


def main(folder: Path) -> None:
    chromium = shutil.which("chromium")
    with sync_playwright() as playwright, StandIn(models=("glm-4-9b-chat-q4_k_m",)) as server:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, language, scheme, rounds in [
            ("page", "en-US", "light", ENGLISH),
            ("page-dark", "en-US", "dark", ENGLISH),
            ("page-zh", "zh-CN", "light", CHINESE),
        ]:
            context = browser.new_context(viewport=SIZE, locale=language, color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(server.address)
            page.wait_for_selector("html[data-ready]", state="attached")
            converse(page, server, rounds)  # type: ignore[arg-type]
            page.screenshot(path=folder / f"{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs")
