"""The journal: what is appended is there to the last bit, what is torn is cut off, and a folder has one owner."""

import dataclasses
import os

import pytest
import torch

from nlt.run import EpochRecord
from nlt.settings import BadInput
from nlt.tracking.journal import (
    REQUIRED,
    Busy,
    Journal,
    RunFolder,
    _line,
    epoch_of,
    epoch_record,
    folder_of,
    folders,
)  # fmt: skip

RUN = "0123456789abcdef" * 2


def journal_of(path, *records):
    """A journal that holds these records."""
    path.write_bytes(b"".join(map(_line, records)))
    return Journal(path)


def test_records_come_back_in_order_with_their_places(tmp_path):
    journal = journal_of(tmp_path / "j", {"n": 0})
    for n in (1, 2):
        journal.append({"n": n, "text": "ä\n\u2028"})
    assert journal.last()["n"] == 2
    records = list(journal.read())
    assert [record["n"] for record, _ in records] == [0, 1, 2]
    assert records[-1][1] == journal.end == (tmp_path / "j").stat().st_size
    assert [record["n"] for record, _ in journal.read(records[0][1])] == [1, 2]


def test_an_epoch_comes_back_to_the_last_bit():
    losses_N = torch.tensor([0.1, torch.nan, 3e38, 1e-45])
    epoch = EpochRecord(3, 9, "cyclical", 1, {"test/accuracy": 0.1 + 0.2}, losses_N, torch.tensor([True, False, True, True]), -losses_N)  # fmt: skip
    for one in (epoch, dataclasses.replace(epoch, keep_N=None, scores_N=None)):
        back = epoch_of(epoch_record(one, {"images/x.png": b"\x89"}))
        assert back.metrics == one.metrics
        assert (back.step, back.steps, back.stage, back.t) == (3, 9, "cyclical", 1)
        assert back.losses_N.view(torch.int32).tolist() == losses_N.view(torch.int32).tolist()
        assert str(back.keep_N) == str(one.keep_N)
        assert str(back.scores_N) == str(one.scores_N)


@pytest.mark.parametrize("tail", [b"1234", b"00000000 {}\n", b"\0" * 5000, b'deadbeef {"kind"'])
def test_a_torn_end_is_cut_off(tmp_path, tail):
    journal = journal_of(tmp_path / "j", {"n": 1})
    journal.close()
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole + tail)
    again = Journal(tmp_path / "j")
    again.append({"n": 2})
    assert [record["n"] for record, _ in again.read()] == [1, 2]


def test_damage_in_the_middle_is_told_not_hidden(tmp_path):
    journal_of(tmp_path / "j", {"n": 0}, {"n": 1}, {"n": 2})
    content = bytearray((tmp_path / "j").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(BadInput, match="line 2 is damaged"):
        Journal(tmp_path / "j")


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    import nlt.tracking.journal as module

    journal = journal_of(tmp_path / "j", {"n": 1})
    before = (tmp_path / "j").read_bytes()
    real = os.write

    def part(descriptor, line):
        if len(line) > 5:
            return real(descriptor, line[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", part)
    with pytest.raises(OSError, match="No space"):
        journal.append({"n": 2, "more": "x" * 17})
    assert (tmp_path / "j").read_bytes() == before
    monkeypatch.undo()
    journal.append({"n": 3})
    assert [record["n"] for record, _ in journal.read()] == [1, 3]


def make(tmp_path, **start):
    return RunFolder.create(
        tmp_path / "runs", RUN, dict.fromkeys(REQUIRED, "s"), [{"kind": "start", "time": 1} | start]
    )


def test_a_folder_has_one_owner(tmp_path):
    folder = make(tmp_path)
    with pytest.raises(Busy):
        RunFolder(folder.path)
    folder.close()
    RunFolder(folder.path).close()


def test_a_folder_goes_only_when_the_run_is_over_and_delivered(tmp_path):
    folder = make(tmp_path)
    folder.set_delivered(folder.journal.end)
    folder.close()
    folder = RunFolder(tmp_path / "runs" / RUN)
    assert not folder.is_over()
    folder.journal.append({"kind": "end", "over": True})
    assert folder.waiting() == 1
    folder.close()
    folder = RunFolder(tmp_path / "runs" / RUN)
    folder.set_delivered(folder.journal.end)
    folder.close()
    assert folders(tmp_path / "runs") == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_wrong_note_of_what_is_delivered_means_all_is_sent_again(tmp_path):
    for note in ("17", "x", "", "-3", "99999999"):
        folder = make(tmp_path / (note or "empty"))
        folder.close()
        (folder.path / "delivered").write_text(note)
        assert RunFolder(folder.path).delivered == 0


@pytest.mark.parametrize("name", ["..", "../../etc", RUN.upper(), RUN + "/..", "", "x" * 32, "\0"])
def test_a_run_id_cannot_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(BadInput, match="no run id"):
        folder_of(tmp_path, name)


def test_a_folder_without_run_json_is_no_run(tmp_path):
    folder = make(tmp_path)
    folder.close()
    (folder.path / "run.json").unlink()
    assert folders(tmp_path / "runs") == []
    with pytest.raises(Busy):  # as if another process had just removed it
        RunFolder(folder.path)
    assert not folder.path.exists()


def test_a_new_folder_is_never_seen_unlocked(tmp_path, monkeypatch):
    """From when run.json is there, others may look: they must find the lock taken."""
    import nlt.tracking.journal as module

    real, seen = module.sync_folder, []

    def look(path):
        real(path)
        for found in folders(tmp_path / "runs"):
            with pytest.raises(Busy):
                RunFolder(found)
            seen.append(found)

    monkeypatch.setattr(module, "sync_folder", look)
    make(tmp_path).close()
    assert len(seen) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"store": 1}', b"\xff", b"{"])
def test_a_damaged_run_json_is_one_sentence(tmp_path, content):
    folder = make(tmp_path)
    folder.close()
    (folder.path / "run.json").write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read"):
        RunFolder(folder.path)


@pytest.mark.parametrize("content", [b"", b"x", b"00000000 {}\n"])
def test_a_journal_without_a_first_line_is_one_sentence_and_left_as_it_is(tmp_path, content):
    folder = make(tmp_path)
    folder.close()
    (folder.path / "journal.jsonl").write_bytes(content)
    for _ in range(2):
        with pytest.raises(BadInput, match="cannot go on"):
            RunFolder(folder.path)
    assert (folder.path / "journal.jsonl").read_bytes() == content


def test_ctrl_c_in_the_middle_of_a_line_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    import nlt.tracking.journal as module

    journal = journal_of(tmp_path / "j", {"n": 1})
    real = os.write

    def interrupted(descriptor, line):
        real(descriptor, line[:7])
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.append({"n": 2})
    monkeypatch.undo()
    journal.append({"n": 3})
    assert [record["n"] for record, _ in Journal(tmp_path / "j").read()] == [1, 3]
