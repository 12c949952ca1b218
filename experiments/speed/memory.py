"""Peak memory of loading Bi-Real Net 18 and running one image: ours against onnxruntime's float32 ResNet-18.

    python -m experiments.speed.memory

Each in a process of its own: the most that was resident, less what was resident when the library had been imported.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bireal_jax import output
from bireal_jax.runtime import container
from bireal_jax.shipping import to_onnx

WORKERS = {
    "ours": (
        "from bireal_jax import runtime\n"
        "import numpy as np\n"
        "before = status('VmRSS')\n"
        "runtime.load(sys.argv[1])(np.zeros((1, 224, 224, 3), np.uint8))\n"
    ),
    "onnxruntime": (
        "import onnxruntime as ort\n"
        "import numpy as np\n"
        "before = status('VmRSS')\n"
        "options = ort.SessionOptions()\n"
        "options.intra_op_num_threads = 1\n"
        "session = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
        "session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 224, 224), np.float32)})\n"
    ),
}
# Not getrusage: its peak begins with what the parent had when it forked.
STATUS = (
    "import sys\n"
    "def status(field):\n"
    "    return next(int(line.split()[1]) / 1e3 for line in open('/proc/self/status') if line.startswith(field))\n"
)
REPORT = "print(before, status('VmHWM'))\n"


def main():
    """The command."""
    from experiments.speed import inference, peers

    with tempfile.TemporaryDirectory() as folder:
        packed, twin = Path(folder, "bireal18.safetensors"), Path(folder, "resnet18.onnx")
        command = [sys.executable, "-m", "experiments.speed.inference", "--worker", "make_network"]
        subprocess.run([*command, "--network", str(packed)], check=True)
        model = to_onnx.model(peers.real_twin(container.read(packed)), 1, pixels=False)
        twin.write_bytes(model.SerializeToString())
        print(inference.machine())
        for name, path in {"ours": packed, "onnxruntime": twin}.items():
            runs = []
            for _ in range(5):
                code = STATUS + WORKERS[name] + REPORT
                done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
                before, peak = map(float, done.stdout.split())
                runs.append(peak - before)
            size, peak = path.stat().st_size / 1e6, f"{np.median(runs):.1f} MB ({min(runs):.1f} to {max(runs):.1f})"
            print(f"{name}: file of {size:.1f} MB, peak of 5 runs {peak}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with output.command():
        main()
