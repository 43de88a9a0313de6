"""A whole run of the embedded model, small enough for a test."""

from scale_interp.jobs.run.settings import Settings

SMALL = Settings(n_train=40, n_locate=12, n_test=40, n_retain=10, seeds=1)
FLAGS = [f"--{name.replace('_', '-')}={getattr(SMALL, name)}" for name in ("n_train", "n_locate", "n_test", "n_retain", "seeds")]
