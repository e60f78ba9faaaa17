"""An inspection in a process of its own, whose address space is limited.

``python address_space.py FOLDER OUT MEGABYTES streamed`` inspects a model with at most so many megabytes of address
space above those of an interpreter with torch and mesascope, and streams its layers; ``whole`` holds them in memory. It
writes the peak above them, and how often the weights of layers were read.
"""

import json
import re
import resource
import sys
from pathlib import Path

import torch

import mesascope
from mesascope.models.streaming import stream_layers

MEGABYTE = 2**20
IDS = torch.randint(9, 200, (2, 24), generator=torch.Generator().manual_seed(0))
ANALYSES = ["norms", "logit_lens"]


def address_space(kind: str) -> int:
    """Bytes of address space of this process: at present (VmSize), or at its peak (VmPeak)."""
    (kilobytes,) = re.findall(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def watch_streamed_weights() -> list[stream_layers.StreamedWeights]:
    """A list to which the weights of every streamed model are added."""
    made, init = [], stream_layers.StreamedWeights.__init__

    def init_and_add(weights, stored):
        init(weights, stored)
        made.append(weights)

    stream_layers.StreamedWeights.__init__ = init_and_add
    return made


def main(folder: str, out: str, megabytes: str, how: str) -> None:
    base, watched = address_space("VmSize"), watch_streamed_weights()
    limit = base + int(megabytes) * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    mesascope.inspect(folder, token_ids=IDS, out=out, analyses=ANALYSES, stream_layers=how == "streamed", quiet=True)
    reads = [count for weights in watched for count in weights.num_reads.values()]
    peak = (address_space("VmPeak") - base) / MEGABYTE
    sys.stdout.write(json.dumps({"peak": peak, "fewest": min(reads), "most": max(reads)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
