"""Write the corpora that fuzzing begins with: what real nodes sent, and documents of all kinds.

Run with the folder to write to: ``python3 seeds.py corpus``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

_GOLDEN = Path(__file__).parents[3] / "tests"
_HEADER = struct.Struct(">BBHBBHIIQ")
_DATA = {0x57, 0x58, 0x59}
_STREAMED = _DATA | {0x55, 0x56, 0x5F, 0x64, 0x65}
_MOST = 3000
"""Bytes of a seed's conversation."""
_SNAPPY, _XATTR = 2, 4
_DOCUMENTS = [
    "{}",
    ' {"a" : 1 , "b":[ ] }\n',
    '{"a":true,"b":false,"c":null,"d":"","e":{},"f":[]}',
    '{"a":0,"b":-0,"c":-1,"d":9223372036854775807,"e":-9223372036854775808,"f":18446744073709551615}',
    '{"a":9223372036854775808,"b":18446744073709551616,"c":' + "9" * 38 + ',"d":-1' + "0" * 38 + "}",
    '{"a":9007199254740993,"b":0.1,"c":-0.0,"d":1.50,"e":123456789012345.6,"f":0.30000000000000004}',
    '{"a":1e5,"b":1E-7,"c":1.5e+300,"d":1e400,"e":-1e-400,"f":0.' + "1" * 310 + "}",
    r'{"a":"\"\\\/\b\f\n\r\t","b":"\u00e9\ud83d\ude00\u0000","\u0061":1,"x\"y":2,"\u0000":3}',
    '{"é":"é😀","long enough for words of sixteen bytes":"and a value that is longer than that, too"}',
    '{"a":1,"b":2,"a":{"x":1},"a":{"y":[1,2]},"a":[{"x":null}],"a":"s"}',
    '{"a":[1,2.5,"x",null,true,[1],{"b":2}],"b":{"c":{"d":[{"e":1},{"e":"x"},{}]}}}',
    '{"a":{"k1":1,"k2":2,"k3":3,"k4":4},"b":[{"k1":1},{"k2":[]},{"k3":{}}]}',
    '{"a":' + "[" * 58 + "1" + "]" * 58 + ',"b":' + '{"a":' * 59 + "{}" + "}" * 59 + "}",
    '{"a":' + "[" * 199 + "]" * 199 + "}",
    '{"a":' + "[" * 200 + "]" * 200 + "}",
    *("[1]", "1", '"x"', "null", "", " \t\r\n", "NaN", '{"a":Infinity}', '{"a":01}', '{"a":1.}', '{"a":.5}'),
    *('{"a":1,}', '{"a":[1,]}', '{"a" 1}', "{a:1}", '{"a":+1}', '{"a":1e}', '{"a":tru}', '{"a":1', '{"a'),
    *(r'{"a":"\ud800"}', r'{"a":"\udc00\ud800"}', r'{"a":"\x"}', r'{"a":"\u12g4"}', '{"a":"\n"}', '{"a":1}x'),
]


def frames(data: bytes) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Magic, opcode, datatype, vbucket, opaque and bytes of each frame."""
    at = 0
    while at + _HEADER.size <= len(data):
        magic, opcode, _, _, datatype, vbucket, body, opaque, _ = _HEADER.unpack_from(data, at)
        frame = data[at : at + _HEADER.size + body]
        yield magic, opcode, datatype, vbucket, opaque, frame
        at += len(frame)


def conversations(data: bytes) -> Iterator[bytes]:
    """What came on streams, with the operations that open them."""
    operations, conversation = b"", b""
    opened: dict[int, int] = {}
    for magic, opcode, _, vbucket, opaque, frame in frames(data):
        if magic == 0x80 and opcode in _STREAMED - _DATA and opened.get(vbucket) != opaque:
            granted = _HEADER.pack(0x81, 0x53, 0, 0, 0, 0, 0, opaque, 0)
            operations += struct.pack(">BHHII", 0, len(conversation), vbucket, opaque, 0)
            conversation += granted
            opened[vbucket] = opaque
        if len(conversation) + len(frame) > _MOST or len(operations) > 30 * 13:
            break
        conversation += frame
    if opened:
        for flags in range(8):
            head = bytes([flags, 0, 37 * flags % 256, len(operations) // 13])
            yield head + operations + conversation


def values(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Parts of data messages, with the target that they are for."""
    for magic, opcode, datatype, _, _, frame in frames(data):
        if magic == 0x80 and opcode in _DATA:
            _, _, key_length, extras_length, *_ = _HEADER.unpack_from(frame)
            key = frame[_HEADER.size + extras_length :][:key_length]
            value = frame[_HEADER.size + extras_length + key_length :]
            yield "leb128", key
            if datatype & _SNAPPY:
                yield "snappy", value
            elif datatype & _XATTR:
                yield "xattrs", value
            elif value.startswith(b"{") and len(value) < _MOST:
                yield "json", bytes(5) + value


def seeds() -> Iterator[tuple[str, bytes]]:
    """All of them, with the target that each is for."""
    for path in sorted(_GOLDEN.glob("golden*/*.s2c.bin")):
        data = path.read_bytes()
        for conversation in conversations(data):
            yield "frames", conversation
        yield from islice(values(data), 20)
    encoded = [document.encode() for document in _DOCUMENTS]
    for number, document in enumerate(encoded):
        yield "json", bytes([0, 0, 0, number, number % 16]) + document
        yield "json", bytes([1, 2, 3, number, 4 + number % 8]) + b"\xff".join(encoded[number : number + 6])
    for number in (0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 0xFFFF_FFFF):
        yield "snappy", number.to_bytes(4, "big") * 30
        yield "xattrs", struct.pack(">II", 12, 8) + b"_a\0null\0" + number.to_bytes(4, "big")


def main(folder: Path) -> None:
    """Write each seed to a file that is named by what it holds."""
    for target, data in seeds():
        place = folder / target / sha256(data).hexdigest()[:20]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
