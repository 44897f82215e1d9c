from system.data.tasks.gsm8k_chains import Gsm8kChainsTask


def test_step_bound_leaves_long_chains_out_of_training_only() -> None:
    whole, bounded = Gsm8kChainsTask(), Gsm8kChainsTask(max_train_steps=2)
    short = [problem for problem in whole.load("train") if len(problem.solution.splitlines()) <= 3]

    assert bounded.load("train") == short
    assert 0 < len(short) < len(whole.load("train"))
    assert bounded.load("validation") == whole.load("validation")
    assert bounded.load("test") == whole.load("test")
