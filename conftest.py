"""Nothing but what the framework's own tests need of pytest."""

pytest_plugins = ["pytester"]
