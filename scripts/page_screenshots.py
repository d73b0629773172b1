"""A page of `fedllava report --format html` (or `watch`) as a browser shows it: two sizes, light and dark, as PNG.

    fedllava report runs/demo --format html > page.html
    python scripts/page_screenshots.py page.html pictures
    python scripts/page_screenshots.py http://127.0.0.1:8008/ pictures

For a person to look at, after a change of src/report/page. Needs Python and Chromium (Debian: apt-get install chromium),
nothing from the network. Ends with 1 where a picture is missing, where the page is wider than its window, or where it asks
for anything but itself.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

SIZES = {"wide": (1280, 2400), "narrow": (390, 2400)}
PROBE = "<script>document.title = 'width ' + document.documentElement.scrollWidth + ' of ' + innerWidth</script>"


def chromium(arguments, profile):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    return subprocess.run(command + arguments, capture_output=True, text=True, timeout=120)


def shot(url, out, size, dark):
    with tempfile.TemporaryDirectory() as profile:
        more = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        chromium(more + [f"--window-size={size[0]},{size[1]}", f"--screenshot={out}", url], profile)
    return os.path.exists(out)


def too_wide(page, size):
    """How much wider than the window the page is, in pixels; the page is a copy with a probe at its end."""
    text = pathlib.Path(page).read_text()
    policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    # A window of headless Chromium is at least 500 wide: a frame may be narrower.
    with tempfile.TemporaryDirectory() as folder:
        inner = pathlib.Path(folder, "inner.html")
        inner.write_text(policy.replace("</body>", PROBE.replace("document.title", "parent.document.title") + "</body>"))
        outer = pathlib.Path(folder, "outer.html")
        outer.write_text(f'<!doctype html><iframe src="inner.html" width="{size[0]}" height="900"></iframe>')
        more = ["--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom", outer.as_uri()]
        dom = chromium(more, os.path.join(folder, "profile")).stdout
    found = re.search(r"width (\d+) of (\d+)", dom)
    return None if found is None else int(found[1]) - int(found[2])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("page", help="a file, or the address of `fedllava watch`")
    p.add_argument("out", help="the folder for the pictures")
    a = p.parse_args()
    remote = a.page.startswith("http://")
    url = a.page if remote else pathlib.Path(a.page).resolve().as_uri()
    os.makedirs(a.out, exist_ok=True)
    bad = []
    for name, size in SIZES.items():
        for dark in False, True:
            out = os.path.abspath(os.path.join(a.out, f"{name}-{'dark' if dark else 'light'}.png"))
            print(out)
            if not shot(url, out, size, dark):
                bad.append(f"no picture {out}")
        if not remote:
            over = too_wide(a.page, size)
            if over is None or over > 0:
                bad.append(f"{name}: " + ("its width could not be measured" if over is None else f"{over} pixels too wide"))
    if not remote:
        outside = re.findall(r'(?:src|href)="(?!#)([^"]*)"', pathlib.Path(a.page).read_text())
        bad += [f"the page asks for {name}" for name in outside]
    for line in bad:
        print(line, file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
