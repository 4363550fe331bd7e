"""A fuzzer of the commands: ``python -m benchmarks.fuzz``, see ``README.md``."""
