//! Receive buffers: how a conversation is cut into them changes nothing.

use _core::frames::{Block, FrameDecoder, Wrong};
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
struct Row {
    opcode: u8,
    datatype: u8,
    vbucket: u16,
    opaque: u32,
    collection_id: u32,
    cas: u64,
    seqno: u64,
    rev_seqno: u64,
    flags: u32,
    expiry: u32,
    key: Vec<u8>,
    value: Vec<u8>,
}

#[derive(PartialEq, Debug)]
enum Event {
    Row(Row),
    Control(Vec<u8>),
}

#[derive(Default, PartialEq, Debug)]
struct Outcome {
    /// What came of each vbucket, in order; None for what is no request.
    events: BTreeMap<Option<u16>, Vec<Event>>,
    fresh: Vec<u16>,
    /// Where vbuckets are.
    seqnos: BTreeMap<u16, u64>,
    messages: usize,
    nbytes: usize,
    error: Option<(Wrong, usize)>,
    decoder: String,
}

/// Settings (2 bytes), how buffers are cut (1), how many operations there are (1), those, and the conversation.
pub fn frames(data: &[u8]) {
    let Some((&[flags, most, cuts, count], rest)) = data.split_first_chunk::<4>() else { return };
    let count = (count as usize % 32).min(rest.len() / OPERATION);
    let (operations, conversation) = rest.split_at(count * OPERATION);
    let mut operations: Vec<Operation> = operations.chunks(OPERATION).map(operation).collect();
    operations.sort_by_key(|operation| operation.place);
    let decoder = || {
        let mut decoder = FrameDecoder::new([1 << 20, 64, 1000, 1 << 16][most as usize & 3]);
        decoder.collections = (flags & 6 != 6).then_some(flags & 1 != 0);
        decoder
    };
    let whole = run(decoder(), &operations, conversation, |_| usize::MAX, false);
    let piece = |turn: usize| match cuts {
        0 => 1,
        _ => 1 + (turn.wrapping_mul(0x9e37_79b9) >> 7) % (cuts as usize * 4),
    };
    assert_eq!(whole, run(decoder(), &operations, conversation, piece, true));
}

fn operation(bytes: &[u8]) -> Operation {
    let number = |from: usize, to: usize| bytes[from..to].iter().fold(0, |number, byte| number << 8 | *byte as u64);
    Operation {
        kind: bytes[0] % 4,
        place: number(1, 3) as usize,
        // A table for all of them would take most of the time.
        vbucket: number(3, 5) as u16 % 32,
        opaque: number(5, 9) as u32,
        seqno: number(9, 13),
    }
}

/// Feed a conversation; `piece` says how many bytes come next, `kept` whether those before stay in the buffer.
fn run(
    mut decoder: FrameDecoder,
    operations: &[Operation],
    conversation: &[u8],
    piece: impl Fn(usize) -> usize,
    kept: bool,
) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut taken, mut fed, mut turn) = (0, 0, 0);
    let mut left = operations.iter().peekable();
    'fed: loop {
        while let Some(operation) = left.next_if(|operation| operation.place <= fed) {
            match operation.kind {
                2 => decoder.close(operation.vbucket),
                3 => decoder.forget(operation.vbucket),
                _ => decoder.open(operation.vbucket, operation.opaque, operation.seqno),
            }
        }
        if fed == conversation.len() {
            break;
        }
        let stop = left.peek().map_or(usize::MAX, |operation| operation.place).min(conversation.len());
        fed = fed.saturating_add(piece(turn)).min(stop);
        turn += 1;
        loop {
            let base = if kept { 0 } else { taken };
            let buffer = &conversation[base..fed];
            let block = decoder.decode(buffer, taken - base);
            check_progress(&block, buffer, taken - base);
            add(&mut outcome, &block, buffer);
            taken = base + block.consumed;
            outcome.error = block.error.map(|wrong| (wrong, taken));
            if block.error.is_some() {
                break 'fed;
            }
            if !block.more {
                break;
            }
        }
    }
    outcome.decoder = format!("{decoder:?}");
    outcome
}

/// What is left is not a whole frame, unless the block says that there is more.
fn check_progress(block: &Block, buffer: &[u8], start: usize) {
    assert!(start <= block.consumed && block.consumed <= buffer.len());
    let rest = &buffer[block.consumed..];
    if block.more {
        assert!(block.consumed > start && block.error.is_none());
    } else if block.error.is_none() && rest.len() >= HEADER {
        assert!(rest.len() < length_of(rest));
    }
    assert!(block.nbytes <= block.consumed - start);
    assert!(block.opcode.len() <= block.messages);
}

/// Of a frame that is there.
fn length_of(frame: &[u8]) -> usize {
    HEADER + u32::from_be_bytes([frame[8], frame[9], frame[10], frame[11]]) as usize
}

fn add(outcome: &mut Outcome, block: &Block, buffer: &[u8]) {
    let control = |place: &usize| {
        let frame = &buffer[*place..];
        let of = matches!(frame[0], 0x80 | 0x08).then(|| u16::from_be_bytes([frame[6], frame[7]]));
        (of, Event::Control(frame[..length_of(frame)].to_vec()))
    };
    let rows = rows_of(block, buffer).into_iter().map(|row| (Some(row.vbucket), Event::Row(row)));
    let events: Vec<_> = block.before.iter().map(control).chain(rows).chain(block.after.iter().map(control)).collect();
    for (vbucket, event) in events {
        outcome.events.entry(vbucket).or_default().push(event);
    }
    outcome.fresh.extend(&block.fresh);
    outcome.seqnos.extend(block.vbuckets.iter().copied().zip(block.seqnos.iter().copied()));
    outcome.messages += block.messages;
    outcome.nbytes += block.nbytes;
}

/// The rows of a block, whose columns must be sound.
fn rows_of(block: &Block, buffer: &[u8]) -> Vec<Row> {
    let rows = block.opcode.len();
    for length in [
        block.datatype.len(),
        block.vbucket.len(),
        block.opaque.len(),
        block.collection_id.len(),
        block.cas.len(),
        block.seqno.len(),
        block.rev_seqno.len(),
        block.flags.len(),
        block.expiry.len(),
        block.key_start.len(),
        block.value_start.len(),
        block.value_end.len(),
    ] {
        assert_eq!(length, rows);
    }
    let mut vbuckets: Vec<u16> = Vec::new();
    for vbucket in &block.vbucket {
        if !vbuckets.contains(vbucket) {
            vbuckets.push(*vbucket);
        }
    }
    // Those of which all messages were passed over need not be among them.
    assert_eq!((&block.vbuckets, block.seqnos.len()), (&vbuckets, vbuckets.len()));
    assert!(block.fresh.iter().all(|vbucket| vbuckets.contains(vbucket)));
    let row = |row: usize| Row {
        opcode: block.opcode[row],
        datatype: block.datatype[row],
        vbucket: block.vbucket[row],
        opaque: block.opaque[row],
        collection_id: block.collection_id[row],
        cas: block.cas[row],
        seqno: block.seqno[row],
        rev_seqno: block.rev_seqno[row],
        flags: block.flags[row],
        expiry: block.expiry[row],
        key: buffer[block.key_start[row] as usize..block.value_start[row] as usize].to_vec(),
        value: buffer[block.value_start[row] as usize..block.value_end[row] as usize].to_vec(),
    };
    (0..rows).map(row).collect()
}

/// A key with the number of its collection, beside a plain reader.
pub fn leb128(data: &[u8]) {
    let key = &data[..data.len().min(250)];
    let mut decoder = FrameDecoder::new(1000);
    decoder.collections = Some(true);
    decoder.open(0, 7, 0);
    let mut buffer = frame(0x81, 0x53, &[], &[]);
    buffer.extend(frame(0x80, 0x56, &[&[0; 15][..], &[9, 0, 0, 0, 0]].concat(), &[]));
    let began = buffer.len();
    buffer.extend(frame(0x80, 0x57, &[&[0; 7][..], &[1], &[0; 23]].concat(), key));
    let block = decoder.decode(&buffer, 0);
    match number(key) {
        Some((number, length)) => {
            assert_eq!((block.error, block.consumed), (None, buffer.len()));
            let rows = rows_of(&block, &buffer);
            assert_eq!((rows[0].collection_id, &rows[0].key[..]), (number, &key[length..]));
        }
        None => assert_eq!((block.error, block.consumed), (Some(Wrong::CollectionId), began)),
    }
}

fn frame(magic: u8, opcode: u8, extras: &[u8], key: &[u8]) -> Vec<u8> {
    let mut frame = vec![magic, opcode];
    frame.extend((key.len() as u16).to_be_bytes());
    frame.extend([extras.len() as u8, 0, 0, 0]);
    frame.extend(((extras.len() + key.len()) as u32).to_be_bytes());
    frame.extend(7u32.to_be_bytes());
    frame.extend([0; 8]);
    frame.extend(extras);
    frame.extend(key);
    frame
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
