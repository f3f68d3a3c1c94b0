"""A headless browser that opens a page from the file system: Chromium's headless shell, which Debian has."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

PROGRAM = "chromium-headless-shell"
PACKAGES = (PROGRAM, "fonts-dejavu-core")
OTHERS = ("chromium", "chromium-browser", "google-chrome")

# A page of its own around the ones in question, which themselves may run no script. It looks when all are loaded.
FRAME = '<iframe src="{url}" style="border: 0; width: {width}px; height: 900px"></iframe>'
LOOKER = """<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0">
{frames}<pre id="seen"></pre>
<script>
const look = (page) => {{
  const all = (what) => [...page.querySelectorAll(what)];
  const box = (part) => {{ const at = part.getBoundingClientRect(); return [at.width, at.height]; }};
  const seen = {{
    title: page.title,
    width: page.documentElement.scrollWidth,
    scrolled: all(".wide").filter((part) => part.scrollWidth > part.clientWidth).length,
  }};
  all("details").forEach((part) => {{ part.open = true; }});  // what is folded away has no innerText
  return {{
    ...seen,
    unfolded: page.documentElement.scrollWidth,
    text: page.body.innerText,
    tables: all("table").map((part) => [...part.rows].map((row) => [...row.cells].map((cell) => cell.innerText))),
    charts: all("svg").map(box),
    shapes: all("svg").map((part) => part.querySelectorAll("path, use").length),
    active: all("script, link, iframe, object, embed, img[src^=http]").length,
  }};
}};
window.onload = () => {{
  const pages = [...document.querySelectorAll("iframe")].map((frame) => look(frame.contentDocument));
  document.getElementById("seen").textContent = JSON.stringify(pages);
}};
</script>"""


def find():
    """Return the path of a browser, or None."""
    return next(filter(None, map(shutil.which, (PROGRAM, *OTHERS))), None)


def lacking():
    """Say why there can be no browser here, after installing what can be installed; None if there is one."""
    if find():
        return None
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"there is none of {', '.join((PROGRAM, *OTHERS))}, and to install one takes root and apt-get"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    quietly = ("--quiet=2", "-o", "DPkg::Lock::Timeout=60")
    try:
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *quietly, *command], env=environment, timeout=120, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
    except subprocess.SubprocessError as error:
        return f"apt-get failed: {error}"
    return None if find() else "apt-get installed no browser"


def _run(folder, url, *options):
    """Open an address; return what is printed, and what went to the log."""
    command = [find(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               "--no-first-run", "--disable-background-networking", "--disable-component-update",
               "--enable-logging=stderr",
               f"--user-data-dir={folder / 'profile'}", *options, url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr


def look(folder, frames):
    """Open pages, given with the width of their window, in one browser; return what is seen of each.

    That is its tables and charts; and the complaints and requests of all of them together.
    """
    looker, log = folder / "looker.html", folder / "net.json"
    frames = "".join(FRAME.format(url=page.as_uri(), width=width) for page, width in frames)
    looker.write_text(LOOKER.format(frames=frames))
    options = ("--allow-file-access-from-files", "--virtual-time-budget=5000", f"--log-net-log={log}", "--dump-dom")
    printed, said = _run(folder, looker.as_uri(), *options)
    found = html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', printed, re.S)[1])
    shared = {
        "complaints": [line for line in said.splitlines() if "CONSOLE" in line],
        "fetched": sorted(url for url in _requested(log.read_text()) if not url.startswith("file:")),
    }
    return [page | shared for page in json.loads(found)]


def _requested(log):
    """Return what the page asked for; no page is the initiator of what a browser asks for by itself."""
    begun = re.findall(r'"initiator":"([^"]+)".*?"url":"([^"]+)"', log)  # one event a line
    return {url for initiator, url in begun if initiator != "not an origin"}


def photograph(folder, page, width, height):
    """Return the path of a picture of the page in a window of that size."""
    picture = Path(folder) / f"{page.stem}-{width}.png"
    _run(folder, page.as_uri(), f"--window-size={width},{height}", f"--screenshot={picture}")
    return picture
