"""Training pictures: scenes, each in several styles, made once and kept."""

import os
from multiprocessing import Pool

import cv2
import numpy as np
from tqdm import tqdm

import scenes
import styles

PER_SCENE = 7  # stylised versions of each scene
MODIFIED = 0.4  # share of them that also gets a modifier


def plan(seed, count=PER_SCENE):
    """Which (style, modifier) index pairs scene `seed` is shown in."""
    rng = np.random.default_rng([seed, 22])
    chosen = rng.permutation(len(styles.STYLES))[:count]
    pairs = []
    for s in chosen:
        m = 0
        if rng.random() < MODIFIED or styles.STYLES[s] == "plain":
            m = int(rng.integers(1, len(styles.MODIFIERS)))
        pairs.append((int(s), m))
    return pairs


def make(args):
    """-> (scene uint8 [S,S,3], stylised uint8 [n,S,S,3], pairs [n,2])."""
    seed, size = args
    cv2.setNumThreads(1)
    scene = scenes.crop(seed, size) if size < scenes.SIZE else scenes.render(seed)
    names = list(styles.MODIFIERS)
    pairs = plan(seed)
    out = [styles.stylise(scene, styles.STYLES[s], names[m]) for s, m in pairs]
    return scene, np.stack(out), np.array(pairs)


def pictures(path, first, count, size, workers=2):
    """Scenes `first`..`first+count`, from the file `path` or made and saved.

    -> dict of scene [N,S,S,3] uint8, styled [N,n,S,S,3] uint8, pairs [N,n,2].
    """
    if not os.path.exists(path):
        jobs = [(first + i, size) for i in range(count)]
        with Pool(workers) as pool:
            rows = list(tqdm(pool.imap(make, jobs, chunksize=16), total=count, desc=f"scenes {size}", mininterval=5))
        a, b, c = (np.stack(col) for col in zip(*rows))
        np.savez(path, scene=a, styled=b, pairs=c)
    return dict(np.load(path))
