"""TensorFlow's ParameterServerStrategy: the chief hands out steps, workers compute them, the ps keeps the weights."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import tensorflow as tf
from data import BATCH, GOOD, digits, say_device

STEPS = 400


def main() -> int:
    task = json.loads(os.environ["TF_CONFIG"])["task"]
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    say_device(f"{task['type']} {task['index']}", tf.config.list_physical_devices("GPU"))
    if task["type"] != "chief":
        server = tf.distribute.Server(
            resolver.cluster_spec(), task["type"], task["index"], protocol="grpc", start=True
        )
        server.join()  # until the step is over: hpcmesos run --finish chief
    return coordinate(resolver)


def coordinate(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> int:
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    train, test = digits()
    with strategy.scope():
        weights = tf.Variable(tf.zeros((64, 10)))
        bias = tf.Variable(tf.zeros(10))

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, x @ weights + bias)
            loss = tf.reduce_mean(losses)
        slopes = tape.gradient(loss, [weights, bias])
        weights.assign_sub(0.5 * slopes[0])
        bias.assign_sub(0.5 * slopes[1])
        return loss

    chance = np.random.default_rng(0)
    for number in range(1, STEPS + 1):
        chosen = chance.choice(len(train[1]), BATCH)
        loss = coordinator.schedule(step, args=(tf.constant(train[0][chosen]), tf.constant(train[1][chosen])))
        if number % 100 == 0:
            coordinator.join()
            print(f"step {number}  loss {float(loss.fetch()):.4f}", flush=True)
    found = np.argmax(test[0] @ weights.numpy() + bias.numpy(), axis=1)
    accuracy = float(np.mean(found == test[1]))
    print(f"weights on {weights.device}: test accuracy {accuracy:.3f}", flush=True)
    return 0 if accuracy >= GOOD else 1


if __name__ == "__main__":
    sys.exit(main())
