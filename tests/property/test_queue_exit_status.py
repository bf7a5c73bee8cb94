from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.model import Cause
from hpcmesos.queue.states import exit_status

codes = st.none() | st.integers(0, 255)
signals = st.none() | st.integers(1, 64)
OWN = (Cause.OK, Cause.APP, Cause.SIGNAL)


@given(st.sampled_from(Cause), codes, signals, st.booleans(), st.sampled_from(["torque", "pbspro"]))
def test_every_end_has_a_status_and_failure_never_reads_as_success(
    cause: Cause, code: int | None, signal: int | None, forced: bool, personality: str
) -> None:
    status = exit_status(cause, code, signal, forced, personality)
    assert -29 <= status <= 256 + 64
    if status == 0:
        assert cause in OWN
        assert code == 0
        assert signal is None


@given(st.sampled_from(OWN), st.integers(0, 255), st.booleans())
def test_the_scripts_own_code_comes_through(cause: Cause, code: int, forced: bool) -> None:
    assert exit_status(cause, code, None, forced) == code


@given(
    st.sampled_from([cause for cause in Cause if cause not in OWN]),
    codes,
    signals,
    st.booleans(),
    codes,
    signals,
)
def test_infrastructure_overrides_whatever_the_script_returned(
    cause: Cause, code: int | None, signal: int | None, forced: bool, other: int | None, another: int | None
) -> None:
    assert exit_status(cause, code, signal, forced) == exit_status(cause, other, another, forced)
