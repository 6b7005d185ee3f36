//! Values of data messages, compressed or with extended attributes, each beside a plain reader.

use _core::documents::{copy, Binary, Spans};

const MAX_VALUE: usize = 1 << 16;
const SNAPPY: u8 = 2;
const XATTR: u8 = 4;

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes and the document of a value, copied between two others.
fn copied(value: &[u8], datatype: u8, keeps_xattrs: bool) -> Option<(Xattrs, Vec<u8>)> {
    let buffer = [b"k{}", value, b"k[]"].concat();
    let end = 3 + value.len() as i64;
    let spans = Spans {
        buffer: &buffer,
        key_start: &[0, 3, end],
        value_start: &[1, 3, end + 1],
        value_end: &[3, end, end + 3],
        datatype: &[0, datatype, 0],
    };
    let found = match copy(&spans, MAX_VALUE, keeps_xattrs) {
        Ok(found) => found,
        Err(row) => {
            assert_eq!(row, 1);
            return None;
        }
    };
    assert_eq!(items(&found.key), [&b"k"[..], b"", b"k"]);
    let [b"{}", document, b"[]"] = items(&found.value)[..] else { panic!("the others are changed") };
    assert_eq!(found.datatype, [0, datatype & if keeps_xattrs { XATTR } else { 0 }, 0]);
    let xattrs = items(&found.names).into_iter().zip(items(&found.texts));
    let xattrs: Xattrs = xattrs.map(|(name, text)| (name.to_vec(), text.to_vec())).collect();
    let count = xattrs.len() as i32;
    assert_eq!(found.xattrs, if keeps_xattrs { vec![0, 0, count, count] } else { vec![0] });
    Some((xattrs, document.to_vec()))
}

fn items(column: &Binary) -> Vec<&[u8]> {
    assert_eq!(column.offsets[0], 0);
    assert_eq!(column.offsets[column.offsets.len() - 1] as usize, column.bytes.len());
    column.offsets.windows(2).map(|pair| &column.bytes[pair[0] as usize..pair[1] as usize]).collect()
}

/// A compressed value, with extended attributes or without; and the data themselves, compressed here.
pub fn snappy(data: &[u8]) {
    let data = &data[..data.len().min(4096)];
    let plain = if data.is_empty() { Some(vec![]) } else { inflated(data) };
    assert_eq!(copied(data, SNAPPY, true), plain.map(|plain| (vec![], plain)));
    let packed = snap::raw::Encoder::new().compress_vec(data).expect("it is short");
    assert_eq!(copied(&packed, SNAPPY, false), Some((vec![], data.to_vec())));
    if !data.is_empty() {
        assert_eq!(copied(&packed, SNAPPY | XATTR, true), split(data));
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
    let known = if data.is_empty() { Some((vec![], vec![])) } else { split(data) };
    let document = known.as_ref().map(|(_, document)| (vec![], document.clone()));
    assert_eq!(copied(data, XATTR, true), known);
    assert_eq!(copied(data, XATTR, false), document);
}

fn split(value: &[u8]) -> Option<(Xattrs, Vec<u8>)> {
    let (section, document) = sized(value)?;
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
    Some((xattrs, document.to_vec()))
}

fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}
