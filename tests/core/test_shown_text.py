"""Texts of others on the terminal: no control character and no password is shown."""

import time

import pytest

from autolayer.core.shown_text import hide_parts_of, hide_secrets, hide_url, visible


def test_control_characters_become_visible_and_other_text_stays() -> None:
    assert visible("a\x1b]0;owned\x07b\x9b\x7f\r") == r"a\x1b]0;owned\x07b\x9b\x7f\r"
    assert visible("\u202eevil\u2066 \ud800") == r"\u202eevil\u2066 \ud800"
    text = "Modell Größe 模型 ✓ 👩‍🔬\n\tnext line"
    assert visible(text) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://localhost/db", "postgresql://localhost/db"),
        ("postgresql://me:SECRET@localhost:1/db", "postgresql://***@localhost:1/db"),
        ("postgresql://me:a/SECRET@localhost/db", "postgresql://***@localhost/db"),
        ("postgresql://me:a@SECRET@localhost/db", "postgresql://***@localhost/db"),
        ("postgresql://me:a SECRET'@localhost/db", "postgresql://***@localhost/db"),
        ("postgresql://h/db?user=me&password=SECRET", "postgresql://h/db?user=me&password=***"),
        ("postgresql://h/db?sslmode=on&PASSWORD=a;SECRET", "postgresql://h/db?sslmode=on&PASSWORD=***"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER=x;PWD=SECRET", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://h/v1?api_key=SECRET", "https://h/v1?api_key=***"),
        ("me:SECRET@localhost/db", "***"),
        ("host=localhost password=SECRET", "***"),
        ("sqlite:///lr=0.1/study.db", "sqlite:///lr=0.1/study.db"),
        ("postgresql://me:SECRET/db", "postgresql://me:***/db"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert hide_url(url) == shown


def test_what_a_driver_says_about_a_url_is_shown_without_its_secrets() -> None:
    url = "postgresql://me:a@SECRET@localhost/db"
    assert hide_parts_of(url, f"no host 'SECRET@localhost' in {url}") == (
        "no host '***@localhost' in postgresql://***@localhost/db"
    )
    assert hide_parts_of("nowhere", "no such file") == "no such file"


def test_a_sentence_with_a_url_keeps_its_other_words() -> None:
    text = "see https://example.org/a?b=c, or write to me@example.org; set eos_token=1 & go"
    assert hide_secrets(text) == text
    assert hide_secrets("no file /home/me/https:/u:p@h/x") == "no file /home/me/https:/***@h/x"
    assert hide_secrets("get https://u:p@h/x?token=abc now, me@h") == "get https://***@h/x?token=*** now, me@h"


@pytest.mark.parametrize("text", ["?" * 20_000, "://" * 50_000, "?pass" * 10_000])
def test_no_text_takes_long(text: str) -> None:
    start = time.process_time()
    hide_secrets(text)
    assert time.process_time() - start < 2
