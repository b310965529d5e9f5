"""Makes text that others wrote safe to show: no control characters reach the terminal, and no passwords are printed."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal or reorder text, and halves of surrogate pairs, which cannot be encoded."""
_USER = re.compile(r"(?:(?<=://)|(?<=:/)(?!/))[^\s'\"]{0,500}@")
"""What is before the @ of a URL, also in a path that was made of it; limited, or a long text would take very long."""
_SECRET = re.compile(
    r"([?&;][^?=&;\s]*(?:pass|pwd|secret|token|key|auth|cred|sig|connect)[^?=&;\s]*=)[^&\s'\"]*", re.IGNORECASE
)


def visible(text: str) -> str:
    r"""Returns a text with control characters as escapes: the character 27 becomes the four characters `\x1b`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def hide_secrets(text: str) -> str:
    """Returns a text with *** for user names and passwords in URLs, and for parameters that sound like secrets."""
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))


def hide_url(url: str) -> str:
    """Returns a URL with its secrets hidden, whatever characters they have; *** for another text that may hold one."""
    if "://" not in url and re.search("[@=]", url):
        return "***"
    shown = hide_secrets(re.sub(r"[\s'\"]", "_", url))
    return re.sub(r"(?<=://)([^/?:@\[]*:)(?!\d*([/?]|$))[^/?]*", r"\1***", shown)  # in the place of a port


def hide_parts_of(url: str, text: str) -> str:
    """Returns a text about a URL, such as a driver's error, without the words that `hide_url` hides."""
    shown = hide_url(url)
    words = {word for word in re.split(r"\W+", url) if len(word) > 3 and word not in shown}
    return re.sub("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)", "***", hide_secrets(text))
