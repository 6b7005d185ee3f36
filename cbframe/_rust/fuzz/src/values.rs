//! Parts of data messages: compressed values, extended attributes and collection ids, each beside a plain reader.

use crate::frames::{rows_of, Row};
use _core::frames::{FrameDecoder, Settings, Stream, Wrong};

const MAX_BODY: usize = 1 << 16;
const SNAPPY: u8 = 2;
const XATTR: u8 = 4;

/// A mutation with this key and value, decoded alone.
fn decoded(key: &[u8], value: &[u8], datatype: u8, collections: bool) -> Result<Row, Wrong> {
    let settings = Settings { collections, xattrs: true, inflate: true, max_body: MAX_BODY, max_block: 1 << 20 };
    let mut decoder = FrameDecoder::new(settings);
    *decoder.stream(0) = Stream { opaque: 7, open: true, marked: true, snapshot_end: 9, ..Stream::default() };
    let body = 31 + key.len() + value.len();
    let mut frame = vec![0x80, 0x57];
    frame.extend((key.len() as u16).to_be_bytes());
    frame.extend([31, datatype, 0, 0]);
    frame.extend((body as u32).to_be_bytes());
    frame.extend(7u32.to_be_bytes());
    frame.extend([0; 8]);
    frame.extend(1u64.to_be_bytes());
    frame.extend([0; 23]);
    frame.extend(key);
    frame.extend(value);
    let block = decoder.decode(&frame).map_err(|error| error.wrong)?;
    assert_eq!(block.consumed, frame.len());
    Ok(rows_of(&block).pop().expect("a row"))
}

/// A compressed value; and the data themselves, compressed here.
pub fn snappy(data: &[u8]) {
    let data = &data[..data.len().min(4096)];
    let found = decoded(b"k", data, SNAPPY, false);
    match inflated(data) {
        _ if data.is_empty() => assert_eq!(found.map(|row| row.value), Ok(vec![])),
        Some(plain) => assert_eq!(found.map(|row| (row.value, row.datatype)), Ok((plain, 0))),
        None => assert_eq!(found, Err(Wrong::Snappy)),
    }
    let packed = snap::raw::Encoder::new().compress_vec(data).expect("it is short");
    assert_eq!(decoded(b"k", &packed, SNAPPY, false).map(|row| row.value), Ok(data.to_vec()));
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
    if length > MAX_BODY as u64 {
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
    let found = decoded(b"k", data, XATTR, false);
    match split(data) {
        _ if data.is_empty() => assert!(found.is_ok_and(|row| row.xattrs.is_empty() && row.value.is_empty())),
        Some((xattrs, value)) => assert_eq!(found.map(|row| (row.xattrs, row.value)), Ok((xattrs, value))),
        None => assert_eq!(found, Err(Wrong::Xattrs)),
    }
}

type Split = (Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>);

fn split(value: &[u8]) -> Option<Split> {
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
    let found = decoded(data, b"{}", 1, true);
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
