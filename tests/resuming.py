"""A pytest plugin: ``--resume`` goes on with a run of all tests that was stopped."""

import pytest


class Resuming:
    """Keeps the names of the tests that passed since the last run of all tests began, and leaves them out if asked."""

    def __init__(self, config: pytest.Config) -> None:
        self.file = config.rootpath / ".pytest_cache" / "passed"
        self.resume = config.option.resume
        self.is_worker = hasattr(config, "workerinput")
        everything = config.args_source is config.ArgsSource.TESTPATHS and not config.option.collectonly
        if everything and not self.resume and not self.is_worker:
            self.file.unlink(missing_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and not self.is_worker:
            self.file.parent.mkdir(exist_ok=True)
            with self.file.open("a") as file:
                file.write(f"{report.nodeid}\n")

    @pytest.hookimpl(trylast=True)  # of those that are run
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if not self.resume:
            return
        passed = set(self.file.read_text().splitlines()) if self.file.exists() else set()
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]
