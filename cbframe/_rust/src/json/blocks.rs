//! Batches of documents, block by block.
//!
//! Cells of a whole batch are more than the processor's cache holds: to write and to read them costs as much as to
//! read the documents. Where it is known which columns will be asked for, since those of the batch before were the
//! same, a block is read, its facts are taken, and its columns are built before the next one comes.

use super::build::{Array, Builder, Layout, Misfit};
use super::facts::{Facts, Looker};
use super::shred::{Reason, Shredder, ROOT};
use super::token::Text;
use std::ops::Range;

/// Bytes of documents in a block: they and their cells are half of a small second-level cache.
const BLOCK: usize = 128 << 10;
/// A field costs something in each block, as much as some hundred bytes of documents: blocks have more for each.
const BYTES_A_FIELD: usize = 4096;

/// Room for what is to come is this much more than the first block lets expect.
const SPARE: f64 = 1.06;

/// Bytes of documents that are read as one block.
pub fn block_size(shredder: &Shredder) -> usize {
    BLOCK.max(shredder.nodes.len() * BYTES_A_FIELD)
}

/// Columns by their names.
pub type Columns = Vec<(Vec<u8>, Layout)>;
/// Facts of a batch and its columns, if these can be had.
pub type Built = Option<(Facts, Vec<Array>)>;

/// The documents of a batch, which are between the bounds, and where they stand in the bucket.
pub struct Batch<'a> {
    pub all: &'a [u8],
    pub bounds: &'a [i32],
    pub vbuckets: &'a [u16],
    pub seqnos: &'a [u64],
}

impl Batch<'_> {
    pub fn rows(&self) -> usize {
        self.bounds.len() - 1
    }

    fn text(&self) -> Text<'_> {
        Text::new(self.all, self.all.len())
    }

    /// Put the values of some documents into cells, and pass over those that are known to be none.
    pub fn read(&self, shredder: &mut Shredder, rows: Range<usize>, verdicts: &mut [u8]) {
        shredder.clear();
        let first = rows.start;
        for row in rows {
            if verdicts[row] == Reason::Good as u8 {
                let (from, to) = (self.bounds[row] as usize, self.bounds[row + 1] as usize);
                verdicts[row] = shredder.document(self.all, from, to, (row - first) as u32) as u8;
            }
        }
        shredder.settle(self.text(), ROOT, 0);
    }

    /// The facts of documents that were read.
    pub fn facts(&self, shredder: &Shredder, rows: Range<usize>) -> Facts {
        Looker::new(shredder, self.all, &self.vbuckets[rows.clone()], &self.seqnos[rows]).facts()
    }

    /// Columns of documents that were read.
    pub fn build(&self, shredder: &mut Shredder, rows: usize, columns: &Columns) -> Result<Vec<Array>, Misfit> {
        let mut builder = Builder { shredder, text: self.text() };
        columns.iter().map(|(name, layout)| builder.member(ROOT, name, layout, rows, 1)).collect()
    }

    /// Facts and columns of all documents, without all their cells; None if a column cannot hold its values, or if
    /// names are data: that is for all documents to decide. If so, blocks are not `worth_it` from then on. `size` is
    /// the bytes of a block, most often its `block_size`.
    pub fn by_blocks(
        &self,
        shredder: &mut Shredder,
        verdicts: &mut [u8],
        columns: &Columns,
        worth_it: &mut bool,
        size: usize,
    ) -> Built {
        let (mut facts, mut built): (Option<Facts>, Vec<Array>) = (None, Vec::new());
        let mut start = 0;
        while start < self.rows() {
            let rows = start..self.end(start, size);
            self.read(shredder, rows.clone(), verdicts);
            let found = self.facts(shredder, rows.clone());
            let mut more = self.build(shredder, rows.len(), columns).ok()?;
            match &mut facts {
                Some(facts) => {
                    facts.merge_documents(&found, shredder.max_members);
                    built.iter_mut().zip(more).for_each(|(array, more)| array.append(more));
                }
                None => {
                    facts = Some(found);
                    let times = (self.rows() - rows.len()) as f64 / rows.len() as f64 * SPARE;
                    more.iter_mut().for_each(|array| array.reserve(times));
                    built = more;
                }
            }
            start = rows.end;
            *worth_it = facts.as_ref().is_some_and(|facts| !facts.has_data());
            if !*worth_it {
                return None;
            }
        }
        facts.map(|facts| (facts, built))
    }

    /// Where the block ends that begins with a row: bits of eight rows are a byte.
    fn end(&self, start: usize, size: usize) -> usize {
        let first = self.bounds[start] as usize;
        let more = self.bounds[start + 1..].partition_point(|end| *end as usize <= first + size);
        (start + more.max(1)).next_multiple_of(8).min(self.rows())
    }

    /// Whether there is more than a block.
    pub fn is_large(&self) -> bool {
        (self.bounds[self.rows()] - self.bounds[0]) as usize > BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::Type;
    use super::*;

    /// What is made of documents block by block, and at once.
    fn by_blocks(documents: &[String], columns: &Columns) -> (Built, Built) {
        let all = documents.concat();
        let mut bounds = vec![0];
        documents.iter().for_each(|document| bounds.push(bounds[bounds.len() - 1] + document.len() as i32));
        let seqnos: Vec<u64> = (0..documents.len() as u64).rev().collect();
        let batch =
            Batch { all: all.as_bytes(), bounds: &bounds, vbuckets: &vec![1; documents.len()], seqnos: &seqnos };
        assert!(batch.is_large());
        let (mut verdicts, mut again) = (vec![0; documents.len()], vec![0; documents.len()]);
        let mut shredder = Shredder::new(100);
        let mut worth_it = true;
        let size = block_size(&shredder);
        let found = batch.by_blocks(&mut shredder, &mut verdicts, columns, &mut worth_it, size);
        batch.read(&mut shredder, 0..documents.len(), &mut again);
        assert!(verdicts == again || found.is_none());
        let facts = batch.facts(&shredder, 0..documents.len());
        (found, batch.build(&mut shredder, documents.len(), columns).ok().map(|built| (facts, built)))
    }

    fn column(name: &str, of: Type) -> (Vec<u8>, Layout) {
        (name.into(), Layout { of, dropped: 0 })
    }

    fn plain(of: Type) -> Box<Layout> {
        Box::new(Layout { of, dropped: 0 })
    }

    #[test]
    fn blocks_together_are_the_batch() {
        let documents: Vec<String> = (0..9000u64)
            .map(|n| match n % 11 {
                3 => "{".into(),
                7 => format!("{{\"b\":true,\"s\":null,\"o\":{{\"d\":{n}.5}}}}"),
                _ => format!(
                    "{{\"n\":{n},\"s\":\"{}\",\"l\":[{}],\"o\":{{\"u\":{},\"l\":[[{n}],[]]}},\"b\":false}}",
                    "x".repeat(n as usize % 40),
                    vec!["true,null,false"; n as usize % 3].join(","),
                    u64::MAX - n
                ),
            })
            .collect();
        let members = vec![
            (b"d"[..].into(), Layout { of: Type::Double, dropped: 0 }),
            (b"u"[..].into(), Layout { of: Type::UInt64, dropped: 0 }),
            (b"l"[..].into(), Layout { of: Type::List(plain(Type::List(plain(Type::Decimal)))), dropped: 0 }),
        ];
        let columns = vec![
            column("n", Type::Int64),
            column("s", Type::Text),
            column("l", Type::List(plain(Type::Boolean))),
            column("o", Type::Struct(members)),
            column("b", Type::Boolean),
            column("none", Type::Null),
            column("never", Type::Text),
        ];
        let (found, whole) = by_blocks(&documents, &columns);
        assert!(found.is_some());
        assert_eq!(found, whole);
    }

    #[test]
    fn what_only_all_documents_decide_is_not_decided_by_blocks() {
        // Each block has fewer names than may be members.
        let names: Vec<String> = (0..3000).map(|n| format!("{{\"a\":{{\"n{n}\":1}}}}{}", " ".repeat(5000))).collect();
        let (found, whole) = by_blocks(&names, &vec![column("a", Type::Json)]);
        assert!(found.is_none() && whole.is_some_and(|(facts, _)| facts.has_data()));
        // A value that does not fit, in the last block.
        let mut values: Vec<String> = (0..9000).map(|n| format!("{{\"a\":{n},\"b\":\"some text\"}}")).collect();
        values.push("{\"a\":\"x\"}".into());
        let (found, whole) = by_blocks(&values, &vec![column("a", Type::Int64)]);
        assert!(found.is_none() && whole.is_none());
    }
}
