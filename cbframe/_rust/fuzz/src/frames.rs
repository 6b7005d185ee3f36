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
    messages: usize,
    nbytes: usize,
    error: Option<(Wrong, usize)>,
    /// The decoder at the end.
    decoder: String,
}

/// Settings (2 bytes), how buffers are cut (1), how many operations there are (1), those, and the conversation.
pub fn frames(data: &[u8]) {
    let Some((&[flags, limits, cuts, count], rest)) = data.split_first_chunk::<4>() else { return };
    let count = (count as usize % 32).min(rest.len() / OPERATION);
    let (operations, conversation) = rest.split_at(count * OPERATION);
    let max_body = [1 << 20, 64, 1000, 1 << 16][limits as usize & 3];
    let collections = [Some(false), Some(true), None, Some(true)][flags as usize & 3];
    let mut operations: Vec<Operation> = operations.chunks(OPERATION).map(operation).collect();
    operations.sort_by_key(|operation| operation.place);
    let run = |piece: &dyn Fn(usize) -> usize| {
        let mut decoder = FrameDecoder::new(max_body);
        decoder.collections = collections;
        run(decoder, &operations, conversation, piece)
    };
    let whole = run(&|_| usize::MAX);
    let cut = run(&|turn| match cuts {
        0 => 1,
        _ => 1 + (turn.wrapping_mul(0x9e37_79b9) >> 7) % (cuts as usize * 4),
    });
    assert_eq!(whole.error, cut.error);
    assert_eq!(whole.events, cut.events);
    assert_eq!(whole.fresh, cut.fresh);
    assert_eq!((whole.messages, whole.nbytes), (cut.messages, cut.nbytes));
    assert_eq!(whole.decoder, cut.decoder);
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

/// A stream that the server has granted.
pub fn granted(decoder: &mut FrameDecoder, vbucket: u16, opaque: u32, seqno: u64) {
    decoder.open(vbucket, opaque, seqno);
    let mut answer = vec![0x81, 0x53, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    answer.extend(opaque.to_be_bytes());
    answer.extend([0; 8]);
    assert_eq!(decoder.decode(&answer, 0).before, [0]);
}

/// Feed a conversation; `piece` says how many bytes come next.
fn run(
    mut decoder: FrameDecoder,
    operations: &[Operation],
    conversation: &[u8],
    piece: &dyn Fn(usize) -> usize,
) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut taken, mut fed, mut turn) = (0, 0, 0);
    let mut left = operations.iter().peekable();
    loop {
        while let Some(Operation { kind, vbucket, opaque, seqno, .. }) = left.next_if(|next| next.place <= fed) {
            match kind {
                1 => decoder.open(*vbucket, *opaque, *seqno),
                2 => decoder.close(*vbucket),
                3 => decoder.forget(*vbucket),
                _ => granted(&mut decoder, *vbucket, *opaque, *seqno),
            }
        }
        if fed == conversation.len() {
            break;
        }
        let stop = left.peek().map_or(usize::MAX, |operation| operation.place).min(conversation.len());
        fed = fed.saturating_add(piece(turn)).min(stop);
        turn += 1;
        loop {
            let block = decoder.decode(&conversation[..fed], taken);
            add(&mut outcome, &block, &conversation[..fed]);
            check_progress(&block, &conversation[..fed], taken);
            taken = block.consumed;
            if let Some(wrong) = block.error {
                assert!(taken < fed && !block.more);
                outcome.error = Some((wrong, taken));
                outcome.decoder = format!("{decoder:?}");
                return outcome;
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
        assert!(block.consumed > start);
    } else if rest.len() >= HEADER && block.error.is_none() {
        assert!(rest.len() < length_of(rest));
    }
    assert!(block.nbytes <= block.consumed - start);
    assert!(block.opcode.len() <= block.messages);
    assert_eq!(block.vbuckets.len(), block.seqnos.len());
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
    let rows = rows_of(block, buffer).into_iter().zip(&block.vbucket);
    let rows = rows.map(|(row, vbucket)| (Some(*vbucket), Event::Row(row)));
    let events: Vec<_> = block.before.iter().map(control).chain(rows).chain(block.after.iter().map(control)).collect();
    for (vbucket, event) in events {
        outcome.events.entry(vbucket).or_default().push(event);
    }
    outcome.fresh.extend(&block.fresh);
    outcome.messages += block.messages;
    outcome.nbytes += block.nbytes;
}

/// The rows of a block, whose columns must be sound.
pub fn rows_of(block: &Block, buffer: &[u8]) -> Vec<Row> {
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
    let bytes = |from: i64, to: i64| buffer[from as usize..to as usize].to_vec();
    let row = |row: usize| Row {
        opcode: block.opcode[row],
        datatype: block.datatype[row],
        collection_id: block.collection_id[row],
        cas: block.cas[row],
        seqno: block.seqno[row],
        rev_seqno: block.rev_seqno[row],
        flags: block.flags[row],
        expiry: block.expiry[row],
        key: bytes(block.key_start[row], block.value_start[row]),
        value: bytes(block.value_start[row], block.value_end[row]),
    };
    (0..rows).map(row).collect()
}
