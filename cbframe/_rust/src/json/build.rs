//! Cells to columns of decided types, as the buffers of Arrow arrays.

use super::facts::{kind_of, parse_double, parse_integer};
use super::shred::{Cell, Hash, Inside, Shredder, MAX_LEVELS};
use super::token::{eight_digits, Kind, Kinds, Text, COPIED};
use std::collections::hash_map::{Entry, HashMap};

/// The type of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    Null,
    Boolean,
    Int64,
    UInt64,
    /// 38 digits, none behind the point.
    Decimal,
    Double,
    /// Strings as they are, other scalars as they are written.
    Text,
    /// Strings as they are, any other value as it is written.
    Written,
    /// Every value as it is written.
    Json,
    List(Box<Layout>),
    Struct(Vec<(Box<[u8]>, Layout)>),
    Map(Box<Layout>),
}

/// How a field becomes a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub of: Type,
    /// Kinds of values (a bit for each) that are null, since they are not of the kind that was decided on.
    pub dropped: u8,
}

/// A buffer of an array.
#[derive(Debug, PartialEq)]
pub enum Buffer {
    Bytes(Vec<u8>),
    Words16(Vec<u16>),
    Words32(Vec<u32>),
    Offsets(Vec<i32>),
    Int64(Vec<i64>),
    UInt64(Vec<u64>),
    Double(Vec<f64>),
    Decimal(Vec<i128>),
}

/// An array: buffers as its type has them.
#[derive(Debug, PartialEq)]
pub struct Array {
    pub length: usize,
    pub nulls: usize,
    pub buffers: Vec<Option<Buffer>>,
    pub children: Vec<Array>,
}

/// Values that the type of a column cannot hold: it was decided without them.
#[derive(Debug, PartialEq)]
pub struct Misfit;

type Result<T> = std::result::Result<T, Misfit>;

pub struct Builder<'a> {
    pub shredder: &'a mut Shredder,
    pub text: Text<'a>,
}

impl Array {
    /// Make room for this many times what there is.
    pub fn reserve(&mut self, times: f64) {
        fn more<T>(values: &mut Vec<T>, times: f64) {
            values.reserve_exact((values.len() as f64 * times) as usize);
        }
        for buffer in self.buffers.iter_mut().flatten() {
            match buffer {
                Buffer::Bytes(values) => more(values, times),
                Buffer::Words16(values) => more(values, times),
                Buffer::Words32(values) => more(values, times),
                Buffer::Offsets(values) => more(values, times),
                Buffer::Int64(values) => more(values, times),
                Buffer::UInt64(values) => more(values, times),
                Buffer::Double(values) => more(values, times),
                Buffer::Decimal(values) => more(values, times),
            }
        }
        self.children.iter_mut().for_each(|child| child.reserve(times));
    }

    /// Append another one of the same type.
    pub fn append(&mut self, other: Array) {
        let has_bits = matches!(self.buffers[..], [_, Some(Buffer::Bytes(_))]);
        let (mut mine, mut others) = (self.buffers.iter_mut(), other.buffers.into_iter());
        if let (Some(valid), Some(more)) = (mine.next(), others.next()) {
            if valid.is_some() || more.is_some() {
                let ones = || {
                    let mut bits = Vec::new();
                    append_bits(&mut bits, 0, None, self.length);
                    Buffer::Bytes(bits)
                };
                let Buffer::Bytes(valid) = valid.get_or_insert_with(ones) else { return };
                append_bits(valid, self.length, more.as_ref(), other.length);
            }
        }
        for pair in mine.flatten().zip(others.flatten()) {
            match pair {
                (Buffer::Bytes(bits), more) if has_bits => append_bits(bits, self.length, Some(&more), other.length),
                (Buffer::Bytes(values), Buffer::Bytes(more)) => values.extend(more),
                (Buffer::Offsets(ends), Buffer::Offsets(more)) => {
                    let last = ends.last().copied().unwrap_or(0);
                    ends.extend(more.iter().skip(1).map(|end| last + end));
                }
                (Buffer::Int64(values), Buffer::Int64(more)) => values.extend(more),
                (Buffer::UInt64(values), Buffer::UInt64(more)) => values.extend(more),
                (Buffer::Double(values), Buffer::Double(more)) => values.extend(more),
                (Buffer::Decimal(values), Buffer::Decimal(more)) => values.extend(more),
                _ => {}
            }
        }
        self.length += other.length;
        self.nulls += other.nulls;
        self.children.iter_mut().zip(other.children).for_each(|(child, more)| child.append(more));
    }
}

/// Append a number of bits to others; ones where there are none.
fn append_bits(bits: &mut Vec<u8>, length: usize, more: Option<&Buffer>, count: usize) {
    let more = if let Some(Buffer::Bytes(more)) = more { Some(more) } else { None };
    match more {
        Some(more) if length % 8 == 0 => bits.extend(more),
        _ => {
            bits.resize((length + count).div_ceil(8), 0);
            for place in 0..count {
                let bit = more.is_none_or(|more| more[place / 8] >> (place % 8) & 1 != 0);
                bits[(length + place) / 8] |= (bit as u8) << ((length + place) % 8);
            }
        }
    }
}

impl Builder<'_> {
    /// A column of the values of a member of the objects of a field; there may be no such member.
    pub fn member(&mut self, id: usize, name: &[u8], layout: &Layout, rows: usize, depth: u32) -> Result<Array> {
        match self.shredder.member(id, name) {
            Some(child) => self.column(child, layout, rows, depth),
            None => none(layout, rows),
        }
    }

    /// A column of the values of a field, of which there are `rows` with those that are null or missing.
    ///
    /// `depth` arrays and objects are around the values.
    pub fn column(&mut self, id: usize, layout: &Layout, rows: usize, depth: u32) -> Result<Array> {
        let mut cells = std::mem::take(&mut self.shredder.nodes[id].cells);
        let built = self.array(id, layout, &cells, rows, depth);
        std::mem::swap(&mut cells, &mut self.shredder.nodes[id].cells);
        built
    }

    fn array(&mut self, id: usize, layout: &Layout, all: &[Cell], rows: usize, depth: u32) -> Result<Array> {
        let dropped = |kind: Kind| kind_of(kind).is_none_or(|kind| layout.dropped >> kind & 1 != 0);
        let before = self.shredder.nodes[id].kinds;
        let mut kinds = Kinds::default();
        before.iter().filter(|kind| !dropped(*kind)).for_each(|kind| kinds.add(kind));
        let kept: Vec<Cell>;
        let cells = if kinds != before && all.iter().any(|cell| dropped(cell.kind)) {
            kept = all.iter().filter(|cell| !dropped(cell.kind)).copied().collect();
            &kept[..]
        } else {
            all
        };
        let text = self.text;
        let source = |cell: &Cell| {
            let (from, to) = cell.place();
            text.slice(from, to)
        };
        let inside = self.shredder.nodes[id].inside;
        let reread = match layout.of {
            Type::Struct(_) if inside == Inside::Nothing || inside == Inside::Names => Some(Inside::Fields),
            Type::List(_) if inside == Inside::Nothing => Some(Inside::Fields),
            Type::Map(_) if inside != Inside::Names => Some(Inside::Names),
            _ => None,
        };
        if let Some(inside) = reread {
            self.shredder.nodes[id].cells = all.to_vec();
            self.shredder.reread(text, id, inside, depth).map_err(|_| Misfit)?;
        }
        let (mut buffers, mut children) = (vec![valid(cells, rows)], vec![]);
        match &layout.of {
            Type::Null if cells.is_empty() => buffers[0] = None,
            Type::Null => return Err(Misfit),
            Type::Boolean => {
                let mut bits = vec![0; rows.div_ceil(8)];
                for cell in cells {
                    expect(cell.kind == Kind::Bool)?;
                    bits[cell.row as usize / 8] |= (cell.content as u8) << (cell.row % 8);
                }
                buffers.push(Some(Buffer::Bytes(bits)));
            }
            Type::Int64 if kinds.are_only(&[Kind::Int]) => {
                buffers.push(Some(Buffer::Int64(each(cells, rows, |cell| cell.content as i64))));
            }
            Type::Int64 => buffers.push(Some(Buffer::Int64(fixed(cells, rows, |cell| match cell.kind {
                Kind::Int => Ok(cell.content as i64),
                Kind::Long => parse_integer(source(cell)).and_then(|number| number.try_into().ok()).ok_or(Misfit),
                _ => Err(Misfit),
            })?))),
            Type::UInt64 => buffers.push(Some(Buffer::UInt64(fixed(cells, rows, |cell| match cell.kind {
                Kind::Int => u64::try_from(cell.content as i64).map_err(|_| Misfit),
                Kind::Long => parse_integer(source(cell)).and_then(|number| number.try_into().ok()).ok_or(Misfit),
                _ => Err(Misfit),
            })?))),
            Type::Decimal => buffers.push(Some(Buffer::Decimal(fixed(cells, rows, |cell| match cell.kind {
                Kind::Int => Ok(cell.content as i64 as i128),
                Kind::Long => parse_integer(source(cell)).ok_or(Misfit),
                _ => Err(Misfit),
            })?))),
            Type::Double if kinds.are_only(&[Kind::Double]) => {
                buffers.push(Some(Buffer::Double(each(cells, rows, |cell| short_double(text, cell)))));
            }
            Type::Double => buffers.push(Some(Buffer::Double(fixed(cells, rows, |cell| match cell.kind {
                Kind::Int => Ok(cell.content as i64 as f64),
                Kind::Double => Ok(short_double(text, cell)),
                Kind::Long | Kind::Exponent => Ok(parse_double(source(cell))),
                _ => Err(Misfit),
            })?))),
            Type::Text | Type::Written if kinds.are_only(&[Kind::Str]) => {
                buffers.extend(strings(cells, rows, |cell, out| {
                    let (from, to) = cell.place();
                    text.append(from, to, out);
                    Ok(())
                })?);
            }
            Type::Text => buffers.extend(strings(cells, rows, |cell, out| {
                write_text(text, cell, out);
                expect(!matches!(cell.kind, Kind::Array | Kind::Object))
            })?),
            Type::Written => buffers.extend(strings(cells, rows, |cell, out| {
                write_text(text, cell, out);
                Ok(())
            })?),
            Type::Json => buffers.extend(strings(cells, rows, |cell, out| {
                match cell.kind {
                    Kind::Str | Kind::Escaped => {
                        let (from, to) = cell.place();
                        out.extend_from_slice(text.slice(from - 1, to + 1));
                    }
                    _ => write_text(text, cell, out),
                }
                Ok(())
            })?),
            Type::List(item) => {
                let ends = std::mem::take(&mut self.shredder.nodes[id].ends);
                let offsets = if kinds.are_only(&[Kind::Array]) && ends.len() == rows && cells.len() == rows {
                    Ok(std::iter::once(0).chain(ends.iter().map(|end| *end as i32)).collect())
                } else {
                    offsets(cells, rows, Kind::Array, &spans(all, Kind::Array, &ends))
                };
                let count = ends.last().copied().unwrap_or(0) as usize;
                self.shredder.nodes[id].ends = ends;
                buffers.push(Some(Buffer::Offsets(offsets?)));
                children.push(match self.shredder.nodes[id].item {
                    Some(inner) => self.column(inner as usize, item, count, depth + 1)?,
                    None => none(item, count)?,
                });
            }
            Type::Struct(members) => {
                expect(kinds.are_only(&[Kind::Object]) || cells.iter().all(|cell| cell.kind == Kind::Object))?;
                expect(cells.is_empty() || depth < MAX_LEVELS)?;
                for (name, member) in members {
                    children.push(self.member(id, name, member, rows, depth + 1)?);
                }
            }
            Type::Map(values) => {
                let ends = std::mem::take(&mut self.shredder.nodes[id].members);
                let offsets = offsets(cells, rows, Kind::Object, &spans(all, Kind::Object, &ends));
                let count = ends.last().copied().unwrap_or(0) as usize;
                self.shredder.nodes[id].members = ends;
                buffers.push(Some(Buffer::Offsets(offsets?)));
                let inner = self.shredder.values(id);
                let column = self.column(inner, values, count, depth + 1)?;
                let names = &self.shredder.nodes[id].names;
                let (mut ends, mut keys) = (Vec::with_capacity(count + 1), Vec::new());
                ends.push(0);
                for name in names {
                    name.text(text, &mut keys);
                    ends.push(offset(keys.len())?);
                }
                let buffers = vec![None, Some(Buffer::Offsets(ends)), Some(Buffer::Bytes(keys))];
                let keys = Array { length: count, nulls: 0, buffers, children: vec![] };
                children.push(Array { length: count, nulls: 0, buffers: vec![None], children: vec![keys, column] });
            }
        }
        Ok(Array { length: rows, nulls: rows - cells.len(), buffers, children })
    }
}

/// The members of each document that were not wanted, as JSON text: each name once, with its last value.
pub fn rest(shredder: &Shredder, text: Text, rows: usize) -> Result<Array> {
    let mut cells: Vec<Cell> = Vec::new();
    let mut bytes = Vec::new();
    let mut ends = vec![0];
    let mut places: HashMap<Vec<u8>, usize, Hash> = HashMap::default();
    for members in shredder.rest.chunk_by(|one, other| one.0 == other.0) {
        let mut found: Vec<(Vec<u8>, &Cell)> = Vec::new();
        places.clear();
        for (_, name, value) in members {
            let mut plain = Vec::new();
            name.text(text, &mut plain);
            match places.entry(plain) {
                Entry::Occupied(earlier) => found[*earlier.get()].1 = value,
                Entry::Vacant(vacant) => {
                    found.push((vacant.key().clone(), value));
                    vacant.insert(found.len() - 1);
                }
            }
        }
        let row = members[0].0;
        ends.resize(row as usize + 1, offset(bytes.len())?);
        bytes.push(b'{');
        for (number, (name, value)) in found.iter().enumerate() {
            if number > 0 {
                bytes.push(b',');
            }
            write_quoted(name, &mut bytes);
            bytes.push(b':');
            let (from, to) = value.place();
            bytes.extend_from_slice(text.slice(from, to));
        }
        bytes.push(b'}');
        ends.push(offset(bytes.len())?);
        cells.push(Cell { row, ..*found[0].1 });
    }
    ends.resize(rows + 1, offset(bytes.len())?);
    let buffers = vec![valid(&cells, rows), Some(Buffer::Offsets(ends)), Some(Buffer::Bytes(bytes))];
    Ok(Array { length: rows, nulls: rows - cells.len(), buffers, children: vec![] })
}

/// A name as a JSON string, with the escapes that there must be.
fn write_quoted(name: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for byte in name {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            8 => out.extend(b"\\b"),
            12 => out.extend(b"\\f"),
            0..32 => {
                out.extend(b"\\u00");
                out.extend([HEX[*byte as usize / 16], HEX[*byte as usize % 16]]);
            }
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

fn expect(fits: bool) -> Result<()> {
    if fits {
        Ok(())
    } else {
        Err(Misfit)
    }
}

fn offset(at: usize) -> Result<i32> {
    // A batch has far fewer bytes than that.
    i32::try_from(at).map_err(|_| Misfit)
}

/// A column of a field that no document has.
fn none(layout: &Layout, rows: usize) -> Result<Array> {
    let mut nothing = Shredder::new(0);
    Builder { shredder: &mut nothing, text: Text::new(&[], 0) }.column(0, layout, rows, 0)
}

/// A bit for each row that has a value; None where all have one.
fn valid(cells: &[Cell], rows: usize) -> Option<Buffer> {
    if cells.len() == rows {
        return None;
    }
    let mut bits = vec![0; rows.div_ceil(8)];
    for cell in cells {
        bits[cell.row as usize / 8] |= 1 << (cell.row % 8);
    }
    Some(Buffer::Bytes(bits))
}

#[inline(always)]
fn each<T: Copy + Default>(cells: &[Cell], rows: usize, value: impl Fn(&Cell) -> T) -> Vec<T> {
    if cells.len() == rows {
        return cells.iter().map(value).collect();
    }
    let mut values = vec![T::default(); rows];
    for cell in cells {
        values[cell.row as usize] = value(cell);
    }
    values
}

#[inline(always)]
fn fixed<T: Copy + Default>(cells: &[Cell], rows: usize, value: impl Fn(&Cell) -> Result<T>) -> Result<Vec<T>> {
    let mut values = vec![T::default(); rows];
    for cell in cells {
        values[cell.row as usize] = value(cell)?;
    }
    Ok(values)
}

#[inline(always)]
fn strings(
    cells: &[Cell],
    rows: usize,
    write: impl Fn(&Cell, &mut Vec<u8>) -> Result<()>,
) -> Result<[Option<Buffer>; 2]> {
    let mut ends = Vec::with_capacity(rows + 1);
    let mut bytes = Vec::with_capacity(cells.iter().map(|cell| cell.room()).sum::<usize>() + COPIED);
    ends.push(0);
    for cell in cells {
        if cell.row as usize >= ends.len() {
            ends.resize(cell.row as usize + 1, offset(bytes.len())?);
        }
        write(cell, &mut bytes)?;
        ends.push(offset(bytes.len())?);
    }
    ends.resize(rows + 1, offset(bytes.len())?);
    Ok([Some(Buffer::Offsets(ends)), Some(Buffer::Bytes(bytes))])
}

/// The items of each array, or the members of each object: where they begin and where they end.
fn spans(cells: &[Cell], kind: Kind, ends: &[u32]) -> Vec<(u32, u32, u32)> {
    let mut start = 0;
    let rows = cells.iter().filter(|cell| cell.kind == kind).map(|cell| cell.row);
    rows.zip(ends).map(|(row, end)| (row, std::mem::replace(&mut start, *end), *end)).collect()
}

fn offsets(cells: &[Cell], rows: usize, kind: Kind, spans: &[(u32, u32, u32)]) -> Result<Vec<i32>> {
    expect(cells.iter().all(|cell| cell.kind == kind) && cells.len() == spans.len())?;
    let mut all = Vec::with_capacity(rows + 1);
    all.push(0);
    for (row, start, end) in spans {
        if *row as usize >= all.len() {
            all.resize(*row as usize + 1, *start as i32);
        }
        all.push(*end as i32);
    }
    let last = all.last().copied().unwrap_or(0);
    all.resize(rows + 1, last);
    Ok(all)
}

#[inline(always)]
fn write_text(text: Text, cell: &Cell, out: &mut Vec<u8>) {
    let (from, to) = cell.place();
    match cell.kind {
        Kind::Str => text.append(from, to, out),
        Kind::Escaped => text.unescape(from, to, out),
        Kind::Bool => out.extend_from_slice(if cell.content != 0 { b"true" } else { b"false" }),
        Kind::Int => write_integer(cell.content as i64, out),
        Kind::Null => {}
        _ => out.extend_from_slice(text.slice(from, to)),
    }
}

fn write_integer(number: i64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// The nearest double of a number with a point and without an exponent.
#[inline(always)]
fn short_double(text: Text, cell: &Cell) -> f64 {
    let (from, to) = cell.place();
    let negative = text.byte(from) == b'-';
    let first = from + negative as usize;
    if to - first > 8 {
        return longer_double(text.slice(from, to));
    }
    // Digits as numbers, the last one highest, without the point: of them only that has this bit.
    let digits = (text.word(first) ^ 0x3030_3030_3030_3030) << (8 * (8 - (to - first)));
    let point = (digits & 0x1010_1010_1010_1010).trailing_zeros() & !7;
    let whole = digits & !(u64::MAX << point);
    let places = (56 - point) / 8;
    let digits = (digits & (u64::MAX - 0xff) << point) | whole << 8;
    let number = eight_digits(digits) as f64 / TENS[places as usize];
    if negative {
        -number
    } else {
        number
    }
}

#[inline(never)]
fn longer_double(source: &[u8]) -> f64 {
    let (mut mantissa, mut places, mut point) = (0u64, 0usize, false);
    let negative = source[0] == b'-';
    if source.len() <= 17 {
        for byte in &source[negative as usize..] {
            if *byte == b'.' {
                point = true;
            } else {
                mantissa = mantissa * 10 + (*byte - b'0') as u64;
                places += point as usize;
            }
        }
        // Both are exact, so their quotient is rounded once.
        if mantissa <= 1 << 53 {
            let number = mantissa as f64 / TENS[places];
            return if negative { -number } else { number };
        }
    }
    parse_double(source)
}

#[cfg(test)]
mod tests {
    use super::super::shred::{Reason, ROOT};
    use super::*;

    /// A column "a" of a layout, of one document.
    fn column(document: &str, configured: Inside, of: Type) -> Result<Array> {
        let mut shredder = Shredder::new(1);
        let id = shredder.field(ROOT, b"a");
        shredder.nodes[id].inside = configured;
        let text = Text::new(document.as_bytes(), document.len());
        assert_eq!(shredder.document(document.as_bytes(), 0, document.len(), 0), Reason::Good);
        Builder { shredder: &mut shredder, text }.column(id, &Layout { of, dropped: 0 }, 1, 1)
    }

    #[test]
    fn members_of_a_struct_are_found_among_more_names_than_there_may_be() {
        for inside in [Inside::Fields, Inside::Names, Inside::Nothing] {
            let member = (b"z"[..].into(), Layout { of: Type::Boolean, dropped: 0 });
            let built = column(r#"{"a":{"x":1,"y":2,"z":true}}"#, inside, Type::Struct(vec![member]));
            assert_eq!(built.map(|array| array.children[0].nulls), Ok(0), "{inside:?}");
        }
    }

    #[test]
    fn short_doubles_are_the_nearest() {
        for digits in ["0", "7", "10", "305", "9999", "123456", "9007199254740993", "00000000000000000001"] {
            for place in 1..12 {
                for sign in ["", "-"] {
                    // Digits of a next document follow at once.
                    let number = format!("{sign}{digits}.{:0place$}", 12_345_678_901u64 % 10u64.pow(place as u32));
                    let all = format!("{number}99999999");
                    let content = (number.len() as u64) << 32;
                    let cell = Cell { content, row: 0, kind: Kind::Double };
                    let found = short_double(Text::new(all.as_bytes(), number.len()), &cell);
                    assert_eq!(found.to_bits(), parse_double(number.as_bytes()).to_bits(), "{number}");
                }
            }
        }
    }

    #[test]
    fn very_many_members_that_are_no_columns() {
        // Each looked for among those before takes minutes.
        let count = 300_000;
        let members: Vec<String> = (0..count).map(|number| format!("\"{number}\":1")).collect();
        let document = format!("{{{},\"7\":2}}", members.join(","));
        let mut shredder = Shredder::new(1);
        shredder.keeps_rest = true;
        shredder.nodes[ROOT].inside = Inside::Some;
        assert_eq!(shredder.document(document.as_bytes(), 0, document.len(), 0), Reason::Good);
        let array = rest(&shredder, Text::new(document.as_bytes(), document.len()), 1).unwrap();
        let Some(Buffer::Bytes(text)) = &array.buffers[2] else { panic!("there is no text") };
        assert_eq!(text.len(), document.len() - ",\"7\":2".len());
        assert!(text.starts_with(br#"{"0":1,"1":1"#) && text.windows(7).any(|part| part == br#","7":2,"#));
    }
}
