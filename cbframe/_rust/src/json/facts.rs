//! What the values of a field have in common: of batches and of buckets, merged in any order.

use super::shred::{inner_rows, Cell, Inside, Shredder, MAX_LEVELS, ROOT};
use super::token::{Kind, Text};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Values of no common type are counted by these.
pub const KINDS: usize = 6;
pub const BOOLEAN: usize = 0;
pub const INTEGER: usize = 1;
pub const DOUBLE: usize = 2;
pub const STRING: usize = 3;
pub const ARRAY: usize = 4;
pub const OBJECT: usize = 5;
/// Integers of more digits are text.
const MAX_DIGITS: usize = 38;
/// Integers up to this one have an exact double.
const EXACT: u64 = 1 << 53;
/// How many documents are named for each kind of value.
const SAMPLES: usize = 3;

/// Where a document stands in the bucket: its vbucket and its sequence number.
pub type Place = (u16, u64);

pub fn kind_of(kind: Kind) -> Option<usize> {
    Some(match kind {
        Kind::Null => return None,
        Kind::Bool => BOOLEAN,
        Kind::Int | Kind::Long => INTEGER,
        Kind::Double | Kind::Exponent => DOUBLE,
        Kind::Str | Kind::Escaped => STRING,
        Kind::Array => ARRAY,
        Kind::Object => OBJECT,
    })
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// How many values there are of each kind.
    pub counts: [u64; KINDS],
    /// Where the first documents are that have a value of each kind.
    pub samples: [Vec<Place>; KINDS],
    /// The smallest and the largest integer of up to 38 digits, and 0.
    pub low: i128,
    pub high: i128,
    /// Some integer has no exact double.
    pub inexact: bool,
    /// Some integer has more than 38 digits.
    pub long: bool,
    /// Some number is beyond the range of a double.
    pub beyond: bool,
    /// Some integer is `-0`.
    pub minus_zero: bool,
    pub item: Option<Box<Facts>>,
    /// Members of objects.
    pub fields: BTreeMap<Box<[u8]>, Facts>,
    /// Values of all members, where names are data in any case.
    pub values: Option<Box<Facts>>,
    /// Hashes of their names, where there are such values: of [`name_hash`].
    pub names: BTreeSet<u64>,
    /// Some name has a NUL.
    pub nul: bool,
    /// How many members, nulls included, all objects have.
    pub members: u64,
    /// How many values there are, nulls included.
    pub present: u64,
}

impl Facts {
    /// Where the first document is that has a value.
    pub fn first(&self) -> Option<Place> {
        self.samples.iter().filter_map(|places| places.first()).min().copied()
    }

    /// Add those of other documents.
    ///
    /// Names of objects of more than `most` different ones are data; those of the documents themselves never are.
    pub fn merge_documents(&mut self, other: &Facts, most: usize) {
        self.add(other, most);
    }

    fn merge(&mut self, other: &Facts, most: usize) {
        self.add(other, most);
        if self.fields.len() > most {
            self.names_are_data(most);
        }
    }

    fn add(&mut self, other: &Facts, most: usize) {
        for kind in 0..KINDS {
            self.counts[kind] += other.counts[kind];
            merge_places(&mut self.samples[kind], &other.samples[kind]);
        }
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.inexact |= other.inexact;
        self.long |= other.long;
        self.beyond |= other.beyond;
        self.minus_zero |= other.minus_zero;
        self.nul |= other.nul;
        self.members += other.members;
        self.present += other.present;
        if let Some(item) = &other.item {
            self.item.get_or_insert_with(Default::default).merge(item, most);
        }
        if self.values.is_none() && other.values.is_some() {
            self.names_are_data(most);
        }
        match &mut self.values {
            Some(values) => {
                for (name, facts) in &other.fields {
                    values.merge(facts, most);
                    self.names.insert(name_hash(name));
                }
                if let Some(more) = &other.values {
                    values.merge(more, most);
                }
                self.names.extend(&other.names);
            }
            None => {
                for (name, facts) in &other.fields {
                    self.fields.entry(name.clone()).or_default().merge(facts, most);
                }
            }
        }
    }

    /// Whether names are data somewhere.
    pub fn has_data(&self) -> bool {
        self.values.is_some() || self.fields.values().chain(self.item.as_deref()).any(Facts::has_data)
    }

    /// A number that is the same for facts from which the same columns follow, but for how many names there are.
    pub fn shape(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_shape(&mut hasher);
        hasher.finish()
    }

    fn hash_shape(&self, hasher: &mut DefaultHasher) {
        let kinds = self.counts.map(|count| count > 0);
        let range =
            (self.low < 0, self.low < i64::MIN as i128, self.high > i64::MAX as i128, self.high > u64::MAX as i128);
        (kinds, range, self.inexact, self.long, self.beyond, self.nul).hash(hasher);
        for (name, facts) in &self.fields {
            name.hash(hasher);
            facts.hash_shape(hasher);
        }
        for inner in [&self.item, &self.values].into_iter().flatten() {
            hasher.write_u8(1);
            inner.hash_shape(hasher);
        }
        hasher.write_u8(2);
    }

    /// From now on only what all members have in common counts.
    fn names_are_data(&mut self, most: usize) {
        let mut values = Facts::default();
        for (name, facts) in std::mem::take(&mut self.fields) {
            values.merge(&facts, most);
            self.names.insert(name_hash(&name));
        }
        self.values = Some(Box::new(values));
    }
}

/// FNV-1a of 64 bits, by which names are counted: the same everywhere, since facts are stored.
pub fn name_hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ *byte as u64).wrapping_mul(0x0100_0000_01b3))
}

fn merge_places(places: &mut Vec<Place>, more: &[Place]) {
    if more.is_empty() {
        return;
    }
    places.extend_from_slice(more);
    places.sort_unstable();
    places.dedup();
    places.truncate(SAMPLES);
}

/// Of a batch.
pub struct Looker<'a> {
    shredder: &'a Shredder,
    text: Text<'a>,
    vbuckets: &'a [u16],
    seqnos: &'a [u64],
    /// Where the first documents of the batch are, and their rows.
    firsts: Vec<(Place, u32)>,
}

impl<'a> Looker<'a> {
    pub fn new(shredder: &'a Shredder, all: &'a [u8], vbuckets: &'a [u16], seqnos: &'a [u64]) -> Looker<'a> {
        let mut places = Vec::new();
        for place in vbuckets.iter().copied().zip(seqnos.iter().copied()) {
            insert(&mut places, place);
        }
        let row = |place: &Place| vbuckets.iter().zip(seqnos).position(|each| (*each.0, *each.1) == *place);
        let firsts = places.into_iter().filter_map(|place| Some((place, row(&place)? as u32))).collect();
        Looker { shredder, text: Text::new(all, all.len()), vbuckets, seqnos, firsts }
    }

    /// Of the documents as a whole.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts { present: self.shredder.documents, ..Facts::default() };
        facts.counts[OBJECT] = facts.present;
        self.fields(ROOT, 2, None, &mut facts);
        facts
    }

    /// Of the members of objects.
    ///
    /// `documents` has the document of each row; where there is none, rows are documents.
    fn fields(&self, id: usize, level: u32, documents: Option<&[u32]>, facts: &mut Facts) {
        for field in &self.shredder.nodes[id].fields {
            let Some(child) = field.node else { continue };
            let inner = self.node(child as usize, level, documents);
            if inner.present > 0 {
                facts.members += inner.present;
                facts.nul |= field.name().contains(&0);
                facts.fields.insert(field.name().into(), inner);
            }
        }
    }

    fn node(&self, id: usize, level: u32, documents: Option<&[u32]>) -> Facts {
        let node = &self.shredder.nodes[id];
        let mut facts = Facts { present: node.cells.len() as u64, ..Facts::default() };
        let mut kinds = node.kinds.iter().map(kind_of);
        let first = kinds.next().flatten();
        let only = first.filter(|_| kinds.all(|kind| kind == first));
        match only {
            Some(kind) => facts.counts[kind] = facts.present,
            None => {
                for kind in node.cells.iter().filter_map(|cell| kind_of(cell.kind)) {
                    facts.counts[kind] += 1;
                }
            }
        }
        if node.kinds.are_only(&[Kind::Int]) {
            let numbers = || node.cells.iter().map(|cell| cell.content as i64);
            let (low, high) = numbers().fold((0, 0), |(low, high), number| (number.min(low), number.max(high)));
            (facts.low, facts.high) = (low as i128, high as i128);
            facts.inexact = low.unsigned_abs().max(high as u64) > EXACT && numbers().any(is_inexact);
        } else if !node.kinds.are_only(&[
            Kind::Null,
            Kind::Bool,
            Kind::Double,
            Kind::Str,
            Kind::Escaped,
            Kind::Array,
            Kind::Object,
        ]) {
            node.cells.iter().for_each(|cell| self.number(cell, &mut facts));
        }
        self.places(&node.cells, documents, only, &mut facts);
        if level > MAX_LEVELS || node.inside == Inside::Nothing {
            return facts;
        }
        if facts.counts[ARRAY] > 0 {
            if let Some(item) = node.item {
                let inner = inner_rows(&node.cells, Kind::Array, &node.ends, documents);
                let found = self.node(item as usize, level + 1, Some(&inner));
                if found.present > 0 {
                    facts.item = Some(Box::new(found));
                }
            }
        }
        if facts.counts[OBJECT] > 0 {
            match node.values {
                Some(values) => {
                    let inner = inner_rows(&node.cells, Kind::Object, &node.members, documents);
                    let found = self.node(values as usize, level + 2, Some(&inner));
                    facts.members = found.present;
                    facts.values = Some(Box::new(found));
                    let mut unescaped = Vec::new();
                    for name in &node.names {
                        unescaped.clear();
                        name.text(self.text, &mut unescaped);
                        facts.names.insert(name_hash(&unescaped));
                        facts.nul |= name.2 && unescaped.contains(&0);
                    }
                }
                None => self.fields(id, level + 1, documents, &mut facts),
            }
        }
        facts
    }

    fn number(&self, cell: &Cell, facts: &mut Facts) {
        match cell.kind {
            Kind::Int => {
                let number = cell.content as i64;
                facts.low = facts.low.min(number as i128);
                facts.high = facts.high.max(number as i128);
                facts.inexact |= is_inexact(number);
            }
            Kind::Long => self.long(cell, facts),
            Kind::Exponent if !facts.beyond => {
                let (from, to) = cell.place();
                facts.beyond = !parse_double(self.text.slice(from, to)).is_finite();
            }
            _ => {}
        }
    }

    #[cold]
    fn long(&self, cell: &Cell, facts: &mut Facts) {
        let (from, to) = cell.place();
        let source = self.text.slice(from, to);
        let digits = source.len() - (source[0] == b'-') as usize;
        if source == b"-0" {
            facts.minus_zero = true;
            return;
        }
        let double = parse_double(source);
        if digits > MAX_DIGITS {
            facts.long = true;
            // Where a number is that long, its column is text in any case.
            facts.inexact = true;
            facts.beyond |= !double.is_finite();
            return;
        }
        if let Some(number) = parse_integer(source) {
            facts.low = facts.low.min(number);
            facts.high = facts.high.max(number);
            facts.inexact |= double as i128 != number;
        }
    }

    /// Where values stand first; `only` is the kind of all of them, if they have one.
    fn places(&self, cells: &[Cell], documents: Option<&[u32]>, only: Option<usize>, facts: &mut Facts) {
        let document = |cell: &Cell| documents.map_or(cell.row, |documents| documents[cell.row as usize]);
        if let Some(kind) = only {
            // Cells are in the order of documents.
            let has = |(_, row): &(Place, u32)| cells.binary_search_by_key(row, document).is_ok();
            if self.firsts.iter().all(has) {
                facts.samples[kind] = self.firsts.iter().map(|(place, _)| *place).collect();
                return;
            }
        }
        for cell in cells {
            if let Some(kind) = kind_of(cell.kind) {
                let document = document(cell) as usize;
                insert(&mut facts.samples[kind], (self.vbuckets[document], self.seqnos[document]));
            }
        }
    }
}

/// Whether an integer has no exact double.
fn is_inexact(number: i64) -> bool {
    number.unsigned_abs() > EXACT && number as f64 as i64 != number
}

/// Keep the first places, each once.
#[inline(always)]
fn insert(places: &mut Vec<Place>, place: Place) {
    if places.len() < SAMPLES || place < places[SAMPLES - 1] {
        insert_here(places, place);
    }
}

#[inline(never)]
fn insert_here(places: &mut Vec<Place>, place: Place) {
    if let Err(at) = places.binary_search(&place) {
        places.insert(at, place);
        places.truncate(SAMPLES);
    }
}

/// The nearest double of a sound number; infinite if it is beyond.
pub fn parse_double(source: &[u8]) -> f64 {
    std::str::from_utf8(source).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// A sound integer, if it has up to 38 digits.
pub fn parse_integer(source: &[u8]) -> Option<i128> {
    let digits = source.len() - (source[0] == b'-') as usize;
    std::str::from_utf8(source).ok().filter(|_| digits <= MAX_DIGITS).and_then(|text| text.parse().ok())
}
