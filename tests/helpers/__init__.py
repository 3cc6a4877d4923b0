"""What several test files use: servers, providers, logs, browsers."""
