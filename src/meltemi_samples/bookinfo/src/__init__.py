"""The programs of Bookinfo: ``python -m meltemi_samples.bookinfo.src.<service> [port]``."""
