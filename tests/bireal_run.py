"""The command of the runtime, as tests call it."""

from bireal_jax.runtime import __main__ as command


def run(capsys, *arguments, status=0):
    """What it prints. It must end with `status`."""
    try:
        command.main([*map(str, arguments)])
        found = 0
    except SystemExit as left:
        found = left.code
    out = capsys.readouterr()
    assert found == status, out.err
    return out
