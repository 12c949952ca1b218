"""Published or hand-counted figures of every model; a model without a row fails test_models.py."""

import itertools

# 3x3 weights. bireal20: six convolutions at 16, 32 and 64 channels; bireal_tiny: four at 32 and 64.
B20 = 9 * (6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
TINY = 9 * (4 * 32 * 32 + 32 * 64 + 3 * 64 * 64)
# ReActNet-A: a 3x3 convolution on the input of each block, and a pointwise one.
REACT_A = 9 * (32**2 + 64**2 + 2 * 128**2 + 2 * 256**2 + 6 * 512**2 + 1024**2) + (
    32 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 5 * 512 * 512 + 512 * 1024 + 1024 * 1024
)
DOUBLED = 32 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1024  # of these, where the channels double
REACT_TINY = 9 * (16 * 16 + 32 * 32 + 64 * 64) + 16 * 32 + 32 * 64 + 64 * 64
# The same 3x3 and pointwise convolutions without groups; six blocks at 16 to 64 channels.
EBN_TINY = 9 * (16**2 + 3 * 32**2 + 2 * 64**2) + 16 * 32 + 2 * 32 * 32 + 32 * 64 + 2 * 64 * 64
# MobileNetV2 at 1.4x: (inputs, inside, outputs) of its 17 bottlenecks, each with three convolutions and batch norms.
V2_OUT = [44, 22, *[33] * 2, *[44] * 3, *[88] * 4, *[132] * 3, *[224] * 3, 448]
V2 = [(a, (6 if i else 1) * a, b) for i, (a, b) in enumerate(itertools.pairwise(V2_OUT))]
V1_TINY = [16, 32, 32, 64, 64, 64]
VGG = 9 * (128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)

# Convolutions and fully connected layers of Binary AlexNet at 10 classes; with 1000 and the running statistics and
# offsets of larq's batch norms they are the 61,859,192 of larq's documentation. XNOR-Net: 256 to 4096 channels.
ALEX = 121 * 3 * 64 + 25 * 64 * 192 + 9 * (192 * 384 + 384 * 384 + 384 * 256) + 4096 * (36 * 256 + 4096 + 10)
XNOR = 25 * 96 * 256 + 9 * (256 * 384 + 384 * 384 + 384 * 256) + 4096 * (36 * 256 + 4096)

# model -> parameters, binary weights, binary convolutions, image for a quick forward pass [h, w, c]
# 18, 34, 50, 152: counted on the authors' PyTorch code, at 1000 classes (152: their blocks in ResNet-152's layout).
MODELS = {
    "bireal18": (11_689_512, 10_985_472, 16, (64, 64, 3)),
    "bireal34": (21_797_672, 21_086_208, 32, (64, 64, 3)),
    "bireal50": (25_730_088, 20_672_512, 47, (64, 64, 3)),
    "bireal152": (60_365_864, 55_209_984, 149, (64, 64, 3)),
    # At 10 classes, counted by hand: stem, its batch norm, binary weights [, biases], batch norms [, shortcut], head.
    "bireal20": (432 + 32 + B20 + 672 + 1344 + 650, B20, 18, (32, 32, 3)),
    "bireal18_cifar": (11_689_512 - (9408 - 1728) - 513 * 990, 10_985_472, 16, (32, 32, 3)),  # 3x3 stem, 10 classes
    # The same without biases; a batch norm of 64 channels before the head; slopes of the stem and of 18 sums.
    "clip20": (432 + 32 + B20 + 1344 + 128 + 650, B20, 18, (32, 32, 3)),
    "recu20": (432 + 32 + B20 + 1344 + 128 + 650, B20, 18, (32, 32, 3)),
    "ovsw20": (432 + 32 + B20 + 1344 + 128 + 650, B20, 18, (32, 32, 3)),
    "prelu20": (432 + 32 + B20 + 1344 + 128 + 650 + 688, B20, 18, (32, 32, 3)),
    "maxout20": (432 + 32 + B20 + 1344 + 128 + 650 + 2 * 688, B20, 18, (32, 32, 3)),
    "rprelu20": (432 + 32 + B20 + 1344 + 128 + 650 + 3 * 688, B20, 18, (32, 32, 3)),
    "clip18_cifar": (11_689_512 - (9408 - 1728) - 513 * 990 + 1024, 10_985_472, 16, (32, 32, 3)),
    "maxout18_cifar": (
        11_689_512 - (9408 - 1728) - 513 * 990 + 1024 + 2 * (64 + 4 * 960),
        10_985_472,
        16,
        (32, 32, 3),
    ),
    # Shortcuts around two convolutions take the same parameters; without any, three 1x1 convolutions and their batch
    # norms go; XNOR-Net's batch norm has the channels of the input.
    "res18": (11_689_512, 10_985_472, 16, (64, 64, 3)),
    "plain18": (11_689_512 - 64 * 128 - 128 * 256 - 256 * 512 - 2 * (128 + 256 + 512), 10_985_472, 16, (64, 64, 3)),
    "xnor18": (11_689_512 - 2 * (64 + 128 + 256), 10_985_472, 16, (64, 64, 3)),
    "res_tiny": (288 + 64 + TINY + 768 + (2048 + 128) + 650, TINY, 8, (8, 8, 1)),
    "plain_tiny": (288 + 64 + TINY + 768 + 650, TINY, 8, (8, 8, 1)),
    "xnor_tiny": (288 + 64 + TINY + 768 - 64 + (2048 + 128) + 650, TINY, 8, (8, 8, 1)),
    "vgg_small": (3456 + 256 + VGG + 2 * (128 + 2 * 256 + 2 * 512) + 8192 * 10 + 10, VGG, 5, (32, 32, 3)),
    "prelu_vgg": (3456 + 256 + VGG + 2 * 1664 + 1792 + 8192 * 10 + 10, VGG, 5, (32, 32, 3)),  # slopes of 128 + 1664
    "recu_vgg": (3456 + 256 + VGG + 2 * (128 + 2 * 256 + 2 * 512) + 8192 * 10 + 10, VGG, 5, (32, 32, 3)),
    # "about 10.35 M weights": 3x3 convolutions, then 4608x1024, 1024x1024 and 1024x10; batch norms have biases only
    "binarynet": (10_352_000 + 2 * (128 + 256 + 512 + 1024) + 10, 10_352_000, 9, (32, 32, 3)),
    "binary_alexnet": (ALEX + 2 * (64 + 192 + 384 + 384 + 256 + 4096 + 4096 + 10), ALEX, 8, (224, 224, 3)),
    "xnor_alexnet": (
        121 * 3 * 96 + XNOR + 2 * (2 * 96 + 256 + 384 + 384 + 256 + 4096 + 4096) + 40_960,
        XNOR,
        6,
        (224, 224, 3),
    ),
    # Counted on the authors' code: 29,343,592 and 11,704,424. Their 31 convolutions are 26 here: five pairs are one.
    # react_r34: 34 layers, with shifts and slopes of one input and three outputs in each block.
    "react_a": (29_343_592, REACT_A, 26, (64, 64, 3)),
    "react_r18": (11_704_424, 10_985_472, 16, (64, 64, 3)),
    "react_r34": (21_797_672 + 1536 + 4032 + 12160 + 12032, 21_086_208, 32, (64, 64, 3)),
    # B and C: the five pairs are real-valued, with a quarter of the weights in B, and lose the thresholds before them.
    "react_b": (29_343_592 - DOUBLED + DOUBLED // 4 - 992, REACT_A - DOUBLED, 21, (64, 64, 3)),
    "react_c": (29_343_592 - 992, REACT_A - DOUBLED, 21, (64, 64, 3)),
    "react_tiny": (144 + 32 + REACT_TINY + 272 + 544 + 768 + 650, REACT_TINY, 6, (8, 8, 1)),
    # EBN without groups: ReActNet-A without its shifts and slopes.
    "ebn": (27 * 32 + 64 + REACT_A + 2 * (4960 + 5952) + 1_025_000, REACT_A, 26, (64, 64, 3)),
    "ebn_tiny": (144 + 32 + EBN_TINY + 2 * (240 + 288) + 650, EBN_TINY, 12, (8, 8, 1)),
    # MetaPruning's networks at full width: MobileNetV1 as published, MobileNetV2 by hand, torchvision's ResNet-50.
    "metaprune_mbv1": (4_231_976, 0, 0, (64, 64, 3)),
    "metaprune_mbv2": (
        27 * 44 + 88 + sum(a * m + 9 * m + m * b + 4 * m + 2 * b for a, m, b in V2) + 450 * 1280 + 1_281_000,
        0,
        0,
        (64, 64, 3),
    ),
    "metaprune_r50": (25_557_032, 0, 0, (64, 64, 3)),
    "metaprune_mbv1_tiny": (
        144 + 32 + sum(11 * a + a * b + 2 * b for a, b in itertools.pairwise(V1_TINY)) + 650,
        0,
        0,
        (8, 8, 1),
    ),
    # Real-valued. 18, 34, 50: torchvision's. resnet_tiny: stem, convolutions, batch norms, shortcut, head.
    "resnet18": (11_689_512, 0, 0, (64, 64, 3)),
    "resnet34": (21_797_672, 0, 0, (64, 64, 3)),
    "resnet50": (25_557_032, 0, 0, (64, 64, 3)),
    "resnet20": (432 + 32 + B20 + 1344 + (16 * 32 + 32 * 64 + 192) + 650, 0, 0, (32, 32, 3)),
    "resnet18_cifar": (11_689_512 - (9408 - 1728) - 513 * 990, 0, 0, (32, 32, 3)),
    "resnet_tiny": (288 + 64 + TINY + 768 + (2048 + 128) + 650, 0, 0, (8, 8, 1)),
    "bireal_tiny": (288 + 64 + TINY + 768 + (2048 + 128) + 650, TINY, 8, (8, 8, 1)),
}

# Exporting and running these takes seconds each; small models have every operation of theirs.
LARGE = (
    "bireal34", "bireal50", "bireal152", "react_a", "react_b", "react_c", "react_r34",
    "resnet18", "resnet34", "resnet50", "binary_alexnet", "xnor_alexnet",
    "metaprune_mbv1",
)  # fmt: skip
# These are not exported in tests at all: others have the same operations.
TWINS = (
    "ebn", "metaprune_mbv2", "metaprune_r50", "resnet18_cifar",
    "clip20", "ovsw20", "clip18_cifar", "maxout18_cifar", "prelu_vgg", "recu_vgg",
)  # fmt: skip
EXPORTED = [name for name in MODELS if name not in TWINS]
