//! Receive buffers: how a conversation is cut into them changes nothing.

use _core::frames::{Binary, Block, Error, FrameDecoder, Settings, Stream, Wrong};
use std::collections::BTreeMap;

const HEADER: usize = 24;
const OPERATION: usize = 13;

/// A change of the table of streams, before a byte of the conversation.
struct Operation {
    place: usize,
    kind: u8,
    vbucket: u16,
    opaque: u32,
    seqno: u64,
}

#[derive(PartialEq, Debug)]
pub struct Row {
    pub opcode: u8,
    pub datatype: u8,
    pub collection_id: u32,
    pub cas: u64,
    pub seqno: u64,
    pub rev_seqno: u64,
    pub flags: u32,
    pub expiry: u32,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(PartialEq, Debug)]
enum Event {
    Row(Row),
    Control(Vec<u8>),
}

#[derive(Default)]
struct Outcome {
    /// What came of each vbucket, in order; None for what is no request.
    events: BTreeMap<Option<u16>, Vec<Event>>,
    fresh: Vec<u16>,
    dropped: usize,
    messages: usize,
    nbytes: usize,
    error: Option<(Wrong, usize)>,
    streams: Vec<String>,
}

/// Settings (2 bytes), how buffers are cut (1), how many operations there are (1), those, and the conversation.
pub fn frames(data: &[u8]) {
    let Some((&[flags, limits, cuts, count], rest)) = data.split_first_chunk::<4>() else { return };
    let count = (count as usize % 32).min(rest.len() / OPERATION);
    let (operations, conversation) = rest.split_at(count * OPERATION);
    let settings = Settings {
        collections: flags & 1 != 0,
        xattrs: flags & 2 != 0,
        inflate: flags & 4 != 0,
        max_body: [1 << 20, 64, 1000, 1 << 16][limits as usize & 3],
        max_block: [1 << 20, 100, 1000, 1 << 16][limits as usize >> 2 & 3],
    };
    let mut operations: Vec<Operation> = operations.chunks(OPERATION).map(operation).collect();
    operations.sort_by_key(|operation| operation.place);
    let whole = run(settings, &operations, conversation, |_| usize::MAX);
    let cut = run(settings, &operations, conversation, |turn| match cuts {
        0 => 1,
        _ => 1 + (turn.wrapping_mul(0x9e37_79b9) >> 7) % (cuts as usize * 4),
    });
    assert_eq!(whole.error, cut.error);
    for vbucket in whole.events.keys().chain(cut.events.keys()) {
        let nothing = Vec::new();
        let (one, other) = (whole.events.get(vbucket).unwrap_or(&nothing), cut.events.get(vbucket).unwrap_or(&nothing));
        // Of the buffer with the error nothing is handed over.
        let common = if whole.error.is_some() { one.len().min(other.len()) } else { one.len().max(other.len()) };
        assert_eq!(one.get(..common), other.get(..common), "of {vbucket:?}");
    }
    if whole.error.is_none() {
        assert_eq!(whole.fresh, cut.fresh);
        assert_eq!((whole.messages, whole.nbytes, whole.dropped), (cut.messages, cut.nbytes, cut.dropped));
        assert_eq!(whole.streams, cut.streams);
    }
}

fn operation(bytes: &[u8]) -> Operation {
    let number = |from: usize, to: usize| bytes[from..to].iter().fold(0, |number, byte| number << 8 | *byte as u64);
    Operation {
        kind: bytes[0] % 4,
        place: number(1, 3) as usize,
        // A table for all of them would take most of the time.
        vbucket: number(3, 5) as u16 % 64,
        opaque: number(5, 9) as u32,
        seqno: number(9, 13),
    }
}

/// Feed a conversation; `piece` says how many bytes come next.
fn run(settings: Settings, operations: &[Operation], conversation: &[u8], piece: impl Fn(usize) -> usize) -> Outcome {
    let mut decoder = FrameDecoder::new(settings);
    let mut outcome = Outcome::default();
    let (mut taken, mut fed, mut turn) = (0, 0, 0);
    let mut left = operations.iter().peekable();
    loop {
        while let Some(operation) = left.next_if(|operation| operation.place <= fed) {
            let stream = decoder.stream(operation.vbucket);
            match operation.kind {
                2 => stream.closing = true,
                3 => stream.open = false,
                _ => {
                    let (opaque, seqno) = (operation.opaque, operation.seqno);
                    *stream = Stream { opaque, open: true, seqno, ..Stream::default() };
                }
            }
        }
        if fed == conversation.len() {
            break;
        }
        let stop = left.peek().map_or(usize::MAX, |operation| operation.place).min(conversation.len());
        fed = fed.saturating_add(piece(turn)).min(stop);
        turn += 1;
        loop {
            let buffer = &conversation[taken..fed];
            match decoder.decode(buffer) {
                Ok(block) => {
                    add(&mut outcome, &block, buffer);
                    check_progress(&block, buffer);
                    taken += block.consumed;
                    if !block.more {
                        break;
                    }
                }
                Err(Error { wrong, offset, .. }) => {
                    assert!(offset < buffer.len());
                    outcome.error = Some((wrong, taken + offset));
                    return outcome;
                }
            }
        }
    }
    for operation in operations {
        outcome.streams.push(format!("{:?}", decoder.stream(operation.vbucket)));
    }
    outcome
}

/// What is left is not a whole frame, unless the block says that there is more.
fn check_progress(block: &Block, buffer: &[u8]) {
    assert!(block.consumed <= buffer.len());
    let rest = &buffer[block.consumed..];
    if block.more {
        assert!(block.consumed > 0);
    } else if rest.len() >= HEADER {
        assert!(rest.len() < length_of(rest));
    }
    assert!(block.nbytes <= block.consumed && block.dropped <= block.nbytes);
    assert!(block.rows() <= block.messages);
}

/// Of a frame that is there.
fn length_of(frame: &[u8]) -> usize {
    HEADER + u32::from_be_bytes([frame[8], frame[9], frame[10], frame[11]]) as usize
}

fn add(outcome: &mut Outcome, block: &Block, buffer: &[u8]) {
    let control = |place: &u32| {
        let frame = &buffer[*place as usize..];
        let of = matches!(frame[0], 0x80 | 0x08).then(|| u16::from_be_bytes([frame[6], frame[7]]));
        (of, Event::Control(frame[..length_of(frame)].to_vec()))
    };
    let rows = rows_of(block).into_iter().zip(&block.vbucket).map(|(row, vbucket)| (Some(*vbucket), Event::Row(row)));
    let events: Vec<_> = block.before.iter().map(control).chain(rows).chain(block.after.iter().map(control)).collect();
    for (vbucket, event) in events {
        outcome.events.entry(vbucket).or_default().push(event);
    }
    outcome.fresh.extend(&block.fresh);
    outcome.dropped += block.dropped;
    outcome.messages += block.messages;
    outcome.nbytes += block.nbytes;
}

/// The rows of a block, whose columns must be sound.
pub fn rows_of(block: &Block) -> Vec<Row> {
    let rows = block.rows();
    let (keys, values) = (items(&block.key), items(&block.value));
    let (names, texts) = (items(&block.xattr_names), items(&block.xattr_texts));
    assert_eq!(names.len(), texts.len());
    assert_eq!(block.xattrs.len(), rows + 1);
    assert_eq!((block.xattrs[0], block.xattrs[rows] as usize), (0, names.len()));
    for length in [
        keys.len(),
        values.len(),
        block.datatype.len(),
        block.vbucket.len(),
        block.collection_id.len(),
        block.cas.len(),
        block.seqno.len(),
        block.rev_seqno.len(),
        block.flags.len(),
        block.expiry.len(),
    ] {
        assert_eq!(length, rows);
    }
    let row = |row: usize| {
        let xattrs = block.xattrs[row] as usize..block.xattrs[row + 1] as usize;
        Row {
            opcode: block.opcode[row],
            datatype: block.datatype[row],
            collection_id: block.collection_id[row],
            cas: block.cas[row],
            seqno: block.seqno[row],
            rev_seqno: block.rev_seqno[row],
            flags: block.flags[row],
            expiry: block.expiry[row],
            key: keys[row].to_vec(),
            value: values[row].to_vec(),
            xattrs: xattrs.map(|place| (names[place].to_vec(), texts[place].to_vec())).collect(),
        }
    };
    (0..rows).map(row).collect()
}

fn items(column: &Binary) -> Vec<&[u8]> {
    assert_eq!(column.ends[0], 0);
    assert_eq!(column.ends[column.ends.len() - 1] as usize, column.bytes.len());
    column.ends.windows(2).map(|pair| &column.bytes[pair[0] as usize..pair[1] as usize]).collect()
}
