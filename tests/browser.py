"""A headless Chromium that is driven as a person would drive it, over a pipe of its own.

Speaks the DevTools protocol; what is clicked must be what lies at that place of the screen.
"""

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Where an element is in the middle of the screen, if nothing covers it.
PLACE = """(() => {
  const found = document.querySelector(%s);
  if (!found) return "there is none";
  found.scrollIntoView({ block: "nearest", behavior: "instant" });
  const box = found.getBoundingClientRect();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  const top = document.elementFromPoint(x, y);
  return found.contains(top) ? [x, y] : `covered by ${top && top.outerHTML.slice(0, 200)}`;
})()"""
WAIT = """new Promise((go, fail) => {
  const until = performance.now() + 60000;
  const look = () => {
    if (%s) go(true);
    else if (performance.now() > until) fail(new Error("waited in vain"));
    else setTimeout(look, 10);
  };
  look();
})"""
# A script at the end of a page, and what it says as an element of the page.
PROBE = """<script>
{
const say = [];
%s
const result = document.createElement("pre");
result.id = "said";
result.textContent = say.join("\\n");
document.body.append(result);
}
</script></body>"""
KEYS = {"Enter": "\r", "Tab": "\t"}


@dataclass
class Page:
    """A page that is open.

    Attributes:
        complaints: What its console said, and errors that nobody caught.
    """

    commands: IO[bytes]
    answers: IO[bytes]
    session: str = ""
    complaints: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def send(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while True:
            heard = json.loads(self._message())
            if heard.get("id") == number:
                assert "error" not in heard, heard["error"]
                return heard["result"]
            if heard.get("method") in (
                "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded",
            ):  # fmt: skip
                self.complaints.append(json.dumps(heard["params"]))

    def _message(self) -> bytes:
        found = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            found += byte
        return bytes(found)

    def open(self, address: str, width: int, height: int, *, phone: bool = False) -> None:
        """Open an address on a screen of this size, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.send("Page.navigate", url=address)
        self.wait(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def look(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression of JavaScript is true."""
        self.look(WAIT % condition)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            text = KEYS.get(key, key if len(key) == 1 else "")
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, brought onto the screen."""
        found = self.look(PLACE % json.dumps(selector))
        assert not isinstance(found, str), f"{selector}: {found}"
        return found[0], found[1]

    def click(self, selector: str) -> None:
        """Click on what lies there."""
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drop(self, file: Path, selector: str) -> None:
        """Drag a file from elsewhere to an element."""
        x, y = self.place(selector)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def named(self, *roles: str) -> list[tuple[str, str]]:
        """Role and name of what a screen reader finds of these roles."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        found = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
        return [(role, name) for role, name in found if role in roles]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Keep what is on the screen, or the whole page, as a PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


def said_by(html: str, probe: str, folder: Path, *options: str) -> list[str]:
    """Lines that a script puts into `say` about a page; the page's console must stay silent.

    Args:
        html: The page.
        probe: The script.
        folder: Where page and profile are kept.
        options: Of Chromium.
    """
    path = folder / "page.html"
    path.write_text(html.replace("</body>", PROBE % probe), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        "--enable-logging=stderr", "--v=0", "--window-size=500,900",
        "--disable-background-networking", f"--user-data-dir={folder / 'profile'}",
        *options, path.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in ran.stderr
    match = re.search(r'<pre id="said">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert match is not None
    return match[1].splitlines()


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a browser that keeps what it has to keep below `profile`."""
    pipes = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null'  # it listens at 3, answers at 4
    command = [
        "sh", "-c", pipes, str(CHROMIUM),
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere) as process:
        assert process.stdin
        assert process.stdout
        page = Page(process.stdin, process.stdout)
        try:
            targets = page.send("Target.getTargets")["targetInfos"]
            target = next(one["targetId"] for one in targets if one["type"] == "page")
            attached = page.send("Target.attachToTarget", targetId=target, flatten=True)
            page.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                page.send(f"{domain}.enable")
            yield page
        finally:
            page.session = ""
            page.send("Browser.close")
            process.wait(20)
