"""Secrets that nobody is to see: the one function that whatever is printed, logged or kept goes
through.

Every `HnmError` redacts its own message, so a message may quote a URL or a library's words as they
are. Where it is unclear whether words are a secret they are hidden. Each pattern begins with fixed
letters and is bounded, so that the time grows with the length of the text and not faster.
"""

import json
import os
import re
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
_NAME = (
    r"(?:passwd|password|passphrase|secret|token|credential|signature"
    r"|api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key|\bpwd|\bsig)"
)
_BARE = r"[^\s'\"<>&]{1,8192}"
_QUOTED = r"'(?:[^'\\]|\\.){0,8192}'|\"(?:[^\"\\]|\\.){0,8192}\""
_URL = re.compile(r"://((?:(?!://)[^\s'\"<>])*)")
_PASSWORD_WITH_BLANKS = re.compile(
    r"://[^\s/?#:@'\"<>]{0,64}:(?!\d{1,5}(?:[\s/?#'\"<>),.;\]}]|$))[^@\n]{0,128}@"
)
"""User and password of a URL where the password holds blanks or quotes; what looks like a port is
none.
"""
_NAMED = re.compile(
    rf"(?i)({_NAME}[\w-]{{0,40}}\\?['\"]?[ \t]{{0,9}}[=:][ \t]{{0,9}}\\?)({_QUOTED}|['\"]?{_BARE})"
)
"""A value behind its name, as in JSON, YAML, the settings of a database, and the repr of a dict."""
_NEEDLES = (
    "passw",
    "passphrase",
    "secret",
    "token",
    "credential",
    "signature",
    "key",
    "pwd",
    "sig",
)
"""Of `_NAME`, in small letters: a text without any holds no such value."""
_PATTERNS = (
    # a URL within a query
    (("%3a%2f%2f",), rf"(?i)(%3a%2f%2f){_BARE}", rf"\1{HIDDEN}"),
    # the authority of a URL whose protocol was cut off
    (
        ("@",),
        r"(?<![\w/.+-])([A-Za-z][\w.+-]{0,63}):[^\s/@:'\"<>]{3,128}@(?=[\w-]{1,64}(?:\.|:\d|/))",
        rf"\1:{HIDDEN}@",
    ),
    # the parameters of a signed URL whose protocol was cut off
    (
        ("=",),
        rf"(?i)([?&](?:x-amz-[a-z-]{{1,40}}|x-goog-[a-z-]{{1,40}}|awsaccesskeyid|key-pair-id|policy|code|s[a-z]{{1,4}})=){_BARE}",
        rf"\1{HIDDEN}",
    ),
    # headers, also in the repr of a dict or of pairs
    (
        ("authorization", "security-token", "api-key", "cookie"),
        (
            r"(?i)((?:authorization|x-amz-security-token|x-api-key|cookie)['\"]?[ \t]{0,9}[:=,]["
            rf" \t]{{0,9}}b?)({_QUOTED})"
        ),
        rf"\1{HIDDEN}",
    ),
    (
        ("authorization",),
        (
            r"(?i)(authorization[ \t]{0,9}[:=][ \t]{0,9}(?:[a-z0-9-]{1,20}["
            rf" \t]{{1,9}})?){_BARE}(?:,?[ \t]{{1,9}}[a-z]{{1,20}}={_BARE}){{0,20}}"
        ),
        rf"\1{HIDDEN}",
    ),
    (
        ("bearer", "basic"),
        r"(?i)\b(bearer|basic)\s{1,9}(?=[^\s'\"]{0,200}[\d=]|[^\s'\"]{20})[^\s'\"<>]{6,8192}",
        rf"\1 {HIDDEN}",
    ),
    (
        ("<",),
        r"(?i)(<[a-z]{0,20}(?:secret|token|password|credential)[a-z]{0,20}>)[^<]{1,8192}",
        rf"\1{HIDDEN}",
    ),
    (
        ("password", "token", "secret", "api-key"),
        rf"(?i)(--[a-z-]{{0,20}}(?:password|token|secret|api-key)[ \t]{{1,9}}){_BARE}",
        rf"\1{HIDDEN}",
    ),
    (
        ("login",),
        rf"(?i)(\blogin[ \t]{{1,9}}[^\s]{{1,200}}[ \t]{{1,9}}password[ \t]{{1,9}}){_BARE}",
        rf"\1{HIDDEN}",
    ),
    # what is a secret by its own looks
    (
        ("gh", "glpat-", "hf_", "xox", "sk-"),
        r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abpr]-|sk-)[\w-]{16,255}",
        HIDDEN,
    ),
    (("akia", "asia"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", HIDDEN),
    (("eyj",), r"\beyJ[\w-]{8,8192}\.[\w-]{4,8192}\.[\w-]{0,8192}", HIDDEN),
    (
        ("private key-----",),
        r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----)[^-]{0,16384}",
        rf"\1{HIDDEN}",
    ),
)
"""Small letters of which a text must hold some, so that most patterns need not be tried; the
pattern; what takes its place.
"""
_COMPILED = tuple(
    (needles, re.compile(pattern), replacement) for needles, pattern, replacement in _PATTERNS
)
_SECRET_NAME = re.compile(
    r"(PASSWORD|PASSWD|PASSPHRASE|PASS|TOKEN|SECRET|SECRET_ACCESS_KEY|API_KEY|ACCOUNT_KEY|STORAGE_KEY|PRIVATE_KEY|_PAT)$"
)
_WORDS = frozenset(
    {
        "password",
        "passwd",
        "secret",
        "token",
        "default",
        "disabled",
        "enabled",
        "example",
        "changeme",
        "required",
        "optional",
        "postgres",
    }
)
"""Values that are no secret to anybody, and that messages are made of."""
_SHORTEST = 4
"""Characters of the shortest value of a variable that is taken for a secret, where it holds a digit
or a sign; six, where it is of letters alone.
"""
_LONG = 12
"""Characters from which a value is hidden even within a longer word."""


def redacted(text: str) -> str:
    """Returns `text` without passwords and tokens: those of URLs, those that stand behind their
    name, and those of this process's environment.
    """
    if "://" in text:
        if "@" in text:
            text = _PASSWORD_WITH_BLANKS.sub(f"://{HIDDEN}@", text)
        text = _URL.sub(_hidden_url, text)
    small = text.lower()
    if any(needle in small for needle in _NEEDLES):
        text = _NAMED.sub(_hidden_value, text)
    for needles, pattern, replacement in _COMPILED:
        if any(needle in small for needle in needles):
            text = pattern.sub(replacement, text)
    for pattern in _secrets(tuple(os.environ.items())):
        text = pattern.sub(HIDDEN, text)
    return text


def _hidden_url(match: re.Match[str]) -> str:
    """Returns what stands behind `://`, without user, password, query, and fragments that name a
    value.
    """
    rest = match[1]
    before, at, after = rest.rpartition("@")
    server = re.split(r"[/?#]", before, maxsplit=1)[0]
    if at and (
        server == before or ":" in server or "@" in server
    ):  # a password may hold slashes that nobody has quoted
        rest = f"{HIDDEN}@{after}"
    head, question, _ = rest.partition("?")
    if question:
        return f"://{head}?{HIDDEN}"
    head, hash_mark, fragment = rest.partition("#")
    return f"://{head}#{HIDDEN}" if hash_mark and "=" in fragment else f"://{rest}"


def _hidden_value(match: re.Match[str]) -> str:
    """Returns the name alone, and the brackets that close behind the value."""
    value = match[2]
    closing = "" if value[-1] in "'\"" else value[len(value.rstrip(",;)]}")) :]
    return f"{match[1]}{HIDDEN}{closing}"


@lru_cache(maxsize=4)
def _secrets(environment: tuple[tuple[str, str], ...]) -> list[re.Pattern[str]]:
    """Returns patterns of the values of variables such as AWS_SECRET_ACCESS_KEY, and of passwords
    in URLs such as MLFLOW_TRACKING_URI.
    """
    values: set[str] = set()
    for name, value in environment:
        if _SECRET_NAME.search(name.upper()):
            values.add(value)
        elif "://" in value and "@" in value:
            password = _password_of(value)
            values |= {password, unquote(password)}
    secrets = {value for value in values if _is_secret(value)}
    forms = {
        form
        for secret in secrets
        for form in (
            secret,
            quote(secret),
            quote(secret, safe=""),
            json.dumps(secret)[1:-1],
            repr(secret)[1:-1],
        )
    }
    return [_pattern_of(form) for form in sorted(forms, key=len, reverse=True)]


def _is_secret(value: str) -> bool:
    if value.lower() in _WORDS or (value.isdecimal() and len(value) < 6) or HIDDEN in value:
        return False
    return len(value) >= (6 if value.isalpha() else _SHORTEST)


def _pattern_of(secret: str) -> re.Pattern[str]:
    if len(secret) >= _LONG:
        return re.compile(re.escape(secret))
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])")


def _password_of(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


def readable(text: str, allowed: str = "") -> str:
    """Returns `text` with what cannot be printed, or is not UTF-8, as escapes, but for what is
    `allowed`: a file name of any bytes can stand in a table, and harms no terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in allowed else _escape(ord(character))
        for character in text
    )


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # how Python holds a byte of a name that is not UTF-8
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
