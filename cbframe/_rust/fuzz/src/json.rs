//! Documents: verdicts, facts and columns beside those of a plain reader, over any configuration and layout.

use _core::json::blocks;
use _core::json::build::{rest, Array, Buffer, Builder, Layout, Type};
use _core::json::facts::{Facts, Looker, ARRAY, BOOLEAN, DOUBLE, INTEGER, KINDS, OBJECT, STRING};
use _core::json::shred::{Inside, Reason, Shredder, MAX_LEVELS, ROOT};
use _core::json::token::{Text, MAX_DEPTH};
use std::collections::BTreeMap;

/// Between documents: no byte of UTF-8.
const SEPARATOR: u8 = 0xff;

// ---------------------------------------------------------------------------------- a plain reader

enum Content {
    Null,
    Bool,
    Number,
    String(Vec<u8>),
    Array(Vec<Value>),
    /// Each name once, with its last value.
    Object(Vec<(Vec<u8>, Value)>),
}

struct Value {
    content: Content,
    source: Vec<u8>,
}

impl Value {
    fn kind(&self) -> Option<usize> {
        Some(match self.content {
            Content::Null => return None,
            Content::Bool => BOOLEAN,
            Content::Number if self.source.iter().any(|byte| b".eE".contains(byte)) => DOUBLE,
            Content::Number => INTEGER,
            Content::String(_) => STRING,
            Content::Array(_) => ARRAY,
            Content::Object(_) => OBJECT,
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.source).expect("documents are UTF-8")
    }

    fn double(&self) -> f64 {
        self.text().parse().expect("a number")
    }

    /// An integer of up to 38 digits.
    fn integer(&self) -> Option<i128> {
        let digits = self.source.iter().filter(|byte| byte.is_ascii_digit()).count();
        (self.kind() == Some(INTEGER) && digits <= 38).then(|| self.text().parse().expect("an integer"))
    }

    fn items(&self) -> &[Value] {
        if let Content::Array(items) = &self.content {
            items
        } else {
            &[]
        }
    }

    fn members(&self) -> &[(Vec<u8>, Value)] {
        if let Content::Object(members) = &self.content {
            members
        } else {
            &[]
        }
    }

    fn member(&self, name: &[u8]) -> Option<&Value> {
        self.members().iter().find(|(each, _)| each == name).map(|(_, value)| value)
    }
}

struct Reader<'a> {
    document: &'a [u8],
    at: usize,
}

fn read(document: &[u8]) -> Result<Value, Reason> {
    if document.iter().all(|byte| b" \t\r\n".contains(byte)) {
        return Err(Reason::Empty);
    }
    std::str::from_utf8(document).map_err(|_| Reason::NotUtf8)?;
    let mut reader = Reader { document, at: 0 };
    let value = reader.value(0)?;
    reader.blanks();
    match value.content {
        _ if reader.at < document.len() => Err(Reason::InvalidJson),
        Content::Object(_) => Ok(value),
        _ => Err(Reason::NotAnObject),
    }
}

impl Reader<'_> {
    fn peek(&self) -> u8 {
        self.document.get(self.at).copied().unwrap_or(0)
    }

    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == wanted;
        self.at += found as usize;
        found
    }

    fn need(&mut self, wanted: u8) -> Result<(), Reason> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(Reason::InvalidJson)
        }
    }

    fn blanks(&mut self) {
        while b" \t\r\n".contains(&self.peek()) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: u32) -> Result<Value, Reason> {
        self.blanks();
        let from = self.at;
        if b"[{".contains(&self.peek()) && depth == MAX_DEPTH {
            return Err(Reason::TooDeep);
        }
        let content = match self.peek() {
            b'"' => Content::String(self.string()?),
            b'[' => Content::Array(self.array(depth)?),
            b'{' => Content::Object(self.object(depth)?),
            b'-' | b'0'..=b'9' => self.number()?,
            _ => {
                let constants = [("true", Content::Bool), ("false", Content::Bool), ("null", Content::Null)];
                let found = constants.into_iter().find(|(text, _)| self.document[from..].starts_with(text.as_bytes()));
                let (text, content) = found.ok_or(Reason::InvalidJson)?;
                self.at += text.len();
                content
            }
        };
        Ok(Value { content, source: self.document[from..self.at].to_vec() })
    }

    fn array(&mut self, depth: u32) -> Result<Vec<Value>, Reason> {
        self.need(b'[')?;
        let mut items = Vec::new();
        self.blanks();
        if self.take(b']') {
            return Ok(items);
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.blanks();
            if self.take(b']') {
                return Ok(items);
            }
            self.need(b',')?;
        }
    }

    fn object(&mut self, depth: u32) -> Result<Vec<(Vec<u8>, Value)>, Reason> {
        self.need(b'{')?;
        let mut members: Vec<(Vec<u8>, Value)> = Vec::new();
        self.blanks();
        if self.take(b'}') {
            return Ok(members);
        }
        loop {
            self.blanks();
            let name = self.string()?;
            self.blanks();
            self.need(b':')?;
            let value = self.value(depth + 1)?;
            match members.iter_mut().find(|(earlier, _)| *earlier == name) {
                Some(earlier) => earlier.1 = value,
                None => members.push((name, value)),
            }
            self.blanks();
            if self.take(b'}') {
                return Ok(members);
            }
            self.need(b',')?;
        }
    }

    fn number(&mut self) -> Result<Content, Reason> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _signed = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(Content::Number)
    }

    fn digits(&mut self) -> Result<(), Reason> {
        let from = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at > from {
            Ok(())
        } else {
            Err(Reason::InvalidJson)
        }
    }

    fn string(&mut self) -> Result<Vec<u8>, Reason> {
        self.need(b'"')?;
        let mut plain = Vec::new();
        // Halves of surrogate pairs stand in UTF-16 side by side, or not at all.
        let mut units: Vec<u16> = Vec::new();
        loop {
            let byte = self.peek();
            let unit = (byte == b'\\' && self.document.get(self.at + 1) == Some(&b'u')).then(|| {
                let digits = self
                    .document
                    .get(self.at + 2..self.at + 6)
                    .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
                digits.and_then(|digits| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
            });
            if let Some(unit) = unit {
                units.push(unit.ok_or(Reason::InvalidJson)?);
                self.at += 6;
                continue;
            }
            plain.extend(String::from_utf16(&units).map_err(|_| Reason::InvalidJson)?.bytes());
            units.clear();
            self.at += 1;
            match byte {
                b'"' => return Ok(plain),
                b'\\' => {
                    let escaped = self.peek();
                    let place = b"\"\\/bfnrt".iter().position(|each| *each == escaped).ok_or(Reason::InvalidJson)?;
                    plain.push(b"\"\\/\x08\x0c\n\r\t"[place]);
                    self.at += 1;
                }
                0..0x20 => return Err(Reason::InvalidJson),
                _ => plain.push(byte),
            }
        }
    }
}

// ---------------------------------------------------------------------------------------- chances

struct Chance(u64);

impl Chance {
    /// A number below `most`.
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % most
    }

    fn one_of(&mut self, most: usize) -> bool {
        self.below(most) == 0
    }
}

/// Names of members with their values, in order.
fn by_name<'a>(values: &[&'a Value]) -> BTreeMap<&'a [u8], Vec<&'a Value>> {
    let mut found: BTreeMap<&[u8], Vec<&Value>> = BTreeMap::new();
    for (name, value) in values.iter().flat_map(|value| value.members()) {
        found.entry(name).or_default().push(value);
    }
    found
}

fn items_of<'a>(values: &[&'a Value]) -> Vec<&'a Value> {
    values.iter().flat_map(|value| value.items()).collect()
}

fn members_of<'a>(values: &[&'a Value]) -> Vec<&'a Value> {
    values.iter().flat_map(|value| value.members()).map(|(_, value)| value).collect()
}

/// Configure a field by chance; `level` is that of arrays and objects which are its values.
fn configure(shredder: &mut Shredder, id: usize, values: &[&Value], level: u32, chance: &mut Chance) {
    if level > MAX_LEVELS || chance.one_of(3) {
        return;
    }
    for (name, inner) in by_name(values) {
        if chance.one_of(2) {
            let child = shredder.field(id, name);
            configure(shredder, child, &inner, level + 1, chance);
        }
    }
    if chance.one_of(2) {
        let item = shredder.item(id);
        configure(shredder, item, &items_of(values), level + 1, chance);
    }
    let inside = [Inside::Fields, Inside::Fields, Inside::Names, Inside::Nothing][chance.below(4)];
    if inside == Inside::Names {
        let child = shredder.values(id);
        configure(shredder, child, &members_of(values), level + 1, chance);
    }
    shredder.nodes[id].inside = inside;
}

/// A layout that can hold some values.
fn layout(values: &[&Value], level: u32, chance: &mut Chance) -> Layout {
    let kinds: Vec<usize> = (0..KINDS).filter(|kind| values.iter().any(|value| value.kind() == Some(*kind))).collect();
    if kinds.len() > 1 && chance.one_of(4) {
        let only = kinds[chance.below(kinds.len())];
        let kept: Vec<&Value> = values.iter().filter(|value| value.kind() == Some(only)).copied().collect();
        return Layout { dropped: !(1 << only), ..layout(&kept, level, chance) };
    }
    let mut types = vec![Type::Written, Type::Json];
    if !kinds.contains(&ARRAY) && !kinds.contains(&OBJECT) {
        types.push(Type::Text);
    }
    match kinds[..] {
        [] => types.push(Type::Null),
        [BOOLEAN] => types.push(Type::Boolean),
        [ARRAY] if level <= MAX_LEVELS => {
            types = vec![Type::List(Box::new(layout(&items_of(values), level + 1, chance)))];
        }
        [OBJECT] if level < MAX_LEVELS && chance.one_of(3) => {
            types = vec![Type::Map(Box::new(layout(&members_of(values), level + 1, chance)))];
        }
        [OBJECT] if level <= MAX_LEVELS => {
            let members = by_name(values).into_iter();
            let members = members.map(|(name, inner)| (name.into(), layout(&inner, level + 1, chance)));
            types = vec![Type::Struct(members.collect())];
        }
        _ => {}
    }
    if !kinds.is_empty() && kinds.iter().all(|kind| [INTEGER, DOUBLE].contains(kind)) {
        types.push(Type::Double);
        let integers: Option<Vec<i128>> =
            values.iter().filter(|value| value.kind().is_some()).map(|value| value.integer()).collect();
        if let Some(integers) = integers {
            types.push(Type::Decimal);
            if integers.iter().all(|each| i64::try_from(*each).is_ok()) {
                types.push(Type::Int64);
            }
            if integers.iter().all(|each| u64::try_from(*each).is_ok()) {
                types.push(Type::UInt64);
            }
        }
    }
    Layout { of: types.swap_remove(chance.below(types.len())), dropped: 0 }
}

// ------------------------------------------------------------------------------------------ checks

#[derive(PartialEq, Debug)]
enum Cell {
    Null,
    Number(i128),
    Double(u64),
    Bytes(Vec<u8>),
    Inside(Vec<Cell>),
    Named(Vec<(Vec<u8>, Cell)>),
}

/// What a column of a layout has for a value.
fn wanted(value: Option<&Value>, layout: &Layout) -> Cell {
    let Some(value) = value else { return Cell::Null };
    let Some(kind) = value.kind() else { return Cell::Null };
    if layout.dropped >> kind & 1 != 0 {
        return Cell::Null;
    }
    match &layout.of {
        Type::Null => panic!("the layout holds no values"),
        Type::Boolean => Cell::Number((value.source[0] == b't') as i128),
        Type::Int64 | Type::UInt64 | Type::Decimal => Cell::Number(value.integer().expect("an integer")),
        Type::Double => Cell::Double(value.double().to_bits()),
        Type::Text | Type::Written => match &value.content {
            Content::String(plain) => Cell::Bytes(plain.clone()),
            _ => Cell::Bytes(value.source.clone()),
        },
        Type::Json => Cell::Bytes(value.source.clone()),
        Type::List(item) => Cell::Inside(value.items().iter().map(|each| wanted(Some(each), item)).collect()),
        Type::Struct(members) => {
            Cell::Inside(members.iter().map(|(name, inner)| wanted(value.member(name), inner)).collect())
        }
        Type::Map(inner) => {
            Cell::Named(value.members().iter().map(|(name, each)| (name.clone(), wanted(Some(each), inner))).collect())
        }
    }
}

/// The cells of a column; its buffers must be sound.
fn cells(array: &Array, layout: &Layout) -> Vec<Cell> {
    let rows = array.length;
    let valid = |row: usize| match (&layout.of, &array.buffers[0]) {
        (Type::Null, _) => false,
        (_, None) => true,
        (_, Some(Buffer::Bytes(bits))) => bits[row / 8] >> (row % 8) & 1 != 0,
        _ => panic!("validity is bits"),
    };
    assert_eq!(array.nulls, (0..rows).filter(|row| !valid(*row)).count());
    let mut inner: Vec<Vec<Cell>> = Vec::new();
    let mut names: Vec<Vec<u8>> = Vec::new();
    match &layout.of {
        Type::List(item) => inner.push(cells(&array.children[0], item)),
        Type::Struct(members) => {
            assert_eq!(members.len(), array.children.len());
            inner.extend(members.iter().zip(&array.children).map(|((_, member), child)| cells(child, member)));
            assert!(array.children.iter().all(|child| child.length == rows));
        }
        Type::Map(values) => {
            let entries = &array.children[0];
            names = (0..entries.length).map(|row| binary(&entries.children[0], row)).collect();
            inner.push(cells(&entries.children[1], values));
            assert!(entries.children.iter().all(|child| child.length == entries.length));
        }
        _ => {}
    }
    let mut inner: Vec<_> = inner.into_iter().map(|cells| cells.into_iter().map(Some).collect::<Vec<_>>()).collect();
    let mut taken = |column: usize, row: usize| inner[column][row].take().expect("each is in one row");
    let one = |row: usize| {
        if !valid(row) {
            return Cell::Null;
        }
        match (&layout.of, &array.buffers[1..]) {
            (Type::Boolean, [Some(Buffer::Bytes(bits))]) => Cell::Number((bits[row / 8] >> (row % 8) & 1) as i128),
            (Type::Int64, [Some(Buffer::Int64(numbers))]) => Cell::Number(numbers[row] as i128),
            (Type::UInt64, [Some(Buffer::UInt64(numbers))]) => Cell::Number(numbers[row] as i128),
            (Type::Decimal, [Some(Buffer::Decimal(numbers))]) => Cell::Number(numbers[row]),
            (Type::Double, [Some(Buffer::Double(numbers))]) => Cell::Double(numbers[row].to_bits()),
            (Type::Text | Type::Written | Type::Json, _) => Cell::Bytes(binary(array, row)),
            (Type::List(_), _) => Cell::Inside(span(array, row).map(|place| taken(0, place)).collect()),
            (Type::Struct(members), []) => Cell::Inside((0..members.len()).map(|column| taken(column, row)).collect()),
            (Type::Map(_), _) => {
                Cell::Named(span(array, row).map(|place| (names[place].clone(), taken(0, place))).collect())
            }
            _ => panic!("buffers are not those of {:?}", layout.of),
        }
    };
    (0..rows).map(one).collect()
}

fn span(array: &Array, row: usize) -> std::ops::Range<usize> {
    let Some(Buffer::Offsets(ends)) = &array.buffers[1] else { panic!("there are no offsets") };
    assert_eq!((ends.len(), ends[0]), (array.length + 1, 0));
    assert!(ends[row] <= ends[row + 1]);
    ends[row] as usize..ends[row + 1] as usize
}

fn binary(array: &Array, row: usize) -> Vec<u8> {
    let Some(Buffer::Bytes(bytes)) = &array.buffers[2] else { panic!("there are no bytes") };
    let found = &bytes[span(array, row)];
    assert!(std::str::from_utf8(found).is_ok());
    found.to_vec()
}

/// Facts are those of the values; `level` is that of arrays and objects which are among them.
fn check_facts(facts: &Facts, values: &[&Value], level: u32) {
    let of_kind = |kind| values.iter().filter(move |value| value.kind() == Some(kind));
    for kind in 0..KINDS {
        assert_eq!(facts.counts[kind], of_kind(kind).count() as u64);
        // Of the documents as a whole there are none.
        assert_eq!(facts.samples[kind].is_empty(), facts.counts[kind] == 0 || level == 1);
    }
    assert_eq!(facts.present, values.len() as u64);
    let integers = || of_kind(INTEGER).filter_map(|value| value.integer());
    assert_eq!(facts.low, integers().chain([0]).min().unwrap_or(0));
    assert_eq!(facts.high, integers().chain([0]).max().unwrap_or(0));
    assert_eq!(facts.long, of_kind(INTEGER).any(|value| value.integer().is_none()));
    assert_eq!(facts.minus_zero, of_kind(INTEGER).any(|value| value.source == b"-0"));
    assert_eq!(facts.beyond, of_kind(INTEGER).chain(of_kind(DOUBLE)).any(|value| value.double().is_infinite()));
    assert_eq!(facts.inexact, facts.long || integers().any(|number| number as f64 as i128 != number));
    let items = items_of(values);
    let members = by_name(values);
    if level > MAX_LEVELS {
        assert!(facts.item.is_none() && facts.fields.is_empty());
        return;
    }
    assert_eq!(facts.item.is_some(), !items.is_empty());
    if let Some(item) = &facts.item {
        check_facts(item, &items, level + 1);
    }
    assert_eq!(facts.members, members.values().map(|inner| inner.len() as u64).sum::<u64>());
    assert!(facts.fields.keys().map(|name| &name[..]).eq(members.keys().copied()));
    for (inner, values) in facts.fields.values().zip(members.values()) {
        check_facts(inner, values, level + 1);
    }
}

/// Documents one after the other in a buffer.
struct Batch<'a> {
    all: Vec<u8>,
    bounds: Vec<(usize, usize)>,
    values: Vec<Result<Value, Reason>>,
    documents: Vec<&'a [u8]>,
}

impl Batch<'_> {
    fn shred(&self, shredder: &mut Shredder, rows: std::ops::Range<usize>) -> Facts {
        shredder.clear();
        for (row, place) in rows.clone().enumerate() {
            let (from, to) = self.bounds[place];
            let reason = shredder.document(&self.all, from, to, row as u32);
            let known = self.values[place].as_ref().err().copied().unwrap_or(Reason::Good);
            assert_eq!(reason, known, "{:?}", self.documents[place].escape_ascii().to_string());
        }
        let vbuckets = vec![1; rows.len()];
        let seqnos: Vec<u64> = rows.map(|place| place as u64).collect();
        Looker::new(shredder, &self.all, &vbuckets, &seqnos).facts()
    }
}

/// Chances (4 bytes), most members (1), and documents with separators between them.
pub fn json(data: &[u8]) {
    let Some((&[a, b, c, d, most], rest)) = data.split_first_chunk::<5>() else { return };
    let chance = &mut Chance(u32::from_be_bytes([a, b, c, d]) as u64);
    let mut batch = Batch { all: Vec::new(), bounds: Vec::new(), values: Vec::new(), documents: Vec::new() };
    for document in rest.split(|byte| *byte == SEPARATOR).take(64) {
        batch.bounds.push((batch.all.len(), batch.all.len() + document.len()));
        batch.all.extend(document);
        batch.values.push(read(document));
        batch.documents.push(document);
    }
    let rows = batch.documents.len();
    let good: Vec<&Value> = batch.values.iter().flatten().collect();

    // Without limits the facts are those of the values, also when they are merged of two parts.
    let mut plain = Shredder::new(usize::MAX);
    let whole = batch.shred(&mut plain, 0..rows);
    check_facts(&whole, &good, 1);
    let middle = chance.below(rows + 1);
    let mut merged = batch.shred(&mut plain, middle..rows);
    merged.merge_documents(&batch.shred(&mut plain, 0..middle), usize::MAX);
    assert_eq!(merged, whole);

    let mut shredder = Shredder::new([1000, 0, 1, 3][most as usize & 3]);
    let some = most & 4 != 0;
    shredder.keeps_rest = most & 8 != 0;
    let keeps_rest = shredder.keeps_rest;
    let names = by_name(&good);
    let names: Vec<&[u8]> = names.into_keys().filter(|name| !(keeps_rest && name.contains(&0))).collect();
    let columns: Vec<&[u8]> = names.into_iter().filter(|_| !some || chance.one_of(2)).collect();
    for name in &columns {
        if some || chance.one_of(2) {
            let id = shredder.field(ROOT, name);
            let values: Vec<&Value> = good.iter().filter_map(|value| value.member(name)).collect();
            configure(&mut shredder, id, &values, 2, chance);
        }
    }
    if some {
        shredder.nodes[ROOT].inside = Inside::Some;
    }
    shredder.remember();
    for _ in 0..2 {
        let facts = batch.shred(&mut shredder, 0..rows);
        assert_eq!(facts.present, good.len() as u64);
        check_rest(&shredder, &batch, some.then_some(&columns));
        let mut layouts: blocks::Columns = Vec::new();
        for name in &columns {
            let values: Vec<&Value> = good.iter().filter_map(|value| value.member(name)).collect();
            check_rows(&shredder, &batch, name);
            let layout = layout(&values, 2, chance);
            let id = shredder.field(ROOT, name);
            let text = Text::new(&batch.all, batch.all.len());
            let built = Builder { shredder: &mut shredder, text }.column(id, &layout, rows, 1);
            let found = cells(&built.unwrap_or_else(|misfit| panic!("{misfit:?}: {layout:?}")), &layout);
            let documents = batch.values.iter().map(|value| value.as_ref().ok().and_then(|value| value.member(name)));
            for (cell, value) in found.iter().zip(documents) {
                assert_eq!(*cell, wanted(value, &layout), "{layout:?}");
            }
            layouts.push((name.to_vec(), layout));
        }
        check_blocks(&mut shredder, &batch, &layouts, 1 + chance.below(200));
    }
}

/// Blocks of some bytes together are the batch, where nothing is for all documents to decide.
fn check_blocks(shredder: &mut Shredder, batch: &Batch, layouts: &blocks::Columns, size: usize) {
    let rows = batch.documents.len();
    let bounds: Vec<i32> = [0].into_iter().chain(batch.bounds.iter().map(|(_, to)| *to as i32)).collect();
    let (vbuckets, seqnos) = (vec![1; rows], (0..rows as u64).collect::<Vec<_>>());
    let parts = blocks::Batch { all: &batch.all, bounds: &bounds, vbuckets: &vbuckets, seqnos: &seqnos };
    // What is not looked into by configuration may be looked into all the same: only without it facts are equal.
    let mut plain = Shredder::new(shredder.max_members);
    for (shredder, is_plain) in [(shredder, false), (&mut plain, true)] {
        let good = vec![Reason::Good as u8; rows];
        let (mut by_blocks, mut at_once, mut worth_it) = (good.clone(), good, true);
        let found = parts.by_blocks(shredder, &mut by_blocks, layouts, &mut worth_it, size);
        parts.read(shredder, 0..rows, &mut at_once);
        let facts = parts.facts(shredder, 0..rows);
        let Some((merged, columns)) = found else {
            assert!(!worth_it && (!is_plain || facts.has_data()));
            continue;
        };
        assert_eq!(by_blocks, at_once);
        assert_eq!(columns, parts.build(shredder, rows, layouts).expect("the layouts hold all values"));
        assert!(!is_plain || merged == facts, "{merged:?}\n{facts:?}");
    }
}

fn check_rows(shredder: &Shredder, batch: &Batch, name: &[u8]) {
    let found = shredder.rows_by_kind(&[Some(name.to_vec())]);
    for (kind, rows) in found.into_iter().enumerate() {
        let of_kind = |value: &Value| value.member(name).and_then(Value::kind) == Some(kind);
        let expected =
            (0..).zip(&batch.values).filter(|(_, value)| value.as_ref().is_ok_and(of_kind)).map(|(row, _)| row);
        assert!(rows.into_iter().eq(expected));
    }
    for inside in [vec![None], vec![None, None], vec![None, Some(b"a".to_vec())]] {
        let place: Vec<_> = [Some(name.to_vec())].into_iter().chain(inside).collect();
        let rows = shredder.rows_by_kind(&place);
        assert!(rows.iter().flatten().all(|row| (*row as usize) < batch.documents.len()));
    }
}

/// The members that are not wanted are there as JSON text.
fn check_rest(shredder: &Shredder, batch: &Batch, columns: Option<&Vec<&[u8]>>) {
    let text = Text::new(&batch.all, batch.all.len());
    let array = rest(shredder, text, batch.documents.len()).expect("it is small");
    let found = cells(&array, &Layout { of: Type::Json, dropped: 0 });
    for (cell, value) in found.iter().zip(&batch.values) {
        let members = value.as_ref().map_or(&[][..], Value::members).iter();
        let left = members.filter(|(name, _)| {
            shredder.keeps_rest && columns.map_or(name.contains(&0), |columns| !columns.contains(&&name[..]))
        });
        let left: Vec<_> = left.map(|(name, value)| (name, &value.source)).collect();
        match cell {
            Cell::Null => assert!(left.is_empty()),
            Cell::Bytes(text) => {
                let parsed = read(text).unwrap_or_else(|reason| panic!("{reason:?}: {}", text.escape_ascii()));
                assert!(parsed.members().iter().map(|(name, value)| (name, &value.source)).eq(left));
            }
            other => panic!("{other:?}"),
        }
    }
}
