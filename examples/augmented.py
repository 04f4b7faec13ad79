"""Images of 96×96 with an augmentation of your own, written where the tasks are drawn.

python examples/augmented.py data/photos     with train/, val/ and test/ in it, a folder of images a class
"""

import sys

import keras
import numpy as np

import maml


class Augmented:
    """Tasks of a folder whose training images get a random brightness and a black square."""

    def __init__(self, folder: str):
        self.tasks = maml.folder_tasks(folder, image_size=96, num_classes=3, shots=1, queries=3)

    def task(self, split: str, number: int):
        """One task, the same whenever it is asked for."""
        xa, ya, xb, yb = self.tasks.task(split, number)
        if split == "train":
            rng = np.random.default_rng(number)
            xa, xb = (self.changed(images, rng) for images in (xa, xb))
        return xa, ya, xb, yb

    def changed(self, images, rng):
        """Images [n, 96, 96, 3] in [0, 1], each changed by itself."""
        images = np.clip(images * rng.uniform(0.7, 1.3, (len(images), 1, 1, 1)), 0, 1)
        for image in images:
            top, left = rng.integers(0, 72, 2)
            image[top : top + 24, left : left + 24] = 0
        return images


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    layers = [keras.Input((96, 96, 3))]
    for _ in range(4):
        layers += [keras.layers.Conv2D(16, 3, strides=2, padding="same"), keras.layers.BatchNormalization()]
        layers += [keras.layers.ReLU()]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(3)])
    tasks = Augmented(sys.argv[1])
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    learner = maml.train(
        model, tasks, loss="xent", update_lr=0.1, num_updates=3, metatrain_iterations=steps, logdir="logs/augmented"
    )
    print(learner.test(tasks, 60))
