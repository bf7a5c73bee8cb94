"""Data-parallel training by TensorFlow's MultiWorkerMirroredStrategy; TF_CONFIG names the workers."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import tensorflow as tf
from data import BATCH, GOOD, digits, say_device, share

STEPS = 300


def main() -> int:
    task = json.loads(os.environ["TF_CONFIG"])["task"]
    device = say_device(f"{task['type']} {task['index']}", tf.config.list_physical_devices("GPU"))
    real = device.startswith("GPU-")
    implementation = tf.distribute.experimental.CommunicationImplementation
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(
            implementation=implementation.NCCL if real else implementation.RING
        )
    )
    workers = strategy.num_replicas_in_sync
    train, test = digits()
    images, labels = share(train, task["index"], workers)
    with strategy.scope():
        weights = [tf.Variable(tf.random.stateless_normal((64, 32), (1, 2)) * 0.2), tf.Variable(tf.zeros(32))]
        weights += [
            tf.Variable(tf.random.stateless_normal((32, 10), (3, 4)) * 0.2),
            tf.Variable(tf.zeros(10)),
        ]

    def logits(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits(x))
            loss = tf.reduce_mean(losses)
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, tape.gradient(loss, weights))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(0.5 * gradient)
        return loss

    @tf.function
    def together(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, strategy.run(step, args=(x, y)), axis=None)

    chance = np.random.default_rng(task["index"])
    for number in range(1, STEPS + 1):
        chosen = chance.choice(len(labels), BATCH)
        loss = together(tf.constant(images[chosen]), tf.constant(labels[chosen]))
        if number % 100 == 0 and task["index"] == 0:
            print(f"step {number}  loss {float(loss):.4f}")
    found = tf.argmax(logits(tf.constant(test[0])), axis=1).numpy()
    accuracy = float(np.mean(found == test[1]))
    print(f"{task['type']} {task['index']} of {workers}: test accuracy {accuracy:.3f}")
    return 0 if accuracy >= GOOD else 1


if __name__ == "__main__":
    sys.exit(main())
