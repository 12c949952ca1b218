import pytest
from small import small

from bireal_jax.checks import verify
from bireal_jax.errors import BadInput
from bireal_jax.training import train


def test_every_checkpoint_is_read_and_a_damaged_one_named(tmp_path, capsys, caplog):
    config = small(total_steps=2, save_steps=1)
    with pytest.raises(BadInput, match="no checkpoint in"):
        verify.run(config, tmp_path)
    train.run(config, tmp_path)
    capsys.readouterr()
    assert verify.run(config, tmp_path) == 2
    assert capsys.readouterr().out.count("OK ") == 2
    assert not caplog.records, "nothing but what is asked for"
    files = [path for path in (tmp_path / "stage_0" / "checkpoints" / "1").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="1 of 2 checkpoints .* are damaged\nthe run is finished: delete them"):
        verify.run(config, tmp_path)
    out = capsys.readouterr().out
    assert "DAMAGED  " in out and "checkpoints/1" in out and out.count("OK ") == 1
    assert sorted(tmp_path.rglob("*")) == before
