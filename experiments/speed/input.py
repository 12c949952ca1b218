"""CPU milliseconds from a JPEG file to its place in a batch: ours against tf.data and PyTorch, side by side in one run.

    python -m experiments.speed.input --images DIR                              .jpg, .jpeg and .JPEG files, as they are
    python -m experiments.speed.input --images DIR --resize 480 360             the same, encoded anew at that size
    python -m experiments.speed.input --images DIR --tensorflow OTHER/bin/python    an interpreter that has TensorFlow

A file is read, decoded, cropped at random and resized to 224 x 224, flipped at random, and put into a batch of uint8,
shuffled, in endless epochs. Every peer does so in one process, pinned to one core; they take turns. What is counted is
the processor time of the process, threads included, over a turn that begins and ends with full buffers. Peers that are
not installed are left out and named.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bireal_jax import output

SIZE, CLASSES = 224, 10
REPEATS = 1000  # of the list of files, since the cost of shuffling depends on its length
SUFFIXES = (".jpg", ".jpeg")


def ours(paths, batch, whole):
    """Our pipeline, and the versions of what it uses; whole: Pillow decodes, as where jpeg.cc was not compiled."""
    import grain
    import PIL

    from bireal_jax.data import batching, jpeg
    from bireal_jax.data.folder import Files
    from bireal_jax.data.images import augment_file
    from bireal_jax.data.source import Source

    if whole:
        jpeg._library = None
    elif not jpeg.available():
        sys.exit("jpeg.cc is not compiled: see bireal_jax/data/jpeg.py")
    source = Source(
        train=Files([(path, 0) for path in paths] * REPEATS), eval=(), prepare=dict, image_shape=(SIZE, SIZE, 3),
        num_classes=CLASSES, augment=partial(augment_file, size=SIZE),
    )  # fmt: skip
    stream = batching.train_batches(source, batch, 0, 0, devices=1, threads=1)
    return (b["image"] for b in stream), f"grain {grain.__version__}, Pillow {PIL.__version__}"


def tf_data(paths, batch):
    """tf.data with the fused decode-and-crop of its ImageNet examples."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    def load(path):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data), tf.zeros([1, 0, 4]), aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True, min_object_covered=0.0,
        )  # fmt: skip
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    stream = tf.data.Dataset.from_tensor_slices(paths).repeat().shuffle(16384)
    stream = stream.map(load, num_parallel_calls=1).batch(batch, drop_remainder=True).prefetch(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    return stream.with_options(options).as_numpy_iterator(), f"tensorflow {tf.__version__}"


def torch_loader(paths, batch, real):
    """PyTorch's DataLoader with torchvision's transforms on Pillow images; real: to normalized floats, as is usual."""
    import PIL
    import torch
    from PIL import Image

    torchvision = importlib.import_module("torchvision")
    transforms = importlib.import_module("torchvision.transforms")

    torch.set_num_threads(1)
    last = [transforms.PILToTensor()]
    if real:
        normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        last = [transforms.ToTensor(), normalize]
    transform = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), *last])

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            with Image.open(paths[index], formats=("JPEG",)) as image:
                return transform(image.convert("RGB"))

    loader = torch.utils.data.DataLoader(Images(), batch, shuffle=True, drop_last=True)

    def endless():
        while True:
            yield from loader

    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    return endless(), versions


# name -> (module that it needs, (paths, batch) -> (endless batches, versions))
PEERS = {
    "ours": ("bireal_jax", partial(ours, whole=False)),
    "ours_pillow": ("bireal_jax", partial(ours, whole=True)),
    "tf_data": ("tensorflow", tf_data),
    "torch": ("torchvision", partial(torch_loader, real=False)),
    "torch_float": ("torchvision", partial(torch_loader, real=True)),
}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with JPEG files, searched through")
    parser.add_argument("--resize", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="encode anew, at quality 92")
    parser.add_argument("--count", type=int, default=256, help="at most so many files")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=4, help="in a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--tensorflow", default=sys.executable, help="Python interpreter for tf_data")
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def encode(paths, size, directory):
    """The landscape images among them at another size, as JPEG files of a directory."""
    from PIL import Image

    found = []
    for path in paths:
        with Image.open(path, formats=("JPEG",)) as image:
            if (image.width > image.height) == (size[0] > size[1]):
                found.append(str(Path(directory) / f"{len(found)}.jpg"))
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(found[-1], quality=92)
    return found


def processor():
    """What the CPU is called."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def start(name, arguments, paths):
    """(process, versions) of one peer, or (None, why not)."""
    python = arguments.tensorflow if name == "tf_data" else sys.executable
    if subprocess.run([python, "-c", f"import {PEERS[name][0]}"], capture_output=True).returncode:
        return None, f"{PEERS[name][0]} is not installed"
    flags = ["--worker", name, "--images", arguments.images]
    flags += ["--batch", str(arguments.batch), "--batches", str(arguments.batches)]
    command = [python, "-m", "experiments.speed.input", *map(str, flags)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert worker.stdin and worker.stdout
    worker.stdin.write(json.dumps(paths) + "\n")
    return worker, worker.stdout.readline().strip()


def turn(worker):
    """CPU milliseconds per image of one turn."""
    worker.stdin.write("go\n")
    return float(worker.stdout.readline())


def work(arguments):
    """The worker's side."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    batches, versions = PEERS[arguments.worker][1](json.loads(sys.stdin.readline()), arguments.batch)
    print(versions, flush=True)
    for _ in sys.stdin:
        began = settled()
        for _ in range(arguments.batches):
            image = next(batches)
            assert len(image) * len(image[0]) in (arguments.batch, arguments.batch * len(image[0]))
        print((settled() - began) / (arguments.batch * arguments.batches) * 1000, flush=True)


def settled():
    """Processor seconds of this process, once its threads have filled their buffers and rest."""
    before = -1.0
    while (now := time.process_time()) - before > 0.002:
        before = now
        time.sleep(0.05)
    return now


def main():
    """The command."""
    arguments = parse()
    if arguments.worker:
        return work(arguments)
    paths = sorted(str(p) for p in arguments.images.rglob("*") if p.suffix.lower() in SUFFIXES)[: arguments.count]
    if not paths:
        sys.exit(f"no JPEG files below {arguments.images}")
    with tempfile.TemporaryDirectory() as directory:
        if arguments.resize:
            paths = encode(paths, arguments.resize, directory)
        measure(arguments, paths)


def measure(arguments, paths):
    """Prints the medians."""
    started = {name: start(name, arguments, paths) for name in arguments.peers}
    for name, (worker, why) in started.items():
        if worker is None:
            print(f"{name}: left out, {why}")
    workers = {name: worker for name, (worker, _) in started.items() if worker}
    for worker in workers.values():
        turn(worker)  # fills buffers and caches
    milliseconds = {name: [] for name in workers}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            milliseconds[name].append(round(turn(worker), 4))
    for worker in workers.values():
        worker.communicate()
    print(f"\n{len(paths)} files, {processor()}, Python {platform.python_version()}, {arguments.rounds} rounds")
    print("| peer | CPU ms per image | quartiles | best | versions |\n|---|---|---|---|---|")
    for name, values in milliseconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {min(values):.2f} | {started[name][1]} |")
    if arguments.out:
        row = {"files": len(paths), "resize": arguments.resize, "cpu": processor(), "ms": milliseconds,
               "versions": {name: started[name][1] for name in workers}}  # fmt: skip
        with open(arguments.out, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    with output.command():
        sys.exit(main())
