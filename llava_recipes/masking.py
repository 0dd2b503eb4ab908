"""Recognize secrets, by their names and in texts, and hide them."""

from __future__ import annotations

import re
from itertools import pairwise

HIDDEN = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset({
    "token", "tokens", "pat", "jwt", "otp", "totp", "auth", "oauth", "authorization", "bearer",
    "cookie", "cookies", "session",
    "private", "pass", "passwd", "passphrase", "passcode", "password", "passwords", "psw", "pwd", "pw",
    "sshpass", "dbpass", "userpass", "rootpass",
    "secret", "secrets", "credential", "credentials", "cred", "creds", "apikey", "accesskey",
    "privatekey", "sas", "dsn", "webhook", "webhooks", "netrc", "kubeconfig", "connstr",
})  # fmt: skip
# For names without separators, such as GITHUBTOKEN. No English word ends in one of these.
_SECRET_ENDINGS = (
    *("token", "password", "passwd", "secret", "apikey", "accesskey", "privatekey", "privkey", "secretkey"),
    *("authkey", "passkey", "signingkey"),
)
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("connection", "string"), ("conn", "str")}
# Words next to which a token is one of a language model, and a key one of a table.
_OF_MODELS = frozenset({
    "max", "min", "num", "n", "total", "len", "length", "count", "counts", "per", "limit", "budget",
    "image", "img", "pad", "eos", "bos", "unk", "cls", "sep", "mask", "special", "text", "label", "new",
    "type", "types", "index", "ratio", "size", "position", "positions", "embedding", "embeddings", "id",
    "ids", "merge", "learned", "seen", "drop", "rate", "batch", "step", "steps", "added", "visual",
    "vision", "prompt", "context", "output", "input", "cache", "patch",
    "stride", "consumed",
})  # fmt: skip
_OF_TABLES = frozenset({
    "primary", "foreign", "sort", "cache", "partition", "group", "column", "image", "field", "map",
    "index", "row", "dict", "json", "label", "answer", "caption", "text", "hot", "query", "value",
    "model", "config", "module", "block", "layer", "state",
    "data", "sample", "metric",
})  # fmt: skip
_HARMLESS_BESIDE = {
    "token": _OF_MODELS,
    "tokens": _OF_MODELS,
    "key": _OF_TABLES,
    "keys": _OF_TABLES,
    "pass": frozenset({"num", "count", "rate", "per", "first", "second", "single", "forward", "backward"}),
    "session": frozenset({"type", "desktop", "name", "count", "num"}),
}
# The working folders of every shell.
_HARMLESS_NAMES = frozenset({"PWD", "OLDPWD"})

# `user:password@` before a host, with or without a slash in the password; or a user alone, often a token.
_USER_INFO = re.compile(
    r"""(?P<start>(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)?:?\\?/\\?/)
    (?:
        [^\s/?\#@:"'<>\\]* : (?![0-9]*[/?\#\s"'<>]) (?: [^\s/?\#<>]* | [^\s"'<>]* ) (?=@)
      | [^\s/?\#"'<>\\]+ (?=@)
    )@""",
    re.VERBOSE,
)
_USER_IS_NO_SECRET = frozenset(
    {"ssh", "git", "sftp", "rsync", "git+ssh", "hdfs", "abfs", "abfss", "wasb", "wasbs"}
)
"""Schemes in which `user@` names an account or a container."""
_QUERY = re.compile(r"(?P<name>(?<=[?&;#])[A-Za-z0-9_.-]+)=(?P<value>[^&\s\"'<>;]+)")
_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9_-])
    (?:
        (?P<hf>hf_|api_org_)[A-Za-z0-9]{20,}
      | (?P<github>gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}
      | (?P<gitlab>glpat-)[A-Za-z0-9_-]{16,}
      | (?P<slack>xox[abeprs]-)[A-Za-z0-9-]{10,}
      | (?P<aws>AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])
      | (?P<google>AIza)[A-Za-z0-9_-]{35}
      | (?P<openai>sk-(?:proj-|ant-|svcacct-|or-)?)
            (?: (?=[\w-]*[0-9])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])[\w-]{20,} | [A-Za-z0-9]{24,} )
      | (?P<pypi>pypi-)[A-Za-z0-9_-]{50,}
      | (?P<jwt>eyJ)[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*
      | (?P<wandb>wandb_v1_)[A-Za-z0-9_-]{20,}
    )""",
    re.VERBOSE,
)
# In lower case only with a digit: captions contain words such as "basic responsibilities".
_BEARER = re.compile(
    r"\b(?P<start>(?:Bearer|Basic)\s+|(?:bearer|basic|BEARER|BASIC)\s+(?=[\w.~+/=-]*[0-9]))[A-Za-z0-9._~+/=-]{16,}"
)
_PRIVATE_KEY = re.compile(r"(?P<start>-----BEGIN [A-Z ]*PRIVATE KEY-----)[^-]*")
# A text without any of these has nothing to hide, and is searched no further.
_HINTS = (
    *("//", "\\/", "hf_", "api_org_", "gh", "glpat-", "xox", "AKIA", "ASIA", "AIza", "sk-", "pypi-", "eyJ"),
    *("wandb_v1_", "earer ", "EARER ", "asic ", "ASIC ", "PRIVATE KEY", "?", "&", "#"),
)
_HEX_KEY = re.compile(r"[0-9a-f]{40}")
_PROXY_USER = re.compile(r"[^\s/@:]*:[^\s@]+@\S")


def is_secret_name(name: str) -> bool:
    """Whether the words of a variable's or key's name say that its value is a secret.

    Words end at anything but a letter, and where lower case turns to upper case: `HF_TOKEN`, `hfToken`.
    """
    if name in _HARMLESS_NAMES:
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    for place, word in enumerate(words):
        others = {*words[:place], *words[place + 1 :]}
        is_suspect = word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS)
        # `KEY_FRAMES` counts frames; only at the end of a name is KEY a secret.
        is_suspect |= word in ("key", "keys") and 0 < place == len(words) - 1
        if is_suspect and not others & _HARMLESS_BESIDE.get(word, frozenset()):
            return True
    return not _SECRET_PAIRS.isdisjoint(pairwise(words))


def is_secret_value(value: str, name: str = "") -> bool:
    """Whether a value is or contains a secret: a password in a URL, a token of a known kind.

    name  of the variable or key with this value, if it has one
    """
    if mask(value) != value:
        return True
    words = {word.lower() for word in _WORD.findall(name)}
    if "wandb" in words and _HEX_KEY.fullmatch(value):
        return True
    return "proxy" in words and _PROXY_USER.match(value) is not None


def mask(text: str) -> str:
    """The text with `***` instead of passwords in URLs and tokens of known kinds."""
    if not any(hint in text for hint in _HINTS):
        return text
    if "@" in text:
        text = _USER_INFO.sub(_without_user, text)
    text = _TOKENS.sub(_without_token, text)
    text = _BEARER.sub(rf"\g<start>{HIDDEN}", text)
    text = _PRIVATE_KEY.sub(rf"\g<start>{HIDDEN}", text)
    return _QUERY.sub(_without_value, text) if "=" in text else text


def mask_assignment(text: str) -> str:
    """A `KEY=VALUE` of the command line, with the value hidden if the key or the value shows a secret."""
    key, equals, value = text.partition("=")
    last = key.rpartition(".")[2]
    if equals and value and (is_secret_name(last) or is_secret_value(value, last)):
        masked = mask(value)
        return f"{key}={masked if masked != value and not is_secret_name(last) else HIDDEN}"
    return mask(text)


def mask_command(words: list[str]) -> list[str]:
    """The words of a command line without secrets, to be stored."""
    masked = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, rest = word.partition("=")
        if option.startswith("--") and equals:
            # `--set=KEY=VALUE`, or an option such as `--hub-token=…`.
            masked.append(f"{option}={mask_assignment(rest)}" if "=" in rest else mask_assignment(word))
        elif before.startswith("--") and not word.startswith("-") and is_secret_name(before.strip("-")):
            masked.append(HIDDEN)
        else:
            masked.append(mask_assignment(word))
    return masked


def _without_user(found: re.Match[str]) -> str:
    scheme = (found["scheme"] or "").lower()
    user = found.group()[len(found["start"]) : -1]
    if ":" not in user and (scheme in _USER_IS_NO_SECRET or not scheme):
        return found.group()
    return f"{found['start']}{HIDDEN}@"


def _without_token(found: re.Match[str]) -> str:
    kind = found.lastgroup
    return f"{found[kind]}{HIDDEN}" if kind is not None else HIDDEN


def _without_value(found: re.Match[str]) -> str:
    name = found["name"]
    last = name.lower().rpartition("-")[2]
    is_signature = last in ("sig", "signature", "credential") or name.lower() in ("key", "code")
    return f"{name}={HIDDEN}" if is_signature or is_secret_name(name) else found.group()
