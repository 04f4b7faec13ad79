"""Random changes of training images that leave their class what it is. The official code has none of them.

Images are uint8 [batch, height, width, channels] here; each is changed by a draw of its own.
"""

import tensorflow as tf


def mirrored(images: tf.Tensor, whether: tf.Tensor) -> tf.Tensor:
    """Mirrors images left to right, those where `whether` [batch] is true."""
    return tf.where(whether[:, None, None, None], images[:, :, ::-1], images)


def cropped(images: tf.Tensor, offsets: tf.Tensor, margin: int) -> tf.Tensor:
    """Cuts images of their own size out of images with a black margin around them.

    Args:
        offsets: int32 [batch, 2] of 0 to 2 · margin: first row and column of the cut; `margin`: as it is.
        margin: pixels.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
