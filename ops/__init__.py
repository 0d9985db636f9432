"""What runs Jarvis on a machine: set-up, embedded Redis, supervision, command line, benchmarks."""
