# SPDX-License-Identifier: MIT
"""``make links``: the links out of the given pages answer. Those inside are checked by tests/build/test_docs.py.

Exits with 1 if a page is gone, and with 0 if there is no network to ask, saying so.
"""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

LINK = re.compile(r"\]\((https?://[^)\s]+)\)")
GONE = (404, 410)


def answer(url: str) -> int | str:
    """The status, or why there is none."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "eca_cuda, make links"}), timeout=20) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except (OSError, HTTPException) as error:
        return str(error)


def main(pages: list[str]) -> int:
    urls = sorted({url for page in pages for url in LINK.findall(Path(page).read_text(encoding="utf-8"))})
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(urls, pool.map(answer, urls), strict=True))
    for url, status in answers.items():
        print(f"{status}: {url}")
    gone = [url for url, status in answers.items() if status in GONE]
    silent = [url for url, status in answers.items() if isinstance(status, str)]
    if silent:
        print(f"NOT CHECKED, no answer from the network: {len(silent)} of {len(urls)} links")
    print(f"{len(gone)} of {len(urls)} links are gone")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
