"""A screen of its own for programs with windows: Xvfb, the keys of xdotool, pictures of Pillow. Linux."""

import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = ("Xvfb", "xdotool")
WAIT = 60  # seconds for what should take one


def missing():
    """What is not installed of what a screen needs."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Screen:
    def __init__(self):
        self._server = subprocess.Popen(
            ["Xvfb", "-displayfd", "1", "-screen", "0", "800x600x24", "-noreset", "-nolisten", "tcp"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.display = f":{self._server.stdout.readline().strip()}"

    def close(self):
        self._server.terminate()
        self._server.wait()
        self._server.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def window(self, program):
        """The window on this screen once it is there, of a process that was started."""
        return self.windows(1, program)[0]

    def windows(self, count, program):
        def there():
            return self._xdotool("search", "--onlyvisible", "--name", ".", check=False).split()

        return wait_for(there, lambda found: len(found) == count, program)

    def title(self, window):
        return self._xdotool("getwindowname", window, check=False).strip()

    def focus(self, window):
        """Gives it the keyboard, which nobody else does where there is no window manager."""
        self._xdotool("windowfocus", "--sync", window)

    def keys(self, *keys):
        """Presses keys, by X's names for them."""
        self._xdotool("key", "--delay", "30", *keys)

    def type(self, text):
        self._xdotool("type", "--delay", "10", text)

    def picture(self, path):
        from PIL import ImageGrab

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        ImageGrab.grab(xdisplay=self.display).save(path)

    def _xdotool(self, *arguments, check=True):
        done = subprocess.run(
            ["xdotool", *arguments],
            env={"DISPLAY": self.display, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout


def wait_for(ask, enough, program):
    """What `ask` returns, once it is enough. Fails when the program has ended, or after a minute."""
    deadline = time.monotonic() + WAIT
    while not enough(answer := ask()):
        assert program.poll() is None, f"ended with {program.returncode}, at {answer!r}"
        assert time.monotonic() < deadline, f"still {answer!r}"
        time.sleep(0.02)
    return answer
