"""Secrets that nobody is to see: the one function that whatever is printed, logged or kept goes through.

Every `HnmError` redacts its own message, so a message may quote a URL or a library's words as they are.
"""

import os
import re
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
_URL = r"[A-Za-z][A-Za-z0-9+.-]*://"
_PATTERNS = (
    # user and password of a URL; a password may hold slashes that nobody has quoted
    (re.compile(rf"({_URL})(?:[^\s/?#'\"<>]*:[^\s'\"<>@]*|[^\s/?#'\"<>@]+)@+(?:[^\s/?#'\"<>]*@)*"), rf"\1{HIDDEN}@"),
    # the query of a URL, which carries the token of a signed one
    (re.compile(rf"({_URL}[^\s?'\"<>]*)\?[^\s'\"<>]*"), rf"\1?{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"(?i)([A-Za-z0-9_-]*(?:passwd|password|secret|token|credential|signature|api[_-]?key|access[_-]?key)[A-Za-z0-9_-]*['\"]?\s*[=:]\s*)"
            r"(?:'[^']*'|\"[^\"]*\"|[^\s,;&'\"<>)\]}]+)"
        ),
        rf"\1{HIDDEN}",
    ),
)
_SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|SECRET_ACCESS_KEY|API_KEY)$")
_SHORTEST = 6
"""Characters of the shortest value of a variable that is taken for a secret; shorter ones are words of their own."""


def redacted(text: str) -> str:
    """`text` without passwords and tokens: those of URLs, those that stand behind their name, and those of this process's environment."""
    for secret in _secrets_of_environment():
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _secrets_of_environment() -> list[str]:
    """Values of variables such as AWS_SECRET_ACCESS_KEY, and passwords in URLs such as MLFLOW_TRACKING_URI; the longest first."""
    secrets: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()):
            secrets.add(value)
        elif "://" in value and "@" in value:
            password = _password_of(value)
            secrets |= {password, unquote(password)}
    return sorted((secret for secret in secrets if len(secret) >= _SHORTEST), key=len, reverse=True)


def _password_of(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""
