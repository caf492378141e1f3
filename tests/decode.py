#!/usr/bin/env python3
"""Reads a bucketdisk disk from the description in bucketdisk-layout(5) alone, to show that the description is enough.

usage: decode.py DIRECTORY [IMAGE] [--list-blocks] [--passphrase-file=FILE]

DIRECTORY is the disk's prefix in a file:// store. Prints superblock, log and map as JSON, and writes the raw image to IMAGE.
Every object that it reads is checked; the first that is not right ends it with exit code 1. With --list-blocks the map comes
from a listing of the blocks instead of checkpoint and log. The first line of the passphrase file opens an encrypted disk. It only
reads, takes no claim, and expects that nobody writes to the disk meanwhile. Needs Python 3.8 and, from PyPI, xxhash; for compressed
disks zstandard and lz4; for encrypted ones argon2-cffi and pycryptodome.
"""
import hashlib
import hmac
import json
import os
import re
import struct
import sys
import uuid
import zlib

import xxhash

BLOCK, RECORD, CHECKPOINT = 1, 2, 3


class Damaged(Exception):
    """Something that is not as the layout says."""


def need(condition, text):
    if not condition:
        raise Damaged(text)


# Superblock

def canonical(members, without):
    kept = {name: value for name, value in members.items() if name not in without}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_superblock(data):
    need(len(data) <= 65536, "superblock: too long")
    members = json.loads(data)
    need(members.get("format") == "bucketdisk", "superblock: not ours")
    need(members.get("version") == 1, "superblock: version")
    checksum = xxhash.xxh3_128_hexdigest(canonical(members, ["checksum"]))
    need(members["checksum"] == "xxh3-128:" + checksum, "superblock: checksum")
    need(members["features"] == (["encryption"] if "encryption" in members else []), "superblock: unknown feature")
    size, block_size = members["size"], members["block_size"]
    need(block_size in [1 << n for n in range(12, 27)], "superblock: block size")
    need(size > 0 and size % block_size == 0, "superblock: size")
    need(size <= 2**63 - 2**26 and size // block_size <= 2**40, "superblock: size")
    return members


# Encryption

def open_sealed(key, nonce, tag, associated, content):
    from Crypto.Cipher import ChaCha20_Poly1305
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)  # with 24 bytes: XChaCha20-Poly1305
    cipher.update(associated)
    try:
        return cipher.decrypt_and_verify(content, tag)
    except ValueError as error:
        raise Damaged("seal") from error


class Keys:
    """What is derived from the master key, which a passphrase opens."""

    def __init__(self, superblock, passphrase):
        disk = uuid.UUID(superblock["id"])
        encryption = superblock["encryption"]
        need(encryption["cipher"] == "xchacha20-poly1305", "cipher")
        masters = [master for master in (open_slot(slot, disk, passphrase) for slot in encryption["slots"]) if master]
        need(masters, "the passphrase opens no key slot")
        secret = hmac.digest(disk.bytes, masters[0], "sha256")  # RFC 5869
        expand = lambda purpose: hmac.digest(secret, b"bucketdisk 1 " + purpose + b"\1", "sha256")
        self.objects, self.digests = expand(b"objects"), expand(b"digests")
        stated = "hmac-sha-256:" + hmac.new(
            expand(b"superblock"), canonical(superblock, ["checksum", "authentication"]), hashlib.sha256).hexdigest()
        need(hmac.compare_digest(superblock["authentication"], stated), "superblock: authentication")
        private = bytes.fromhex(superblock["private"])
        associated = b"bucketdisk 1 private" + disk.bytes + struct.pack("<I", superblock["generation"])
        content = open_sealed(expand(b"private"), private[:24], private[24:40], associated, private[40:])
        superblock["label"] = json.loads(content)["label"]


def open_slot(slot, disk, passphrase):
    from argon2.low_level import Type, hash_secret_raw
    kdf = slot["kdf"]
    need(kdf["name"] == "argon2id", "key slot: KDF")
    costs = kdf["memory_kib"], kdf["passes"], kdf["lanes"]
    salt, key = bytes.fromhex(slot["salt"]), bytes.fromhex(slot["key"])
    wrapping = hash_secret_raw(
        passphrase, salt, time_cost=costs[1], memory_cost=costs[0], parallelism=costs[2], hash_len=32, type=Type.ID)
    kind = {"passphrase": 1, "key-file": 2}[slot["kind"]]
    associated = (b"bucketdisk 1 key slot" + disk.bytes + struct.pack("<IIII", slot["id"], *costs) + bytes([kind]) + salt
                  + slot["created"].encode())
    try:
        return open_sealed(wrapping, bytes.fromhex(slot["nonce"]), key[32:], associated, key[:32])
    except Damaged:
        return None


# Objects: a header, then the content

def open_object(disk, keys, kind, index, seq, data):
    need(len(data) >= 32, "too short")
    magic, version, found, packing, flags, length = struct.unpack("<4sBBBBQ", data[:16])
    need(magic == b"BKTD", "magic")
    need(version == 1, "format version")
    need(found == kind, "kind")
    need(flags == (1 if keys else 0), "flags")
    need(packing == 0 or (packing <= 3 and kind == BLOCK and length <= 1 << 26), "packing")
    covered = data[:16] + disk.bytes + struct.pack("<QI", index, seq)
    if keys:
        need(len(data) >= 56, "too short")
        content = open_sealed(keys.objects, data[16:40], data[40:56], covered, data[56:])
    else:
        content = data[32:]
        need(data[16:32] == xxhash.xxh3_128_digest(covered + content), "checksum")
    if packing:
        content = unpack(packing, content, length)
    need(length == len(content), "length")
    return content


def unpack(packing, content, length):
    if packing == 1:
        import zstandard
        need(zstandard.get_frame_parameters(content).content_size == length, "length of the frame")
        return zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False)
    if packing == 2:
        import lz4.block
        return lz4.block.decompress(content, uncompressed_size=length)
    return zlib.decompress(content)


def digest(keys, data):
    if keys:
        return hmac.digest(keys.digests, data, "sha256")[:16].hex()
    return xxhash.xxh3_128_hexdigest(data)


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


def read_record(disk, keys, blocks, seq, data):
    content = Content(open_object(disk, keys, RECORD, 0, seq, data))
    record = dict(content.header, seq=seq)
    if record["kind"] == "commit":
        record["stored"] = ranges(content, blocks)
        record["holes"] = ranges(content, blocks)
    else:
        need(record["kind"] in ("claim", "heartbeat", "release"), "kind of record")
    content.end()
    return record


def read_checkpoint(disk, keys, blocks, seq, data):
    content = Content(open_object(disk, keys, CHECKPOINT, 0, seq, data))
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
    def __init__(self, directory, passphrase=None):
        self.directory = directory
        self.superblock = self.newest_superblock()
        self.keys = None
        if "encryption" in self.superblock:
            need(passphrase is not None, "disk.json: encrypted, so that it takes --passphrase-file")
            self.keys = self.get("disk.json", lambda _: Keys(self.superblock, passphrase))
        self.id = uuid.UUID(self.superblock["id"])
        self.block_size = self.superblock["block_size"]
        self.blocks = self.superblock["size"] // self.block_size
        self.records = {}
        for seq in self.numbers("log"):
            self.records[seq] = self.get(
                f"log/{seq:08x}", lambda data, seq=seq: read_record(self.id, self.keys, self.blocks, seq, data))
        self.head = max(self.records, default=0)

    def newest_superblock(self):
        """Of disk.json and the generations under disk/ the highest."""
        found = [self.get("disk.json", read_superblock)]
        for name in self.names("disk"):
            if re.fullmatch("[0-9a-f]{8}\\.json", name):
                found.append(self.get(f"disk/{name}", read_superblock))
        return max(found, key=lambda superblock: superblock.get("generation", 1))

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
        return self.get(f"log/{seq:08x}", lambda data: digest(self.keys, data))

    def map_from_log(self):
        """Newest checkpoint, then every record after it; without a checkpoint, every record from 1."""
        seq, stored, garbage, self.checkpoint = 0, {}, [], None
        previous = "0" * 32
        checkpoints = self.numbers("map")
        if checkpoints:
            seq = checkpoints[-1]
            self.checkpoint, stored, garbage = self.get(
                f"map/{seq:08x}", lambda data: read_checkpoint(self.id, self.keys, self.blocks, seq, data))
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
            read = lambda data: read_checkpoint(self.id, self.keys, self.blocks, checkpoints[-1], data)
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
        content = self.get(key, lambda data: open_object(self.id, self.keys, BLOCK, index, version, data))
        need(len(content) == self.block_size, f"{key}: not one block")
        return content


def main(arguments):
    paths = [argument for argument in arguments if not argument.startswith("--")]
    options = [argument for argument in arguments if argument.startswith("--")]
    given = [option.partition("=")[2] for option in options if option.startswith("--passphrase-file=")]
    listing = "--list-blocks" in options
    if len(paths) not in (1, 2) or len(given) > 1 or len(options) != len(given) + listing:
        sys.exit(__doc__)
    passphrase = None
    if given:
        with open(given[0], "rb") as file:
            passphrase = file.readline().rstrip(b"\r\n")
    disk = Disk(paths[0], passphrase)
    stored = disk.map_from_listing() if listing else disk.map_from_log()
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
