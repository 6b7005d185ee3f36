//! Documents to cells, one list of cells for each field.

use super::facts::{kind_of, KINDS};
use super::token::{Fault, Kind, Kinds, Result, Text};
use std::collections::hash_map::{Entry, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// Arrays and objects of a deeper level stay as they are written; the document itself is level 1.
pub const MAX_LEVELS: u32 = 60;
pub const ROOT: usize = 0;
/// How many unwanted names are remembered, to skip them faster.
const MOST_SKIPPED: usize = 4096;
const NONE: u32 = u32::MAX;

/// A value of a field.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The number itself, or where its text is: the start, and 32 bits higher the length.
    pub content: u64,
    /// The document; in an array, how many items there were before in all arrays; in a map, members.
    pub row: u32,
    pub kind: Kind,
}

impl Cell {
    /// About how many bytes its text has.
    #[inline(always)]
    pub fn room(&self) -> usize {
        match self.kind {
            Kind::Null | Kind::Bool | Kind::Int => 8,
            _ => (self.content >> 32) as usize + 2,
        }
    }

    /// Where the text is.
    #[inline(always)]
    pub fn place(&self) -> (usize, usize) {
        let from = self.content as u32 as usize;
        (from, from + (self.content >> 32) as usize)
    }
}

/// What the cell of a text holds.
#[inline(always)]
fn span(from: usize, to: usize) -> u64 {
    from as u64 | ((to - from) as u64) << 32
}

/// Where a name is: start, end, and whether it has escapes.
#[derive(Clone, Copy, Debug)]
pub struct Name(pub u32, pub u32, pub bool);

impl Name {
    pub fn text(&self, text: Text, out: &mut Vec<u8>) {
        let (from, to) = (self.0 as usize, self.1 as usize);
        if self.2 {
            text.unescape(from, to, out);
        } else {
            out.extend_from_slice(text.slice(from, to));
        }
    }
}

/// A member of objects.
#[derive(Clone)]
pub struct Field {
    /// The first sixteen bytes of it as it is written, of which those count that are in the mask.
    head: [u64; 2],
    mask: [u64; 2],
    /// The name in quotes and a colon.
    written: Box<[u8]>,
    /// The field that came after this one last time.
    next: u32,
    /// Its values; None for those that are not wanted.
    pub node: Option<u32>,
}

impl Field {
    fn new(name: &[u8], node: Option<u32>) -> Field {
        let written = [b"\"", name, b"\":"].concat();
        let (mut head, mut mask) = ([0; 2], [0; 2]);
        for (place, byte) in written.iter().take(16).enumerate() {
            head[place / 8] |= (*byte as u64) << (place % 8 * 8);
            mask[place / 8] |= 0xff << (place % 8 * 8);
        }
        if name.iter().any(|byte| *byte < b' ' || *byte == b'"' || *byte == b'\\') {
            // A name that is only ever written with escapes equals nothing.
            (head[0], mask[0]) = (1, 0);
        }
        Field { head, mask, written: written.into(), next: NONE, node }
    }

    /// Whether this is what is written at a place, if only beyond the end of the document.
    #[inline(always)]
    fn is_at(&self, text: Text, at: usize) -> bool {
        let length = self.written.len();
        text.word(at) & self.mask[0] == self.head[0]
            && (length <= 8
                || text.word(at + 8) & self.mask[1] == self.head[1]
                    && (length <= 16 || at + length <= text.end() && *text.slice(at, at + length) == *self.written))
    }

    pub fn name(&self) -> &[u8] {
        &self.written[1..self.written.len() - 2]
    }
}

/// What is to be done with the arrays and objects of a field.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Inside {
    /// Members are fields.
    #[default]
    Fields,
    /// Only the members that are fields already are wanted.
    Some,
    /// Names of members are data.
    Names,
    /// They stay as they are written.
    Nothing,
}

/// A field: its values, and what is inside of them.
#[derive(Clone, Default)]
pub struct Node {
    pub inside: Inside,
    pub cells: Vec<Cell>,
    /// Of which kinds they are at most: those of cells that were taken back may still be among these.
    pub kinds: Kinds,
    pub fields: Vec<Field>,
    index: HashMap<Box<[u8]>, u32, Hash>,
    /// The field that came first last time.
    first: u32,
    /// Items of arrays.
    pub item: Option<u32>,
    /// How many items there are up to the end of each array.
    pub ends: Vec<u32>,
    /// Members of objects, if their names are data.
    pub values: Option<u32>,
    pub names: Vec<Name>,
    /// How many members there are up to the end of each object.
    pub members: Vec<u32>,
    /// There were more names than there may be.
    pub wide: bool,
    /// An array or object was not read to its end.
    broken: bool,
}

/// Names are short: multiplied by words. Secret numbers keep who chooses the names from making them collide.
#[derive(Clone, Copy)]
pub struct Hash {
    state: u64,
    factor: u64,
}

impl Default for Hash {
    fn default() -> Hash {
        static SECRET: OnceLock<Hash> = OnceLock::new();
        *SECRET.get_or_init(|| {
            let random = RandomState::new();
            Hash { state: random.hash_one(0), factor: random.hash_one(1) | 1 }
        })
    }
}

impl BuildHasher for Hash {
    type Hasher = Hash;

    fn build_hasher(&self) -> Hash {
        *self
    }
}

impl Hasher for Hash {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            let product = (self.state ^ u64::from_le_bytes(word)) as u128 * self.factor as u128;
            self.state = product as u64 ^ (product >> 64) as u64;
        }
    }
    fn finish(&self) -> u64 {
        self.state
    }
}

/// Why a document has no columns; the numbers are those of `Reason` in Python.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    Good,
    Binary,
    Empty,
    NotUtf8,
    TooDeep,
    InvalidJson,
    NotAnObject,
}

/// The fields of a batch's documents.
pub struct Shredder {
    pub nodes: Vec<Node>,
    pub max_members: usize,
    /// How many documents there are.
    pub documents: u64,
    /// Keep the members of documents that are not wanted, and those with NUL in their names.
    pub keeps_rest: bool,
    /// Of each such member: the document, its name, and its value.
    pub rest: Vec<(u32, Name, Cell)>,
    /// The nodes as they were configured.
    configured: Vec<Node>,
    /// How nodes are read was changed by a batch, or what was asked for of it.
    altered: bool,
    text: Vec<u8>,
}

impl Shredder {
    pub fn new(max_members: usize) -> Shredder {
        Shredder {
            nodes: vec![Node::new()],
            max_members,
            documents: 0,
            keeps_rest: false,
            rest: Vec::new(),
            configured: vec![Node::new()],
            altered: false,
            text: Vec::new(),
        }
    }

    /// What is configured by now holds for every batch.
    pub fn remember(&mut self) {
        self.configured = self.nodes.clone();
        self.altered = false;
    }

    /// The values of a member of the objects of a field.
    pub fn member(&self, id: usize, name: &[u8]) -> Option<usize> {
        let node = &self.nodes[id];
        let field = node.index.get(name)?;
        node.fields[*field as usize].node.map(|child| child as usize)
    }

    /// The field inside of another one, which is added if there is none.
    pub fn field(&mut self, id: usize, name: &[u8]) -> usize {
        if let Some(found) = self.nodes[id].index.get(name) {
            if let Some(node) = self.nodes[id].fields[*found as usize].node {
                return node as usize;
            }
        }
        self.altered = true;
        let field = self.add_field(id, name, true);
        self.nodes[id].fields[field as usize].node.unwrap_or_default() as usize
    }

    /// The items of the arrays of a field.
    pub fn item(&mut self, id: usize) -> usize {
        if let Some(item) = self.nodes[id].item {
            return item as usize;
        }
        let item = self.add();
        self.nodes[id].item = Some(item as u32);
        item
    }

    /// The members of the objects of a field, whose names are data.
    pub fn values(&mut self, id: usize) -> usize {
        if let Some(values) = self.nodes[id].values {
            return values as usize;
        }
        let values = self.add();
        self.nodes[id].values = Some(values as u32);
        self.nodes[id].inside = Inside::Names;
        values
    }

    fn add(&mut self) -> usize {
        self.nodes.push(Node::new());
        self.nodes.len() - 1
    }

    fn add_field(&mut self, id: usize, name: &[u8], wanted: bool) -> u32 {
        let child = wanted.then(|| self.add() as u32);
        let node = &mut self.nodes[id];
        let number = node.fields.len() as u32;
        node.fields.push(Field::new(name, child));
        node.index.insert(name.into(), number);
        number
    }

    /// Put the values of a document into cells; one that is none leaves no trace.
    #[inline]
    pub fn document(&mut self, all: &[u8], from: usize, to: usize, row: u32) -> Reason {
        let text = Text::new(all, to);
        let start = text.blanks(from);
        if text.byte(start) == b'{' {
            let end = self.object(text, start + 1, ROOT, row, 1);
            if end.is_ok_and(|end| text.blanks(end) == to) {
                self.documents += 1;
                return Reason::Good;
            }
            self.take_document_back(text, start + 1, row);
        }
        self.refuse(all, from, to, row)
    }

    /// Why a document is none.
    #[cold]
    fn refuse(&mut self, all: &[u8], from: usize, to: usize, row: u32) -> Reason {
        while self.rest.last().is_some_and(|(last, _, _)| *last >= row) {
            self.rest.pop();
        }
        let document = &all[from..to];
        if document.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
            return Reason::Empty;
        }
        if std::str::from_utf8(document).is_err() {
            return Reason::NotUtf8;
        }
        let text = Text::new(all, to);
        match text.skip(text.blanks(from), 0) {
            Err(Fault::Deep) => Reason::TooDeep,
            Ok(end) if text.blanks(end) == to => Reason::NotAnObject,
            _ => Reason::InvalidJson,
        }
    }

    fn object(&mut self, text: Text, at: usize, id: usize, row: u32, depth: u32) -> Result<usize> {
        let mut at = text.blanks(at);
        if text.byte(at) == b'}' {
            return Ok(at + 1);
        }
        let mut previous = NONE;
        let mut expected = self.nodes[id].first;
        loop {
            let name = at + 1;
            let name_end;
            let child = match self.nodes[id].fields.get(expected as usize) {
                Some(field) if field.is_at(text, at) => {
                    at += field.written.len();
                    name_end = at - 2;
                    (previous, expected) = (expected, field.next);
                    field.node
                }
                _ => {
                    if text.byte(at) != b'"' {
                        return Err(Fault::Invalid);
                    }
                    let found;
                    (found, name_end) = self.find(text, name, id, previous)?;
                    at = text.colon(name_end + 1)?;
                    let field = self.nodes[id].fields.get(found as usize);
                    (previous, expected) = (found, field.map_or(NONE, |field| field.next));
                    field.and_then(|field| field.node)
                }
            };
            at = text.blanks(at);
            at = match child {
                Some(child) => self.value(text, at, child as usize, row, depth)?,
                None => {
                    let end = text.skip(at, depth)?;
                    if id == ROOT && self.keeps_rest {
                        let name = Name(name as u32, name_end as u32, text.slice(name, name_end).contains(&b'\\'));
                        let cell = Cell { content: span(at, end), row, kind: Kind::Object };
                        self.rest.push((row, name, cell));
                    }
                    end
                }
            };
            at = text.blanks(at);
            match text.byte(at) {
                b',' => at = text.blanks(at + 1),
                b'}' => return Ok(at + 1),
                _ => return Err(Fault::Invalid),
            }
        }
    }

    /// The field of a name that is not the one which came behind the previous one last time, and where it ends.
    #[inline(never)]
    fn find(&mut self, text: Text, at: usize, id: usize, previous: u32) -> Result<(u32, usize)> {
        let node = &self.nodes[id];
        let expected = node.fields.get(previous as usize).map_or(node.first, |field| field.next);
        if let Some(field) = node.fields.get(expected as usize) {
            // There are blanks before the colon.
            let end = at + field.name().len();
            if field.mask[0] != 0 && text.byte(end) == b'"' && text.slice(at, end) == field.name() {
                return Ok((expected, end));
            }
        }
        let (end, escapes) = text.string(at)?;
        let mut unescaped = std::mem::take(&mut self.text);
        let name = if escapes {
            unescaped.clear();
            text.unescape(at, end, &mut unescaped);
            &unescaped[..]
        } else {
            text.slice(at, end)
        };
        let node = &self.nodes[id];
        let found = match node.index.get(name) {
            Some(field) => Ok(*field),
            None if node.inside == Inside::Some && node.fields.len() >= MOST_SKIPPED => Ok(NONE),
            None if node.inside == Inside::Some => Ok(self.add_field(id, name, false)),
            None if id != ROOT && node.fields.len() >= self.max_members && self.is_full(id) => Err(Fault::Wide),
            None => {
                let wanted = !(id == ROOT && self.keeps_rest && name.contains(&0));
                Ok(self.add_field(id, name, wanted))
            }
        };
        self.text = unescaped;
        let found = found?;
        let node = &mut self.nodes[id];
        match node.fields.get_mut(previous as usize) {
            Some(field) => field.next = found,
            None => node.first = found,
        }
        Ok((found, end))
    }

    /// Whether a further name were one too many.
    fn is_full(&self, id: usize) -> bool {
        !self.nodes[id].wide && self.different_names(id) >= self.max_members
    }

    /// How many different names members of a batch have, nulls included.
    fn different_names(&self, id: usize) -> usize {
        let nodes = self.nodes[id].fields.iter().filter_map(|field| field.node);
        nodes.filter(|child| !self.nodes[*child as usize].cells.is_empty()).count()
    }

    /// Decide where names are data by the documents of the batch alone: not by those before it, nor by values
    /// that were taken back.
    pub fn settle(&mut self, text: Text, id: usize, depth: u32) {
        let node = &self.nodes[id];
        let again = match node.inside {
            Inside::Fields if id != ROOT && !node.wide && node.fields.len() > self.max_members => {
                (self.different_names(id) > self.max_members).then_some(Inside::Names)
            }
            Inside::Names if node.wide => {
                let mut names = std::collections::HashSet::new();
                for name in &node.names {
                    let mut plain = Vec::new();
                    name.text(text, &mut plain);
                    names.insert(plain);
                    if names.len() > self.max_members {
                        break;
                    }
                }
                (names.len() <= self.max_members).then_some(Inside::Fields)
            }
            _ => None,
        };
        if let Some(inside) = again {
            self.nodes[id].wide = true;
            // What was read once is sound.
            let _ = self.reread(text, id, inside, depth);
        }
        if depth >= MAX_LEVELS {
            return;
        }
        let node = &self.nodes[id];
        let inner: Vec<u32> =
            node.fields.iter().filter_map(|field| field.node).chain(node.item).chain(node.values).collect();
        for child in inner {
            if !self.nodes[child as usize].cells.is_empty() {
                self.settle(text, child as usize, depth + 1);
            }
        }
    }

    #[inline(always)]
    fn value(&mut self, text: Text, at: usize, id: usize, row: u32, depth: u32) -> Result<usize> {
        // Its parts, not a cell: one that is put together in memory and copied from there makes the processor wait.
        let (kind, content, end) = match text.byte(at) {
            b'"' => {
                let (end, escapes) = text.string(at + 1)?;
                (if escapes { Kind::Escaped } else { Kind::Str }, span(at + 1, end), end + 1)
            }
            b'-' | b'0'..=b'9' => {
                let (kind, number, end) = text.number(at)?;
                (kind, if kind == Kind::Int { number as u64 } else { span(at, end) }, end)
            }
            first @ (b't' | b'f') => (Kind::Bool, (first == b't') as u64, text.literal(at)?),
            b'n' => (Kind::Null, 0, text.literal(at)?),
            b'{' => {
                self.take_back_if_there(id as u32, row);
                let end = self.inside(text, at, id, row, depth);
                self.nodes[id].broken |= end.is_err();
                (Kind::Object, span(at, end?), end?)
            }
            b'[' => {
                self.take_back_if_there(id as u32, row);
                let end = self.list(text, at, id, depth);
                self.nodes[id].broken |= end.is_err();
                (Kind::Array, span(at, end?), end?)
            }
            _ => return Err(Fault::Invalid),
        };
        if self.nodes[id].cells.last().is_some_and(|cell| cell.row == row) {
            // The name came before in the same object.
            self.take_back(id, row);
        }
        let node = &mut self.nodes[id];
        node.kinds.add(kind);
        node.cells.push(Cell { content, row, kind });
        Ok(end)
    }

    /// The members of an object; where it ends.
    fn inside(&mut self, text: Text, at: usize, id: usize, row: u32, depth: u32) -> Result<usize> {
        if depth >= MAX_LEVELS || self.nodes[id].inside == Inside::Nothing {
            return text.skip(at, depth);
        }
        if self.nodes[id].inside != Inside::Names {
            match self.object(text, at + 1, id, row, depth + 1) {
                Err(Fault::Wide) => {
                    self.nodes[id].wide = true;
                    self.reread(text, id, Inside::Names, depth)?;
                }
                done => return done,
            }
        }
        let values = self.values(id);
        let (end, members) = members(text, at, depth + 1)?;
        let node = &mut self.nodes[id];
        let mut count = node.members.last().copied().unwrap_or(0);
        node.names.extend(members.iter().map(|(name, _)| name));
        for (_, start) in members {
            self.value(text, start, values, count, depth + 1)?;
            count += 1;
        }
        self.nodes[id].members.push(count);
        Ok(end)
    }

    /// Read again what is inside of the arrays and objects of a field, in another way.
    pub fn reread(&mut self, text: Text, id: usize, inside: Inside, depth: u32) -> Result<()> {
        self.altered = true;
        let node = &mut self.nodes[id];
        // Members that a struct was decided on are looked for among however many names there are.
        let wide = node.wide || inside == Inside::Fields;
        let cells = std::mem::take(&mut node.cells);
        let again = Node { inside, cells, kinds: node.kinds, wide, ..Node::new() };
        let before = std::mem::replace(node, again);
        if inside == Inside::Names {
            let values = self.values(id);
            let mut wide = Wide::default();
            for child in before.fields.iter().filter_map(|field| field.node) {
                wide.add(self.wide(child));
            }
            self.expect(values, &wide);
        }
        for place in 0..self.nodes[id].cells.len() {
            let cell = self.nodes[id].cells[place];
            match cell.kind {
                Kind::Array => self.list(text, cell.place().0, id, depth)?,
                Kind::Object => self.inside(text, cell.place().0, id, cell.row, depth)?,
                _ => continue,
            };
        }
        Ok(())
    }

    /// Where there are too many names inside of a field.
    fn wide(&self, id: u32) -> Wide {
        let node = &self.nodes[id as usize];
        let mut found = Wide { here: node.wide && node.inside == Inside::Names, ..Wide::default() };
        for field in &node.fields {
            let inner = field.node.map(|child| self.wide(child)).unwrap_or_default();
            if !inner.is_empty() {
                found.fields.insert(field.name().into(), inner);
            }
        }
        found.item = node.item.map(|item| Box::new(self.wide(item))).filter(|inner| !inner.is_empty());
        found.values = node.values.map(|values| Box::new(self.wide(values))).filter(|inner| !inner.is_empty());
        found
    }

    /// Take it for known where there are too many names inside of a field: to find that out costs a second look
    /// at all of it, and at each level twice the looks of the level below.
    fn expect(&mut self, id: usize, wide: &Wide) {
        if wide.here {
            self.nodes[id].wide = true;
            let values = self.values(id);
            wide.values.iter().for_each(|inner| self.expect(values, inner));
        } else {
            for (name, inner) in &wide.fields {
                let child = self.field(id, name);
                self.expect(child, inner);
            }
        }
        if let Some(inner) = &wide.item {
            let item = self.item(id);
            self.expect(item, inner);
        }
    }

    fn list(&mut self, text: Text, start: usize, id: usize, depth: u32) -> Result<usize> {
        if depth >= MAX_LEVELS || self.nodes[id].inside == Inside::Nothing {
            return text.skip(start, depth);
        }
        let item = self.item(id);
        let mut count = self.nodes[id].ends.last().copied().unwrap_or(0);
        let mut at = text.blanks(start + 1);
        if text.byte(at) == b']' {
            self.nodes[id].ends.push(count);
            return Ok(at + 1);
        }
        loop {
            at = self.value(text, at, item, count, depth + 1)?;
            count += 1;
            at = text.blanks(at);
            match text.byte(at) {
                b',' => at = text.blanks(at + 1),
                b']' => break,
                _ => return Err(Fault::Invalid),
            }
        }
        self.nodes[id].ends.push(count);
        Ok(at + 1)
    }

    /// Take back what was read of a document, from behind its first bracket, that is none.
    ///
    /// Its members are read again: there may be very many fields that it does not have.
    #[cold]
    fn take_document_back(&mut self, text: Text, start: usize, row: u32) {
        let mut at = text.blanks(start);
        while let Ok((end, escapes, value)) = text.name(at) {
            let mut name = Vec::new();
            Name(at as u32 + 1, end as u32, escapes).text(text, &mut name);
            if let Some(child) = self.member(ROOT, &name) {
                self.take_back(child, row);
            }
            let Ok(end) = text.skip(value, 1) else { return };
            let comma = text.blanks(end);
            if text.byte(comma) != b',' {
                return;
            }
            at = text.blanks(comma + 1);
        }
    }

    /// Take back the cells of a row and the rows after it, and what is inside of them.
    #[cold]
    fn take_back(&mut self, id: usize, row: u32) {
        let node = &mut self.nodes[id];
        let mut filled = std::mem::take(&mut node.broken);
        while let Some(cell) = node.cells.last().filter(|cell| cell.row >= row).copied() {
            node.cells.pop();
            if cell.kind == Kind::Array {
                node.ends.pop();
            } else if cell.kind == Kind::Object {
                node.members.pop();
            }
            // Two bytes are the brackets.
            filled |= matches!(cell.kind, Kind::Array | Kind::Object) && cell.content >> 32 > 2;
        }
        if !filled {
            return;
        }
        let items = node.ends.last().copied().unwrap_or(0);
        let members = node.members.last().copied().unwrap_or(0);
        node.names.truncate(members as usize);
        let (item, values) = (node.item, node.values);
        for number in 0..node.fields.len() {
            if let Some(child) = self.nodes[id].fields[number].node {
                self.take_back_if_there(child, row);
            }
        }
        if let Some(item) = item {
            self.take_back_if_there(item, items);
        }
        if let Some(values) = values {
            self.take_back_if_there(values, members);
        }
    }

    #[inline]
    fn take_back_if_there(&mut self, id: u32, row: u32) {
        let node = &self.nodes[id as usize];
        if node.broken || node.cells.last().is_some_and(|cell| cell.row >= row) {
            self.take_back(id as usize, row);
        }
    }

    /// The rows that have a value of each kind in a place: names of members, None for items and values.
    pub fn rows_by_kind(&self, place: &[Option<Vec<u8>>]) -> [Vec<u32>; KINDS] {
        let mut rows: [Vec<u32>; KINDS] = Default::default();
        let (mut id, mut documents) = (ROOT, None);
        for step in place {
            let node = &self.nodes[id];
            let inner = match step {
                Some(name) => self.member(id, name),
                None if node.inside == Inside::Names => {
                    documents = Some(inner_rows(&node.cells, Kind::Object, &node.members, documents.as_deref()));
                    node.values.map(|values| values as usize)
                }
                None => {
                    documents = Some(inner_rows(&node.cells, Kind::Array, &node.ends, documents.as_deref()));
                    node.item.map(|item| item as usize)
                }
            };
            let Some(inner) = inner else { return rows };
            id = inner;
        }
        for cell in &self.nodes[id].cells {
            if let Some(kind) = kind_of(cell.kind) {
                rows[kind].push(documents.as_ref().map_or(cell.row, |documents| documents[cell.row as usize]));
            }
        }
        rows
    }

    /// Forget all cells; fields, and what is known of their order, stay, but no more of them than there may be.
    pub fn clear(&mut self) {
        self.documents = 0;
        self.rest.clear();
        let many = |node: &Node| node.fields.len() >= self.max_members && node.inside == Inside::Fields;
        if self.altered || self.nodes.iter().skip(1).any(many) {
            self.nodes = self.configured.clone();
            self.altered = false;
            return;
        }
        for node in &mut self.nodes {
            node.cells.clear();
            node.kinds = Kinds::default();
            node.ends.clear();
            node.names.clear();
            node.members.clear();
        }
    }
}

/// Where there are too many names in objects, by fields.
#[derive(Default)]
struct Wide {
    here: bool,
    fields: HashMap<Box<[u8]>, Wide>,
    item: Option<Box<Wide>>,
    values: Option<Box<Wide>>,
}

impl Wide {
    fn is_empty(&self) -> bool {
        !self.here && self.fields.is_empty() && self.item.is_none() && self.values.is_none()
    }

    /// Add those of the values of another field, which become values of the same one.
    fn add(&mut self, other: Wide) {
        self.here |= other.here;
        if let Some(item) = other.item {
            self.item.get_or_insert_default().add(*item);
        }
        if let Some(values) = other.values {
            self.values.get_or_insert_default().add(*values);
        }
        for (name, inner) in other.fields {
            self.fields.entry(name).or_default().add(inner);
        }
        if self.here {
            for inner in std::mem::take(&mut self.fields).into_values() {
                self.values.get_or_insert_default().add(inner);
            }
        }
    }
}

impl Node {
    fn new() -> Node {
        Node { first: NONE, ..Node::default() }
    }
}

/// The document of each item of arrays, or of each member of objects; None where rows are documents.
pub fn inner_rows(cells: &[Cell], kind: Kind, ends: &[u32], documents: Option<&[u32]>) -> Vec<u32> {
    let mut rows = Vec::with_capacity(ends.last().copied().unwrap_or(0) as usize);
    let cells = cells.iter().filter(|cell| cell.kind == kind);
    for (cell, end) in cells.zip(ends) {
        let document = documents.map_or(cell.row, |documents| documents[cell.row as usize]);
        rows.resize(*end as usize, document);
    }
    rows
}

/// The members of an object, each name once, and where it ends; `depth` arrays and objects are around them.
fn members(text: Text, at: usize, depth: u32) -> Result<(usize, Vec<(Name, usize)>)> {
    let mut found: Vec<(Name, usize)> = Vec::new();
    let mut known: HashMap<Vec<u8>, usize, Hash> = HashMap::default();
    let mut at = text.blanks(at + 1);
    if text.byte(at) == b'}' {
        return Ok((at + 1, found));
    }
    loop {
        let (end, escapes, start) = text.name(at)?;
        let name = Name(at as u32 + 1, end as u32, escapes);
        let mut unescaped = Vec::new();
        name.text(text, &mut unescaped);
        match known.entry(unescaped) {
            Entry::Occupied(earlier) => found[*earlier.get()].1 = start,
            Entry::Vacant(vacant) => {
                vacant.insert(found.len());
                found.push((name, start));
            }
        }
        at = text.blanks(text.skip(start, depth)?);
        match text.byte(at) {
            b',' => at = text.blanks(at + 1),
            b'}' => return Ok((at + 1, found)),
            _ => return Err(Fault::Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(shredder: &mut Shredder, documents: &[&str]) -> Vec<Reason> {
        let all = documents.concat();
        let mut at = 0;
        let mut reasons = vec![];
        for (row, document) in documents.iter().enumerate() {
            reasons.push(shredder.document(all.as_bytes(), at, at + document.len(), row as u32));
            at += document.len();
        }
        reasons
    }

    fn cells(shredder: &Shredder) -> usize {
        shredder.nodes.iter().map(|node| node.cells.len()).sum()
    }

    #[test]
    fn too_many_names_at_every_level_cost_no_more_each_time() {
        // Each level was read twice for every time that the one around it was: 2^58 times here.
        let levels = 58;
        let document = "{\"x\":".repeat(levels) + "1" + &",\"y\":1,\"z\":[{}]}".repeat(levels - 1) + "}";
        let mut shredder = Shredder::new(2);
        assert_eq!(read(&mut shredder, &[&document, &document]), [Reason::Good; 2]);
        let mut id = shredder.field(ROOT, b"x");
        for _ in 2..levels {
            assert_eq!(shredder.nodes[id].inside, Inside::Names);
            id = shredder.values(id);
        }
        assert_eq!(shredder.nodes[id].members, [3, 6]);
        // As wide, by the names of two objects that are values of one field: no level twice as often, either.
        let document = "{\"x\":{\"p\":".repeat(28) + "1" + &"},\"y\":{\"q\":1,\"r\":1},\"z\":[{\"x\":{}}]}".repeat(28);
        let mut shredder = Shredder::new(2);
        assert_eq!(read(&mut shredder, &[&document]), [Reason::Good]);
    }

    #[test]
    fn what_is_taken_back_costs_no_look_at_every_field() {
        let objects: Vec<String> = (0..300)
            .map(|n| format!("\"k{n}\":{{{}}}", (0..300).map(|m| format!("\"l{m}\":1")).collect::<Vec<_>>().join(",")))
            .collect();
        let all = format!("{{\"a\":{{{}}},{}}}", objects.join(","), objects.join(","));
        let mut shredder = Shredder::new(1000);
        assert_eq!(read(&mut shredder, &[&all]), [Reason::Good]);
        let before = cells(&shredder);
        // 90,000 fields and 60,000 values that are taken back: a look at each field each time takes minutes.
        let again = format!("{{{}}}", vec!["\"a\":0,\"a\":{}"; 20_000].join(","));
        let unfinished = vec!["{\"a\":{\"k1\":{\"l1\":1"; 20_000];
        let mut documents = vec![&again[..]];
        documents.extend(unfinished);
        let mut shredder = Shredder { nodes: shredder.nodes, ..Shredder::new(1000) };
        let text = documents.concat();
        let mut at = 0;
        for (row, document) in documents.iter().enumerate() {
            let reason = shredder.document(text.as_bytes(), at, at + document.len(), row as u32 + 1);
            assert_eq!(reason, if row == 0 { Reason::Good } else { Reason::InvalidJson });
            at += document.len();
        }
        assert_eq!(cells(&shredder), before + 1);
    }

    #[test]
    fn a_document_that_is_none_leaves_no_trace() {
        let good = r#"{"a":[{"b":[1,{"c":2}]},3],"d":{"e":{"f":1}},"g\u0041":"x"}"#;
        for end in 1..good.len() {
            let mut shredder = Shredder::new(2);
            assert_eq!(
                read(&mut shredder, &[good, &good[..end], good]),
                [Reason::Good, Reason::InvalidJson, Reason::Good]
            );
            let mut alone = Shredder::new(2);
            read(&mut alone, &[good, good]);
            let both = shredder.nodes.iter().zip(&alone.nodes);
            assert!(both.into_iter().all(|(one, other)| one.cells.len() == other.cells.len()
                && (&one.ends, &one.members) == (&other.ends, &other.members)));
        }
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let mut shredder = Shredder::new(2);
        let document = r#"{"a":{"b":[1,2],"c":{"d":1}},"a":{"b":[3]},"a":{"b":[4,{"b":5}],"b":[6]}}"#;
        assert_eq!(read(&mut shredder, &[document]), [Reason::Good]);
        let a = shredder.field(ROOT, b"a");
        let b = shredder.field(a, b"b");
        let item = shredder.item(b);
        assert_eq!(shredder.nodes[b].ends, [1]);
        assert_eq!(shredder.nodes[item].cells.iter().map(|cell| cell.content).collect::<Vec<_>>(), [6]);
        assert_eq!(cells(&shredder), 3);
    }

    #[test]
    fn names_that_were_chosen_to_collide_do_not() {
        // With a known factor, and 0 to begin with, all of these are alike.
        const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
        let length = 16u64.wrapping_mul(FACTOR).rotate_left(5);
        let mut hashes = std::collections::HashSet::new();
        for first in 0..1000u64 {
            let second = (length ^ first).wrapping_mul(FACTOR).rotate_left(5);
            hashes.insert(Hash::default().hash_one([first.to_le_bytes(), second.to_le_bytes()].concat()));
        }
        assert_eq!(hashes.len(), 1000);
    }
}
