"""Photographs web pages with a headless Chromium, for the pictures of the docs.

    with Browser() as browser:
        browser.open("http://localhost:6006/#timeseries", width=900, height=700)
        browser.photograph(Path("docs/pictures/tensorboard.png"))

This needs selenium (the `pictures` extra), and a Chromium with its driver, such as the packages
`chromium` and `chromium-driver` of Debian.
"""

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic --hide-scrollbars"
)
_COLORS = 128  # of a picture


class Browser:
    """A headless Chromium. Use it in a `with` statement."""

    def __init__(self) -> None:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if not chromium or not driver:
            sys.exit(
                "The pictures need Chromium and chromedriver, and they are not on the PATH. On "
                "Debian: apt-get install chromium chromium-driver"
            )
        try:
            from selenium import webdriver
            from selenium.webdriver.chrome.service import Service
        except ImportError:
            sys.exit("The pictures need selenium. Install it with: pip install -e '.[pictures]'")
        self._profile = tempfile.TemporaryDirectory()
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in [*_FLAGS.split(), f"--user-data-dir={self._profile.name}"]:
            options.add_argument(flag)
        self.driver: Any = webdriver.Chrome(options=options, service=Service(driver))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.driver.quit()
        self._profile.cleanup()

    def open(
        self, url: str, *, width: int, height: int, dark: bool = False, scale: float = 1
    ) -> None:
        """Opens a page.

        Args:
          url: The address.
          width: Width of the window, in pixels of CSS.
          height: Height of the window.
          dark: Whether the system prefers dark colors.
          scale: Pixels of the picture per pixel of CSS.
        """
        self._window = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.resize(height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")  # else a change behind # loads nothing
        self.driver.get(url)

    def resize(self, height: int | None = None) -> None:
        """Changes the height of the window. None: that of the page."""
        height = height or self.run("return document.documentElement.scrollHeight")
        window = {**self._window, "height": height, "mobile": self._window["width"] < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)

    def run(self, script: str) -> Any:
        """Runs JavaScript in the page, and returns what it returns."""
        return self.driver.execute_script(script)

    def wait(self, condition: str | Callable[[], Any], seconds: float = 120) -> None:
        """Waits until JavaScript returns something true, or a function does.

        Raises:
          TimeoutError: It takes longer.
        """
        end = time.monotonic() + seconds
        test = (lambda: self.run(condition)) if isinstance(condition, str) else condition
        while not test():
            if time.monotonic() > end:
                raise TimeoutError(f"The page did not get ready: {condition}")
            time.sleep(0.2)

    def click(self, selector: str) -> None:
        """Clicks on an element, and waits a moment."""
        self.run(f"document.querySelector({selector!r}).click()")
        time.sleep(3)

    def box(self, selector: str, number: int = 0) -> tuple[int, int, int, int]:
        """Returns the place of an element: left, top, right and bottom, in pixels of CSS."""
        script = (
            f"let r = document.querySelectorAll({selector!r})[{number}].getBoundingClientRect()"
        )
        left, top, right, bottom = self.run(f"{script}; return [r.left, r.top, r.right, r.bottom]")
        return round(left), round(top), round(right), round(bottom)

    def photograph(self, path: Path, box: tuple[int, int, int, int] | None = None) -> None:
        """Writes a PNG with few colors.

        Args:
          path: The file.
          box: Left, top, right and bottom of the part to keep, in pixels of CSS.
        """
        from PIL import Image

        image = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        if box is not None:
            image = image.crop(tuple(round(self._window["deviceScaleFactor"] * x) for x in box))
        path.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {image.width}x{image.height}, {path.stat().st_size // 1000} kB")
