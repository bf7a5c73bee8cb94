"""ReFrame: output files that are there when the job is, and an exit code that is true."""

import reframe
import reframe.utility.sanity as sanity


class InAJob(reframe.RunOnlyRegressionTest):
    valid_systems = ["*"]  # noqa: RUF012 - a typed list of ReFrame's
    valid_prog_environs = ["builtin"]  # noqa: RUF012 - the same
    time_limit = "5m"


@reframe.simple_test
class Says(InAJob):
    executable = "echo"
    executable_opts = ["hello", "$PBS_JOBID"]  # noqa: RUF012 - the same

    @sanity_function  # noqa: F821 - ReFrame puts the name into the body of its classes
    def said(self) -> object:
        return sanity.assert_found(r"^hello \d+", self.stdout)


@reframe.simple_test
class Fails(InAJob):
    executable = "exit 7; echo"

    @sanity_function  # noqa: F821 - ReFrame puts the name into the body of its classes
    def failed(self) -> object:
        return sanity.assert_eq(self.job.exitcode, 7)
