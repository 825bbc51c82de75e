"""Which pictures a path means, in which order, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unicodedata import normalize

import pytest

from lorac.errors import InputError
from lorac.listing import KohyaFolder, expand, pictures, shown_path, split_glob


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def names(path: str) -> list[str]:
    return [picture.name for picture in pictures(Path.cwd() / path)]


def complaint(path: str, where: str = "") -> str:
    with pytest.raises(InputError) as caught:
        pictures(Path.cwd() / path, where=where)
    return str(caught.value)


def test_a_folder(folder: Path) -> None:
    touch("p/b.png", "p/a.JPG", "p/c.webp", "p/d.Jpeg", "p/e.bmp", "p/a.txt", "p/x.gif", "p/.hidden.png", "p/sub/f.png")
    found = pictures(folder / "p")
    assert [picture.name for picture in found] == ["a.JPG", "b.png", "c.webp", "d.Jpeg", "e.bmp"]
    first, second, *_ = found
    assert (first.path, first.caption_path) == (str(folder / "p" / "a.JPG"), str(folder / "p" / "a.txt"))
    assert first.stat == Path(first.path).stat()
    assert first.caption_stat == (folder / "p" / "a.txt").stat()
    assert (second.caption_path, second.caption_stat) == (None, None)


def test_other_caption_extension(folder: Path) -> None:
    touch("p/a.png", "p/a.txt", "p/a.Caption")
    (found,) = pictures(folder / "p", ".caption")
    assert found.caption_path == str(folder / "p" / "a.Caption")


def test_names_with_points(folder: Path) -> None:
    touch("p/a.b.png", "p/a.png", "p/a.b.txt")
    assert [picture.caption_path is not None for picture in pictures(folder / "p")] == [True, False]


def test_order_is_by_utf8_bytes_and_not_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    touch(*(f"p/{stem}.png" for stem in ("10", "9", "B1", "a2", "日本", "é", "a-", "a b")))
    expected = sorted(names("p"), key=lambda name: name.encode())
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names("p") == expected == ["10.png", "9.png", "B1.png", "a b.png", "a-.png", "a2.png", "é.png", "日本.png"]


def test_globs() -> None:
    touch("p/riho_1.png", "p/riho_2.PNG", "p/other.png", "p/riho_1.txt", "q/riho_3.png", "p/deep/er/riho_4.png")
    assert names("p/riho_*") == ["riho_1.png", "riho_2.PNG"]
    assert names("p/*.png") == ["other.png", "riho_1.png", "riho_2.PNG"]
    assert names("p/riho_[2-9].*") == ["riho_2.PNG"]
    assert names("?/riho_*.png") == ["p/riho_1.png", "p/riho_2.PNG", "q/riho_3.png"]
    assert names("**/riho_*") == ["p/deep/er/riho_4.png", "p/riho_1.png", "p/riho_2.PNG", "q/riho_3.png"]
    assert names("p/**") == ["deep/er/riho_4.png", "other.png", "riho_1.png", "riho_2.PNG"]
    assert names("*/*/*/riho_4.png") == ["p/deep/er/riho_4.png"]
    assert names("p/riho_1.png") == ["riho_1.png"]


def test_a_folder_whose_name_looks_like_a_glob() -> None:
    touch("odd[1]/riho.png", "odd1/wrong.png")
    assert names("odd[1]") == ["riho.png"]
    assert names("odd[1]/r*") == ["riho.png"]
    assert split_glob(Path.cwd() / "odd[1]" / "r*") == (Path.cwd() / "odd[1]", ("r*",))


def test_non_ascii_names_are_nfc() -> None:
    touch(f"p/{normalize('NFD', 'é')}.png")
    assert names("p") == [f"{normalize('NFC', 'é')}.png"]


def test_nothing_there() -> None:
    touch("p/a.gif", "p/b.gif", "p/c.txt", "p/d", "p/sub/x.png", "q/a.jpg")
    saw = "2 .gif, 1 .txt, 1 folders, 1 without extension; lorac reads .bmp .jpeg .jpg .png .webp"
    assert complaint("p") == f'p: no pictures in "p", only {saw}'
    assert complaint("p", where="x.toml:3") == f'x.toml:3: no pictures in "p", only {saw}'
    assert complaint("q/*.png") == (
        'q/*.png: no pictures in "q/*.png", only 1 .jpg; lorac reads .bmp .jpeg .jpg .png .webp'
    )
    Path("empty").mkdir()
    assert 'no pictures in "empty"; ' in complaint("empty")
    assert complaint("nowhere") == 'nowhere: the folder "nowhere" does not exist'


def test_pictures_that_would_share_a_caption() -> None:
    touch("p/a.png", "p/a.jpg", "p/b.png", "p/B.webp", "p/c.png", "q/a.png")
    lines = sorted(complaint("p").splitlines())
    assert lines == [
        "p/a.png: has the same name as a.jpg, so both would share one caption; rename one of them",
        "p/b.png: has the same name as B.webp, so both would share one caption; rename one of them",
    ]
    assert names("?/c*") == ["p/c.png"]
    assert names("[q]/a*") == ["q/a.png"]


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system makes the two names one")
def test_two_unicode_forms_of_one_name() -> None:
    touch(f"p/{normalize('NFC', 'é')}.png", f"p/{normalize('NFD', 'é')}.png")
    assert "has the same name as" in complaint("p")


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_broken_links_and_folders_that_look_like_pictures() -> None:
    touch("p/a.png")
    Path("p/b.png").symlink_to("nowhere.png")
    Path("p/c.png").mkdir()
    assert complaint("p") == "p/b.png: cannot be read: No such file or directory; is it a broken link?"
    Path("p/b.png").unlink()
    assert names("p") == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_unicode() -> None:
    touch("p/a.png")
    Path(os.fsdecode(b"p/\xff.png")).touch()
    assert "the file name is not Unicode; rename it" in complaint("p")


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch("p/a.png")

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert complaint("p", "x.toml:2") == 'x.toml:2: the folder "p" cannot be read: Permission denied'
    with pytest.raises(InputError, match='p: the folder "p" cannot be read: Permission denied'):
        expand(folder / "p")


def test_kohya_folder(folder: Path) -> None:
    touch("t/16_kk_dancer/1.png", "t/36_riho/1.png", "t/10_/1.png", "t/2_5_x/1.png", "t/.git/1.png", "t/logs/a.log")
    assert expand(folder / "t") == [
        KohyaFolder(folder / "t" / "10_", 10, ""),
        KohyaFolder(folder / "t" / "16_kk_dancer", 16, "kk_dancer"),
        KohyaFolder(folder / "t" / "2_5_x", 2, "5_x"),
        KohyaFolder(folder / "t" / "36_riho", 36, "riho"),
    ]


def test_an_ordinary_folder_is_none(folder: Path) -> None:
    touch("p/1.png", "p/backup/1.png", "p/2023/1.png")
    assert expand(folder / "p") == []


def test_kohya_folder_mistakes(folder: Path) -> None:
    touch("t/16_a/1.png", "t/loose.png", "t/riho/1.png", "t/0_b/1.png", "t/-1_c/1.png")
    with pytest.raises(InputError) as caught:
        expand(folder / "t", "x.toml:2")
    assert str(caught.value).splitlines() == [
        'x.toml:2: "t" holds pictures (loose.png) beside kohya sub-folders (-1_c); '
        "move the pictures, or name a sub-folder in path",
        'x.toml:2: the sub-folder "riho" of "t" has no number of repeats; name it like 10_word, or move it away',
        'x.toml:2: "-1_c" means -1 repeats; give at least 1',
        'x.toml:2: "0_b" means 0 repeats; give at least 1',
    ]


def test_paths_are_shown_from_the_working_folder(folder: Path) -> None:
    assert shown_path(folder / "a" / ".." / "b.png") == "b.png"
    assert shown_path(folder.parent / "x") == (folder.parent / "x").as_posix()
