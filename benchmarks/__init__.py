"""Benchmarks: fusegraph beside other frameworks, on the models people train on their own machine."""
