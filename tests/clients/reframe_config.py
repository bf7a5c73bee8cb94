"""ReFrame: one partition for each of its PBS schedulers."""

SCHEDULERS = ("torque", "pbs", "pbspro")

site_configuration = {
    "systems": [
        {
            "name": "here",
            "descr": "the test cluster",
            "hostnames": [".*"],
            "partitions": [
                {"name": one, "scheduler": one, "launcher": "local", "environs": ["builtin"], "max_jobs": 4}
                for one in SCHEDULERS
            ],
        }
    ],
    "logging": [
        {
            "handlers": [{"type": "stream", "name": "stdout", "level": "info", "format": "%(message)s"}],
            "handlers_perflog": [],
        }
    ],
}
