"""Secrets by name and by form."""

from __future__ import annotations

import pytest

from llava_recipes.masking import is_secret_name, is_secret_value, mask, mask_command

HARMLESS = (
    *("key_frames", "KEY_FRAMES", "MONKEY", "HOTKEY", "TURKEY", "KEYBOARD"),
    *("KEYWORDS", "PRIMARY_KEY", "IMAGE_KEY", "KEY", "TOKENIZER", "TOKENIZERS_PARALLELISM"),
    *("MAX_TOKENS", "MAX_NEW_TOKENS", "NUM_TOKENS", "IMAGE_TOKEN", "PAD_TOKEN_ID", "TOKENS_PER_STEP"),
    *("mm_use_im_patch_token", "consumed_tokens"),
    *("maxTokens", "PATH", "PYTHONPATH", "PATTERN", "PATCH_SIZE", "SPATIAL"),
    *("DISPATCH", "PATIENT", "AUTHOR", "AUTHORS", "AUTHORITY", "COMPASS"),
    *("BYPASS", "PASSAGE", "NUM_PASSES", "PWD", "OLDPWD", "HOME"),
    *("USER", "TMPDIR", "DATA", "SCRATCH", "HF_HOME", "HF_HUB_CACHE"),
    *("WANDB_PROJECT", "CUDA_VISIBLE_DEVICES", "MASTER_PORT", "SECRETARY", "SASKATOON", "COOKIECUTTER_DIR"),
    *("PRIVATEER", "SESSIONS", "XDG_SESSION_TYPE", "HTTP_PROXY", "NO_PROXY", "EPOCHS"),
)
SECRET = (
    *("HF_TOKEN", "HF_TOKENS", "GITHUBTOKEN", "hfToken", "accessToken", "GH_PAT"),
    *("AUTH", "BASIC_AUTH", "OAUTH_CODE", "MY_COOKIE", "BEARER", "MY_JWT"),
    *("API_KEY", "WANDB_API_KEY", "apiKey", "APIKEY", "AWS_ACCESS_KEY_ID", "SSH_KEY"),
    *("PRIVATE_KEY", "LICENSE_KEY", "OPENAI_KEYS", "PASS", "MYSQL_PASS", "DB_PSW"),
    *("DB_PASSWD", "DB_PWD", "PGPASSWORD", "Password", "DB_PASSWORD_FILE", "SECRET"),
    *(
        "CLIENT_SECRET",
        "MYSECRET",
        "CREDENTIALS",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "AWS_SESSION_TOKEN",
        "SESSION_ID",
    ),
    *(
        "AZURE_SAS",
        "SAS_URL",
        "SENTRY_DSN",
        "CONNECTION_STRING",
        "AZURE_STORAGE_CONNECTION_STRING",
        "SLACK_WEBHOOK_URL",
    ),
    *("NETRC", "KUBECONFIG", "AUTHORIZATION", "SSHPASS", "SECRETKEY", "AUTHKEY", "TOTP"),
)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_name_is_no_secret(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://user:hunter2@host/x", "https://***@host/x"),
        ("HTTPS://u:hunt@er2@h:80/x", "HTTPS://***@h:80/x"),
        ("https://u:hunt/er2@host/a", "https://***@host/a"),
        ("https://u:hunt'er2@host/a", "https://***@host/a"),
        ("redis://:hunter2@h:1/0", "redis://***@h:1/0"),
        ("postgresql+psycopg2://u:hunter2@h/db", "postgresql+psycopg2://***@h/db"),
        ("git+https://u:hunter2@h/r.git@v1", "git+https://***@h/r.git@v1"),
        ("ssh://u:hunter2@h/r", "ssh://***@h/r"),
        (r"https:\/\/u:hunter2@h", r"https:\/\/***@h"),
        ("https://hunter2@sentry.io/1", "https://***@sentry.io/1"),
        ("two: 'https://u:hunter2@a', \"https://u:hunter2@b\"", "two: 'https://***@a', \"https://***@b\""),
        ("https://h/x?token=hunter2&n=1&sig=hunter2", "https://h/x?token=***&n=1&sig=***"),
        ("https://h/x#access_token=hunter2", "https://h/x#access_token=***"),
        ("https://h/x?X-Goog-Signature=hunter2", "https://h/x?X-Goog-Signature=***"),
        ("authorization: bearer hunter2hunter2hunter2", "authorization: bearer ***"),
        ("hf_" + "aB1" * 11, "hf_***"),
        ("ghp_" + "aB1" * 12, "ghp_***"),
        ("sk-" + "a" * 48, "sk-***"),
        ("sk-proj-" + "aB1-" * 9, "sk-proj-***"),
        ("AKIA" + "ABCDEFGH" * 2, "AKIA***"),
        ("Authorization: Bearer " + "aB1" * 9, "Authorization: Bearer ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END", "-----BEGIN RSA PRIVATE KEY-----***-----END"),
    ],
)
def test_a_secret_is_hidden(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert mask(masked) == masked
    assert is_secret_value(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/path/@user",
        "https://host:4873/@scope/pkg",
        "https://medium.com/@user/x",
        "ssh://git@github.com/a",
        "hdfs://bob@nn/x",
        "s3://bucket/x@y:z",
        "http://host:8080 and mail to a@b",
        "mail@example.org",
        "./runs/sk-baseline-experiment-2024-run",
        "https://h/x?page=2&max_tokens=3",
        "hf_home/models",
        "gh_pages//x",
        "basic responsibilities, bearer of good news",
    ],
)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert mask(text) == text
    assert not is_secret_value(text)


def test_values_are_known_by_the_name_beside_them() -> None:
    assert is_secret_value("u:hunter2@proxy:3128", "HTTP_PROXY")
    assert not is_secret_value("proxy:3128", "HTTP_PROXY")
    assert is_secret_value("0123456789abcdef" * 2 + "01234567", "WANDB_ID")
    assert not is_secret_value("0123456789abcdef" * 2 + "01234567", "COMMIT")


def test_a_command_line_is_stored_without_its_secrets() -> None:
    words = [
        "run",
        "r.yaml",
        "--set",
        "vars.db_pass=hunter2",
        "--set=vars.x=ftp://u:hunter2@h",
        "--hub-token",
    ]
    words += ["hunter2", "--hub-token=hunter2", "--set", "vars.proxy=u:hunter2@h", "--set", "name=x"]
    stored = mask_command(words)
    assert "hunter2" not in " ".join(stored)
    assert len(stored) == len(words)
    assert stored[:3] == words[:3]
    assert stored[-2:] == words[-2:]
