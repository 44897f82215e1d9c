import pickle

from system.errors import ConfigError, DeadlineError, LearnerDiedError, first_error


def test_config_error_names_key_value_expectation_and_fix() -> None:
    error = ConfigError("learner.zero_stage", given=4, expected="0 to 3", fix="learner.zero_stage=3")

    assert str(error) == "learner.zero_stage: given 4, expected 0 to 3. Fix: learner.zero_stage=3"


def test_errors_with_keywords_survive_the_way_through_another_process() -> None:
    config_error = pickle.loads(pickle.dumps(ConfigError("a.b", given=1, expected="2", fix="a.b=2")))
    deadline_error = pickle.loads(pickle.dumps(DeadlineError("rollout worker 1", what="join", seconds=5)))

    assert (config_error.key, str(config_error)) == ("a.b", "a.b: given 1, expected 2. Fix: a.b=2")
    assert (deadline_error.who, str(deadline_error)) == (
        "rollout worker 1",
        "rollout worker 1 did not finish 'join' within 5 s",
    )


def test_first_error_is_found_inside_nested_groups() -> None:
    died = LearnerDiedError("rank 1")
    nested = BaseExceptionGroup("loops", [BaseExceptionGroup("ranks", [died, ValueError("later")])])

    assert first_error(nested) is died
