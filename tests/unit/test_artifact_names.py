"""Names from the remote side: whatever they are, what is accepted is safe, and nothing is lost without a reason."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rythmiq_ray.artifact_names import check_names, refuse_unsafe
from rythmiq_ray.artifacts import content_type
from rythmiq_ray.errors import ArtifactCorrupt

TRICKY = st.sampled_from(
    [
        *"aAb./\\ éÉß名\x00\x7f\x85\u2028\u202e\u2066\ud800\ufb01\u0345\u0390",
        *("e\u0301", "SS", "..", "log.txt", "LOG.TXT", "manifest.json", "x" * 200),
    ]
)
NAMES = st.lists(st.one_of(st.lists(TRICKY, max_size=6).map("".join), st.text(max_size=12)), max_size=12)


@pytest.mark.parametrize(
    "name",
    [
        *("a", "results/tile 1.png", "日本語/結果.csv", "ünïcödé", "a#b?c%d&e=f+g", "x?versionId=1", "key:secret@x/y"),
        *(".hidden", "a..b", "...", "log.txt.gz", "sub/log.txt", "emoji \U0001f468\u200d\U0001f469", "s" * 255),
    ],
)
def test_a_harmless_name_is_accepted_as_it_is(name: str) -> None:
    assert check_names([name]) == ([name], [])
    refuse_unsafe(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("../x", "segment '..'"),
        ("a/../../x", "segment '..'"),
        ("a/.", "segment '.'"),
        ("a//b", "segment ''"),
        ("a/", "segment ''"),
        ("a\\..\\b", "backslash"),
        *((f"a{letter}b", "control character") for letter in "\0\n\r\t\x1b\x7f\x85\x9b\u2028\u2029\ud800\udcff"),
        *((f"a{letter}b", "direction") for letter in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"),
        (" a", "space"),
        ("a /b", "space"),
        ("a/\u00a0b", "space"),
        ("s" * 256, "segment longer than 255"),
        ("é" * 128, "segment longer than 255"),
        ("/".join(["s" * 200] * 5), "longer than 900"),
    ],
)
def test_a_hostile_name_is_refused_with_the_reason(name: str, reason: str) -> None:
    accepted, refused = check_names(["fine", name])
    assert accepted == ["fine"]
    assert [refusal[0] for refusal in refused] == [name]
    assert reason in refused[0][1]
    with pytest.raises(ArtifactCorrupt) as caught:
        refuse_unsafe(name)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("names", "accepted"),
    [
        (["b.txt", "B.txt"], ["B.txt"]),
        (["é", "e\u0301"], ["e\u0301"]),
        (["É", "e\u0301"], ["e\u0301"]),
        (["straße", "STRASSE"], ["STRASSE"]),
        (["a", "a/b"], ["a"]),
        (["a/b", "A"], ["A"]),
        (["B/c", "b"], ["B/c"]),
        (["a", "a-b", "a/b"], ["a", "a-b"]),
        (["x/y", "x/z"], ["x/y", "x/z"]),
        (["log.txt", "Log.TXT", "manifest.json", "MANIFEST.json", "log.txt/x"], []),
    ],
)
def test_of_names_that_clash_the_first_in_order_stays(names: list[str], accepted: list[str]) -> None:
    for given_order in (names, names[::-1]):
        kept, refused = check_names(given_order)
        assert kept == accepted
        assert sorted([*kept, *(name for name, _ in refused)]) == sorted(names)
        assert all("clashes with" in reason for _, reason in refused)


@given(NAMES)
def test_every_name_is_either_accepted_or_refused(names: list[str]) -> None:
    accepted, refused = check_names(names)
    assert sorted([*accepted, *(name for name, _ in refused)]) == sorted(set(names))
    assert all(reason for _, reason in refused)
    assert check_names(reversed(names)) == (accepted, refused)
    assert check_names(accepted) == (accepted, [])


@given(NAMES)
def test_what_is_accepted_stays_below_any_folder_and_is_a_file_of_its_own(names: list[str]) -> None:
    accepted, _ = check_names(names)
    root = Path("/somewhere/deep")
    for name in accepted:
        path = root.joinpath(name)
        assert path.is_relative_to(root)
        assert path != root
        assert ".." not in path.parts
        assert str(path) == f"{root}/{name}"
        assert len(name.encode()) <= 900
        assert all(len(part.encode()) <= 255 for part in path.parts)
        assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)

    def one_form(name: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

    forms = [one_form(name) for name in accepted]
    assert len(set(forms)) == len(forms)
    assert not {"log.txt", "manifest.json"} & set(forms)
    assert not any(other.startswith(f"{form}/") for form in forms for other in forms)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("log.txt", "text/plain; charset=utf-8"),
        ("notes.txt", "text/plain"),
        ("tiles/a b.png", "image/png"),
        ("x.json", "application/json"),
        ("x.tar.gz", "application/gzip"),
        ("x", "application/octet-stream"),
        ("x.unheardof", "application/octet-stream"),
        ("data:text/html;шш,x", "application/octet-stream"),
    ],
)
def test_the_content_type_is_by_the_ending_alone(name: str, kind: str) -> None:
    assert content_type(name) == kind


@given(st.text(max_size=30))
def test_a_content_type_always_fits_into_a_header(name: str) -> None:
    assert content_type(name).isascii()
    assert content_type(name).isprintable()
