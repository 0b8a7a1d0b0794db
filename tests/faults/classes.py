"""The classes of faults, by name."""

import archives
import bombs
import commands
import contents
import controls
import corruption
import decoding
import disk
import divergence
import elastic
import environments
import foreign
import hosts
import kills
import models
import pickles
import ranks
import settings
import shards
import two_runs
from campaign import FaultClass

CLASSES = {
    kind.name: kind
    for kind in (
        FaultClass("kills", "`kill -9` while training, saving, pruning, exporting, evaluating", kills.attempt, 4),
        FaultClass("commands", "each command killed, stopped by signals, or read no more", commands.attempt, 6),
        FaultClass("disk", "full and read-only disks, at each size and moment", disk.attempt, 6),
        FaultClass("corruption", "each file of runs, models, corpora damaged in seven ways", corruption.attempt, 4),
        FaultClass("pickles", "code planted wherever something is loaded", pickles.attempt, 2),
        FaultClass("ranks", "one of two ranks killed, stopped, slow, set otherwise", ranks.attempt, 2),
        FaultClass("elastic", "killed, then on with other processes and ZeRO stages", elastic.attempt, 2),
        FaultClass("hosts", "one of two machines cut off, for good or for seconds", hosts.attempt, 2),
        FaultClass("shards", "torn tar shards, missing and damaged indexes, killed runs", shards.attempt, 2),
        FaultClass("two_runs", "two commands at once on one folder", two_runs.attempt, 1),
        FaultClass("divergence", "NaN and infinity in weights, pixels, gradients, codebook", divergence.attempt, 1),
        FaultClass("images", "damaged and hostile images, decoded", decoding.attempt, 4),
        FaultClass("archives", "damaged, encrypted, lying archives; names outside them", archives.attempt, 0.5),
        FaultClass("contents", "contents replaced between two starts, or on a rank", contents.attempt, 3),
        FaultClass("foreign", "folders of others that name modules, paths, commands", foreign.attempt, 3),
        FaultClass("models", "models whose JSON files hold other values", models.attempt, 2),
        FaultClass("bombs", "small images and texts that cost minutes or gigabytes", bombs.attempt, 2),
        FaultClass("controls", "names and texts that a terminal obeys", controls.attempt, 2),
        FaultClass("environments", "nonsense in the environment, python -OO", environments.attempt, 2),
        FaultClass("settings", "mistakes in recipes and arguments", settings.attempt, 2),
    )
}
