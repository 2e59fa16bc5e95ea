"""What a name looks like when it is shown: in a terminal, in Markdown, in HTML, in JSON inside of a page.

Names come from files, labels and reports of other people. Shown raw, a control character moves a terminal's cursor, a mark of
direction turns the words around it, and the end of an element lets what follows it run.
"""

from __future__ import annotations

import json
import re
from typing import Any

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: ANSI escapes begin with one
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks of direction
    "\u00ad\u180e\u200b\u2028\u2029\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # not to be seen
    "\ud800-\udfff]"  # halves of characters: bytes of a file name that are no UTF-8, which no file can hold
)
_PUNCTUATION = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[`*\[\]|]")
_END_OF_SCRIPT = re.compile(r"<(?=/script|script|!--)", re.IGNORECASE)


def visible(text: str, keep: str = "") -> str:
    r"""Text without anything that acts or hides: such characters are written as Python writes them, ``\x1b``.

    Parameters
    ----------
    text : str
    keep : str
        Characters that stay as they are, such as a newline.

    Returns
    -------
    str
        It can be encoded as UTF-8, whatever `text` holds.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), text)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def visible_in(value: Any, keep: str = "") -> Any:
    """The same of every string in lists and dictionaries, keys included."""
    if isinstance(value, str):
        return visible(value, keep)
    if isinstance(value, dict):
        return {visible_in(name, keep): visible_in(one, keep) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [visible_in(one, keep) for one in value]
    return value


def encodable(text: str) -> str:
    """Text that UTF-8 can hold: halves of characters are written as escapes, all else stays."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def in_markdown(text: str) -> str:
    """Text that stays text in Markdown: no cell's end, code, emphasis, link or HTML element."""
    plain = visible(text).replace("&", "&amp;").replace("<", "&lt;")
    return _PUNCTUATION.sub(lambda found: "\\" + found[0], plain)


def code_in_markdown(text: str) -> str:
    """Text as code in Markdown, whatever backticks it holds."""
    plain = visible(text)
    fence = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    space = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{space}{plain}{space}{fence}"


def json_in_html(value: Any) -> str:
    """JSON that may stand inside of a script element: with neither ``<`` nor ``&`` no tag or comment begins or ends there."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only, U+2028 and U+2029 escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def program_in_html(text: str) -> str:
    """JavaScript that may stand inside of a script element: in its strings, no tag or comment can be read."""
    return _END_OF_SCRIPT.sub(r"\\x3c", text)
