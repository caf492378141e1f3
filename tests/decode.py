#!/usr/bin/env python3
"""Reads a bucketdisk disk from the description in bucketdisk-layout(5) alone, to show that the description is enough.

usage: decode.py DIRECTORY [IMAGE] [--list-blocks]

DIRECTORY is the disk's prefix in a file:// store. Prints superblock, log and map as JSON, and writes the raw image to IMAGE.
Every object that it reads is checked; the first that is not right ends it with exit code 1. With --list-blocks the map comes
from a listing of the blocks instead of checkpoint and log. Needs Python 3.8 and xxhash (PyPI). It only reads, takes no claim,
and expects that nobody writes to the disk meanwhile.
"""
import json
import os
import re
import struct
import sys
import uuid

import xxhash

BLOCK, RECORD, CHECKPOINT = 1, 2, 3


class Damaged(Exception):
    """Something that is not as the layout says."""


def need(condition, text):
    if not condition:
        raise Damaged(text)


# Superblock

def read_superblock(data):
    need(len(data) <= 65536, "superblock: too long")
    members = json.loads(data)
    need(members.get("format") == "bucketdisk", "superblock: not ours")
    need(members.get("version") == 1, "superblock: version")
    stored = members.pop("checksum")
    compact = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    need(stored == "xxh3-128:" + xxhash.xxh3_128_hexdigest(compact.encode()), "superblock: checksum")
    need(members["features"] == [], "superblock: unknown feature")
    need(members["compression"] == "none", "superblock: compression")
    size, block_size = members["size"], members["block_size"]
    need(block_size in [1 << n for n in range(12, 27)], "superblock: block size")
    need(size > 0 and size % block_size == 0, "superblock: size")
    need(size <= 2**63 - 2**26 and size // block_size <= 2**40, "superblock: size")
    return members


# Objects: a header of 32 bytes, then the content

def open_object(disk, kind, index, seq, data):
    need(len(data) >= 32, "too short")
    magic, version, found, codec, flags, length = struct.unpack("<4sBBBBQ", data[:16])
    need(magic == b"BKTD", "magic")
    need(version == 1, "format version")
    need(found == kind, "kind")
    need(codec == 0 and flags == 0, "codec")
    need(length == len(data) - 32, "length")
    checked = data[:16] + disk.bytes + struct.pack("<QI", index, seq) + data[32:]
    need(data[16:32] == xxhash.xxh3_128_digest(checked), "checksum")
    return data[32:]


class Content:
    """A JSON header and integers behind it."""

    def __init__(self, data):
        need(len(data) >= 4, "header length")
        (length,) = struct.unpack("<I", data[:4])
        need(len(data) >= 4 + length, "header length")
        self.header = json.loads(data[4:4 + length])
        self.data, self.at = data, 4 + length

    def integer(self):
        value = shift = 0
        while True:
            need(self.at < len(self.data), "content ends too early")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                need((byte or not shift) and value < 2**64, "integer")
                return value
            shift += 7

    def signed(self):
        folded = self.integer()
        return folded >> 1 ^ -(folded & 1)

    def end(self):
        need(self.at == len(self.data), "bytes after the end")


def ranges(content, blocks):
    """Ascending ranges as (gap, length)."""
    result, end = [], 0
    for _ in range(content.integer()):
        start = end + content.integer()
        end = start + content.integer()
        need(start < end <= blocks, "range of blocks")
        result.append((start, end))
    return result


def read_record(disk, blocks, seq, data):
    content = Content(open_object(disk, RECORD, 0, seq, data))
    record = dict(content.header, seq=seq)
    if record["kind"] == "commit":
        record["stored"] = ranges(content, blocks)
        record["holes"] = ranges(content, blocks)
    else:
        need(record["kind"] in ("claim", "heartbeat", "release"), "kind of record")
    content.end()
    return record


def read_checkpoint(disk, blocks, seq, data):
    content = Content(open_object(disk, CHECKPOINT, 0, seq, data))
    checkpoint = dict(content.header, seq=seq)
    stored, end, version = {}, 0, 0
    for _ in range(content.integer()):
        start = end + content.integer()
        end = start + content.integer()
        version += content.signed()
        need(start < end <= blocks and 0 < version <= seq, "run of blocks")
        stored.update((index, version) for index in range(start, end))
    need(len(stored) == checkpoint["stored"], "number of stored blocks")
    garbage, index = [], 0
    for _ in range(content.integer()):
        index += content.integer()
        old = content.integer()
        newer = old + content.integer()
        need(index < blocks and 0 < old <= newer <= seq and stored.get(index) != old, "garbage")
        garbage.append({"index": index, "version": old, "superseded_by": newer})
    unpruned, record = [], 0
    for _ in range(content.integer()):
        before, record = record, record + content.integer()
        need(before < record <= seq, "record to be pruned")
        unpruned.append(record)
    checkpoint["unpruned"] = unpruned
    content.end()
    return checkpoint, stored, garbage


# The disk

class Disk:
    def __init__(self, directory):
        self.directory = directory
        self.superblock = self.get("disk.json", read_superblock)
        self.id = uuid.UUID(self.superblock["id"])
        self.block_size = self.superblock["block_size"]
        self.blocks = self.superblock["size"] // self.block_size
        self.records = {}
        for seq in self.numbers("log"):
            self.records[seq] = self.get(
                f"log/{seq:08x}", lambda data, seq=seq: read_record(self.id, self.blocks, seq, data))
        self.head = max(self.records, default=0)

    def get(self, key, read):
        try:
            with open(os.path.join(self.directory, key), "rb") as file:
                return read(file.read())
        except (Damaged, OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{key}: {error}") from error

    def names(self, folder):
        try:
            return sorted(os.listdir(os.path.join(self.directory, folder)))
        except FileNotFoundError:
            return []

    def numbers(self, folder):
        names = [name for name in self.names(folder) if re.fullmatch("[0-9a-f]{8}", name)]
        return [int(name, 16) for name in names if int(name, 16)]

    def digest(self, seq):
        return self.get(f"log/{seq:08x}", xxhash.xxh3_128_hexdigest)

    def map_from_log(self):
        """Newest checkpoint, then every record after it; without a checkpoint, every record from 1."""
        seq, stored, garbage, self.checkpoint = 0, {}, [], None
        previous = "0" * 32
        checkpoints = self.numbers("map")
        if checkpoints:
            seq = checkpoints[-1]
            self.checkpoint, stored, garbage = self.get(
                f"map/{seq:08x}", lambda data: read_checkpoint(self.id, self.blocks, seq, data))
            previous = self.checkpoint["head"]
            if self.records.get(seq, {}).get("kind", "claim") != "claim":  # a claim may be void
                need(self.digest(seq) == previous, f"map/{seq:08x}: digest of its record")
            self.head = max(self.head, seq)
        for number in range(seq + 1, self.head + 1):
            need(number in self.records, f"log/{number:08x}: missing")
            record = self.records[number]
            need(record["previous"] == previous, f"log/{number:08x}: digest of the record before")
            previous = self.digest(number)
            if record["kind"] == "commit":
                self.apply(record, stored, garbage)
        self.garbage = garbage
        return stored

    @staticmethod
    def apply(record, stored, garbage):
        seq = record["seq"]
        superseded = [index for start, end in record["stored"] for index in range(start, end) if index in stored]
        holes = [index for start, end in record["holes"] for index in range(start, end) if index in stored]
        for index in superseded + holes:
            garbage.append({"index": index, "version": stored[index], "superseded_by": seq})
        for index in holes:
            del stored[index]
        for start, end in record["stored"]:
            stored.update((index, seq) for index in range(start, end))

    def newest_claim(self):
        """A checkpoint as new as the newest record knows better than that, which may be a void claim."""
        newest = max(self.records, default=0)
        checkpoints = self.numbers("map")
        if checkpoints and checkpoints[-1] >= newest:
            read = lambda data: read_checkpoint(self.id, self.blocks, checkpoints[-1], data)
            try:
                return self.get(f"map/{checkpoints[-1]:08x}", read)[0]["last"]["claim"]
            except Damaged:
                pass
        record = self.records.get(newest, {"kind": "commit", "claim": 0})
        return newest if record["kind"] == "claim" else record["claim"]

    def map_from_listing(self):
        """Per block the newest version that is not newer than the head and not the number of a claim that took the disk, unless
        a newer record that is still there made it a hole."""
        not_commits, claim = set(), self.newest_claim()
        while claim in self.records:
            not_commits.add(claim)
            need(self.records[claim]["claim"] < claim, f"log/{claim:08x}: the claim before it")
            claim = self.records[claim]["claim"]
        stored, self.garbage, self.checkpoint = {}, [], None
        for shard in range(256):
            for name in self.names(f"blocks/{shard:02x}"):
                match = re.fullmatch("([0-9a-f]{10})\\.([0-9a-f]{8})", name)
                index, version = (int(text, 16) for text in match.groups()) if match else (0, 0)
                if not version or index % 256 != shard or index >= self.blocks:
                    continue
                if version <= self.head and version not in not_commits:
                    stored[index] = max(version, stored.get(index, 0))
        for seq, record in sorted(self.records.items()):
            for start, end in record.get("holes", []):
                for index in [index for index in stored if start <= index < end and stored[index] < seq]:
                    del stored[index]
        return stored

    def block(self, index, version):
        key = f"blocks/{index % 256:02x}/{index:010x}.{version:08x}"
        content = self.get(key, lambda data: open_object(self.id, BLOCK, index, version, data))
        need(len(content) == self.block_size, f"{key}: not one block")
        return content


def main(arguments):
    paths = [argument for argument in arguments if not argument.startswith("--")]
    options = [argument for argument in arguments if argument.startswith("--")]
    if len(paths) not in (1, 2) or options not in ([], ["--list-blocks"]):
        sys.exit(__doc__)
    disk = Disk(paths[0])
    stored = disk.map_from_listing() if options else disk.map_from_log()
    if len(paths) == 2:
        with open(paths[1], "wb") as image:
            image.truncate(disk.superblock["size"])
            for index, version in sorted(stored.items()):
                image.seek(index * disk.block_size)
                image.write(disk.block(index, version))
    else:
        for index, version in sorted(stored.items()):
            disk.block(index, version)
    json.dump({
        "superblock": disk.superblock,
        "head": disk.head,
        "log": [disk.records[seq] for seq in sorted(disk.records)],
        "checkpoint": disk.checkpoint,
        "map": [[index, version] for index, version in sorted(stored.items())],
        "garbage": disk.garbage,
    }, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Damaged as damage:
        sys.exit(f"decode.py: {damage}")
