"""Checkpoints: whole or not at all, checked when read, no code in them."""

import os
import pickle
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlt import checkpoint
from nlt.checkpoint import Writer, latest, save, write_whole


def state(value: float):
    return {"step": 3, "tensor": torch.full((5, 2), value), "nested": {"list": [1, 2.5, "x", None, True]}}


def test_what_is_saved_comes_back(tmp_path):
    network = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    save(tmp_path, 7, {"network": network.state_dict(), "optimizer": optimizer.state_dict()} | state(1.5))
    step, back = latest(tmp_path)
    assert step == 7
    assert back["nested"] == state(1.5)["nested"]
    assert torch.equal(back["tensor"], state(1.5)["tensor"])
    for name, value in network.state_dict().items():
        assert torch.equal(back["network"][name], value)
    assert torch.equal(back["optimizer"]["state"][0]["momentum_buffer"], optimizer.state[network.weight]["momentum_buffer"])  # fmt: skip
    assert back["network"]["weight"].is_contiguous(memory_format=torch.channels_last)


def test_two_are_kept_and_the_newest_counts(tmp_path):
    for step in (1, 2, 10, 11):
        save(tmp_path, step, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-000010.pt", "checkpoint-000011.pt"]
    assert latest(tmp_path)[0] == 11


def test_no_checkpoint_is_none(tmp_path):
    assert latest(tmp_path) is None


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_noticed_and_the_one_before_is_used(tmp_path, data):
    for path in tmp_path.iterdir():
        path.unlink()
    save(tmp_path, 1, state(1))
    save(tmp_path, 2, state(2))
    path = tmp_path / "checkpoint-000002.pt"
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "grow", "empty", "zeros"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "grow":
            content += b"\0"
        case "empty":
            content.clear()
        case "zeros":
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    told = []
    step, back = latest(tmp_path, told.append)
    assert step == 1
    assert float(back["tensor"][0, 0]) == 1.0
    assert told == [f"{path} is damaged and passed over."]


def test_a_pickle_with_code_in_it_is_not_run_even_with_a_right_checksum(tmp_path):
    import hashlib
    import io

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-here"),)

    buffer = io.BytesIO()
    torch.save({"x": Evil()}, buffer)
    for payload in (buffer.getvalue(), pickle.dumps(Evil())):
        head = b"nlt checkpoint 1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n"
        (tmp_path / "checkpoint-000001.pt").write_bytes(head + payload)
        assert latest(tmp_path) is None
    assert not (tmp_path / "was-here").exists()


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_whole(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_is_written_beside_training_is_the_state_of_that_moment(tmp_path, monkeypatch):
    may_write = threading.Event()

    def slow(*args):
        may_write.wait(timeout=30)
        save(*args)

    monkeypatch.setattr(checkpoint, "save", slow)
    network = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    before = network.weight.detach().clone()
    with Writer(tmp_path) as writer:
        writer.save(1, {"network": network.state_dict(), "list": [before, 2]})
        assert latest(tmp_path) is None  # training goes on meanwhile
        with torch.no_grad():
            network.weight.zero_()
        may_write.set()
    step, back = latest(tmp_path)
    assert step == 1
    assert torch.equal(back["network"]["weight"], before)
    assert back["network"]["weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back["list"][0], before) and back["list"][1] == 2


def test_a_failure_of_the_writer_is_raised_once_and_the_next_checkpoint_is_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    writer = Writer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        writer.save(1, state(1))
        with pytest.raises(OSError, match="No space"):
            writer.save(2, state(2))
        writer.save(2, state(2))
        with pytest.raises(OSError, match="No space"), writer:
            pass
        writer.save(3, state(3))
        with pytest.raises(ValueError, match="says more"), writer:
            raise ValueError("says more")
    writer.save(4, state(4))
    writer.wait()
    assert latest(tmp_path)[0] == 4
