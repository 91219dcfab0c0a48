import re

import pytest

from bigain.cli.main import main


@pytest.fixture
def refused(capsys):
    """Run a command that ends with status 2 and one line: `refused(["generate", ".."], "words of the line")`."""

    def run(command, words):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(words, line)

    return run
