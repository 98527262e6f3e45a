"""The paper's own figures, Tables 3 and 4: what a reproduction is held against.

IoU in %, one number for each network, without seeds, spread or control.
"""

# Table 3: data set -> arm -> mIoU.
TABLE3 = {
    "voc_sbd": {
        "vgg16": 71.62,
        "resnet50": 74.29,
        "vgg16_g": 73.18,
        "resnet50_g": 75.46,
    },
    "cityscapes": {
        "vgg16": 68.34,
        "resnet50": 75.85,
        "vgg16_g": 70.27,
        "resnet50_g": 77.40,
    },
}

# Table 4, Cityscapes: the paper's name of the class -> arm -> IoU.
TABLE4 = {
    "road": {
        "vgg16": 94.73,
        "resnet50": 98.39,
        "vgg16_g": 96.64,
        "resnet50_g": 98.48,
    },
    "traffic lights": {
        "vgg16": 64.12,
        "resnet50": 71.37,
        "vgg16_g": 64.15,
        "resnet50_g": 73.41,
    },
    "plants": {
        "vgg16": 86.11,
        "resnet50": 92.70,
        "vgg16_g": 87.35,
        "resnet50_g": 93.02,
    },
    "sky": {
        "vgg16": 90.46,
        "resnet50": 94.98,
        "vgg16_g": 90.87,
        "resnet50_g": 95.35,
    },
    "pedestrian": {
        "vgg16": 76.88,
        "resnet50": 82.49,
        "vgg16_g": 77.52,
        "resnet50_g": 83.71,
    },
    "vehicle": {
        "vgg16": 90.61,
        "resnet50": 95.48,
        "vgg16_g": 92.08,
        "resnet50_g": 95.73,
    },
}
