"""The cause of an engine's failure, out of what its processes wrote."""

from pathlib import Path

from actors.rollout.engine_log import EngineLog

PREFIX = "(EngineCore pid=7) ERROR 11-26 02:03:04 [core.py:9] "
TRACE = f"""\
{PREFIX}EngineCore failed to start.
{PREFIX}Traceback (most recent call last):
{PREFIX}  File "engine.py", line 3, in start
{PREFIX}ValueError: Head size 16 is not supported by CPU attention. Supported: [32, 64].
(EngineCore pid=7) Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_first_error_since_the_start_is_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "worker.err"
    with path.open("w") as file:
        file.write("OSError: of an engine before\n")
        file.flush()
        log = EngineLog([file.fileno()])
        assert log.cause() == ""
        file.write(TRACE)
        file.flush()
        assert (
            log.cause()
            == f"ValueError: Head size 16 is not supported by CPU attention. Supported: [32, 64]. (in {path})"
        )


def test_what_goes_to_a_terminal_is_not_read() -> None:
    with Path("/dev/null").open("w") as file:
        assert EngineLog([file.fileno()]).cause() == ""


def test_both_outputs_are_read(tmp_path: Path) -> None:
    with (tmp_path / "worker.out").open("w") as output, (tmp_path / "worker.err").open("w") as errors:
        log = EngineLog([output.fileno(), errors.fileno()])
        errors.write("ValueError: in the other one\n")
        errors.flush()
        assert log.cause() == f"ValueError: in the other one (in {tmp_path / 'worker.err'})"
        output.write(TRACE)
        output.flush()
        assert log.cause().startswith("ValueError: Head size 16")
