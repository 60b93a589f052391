"""The command that runs one schedule again as it was run: a seed alone is another schedule under other options."""

# keywords of `run` (tests/simulation/schedule.py), options of the command
OPTIONS = ("shards", "gone", "pages", "clocks")


def replay_command(seed: int, *, mutation: str | None = None, **options: bool) -> str:
    """`options` as for `run`; `mutation` is a name of tests/simulation/mutations.py."""
    assert set(options) <= set(OPTIONS), options
    words = [f"--{name}" for name in OPTIONS if options.get(name)]
    words += ["--mutation", mutation] if mutation else []
    return " ".join(["python -m tests.simulation", f"--seed {seed}", *words, "--trace"])
