"""The programs behind the samples: ``python -m meltemi_samples.programs.<name>``."""
