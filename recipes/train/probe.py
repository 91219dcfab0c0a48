"""Train candidates of the embedded models for a while, one a GPU at a time, and measure each.

    python recipes/train/probe.py --out probe --seconds 85 dit-144x11-o3 sd-128x3     # --list names all

One line of JSON a candidate, also in `probe.jsonl`: what the last 1,000 training images, which are not trained on, say
of accuracy, and what merging and leaving out self-attention cost. Logs and weights are beside it. Without a GPU it runs
on the CPU; `--tiny` shows there that all of it works.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from probe_candidates import CANDIDATES

ROOT = Path(__file__).resolve().parents[2]
TEMPORARY = Path(tempfile.gettempdir())
TAIL = 2000
"""Characters of a log that are printed where something went wrong."""

LOG = logging.getLogger("probe")


class Seconds(logging.Formatter):
    """Begins each line with the seconds since the process began."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.relativeCreated / 1000:7.1f} s  {record.getMessage()}"


def main() -> int:
    """Launch the candidates, or train one; returns the exit status."""
    given = parse()
    if given.list:
        print("\n".join(CANDIDATES))
        return 0
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Seconds())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    if not given.one:
        return Launcher(given).run()
    from probe_train import probe  # the launcher does without what this imports

    decode(given.cache, given.tiny)
    print(probe(given, given.names[0]), flush=True)
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in CANDIDATES]:
        parser.error(f"unknown: {', '.join(unknown)}; the candidates are {', '.join(CANDIDATES)}")
    if not (given.names or given.list) or len(set(given.names)) < len(given.names):
        parser.error("give candidates, each once; --list names them")
    if given.one and len(given.names) > 1:
        parser.error(f"--one takes one candidate; got {', '.join(given.names)}")
    if given.limit <= given.seconds:
        parser.error(f"--limit is of training and measuring, above --seconds={given.seconds:g}; got {given.limit:g}")
    if given.tiny:
        given.images, given.reduced_images, given.rows, given.batch, given.trials = 6, 4, 20, 8, 2
    if given.cache is None:
        given.cache = TEMPORARY / ("probe_train_tiny.pt" if given.tiny else "probe_train.pt")
    return given


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="Candidates, begun in this order.")
    parser.add_argument("--list", action="store_true", help="Name the candidates.")
    parser.add_argument("--one", action="store_true", help="This process trains the candidate.")
    parser.add_argument("--out", type=Path, default=Path("probe_out"), help="Folder of lines, logs and weights.")
    parser.add_argument("--cache", type=Path, help="File of decoded images, made if there is none.")
    parser.add_argument("--seconds", type=float, default=85, help="Of training, without compiling.")
    parser.add_argument("--batch", type=int, default=512, help="Images of a step; half of them for sd.")
    parser.add_argument("--images", type=int, default=1000, help="Classified without a reducer.")
    parser.add_argument("--reduced-images", type=int, default=500, help="Classified with each reducer.")
    parser.add_argument("--rows", type=int, default=2000, help="Of a forward pass that classifies.")
    parser.add_argument("--trials", type=int, default=20, help="Timesteps of the classifier.")
    parser.add_argument("--compile", choices=["blocks", "whole", "none"], default="blocks")
    parser.add_argument("--length", type=float, default=0.05, help="Of the weights' average, a share of the run.")
    parser.add_argument("--score", type=Path, help="Measure the average of --length in this checkpoint instead.")
    parser.add_argument("--limit", type=float, default=300, help="Seconds in all, after which a candidate is ended.")
    parser.add_argument("--whole", type=float, default=570, help="Seconds after which everything is ended.")
    parser.add_argument("--gpus", type=int, default=0, help="0: all there are.")
    parser.add_argument("--tiny", action="store_true", help="The same on a CPU at a tiny setting.")
    return parser


@dataclass
class Child:
    """A candidate that is being trained in a process of its own."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]
    began: float


class Launcher:
    """One process a GPU, until no candidate is left.

    Args:
        given: The command line's settings.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.waiting, self.failed = given, list(given.names), list[str]()
        self.running: dict[int, Child] = {}
        self.began = time.monotonic()

    def run(self) -> int:
        """Train and measure all; returns 0, 1 if a candidate has no line, or 130 after a signal."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        try:
            self.given.out.mkdir(parents=True, exist_ok=True)
            decode(self.given.cache, self.given.tiny)
            self.watch(self.count_gpus())
        except KeyboardInterrupt:
            LOG.info("interrupted; not begun: %s", ", ".join(self.waiting) or "none")
            return 130
        finally:
            self.end_all("was interrupted")
        LOG.info("all done; without a line: %s", ", ".join(self.failed) or "none")
        return 1 if self.failed else 0

    def count_gpus(self) -> int:
        """Count the places for processes; a CPU is one."""
        import torch

        return self.given.gpus or max(1, 0 if self.given.tiny else torch.cuda.device_count())

    def watch(self, gpus: int) -> None:
        """Begin candidates where a GPU is free, and look after those that run."""
        while self.waiting or self.running:
            if time.monotonic() - self.began > self.given.whole:
                self.end_all(f"was ended: --whole={self.given.whole:g} seconds are over")
                self.failed += self.waiting
                LOG.info("no time for: %s", ", ".join(self.waiting) or "none")
                return
            for gpu in range(gpus):
                if gpu not in self.running and self.waiting:
                    self.running[gpu] = self.begin(self.waiting.pop(0), gpu, gpus)
            for gpu, child in list(self.running.items()):
                if child.process.poll() is not None:
                    self.collect(self.running.pop(gpu))
                elif time.monotonic() - child.began > self.given.limit:
                    self.end(self.running.pop(gpu), f"was ended: it took more than --limit={self.given.limit:g} s")
            time.sleep(0.2)

    def begin(self, name: str, gpu: int, gpus: int) -> Child:
        """Start a candidate's process, with a folder of compiled code for its GPU: no two processes write one."""
        threads = max(1, (os.cpu_count() or 1) // gpus)
        environment = {
            "OMP_NUM_THREADS": str(min(8, threads)),
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "" if self.given.tiny else str(gpu),
            "TORCHINDUCTOR_CACHE_DIR": str(TEMPORARY / f"inductor{gpu}"),
            "TORCHINDUCTOR_COMPILE_THREADS": str(min(12, threads)),
        }
        log = self.given.out / f"{name}.log"
        with log.open("wb") as file:  # a group of its own, so that its compiler's processes end with it
            process = subprocess.Popen(
                command_of(self.given, name), env=environment, stdout=file, stderr=subprocess.STDOUT, process_group=0
            )
        LOG.info("%s begins on GPU %d, log %s", name, gpu, log)
        return Child(name, log, process, time.monotonic())

    def collect(self, child: Child) -> None:
        """Print the line of a candidate that is done, and keep it; or the end of its log."""
        found = [line for line in child.log.read_text(errors="replace").splitlines() if line.startswith("{")]
        if child.process.returncode or not found:
            self.tell(child, f"failed with exit status {child.process.returncode}")
            return
        print(found[-1], flush=True)
        with (self.given.out / "probe.jsonl").open("a") as file:
            file.write(f"{found[-1]}\n")

    def end_all(self, why: str) -> None:
        """End every process that runs, and print the ends of their logs."""
        children = list(self.running.values())
        self.running.clear()
        for child in children:
            self.end(child, why)

    def end(self, child: Child, why: str) -> None:
        """End a process and those that it began; it has nothing to save."""
        if child.process.poll() is not None:
            self.collect(child)
            return
        os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        self.tell(child, why)

    def tell(self, child: Child, why: str) -> None:
        """Say what became of a candidate without a line."""
        self.failed.append(child.name)
        tail = child.log.read_text(errors="replace")[-TAIL:].rstrip()
        LOG.info("%s %s; the end of %s:\n%s", child.name, why, child.log, tail)


def command_of(given: argparse.Namespace, name: str) -> list[str]:
    """Write the command that trains one candidate with the same settings."""
    options = [__file__, "--one", name]
    for key, value in vars(given).items():
        if key not in ("names", "one", "list") and value is not None and value is not False:
            option = f"--{key.replace('_', '-')}"
            options.append(option if value is True else f"{option}={value}")
    return [sys.executable, *options]


def decode(cache: Path, tiny: bool) -> None:
    """Decode the training images, of which all processes read the file."""
    if cache.exists():
        LOG.info("decoded images are in %s", cache)
        return
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from bigain.data.dataset import ImageDataset

    data = ImageDataset.open(ROOT / "recipes/train/cifar10/train.parquet", 32)
    if tiny:
        data = data.subset(1100)
    parts = [range(i, min(i + 1000, len(data))) for i in range(0, len(data), 1000)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(data.batch, parts))
    whole = {"image": torch.cat([p["image"] for p in found]), "label": torch.cat([p["labels"][:, 0] for p in found])}
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    torch.save(whole, partial)
    partial.replace(cache)
    LOG.info("decode done: %d images in %s", len(data), cache)


if __name__ == "__main__":
    sys.exit(main())
