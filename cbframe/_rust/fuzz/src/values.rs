//! Parts of data messages: compressed values, extended attributes and collection ids, each beside a plain reader.

use crate::frames::{granted, rows_of, Row};
use _core::documents::{copy, Binary, Spans};
use _core::frames::{FrameDecoder, Wrong};

const MAX_VALUE: usize = 1 << 16;
const SNAPPY: u8 = 2;
const XATTR: u8 = 4;
/// An out-of-order snapshot begins.
const OSO: [u8; 28] = [0x80, 0x65, 0, 0, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A mutation with this key and no value, decoded alone.
fn decoded(key: &[u8]) -> Result<Row, Wrong> {
    let mut decoder = FrameDecoder::new(1 << 16);
    decoder.collections = Some(true);
    granted(&mut decoder, 0, 7, 0);
    assert_eq!(decoder.decode(&OSO, 0).consumed, OSO.len());
    let mut frame = vec![0x80, 0x57];
    frame.extend((key.len() as u16).to_be_bytes());
    frame.extend([31, 1, 0, 0]);
    frame.extend((31 + key.len() as u32).to_be_bytes());
    frame.extend(7u32.to_be_bytes());
    frame.extend([0; 39]);
    frame.extend(key);
    let block = decoder.decode(&frame, 0);
    if let Some(wrong) = block.error {
        assert_eq!(block.consumed, 0);
        return Err(wrong);
    }
    assert_eq!(block.consumed, frame.len());
    Ok(rows_of(&block, &frame).pop().expect("a row"))
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A value between two others, copied with its extended attributes; None if it is broken.
fn copied(value: &[u8], datatype: u8) -> Option<(Xattrs, Vec<u8>)> {
    let buffer = [b"kfirst", &b"k"[..], value, b"klast"].concat();
    let end = 7 + value.len() as i64;
    let spans = Spans {
        buffer: &buffer,
        key_start: &[0, 6, end],
        value_start: &[1, 7, end + 1],
        value_end: &[6, end, end + 5],
        datatype: &[0, datatype, 0],
    };
    let without = copy(&spans, MAX_VALUE, false);
    let found = copy(&spans, MAX_VALUE, true);
    let (found, without) = match (found, without) {
        (Ok(found), Ok(without)) => (found, without),
        (Err(row), Err(other)) => {
            assert_eq!((row, other), (1, 1));
            return None;
        }
        _ => panic!("whether attributes are kept changes what is broken"),
    };
    assert_eq!(items(&found.key), [b"k"; 3]);
    let values = items(&found.value);
    assert_eq!(values, items(&without.value));
    assert_eq!((values[0], values[2]), (&b"first"[..], &b"last"[..]));
    assert_eq!((found.datatype, without.datatype), (vec![0, datatype & XATTR, 0], vec![0, 0, 0]));
    let (names, texts) = (items(&found.names), items(&found.texts));
    assert_eq!(names.len(), texts.len());
    assert_eq!(found.xattrs, [0, 0, names.len() as i32, names.len() as i32]);
    Some((
        names.iter().map(|name| name.to_vec()).zip(texts.iter().map(|text| text.to_vec())).collect(),
        values[1].to_vec(),
    ))
}

fn items(column: &Binary) -> Vec<&[u8]> {
    assert_eq!(column.offsets[0], 0);
    assert_eq!(column.offsets[column.offsets.len() - 1] as usize, column.bytes.len());
    column.offsets.windows(2).map(|pair| &column.bytes[pair[0] as usize..pair[1] as usize]).collect()
}

/// A compressed value; and the data themselves, compressed here.
pub fn snappy(data: &[u8]) {
    let data = &data[..data.len().min(4096)];
    let found = copied(data, SNAPPY).map(|(_, value)| value);
    assert_eq!(found, if data.is_empty() { Some(vec![]) } else { inflated(data) });
    let packed = snap::raw::Encoder::new().compress_vec(data).expect("it is short");
    assert_eq!(copied(&packed, SNAPPY).map(|(_, value)| value), Some(data.to_vec()));
    // With attributes in front, packed with them.
    if packed.first().is_some_and(|first| *first != 0) {
        assert_eq!(copied(&packed, SNAPPY | XATTR), split(data));
    }
}

/// The plain form of a Snappy block: its length, then literals and copies.
fn inflated(data: &[u8]) -> Option<Vec<u8>> {
    let mut length = 0u64;
    let mut at = 0;
    loop {
        let byte = *data.get(at)?;
        length |= ((byte & 0x7f) as u64) << (7 * at);
        at += 1;
        if byte < 0x80 {
            break;
        }
        if at == 5 {
            return None;
        }
    }
    if length > MAX_VALUE as u64 {
        return None;
    }
    let mut out: Vec<u8> = Vec::new();
    while at < data.len() {
        let tag = data[at];
        at += 1;
        let mut number = |bytes: usize| {
            let part = data.get(at..at + bytes)?;
            at += bytes;
            Some(part.iter().rev().fold(0, |number, byte| number << 8 | *byte as usize))
        };
        let high = tag as usize >> 2;
        let (copied, offset) = match tag & 3 {
            0 => {
                let count = 1 + if high < 60 { high } else { number(high - 59)? };
                out.extend_from_slice(data.get(at..at.checked_add(count)?)?);
                at += count;
                (0, 1)
            }
            1 => (4 + (high & 7), (tag as usize >> 5) << 8 | number(1)?),
            2 => (1 + high, number(2)?),
            _ => (1 + high, number(4)?),
        };
        for _ in 0..copied {
            let from = out.len().checked_sub(offset)?;
            out.push(*out.get(from)?);
        }
        if out.len() as u64 > length {
            return None;
        }
    }
    (out.len() as u64 == length).then_some(out)
}

/// A value with extended attributes.
pub fn xattrs(data: &[u8]) {
    let data = &data[..data.len().min(4096)];
    assert_eq!(copied(data, XATTR), if data.is_empty() { Some((vec![], vec![])) } else { split(data) });
}

fn split(value: &[u8]) -> Option<(Xattrs, Vec<u8>)> {
    let (section, body) = sized(value)?;
    let mut xattrs = Vec::new();
    let mut rest = section;
    while !rest.is_empty() {
        let (pair, after) = sized(rest)?;
        let parts: Vec<&[u8]> = pair.split(|byte| *byte == 0).collect();
        let [name, text, b""] = parts[..] else { return None };
        std::str::from_utf8(name).ok().and(std::str::from_utf8(text).ok())?;
        xattrs.push((name.to_vec(), text.to_vec()));
        rest = after;
    }
    Some((xattrs, body.to_vec()))
}

fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// A key with the number of its collection.
pub fn leb128(data: &[u8]) {
    let data = &data[..data.len().min(250)];
    let found = decoded(data);
    match number(data) {
        Some((number, length)) => {
            assert_eq!(found.map(|row| (row.collection_id, row.key)), Ok((number, data[length..].to_vec())));
        }
        None => assert_eq!(found, Err(Wrong::CollectionId)),
    }
}

/// The number whose shortest form the bytes begin with, and how long that is.
fn number(data: &[u8]) -> Option<(u32, usize)> {
    let length = 1 + data.iter().position(|byte| *byte < 0x80)?;
    let number = data[..length]
        .iter()
        .rev()
        .try_fold(0u64, |number, byte| (number < 1 << 32).then_some(number << 7 | (byte & 0x7f) as u64))?;
    let mut shortest = Vec::new();
    let mut rest = number;
    loop {
        shortest.push((rest & 0x7f) as u8 | if rest > 0x7f { 0x80 } else { 0 });
        rest >>= 7;
        if rest == 0 {
            break;
        }
    }
    (shortest == data[..length]).then_some((u32::try_from(number).ok()?, length))
}
