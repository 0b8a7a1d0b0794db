"""The classes of faults, by name: what each tries, its share of the time, and what makes its cases."""

import files
import hostile
import runs
from campaign import FaultClass

CLASSES = {
    each[0]: FaultClass(*each)
    for each in (
        ("kills", "`kill -9` while training, saving, pruning, evaluating", 4, runs.kills),
        ("disk", "full and read-only disks, at each size and moment", 6, runs.disks),
        ("two_runs", "two commands at once on one folder", 1, runs.twice),
        ("ranks", "one of two ranks killed, stopped, slow, set otherwise", 3, runs.ranks),
        ("damage", "each file of runs, models, corpora damaged in seven ways", 4, files.damaged),
        ("pickles", "code planted wherever something is loaded", 2, files.pickles),
        ("foreign", "files of others that name modules, paths, programs", 3, files.foreign),
        ("settings", "mistakes in recipes, models' files and arguments", 2, files.settings),
        ("images", "damaged and hostile images, decoded", 4, hostile.images),
        ("archives", "damaged, encrypted, lying archives; names outside them", 0.5, hostile.archives),
        ("bombs", "small images and texts that cost minutes or gigabytes", 2, hostile.bombs),
        ("controls", "names and texts that a terminal obeys", 2, hostile.controls),
    )
}
