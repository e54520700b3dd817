"""Archives: the same data as the folder they were made from, and nothing that they could do to a machine."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from quintet.core.errors import DataError
from quintet.data import archives
from quintet.data.dataset import Dataset
from quintet.data.sources import open_dataset

OPTIONS = {"near": False}
ENDINGS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    x = np.random.default_rng(seed).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    Image.fromarray(x).save(stream, "PNG")
    return stream.getvalue()


def tree(count: int = 30) -> dict[str, bytes]:
    return {f"{('cat', 'dog')[i % 2]}/{i:02d}.png": png(i) for i in range(count)}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    kind = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(path.suffix[1:], "w")
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def unpack(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def listed(dataset: Dataset) -> dict[str, str]:
    return {item["file"]: item["reason"] for item in dataset.found["listed"]}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("around", ["", "photos-main/"])
def test_an_archive_is_the_folder_it_was_made_from(tmp_path: Path, ending: str, around: str) -> None:
    files = tree()
    folder = open_dataset(unpack(tmp_path / "photos", files), OPTIONS)
    before = set(tmp_path.rglob("*"))
    path = pack(tmp_path / f"photos.{ending}", {around + name: content for name, content in files.items()})
    packed = open_dataset(path, OPTIONS)
    assert packed.fingerprint == folder.fingerprint
    assert packed.names == {"label": ("cat", "dog")}
    assert packed.name == "photos"
    assert set(tmp_path.rglob("*")) == before | {path}  # nothing is unpacked
    assert open_dataset(path, OPTIONS).fingerprint == folder.fingerprint  # from the cache


def test_splits_and_label_files_are_those_of_folders(tmp_path: Path) -> None:
    files = {f"{part}/{i}.png": png(i + add) for part, add in (("train", 0), ("test", 100)) for i in range(25)}
    rows = "".join(f"{name},{i % 3}\n" for i, name in enumerate(files))
    files["metadata.csv"] = ("file_name,label\n" + rows).encode()
    folder = open_dataset(unpack(tmp_path / "x", files), OPTIONS)
    packed = open_dataset(pack(tmp_path / "x.tar.gz", files), OPTIONS)
    assert len(packed.test) == 25
    assert dict(packed.spec.conditions) == {"label": 3}
    assert packed.fingerprint == folder.fingerprint
    plain = {name: content for name, content in files.items() if name != "metadata.csv"}
    (tmp_path / "beside.csv").write_bytes(files["metadata.csv"])
    beside = {**OPTIONS, "label_file": str(tmp_path / "beside.csv")}
    assert open_dataset(pack(tmp_path / "y.zip", plain), beside).fingerprint == folder.fingerprint


def test_a_label_file_beside_an_archive_that_changes_is_read_again(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", tree())
    options = {**OPTIONS, "label_file": str(tmp_path / "mine.csv")}
    for names in (("rose", "tulip"), ("tulip", "rose"), ("iris", "rose")):
        rows = "".join(f"{i:02d},{names[i % 2]}\n" for i in range(30))
        (tmp_path / "mine.csv").write_text("id,label\n" + rows)
        dataset = open_dataset(path, options)
        assert dataset.names == {"label": tuple(sorted(names))}
        first = int(dataset.train.labels["label"].sum())
        assert 0 < first < len(dataset.train)


def test_members_that_lead_elsewhere_are_listed_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    files = tree()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:

        def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, link
            tar.addfile(info, io.BytesIO(content))

        add("cat/00.png", png(999))
        for name, content in files.items():
            add(name, content)
        add("../../evil.png", png(0))
        add("/etc/evil.png", png(0))
        add("C:\\evil.png", png(0))
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        for name, kind in (("sym.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("dev.png", tarfile.CHRTYPE),
                           ("pipe.png", tarfile.FIFOTYPE)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    dataset = open_dataset(tmp_path / "x.tar", {**OPTIONS, "allow_bad": True})
    found = listed(dataset)
    assert found["../../evil.png"] == found["/etc/evil.png"] == found["C:\\evil.png"] == "member_place"
    assert {found[f"{name}.png"] for name in ("sym", "hard", "dev", "pipe")} == {"special"}
    assert found["cat/00.png"] == "member_twice"
    assert dataset.fingerprint == open_dataset(unpack(tmp_path / "y", files), OPTIONS).fingerprint


def test_encrypted_members_are_listed(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", tree())
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the first member's flags
        content[content.index(magic) + at] |= 1
    path.write_bytes(bytes(content))
    assert listed(open_dataset(path, OPTIONS))["cat/00.png"] == "encrypted"


def sparse_zip(path: Path, members: int, size: int) -> Path:
    """A zip of members that each say they are `size` bytes and share one small content."""
    packed = zlib.compressobj(9, 8, -15)
    data = packed.compress(bytes(1 << 20)) + packed.flush()
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(data), size, 5, 0) + b"0.png" + data
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(data), size, 5, 0, 0, 0, 0, 0, 0)
        + b"0.png"
        for _ in range(members)
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, members, members, len(entries), len(local), 0)
    path.write_bytes(local + entries + end)
    return path


def bombs(folder: Path) -> Iterator[Path]:
    yield sparse_zip(folder / "overlap.zip", 1000, 1 << 28)
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    yield write(folder / "huge.tar.gz", gzip.compress(info.tobuf() + bytes(10_000)))
    info.size = 1 << 30
    several = b"".join(info.tobuf() for _ in range(3))
    yield write(folder / "sum.tar.bz2", bz2.compress(several))
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 34
    yield write(folder / "longname.tar.xz", lzma.compress(long.tobuf(tarfile.GNU_FORMAT) + bytes(5000)))
    back = bytearray(tarfile.TarInfo("b.png").tobuf(tarfile.GNU_FORMAT))
    back[124:136] = (-512 & (2**96 - 1)).to_bytes(12, "big")  # a size below zero leads back to the same header
    back[148:156] = b"        "
    back[148:156] = f"{sum(back):06o}\0 ".encode()
    yield write(folder / "back.tar", bytes(back) * 3)
    chain = tarfile.TarInfo("p")
    chain.type = tarfile.XHDTYPE
    yield write(folder / "chain.tar", chain.tobuf() * 5000)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_bombs_are_refused_before_they_grow(tmp_path: Path) -> None:
    for path in bombs(tmp_path):
        tracemalloc.start()
        try:
            with pytest.raises(DataError):
                open_dataset(path, OPTIONS)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20, path.name
        finally:
            tracemalloc.stop()


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 10)
    for ending in ("zip", "tar"):
        with pytest.raises(DataError, match="more than 10 members"):
            open_dataset(pack(tmp_path / f"x.{ending}", tree()), OPTIONS)


def test_a_member_that_is_larger_than_it_says_is_never_read_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tree() | {"cat/large.png": png(500) + bytes(5000)}
    monkeypatch.setattr(archives, "MOST_BYTES", 4000)
    for ending in ("zip", "tar"):
        dataset = open_dataset(pack(tmp_path / f"x.{ending}", files), OPTIONS)
        assert listed(dataset)["cat/large.png"] == "large"
        assert dataset.found["images"] == 30


def test_many_large_members_are_decoded_a_few_at_a_time() -> None:
    from quintet.data.assemble import HEAVY, TASK, Entry, _tasks

    entries = [Entry(str(i), bytes(HEAVY // 4) if i % 2 else b"", None) for i in range(40)]
    tasks = list(_tasks(entries, lambda entry: entry))
    assert [entry for task in tasks for entry in task] == entries
    assert max(sum(len(entry.content) for entry in task) for task in tasks) <= HEAVY  # type: ignore[arg-type]
    assert [len(task) for task in _tasks(entries[::2] * 4, lambda entry: entry)] == [TASK, TASK, 16]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from(ENDINGS))
def test_any_damage_ends_in_a_data_error_or_data(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ending: str
) -> None:
    path = pack(tmp_path_factory.mktemp("x") / f"x.{ending}", tree(22))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(DataError):
        assert len(open_dataset(path, {**OPTIONS, "allow_bad": True, "cache": False}).train)
