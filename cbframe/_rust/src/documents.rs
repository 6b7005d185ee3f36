//! Keys and values out of a receive buffer: inflated, without extended attributes in front; and which are newest.

use std::hash::{BuildHasher, RandomState};

const SNAPPY: u8 = 2;
const XATTR: u8 = 4;
/// Three bytes of a Snappy block put out at most 64: who claims more is not to be believed.
const MOST_BYTES_A_BYTE: usize = 22;

/// A column of bytes.
pub struct Binary {
    pub offsets: Vec<i32>,
    pub bytes: Vec<u8>,
}

impl Binary {
    fn new(rows: usize, room: usize) -> Binary {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Binary { offsets, bytes: Vec::with_capacity(room) }
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        self.bytes.extend_from_slice(bytes);
        self.end()
    }

    fn end(&mut self) -> Option<()> {
        self.offsets.push(i32::try_from(self.bytes.len()).ok()?);
        Some(())
    }
}

/// Where keys and values are in a buffer: each key ends where its value begins.
pub struct Spans<'a> {
    pub buffer: &'a [u8],
    pub key_start: &'a [i64],
    pub value_start: &'a [i64],
    pub value_end: &'a [i64],
    pub datatype: &'a [u8],
}

impl<'a> Spans<'a> {
    fn row(&self, row: usize) -> Option<(&'a [u8], &'a [u8], u8)> {
        let at = |places: &[i64]| places.get(row).and_then(|place| usize::try_from(*place).ok());
        let (key, value, end) = (at(self.key_start)?, at(self.value_start)?, at(self.value_end)?);
        Some((self.buffer.get(key..value)?, self.buffer.get(value..end)?, *self.datatype.get(row)?))
    }
}

/// Columns of documents.
pub struct Documents {
    pub key: Binary,
    pub value: Binary,
    /// Of the documents: never SNAPPY, and XATTR only where extended attributes are kept.
    pub datatype: Vec<u8>,
    /// How many extended attributes there are up to each row, and their names and texts.
    pub xattrs: Vec<i32>,
    pub names: Binary,
    pub texts: Binary,
}

/// Copy documents; or the row of the first that is broken, or with which a column has no more room.
pub fn copy(spans: &Spans, max_value: usize, keeps_xattrs: bool) -> Result<Documents, usize> {
    let rows = spans.datatype.len();
    let (mut keys, mut values) = (0, 0);
    for row in 0..rows {
        let (key, value, datatype) = spans.row(row).ok_or(row)?;
        keys += key.len();
        values += if is_packed(value, datatype) { length(value, max_value).ok_or(row)? } else { value.len() };
    }
    let kept = if keeps_xattrs { rows } else { 0 };
    let mut documents = Documents {
        key: Binary::new(rows, keys),
        value: Binary::new(rows, values),
        datatype: Vec::with_capacity(rows),
        xattrs: Vec::with_capacity(kept + 1),
        names: Binary::new(0, 0),
        texts: Binary::new(0, 0),
    };
    documents.xattrs.push(0);
    let mut inflater = Inflater { decoder: snap::raw::Decoder::new(), max_value, section: Vec::new() };
    for row in 0..rows {
        let (key, value, datatype) = spans.row(row).ok_or(row)?;
        document(&mut documents, &mut inflater, key, value, datatype, keeps_xattrs).ok_or(row)?;
    }
    Ok(documents)
}

struct Inflater {
    decoder: snap::raw::Decoder,
    max_value: usize,
    /// A value that came packed, and has extended attributes in front.
    section: Vec<u8>,
}

#[inline(always)]
fn document(
    documents: &mut Documents,
    inflater: &mut Inflater,
    key: &[u8],
    value: &[u8],
    datatype: u8,
    keeps_xattrs: bool,
) -> Option<()> {
    documents.key.push(key)?;
    let (packed, has_section) = (is_packed(value, datatype), datatype & XATTR != 0 && !value.is_empty());
    let Inflater { decoder, max_value, section } = inflater;
    if has_section {
        let mut whole = value;
        if packed {
            section.clear();
            inflate(decoder, value, *max_value, section)?;
            whole = section;
        }
        let kept = keeps_xattrs.then_some((&mut documents.names, &mut documents.texts));
        documents.value.push(without_xattrs(whole, kept)?)?;
    } else if packed {
        inflate(decoder, value, *max_value, &mut documents.value.bytes)?;
        documents.value.end()?;
    } else {
        documents.value.push(value)?;
    }
    if keeps_xattrs {
        documents.xattrs.push(i32::try_from(documents.names.offsets.len() - 1).ok()?);
    }
    documents.datatype.push(datatype & if keeps_xattrs { !SNAPPY } else { !(SNAPPY | XATTR) });
    Some(())
}

/// Whether a value is a Snappy block.
///
/// On connections without values the datatype is that of the stored document: the bit may come with an empty
/// value, or with extended attributes that are not compressed. Their section begins with a zero byte, and a
/// Snappy block that begins so is empty.
fn is_packed(value: &[u8], datatype: u8) -> bool {
    datatype & SNAPPY != 0 && value.first().is_some_and(|first| datatype & XATTR == 0 || *first != 0)
}

/// How long a Snappy block says that its contents are, if that can be believed.
fn length(block: &[u8], max_value: usize) -> Option<usize> {
    let place = block.iter().take(5).position(|byte| *byte < 0x80)?;
    let number = block[..=place].iter().rev().fold(0u64, |number, byte| number << 7 | (byte & 0x7f) as u64);
    let length = usize::try_from(number).ok()?;
    let sound = length <= max_value && length <= (block.len() - place - 1) * MOST_BYTES_A_BYTE;
    sound.then_some(length)
}

fn inflate(decoder: &mut snap::raw::Decoder, block: &[u8], max_value: usize, out: &mut Vec<u8>) -> Option<()> {
    let (from, length) = (out.len(), length(block, max_value)?);
    out.resize(from + length, 0);
    (decoder.decompress(block, &mut out[from..]).ok()? == length).then_some(())
}

/// The value after its extended attributes, which are kept if that is wanted.
fn without_xattrs<'a>(value: &'a [u8], mut kept: Option<(&mut Binary, &mut Binary)>) -> Option<&'a [u8]> {
    let end = word(value, 0)?.checked_add(4)?;
    let section = value.get(..end)?;
    let mut at = 4;
    while at < end {
        let stop = word(section, at)?.checked_add(at + 4)?;
        let (last, pair) = section.get(at + 4..stop)?.split_last()?;
        let nul = pair.iter().position(|byte| *byte == 0)?;
        let (name, text) = (&pair[..nul], &pair[nul + 1..]);
        let sound = std::str::from_utf8(name).is_ok() && std::str::from_utf8(text).is_ok();
        if *last != 0 || text.contains(&0) || !sound {
            return None;
        }
        if let Some((names, texts)) = &mut kept {
            names.push(name)?;
            texts.push(text)?;
        }
        at = stop;
    }
    Some(&value[end..])
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// Which rows have the highest sequence number of their document, a byte each; of equal ones the last.
///
/// A document is a key in a collection. Rows with one hash are neighbours when they are sorted by it: only their
/// keys are compared. The hash is seeded randomly: who chooses the keys cannot make them collide.
pub fn newest(collection: &[u32], seqno: &[u64], offsets: &[i32], keys: &[u8]) -> Option<Vec<u8>> {
    let rows = collection.len();
    let place = |at: usize| offsets.get(at).and_then(|offset| usize::try_from(*offset).ok());
    let document = |row: usize| Some((collection[row], keys.get(place(row)?..place(row + 1)?)?));
    let seed = RandomState::new();
    let hashed = |row| Some((seed.hash_one(document(row)?), row));
    let mut order = (0..rows).map(hashed).collect::<Option<Vec<(u64, usize)>>>()?;
    order.sort_unstable();
    let mut found = vec![1u8; rows];
    let mut newest: Vec<usize> = Vec::new();
    for same in order.chunk_by(|one, other| one.0 == other.0).filter(|same| same.len() > 1) {
        newest.clear();
        for (_, row) in same {
            match newest.iter_mut().find(|before| document(**before) == document(*row)) {
                None => newest.push(*row),
                Some(before) if seqno.get(*row)? >= seqno.get(*before)? => {
                    found[std::mem::replace(before, *row)] = 0;
                }
                Some(_) => found[*row] = 0,
            }
        }
    }
    Some(found)
}
