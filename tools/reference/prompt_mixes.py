"""Mixes of text embeddings by numpy, written apart from the plugin's own code.

Tokens are blended each by itself. Linear: the weighted mean. Spherical: along the arc, p + q of two; more than two one
after the other, each with its share of what came before it.

Prints the numbers of the test in src/stream/interpolation.rs.

    python tools/reference/prompt_mixes.py     # needs numpy
"""

import numpy as np


def slerp(a, b, t):
    angle = np.arccos(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def spherical(texts, shares):
    result = []
    for rows in zip(*texts):
        mixed, total = rows[0], shares[0]
        for row, share in zip(rows[1:], shares[1:]):
            total += share
            mixed = slerp(mixed, row, share / total)
        result.append(mixed)
    return np.array(result)


def main():
    # Two tokens of three numbers, and one pooled vector of two, of each of three texts.
    embeddings = np.array(
        [
            [[1.0, 2.0, -1.0], [10.0, 0.5, 0.25]],
            [[-0.5, 1.0, 3.0], [9.0, -4.0, 1.0]],
            [[0.25, -2.0, 0.5], [1.0, 1.0, 8.0]],
        ]
    )
    pooled = np.array([[[3.0, 4.0]], [[-1.0, 2.0]], [[0.5, -0.5]]])
    for shares in ([0.7, 0.3], [0.5, 0.2, 0.3]):
        n = len(shares)
        weights = np.array(shares)[:, None, None]
        for name, tensor in (("embedding", embeddings), ("pooled", pooled)):
            np.set_printoptions(precision=6)
            print(shares, name, "linear", (weights * tensor[:n]).sum(0).ravel())
            print(shares, name, "slerp ", spherical(tensor[:n], shares).ravel())


if __name__ == "__main__":
    main()
