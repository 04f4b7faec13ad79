"""ANIL on a folder of your own images: a backbone of Keras, of which only the head is adapted.

python examples/photos.py data/photos     with train/, val/ and test/ in it, a folder of images a class
"""

import sys

import keras

import maml


def backbone(image_size: int, num_classes: int) -> keras.Model:
    """MobileNetV2 without its ImageNet weights, which may not be at hand, and a head of logits."""
    body = keras.applications.MobileNetV2((image_size, image_size, 3), alpha=0.35, include_top=False, weights=None)
    features = keras.layers.GlobalAveragePooling2D()(body.output)
    return keras.Model(body.input, keras.layers.Dense(num_classes, name="head")(features))


if __name__ == "__main__":
    folder, iterations = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    tasks = maml.folder_tasks(folder, image_size=96, num_classes=5, shots=1, queries=3)
    keras.utils.set_random_seed(0)
    learner = maml.train(
        backbone(96, 5),
        tasks,
        loss="xent",
        adapt="head",
        update_lr=0.5,
        num_updates=5,
        metatrain_iterations=iterations,
        logdir="logs/photos",
    )
    print(learner.test(tasks, 40))
