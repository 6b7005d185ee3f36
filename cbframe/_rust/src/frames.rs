//! The frames of a receive buffer: data messages as columns, checked against their streams.

/// Bytes of a header.
const HEADER: usize = 24;
const REQUEST: u8 = 0x80;
const FLEX_REQUEST: u8 = 0x08;
const RESPONSE: u8 = 0x81;
const FLEX_RESPONSE: u8 = 0x18;
const SERVER_REQUEST: u8 = 0x82;
const SERVER_RESPONSE: u8 = 0x83;

const STREAM_REQUEST: u8 = 0x53;
const STREAM_END: u8 = 0x55;
const SNAPSHOT_MARKER: u8 = 0x56;
const MUTATION: u8 = 0x57;
const DELETION: u8 = 0x58;
const EXPIRATION: u8 = 0x59;
const SYSTEM_EVENT: u8 = 0x5f;
const SEQNO_ADVANCED: u8 = 0x64;
const OSO_SNAPSHOT: u8 = 0x65;
const OSO_START: u32 = 1;
const OSO_END: u32 = 2;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum State {
    #[default]
    Over,
    /// Asked for, and not granted yet.
    Requested,
    Running,
}

/// A stream of a vbucket, as far as its data messages are checked.
#[derive(Clone, Copy, Default, Debug)]
struct Stream {
    opaque: u32,
    state: State,
    /// Its messages are passed over: it is being closed.
    closing: bool,
    /// In an out-of-order snapshot.
    unordered: bool,
    /// There was a snapshot marker.
    marked: bool,
    /// Nothing of the last snapshot came yet.
    fresh: bool,
    /// What came last; in an out-of-order snapshot, the highest that came.
    seqno: u64,
    snapshot_end: u64,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    Magic,
    /// The body is too long, or its parts do not fit into it.
    Header,
    /// Data before the handshake is done.
    Early,
    /// The extras have no length that they may have.
    Extras,
    CollectionId,
    /// It has the opaque of another vbucket's stream, or of one that was not granted yet, or its sequence number is
    /// not in the snapshot or does not ascend.
    Stream,
}

/// The data messages of a buffer, and where the others are.
#[derive(Default)]
pub struct Block {
    pub opcode: Vec<u8>,
    pub datatype: Vec<u8>,
    pub vbucket: Vec<u16>,
    pub opaque: Vec<u32>,
    pub cas: Vec<u64>,
    pub seqno: Vec<u64>,
    pub rev_seqno: Vec<u64>,
    pub flags: Vec<u32>,
    pub expiry: Vec<u32>,
    pub collection_id: Vec<u32>,
    /// Where the key (behind its collection id) and the value are in the buffer.
    pub key_start: Vec<i64>,
    pub value_start: Vec<i64>,
    pub value_end: Vec<i64>,
    /// Vbuckets with rows, and where each of them is after these.
    pub vbuckets: Vec<u16>,
    pub seqnos: Vec<u64>,
    /// Frames that are to be handled before the rows, and after them: where they begin.
    pub before: Vec<usize>,
    pub after: Vec<usize>,
    /// Vbuckets whose snapshot has its first row here.
    pub fresh: Vec<u16>,
    /// Where the first frame begins that was not taken.
    pub consumed: usize,
    /// Data messages that were taken, and their bytes; those of streams that are over among them.
    pub messages: usize,
    pub nbytes: usize,
    /// More whole frames may follow.
    pub more: bool,
    /// What is wrong with the frame after those that were taken.
    pub error: Option<Wrong>,
}

/// The frames of one connection.
#[derive(Debug)]
pub struct FrameDecoder {
    max_body: usize,
    /// Whether keys have the number of their collection in front; unknown before the handshake is done.
    pub collections: Option<bool>,
    /// By vbucket.
    streams: Vec<Stream>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, u16::from_be_bytes)
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_be_bytes)
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_be_bytes)
}

struct Header {
    magic: u8,
    opcode: u8,
    framing: usize,
    key: usize,
    extras: usize,
    datatype: u8,
    vbucket: u16,
    body: usize,
    opaque: u32,
    cas: u64,
}

impl Header {
    fn read(bytes: &[u8; HEADER]) -> Header {
        let magic = bytes[0];
        let flexible = magic == FLEX_REQUEST || magic == FLEX_RESPONSE;
        Header {
            magic,
            opcode: bytes[1],
            framing: if flexible { bytes[2] as usize } else { 0 },
            key: if flexible { bytes[3] as usize } else { u16_at(bytes, 2) as usize },
            extras: bytes[4] as usize,
            datatype: bytes[5],
            vbucket: u16_at(bytes, 6),
            body: u32_at(bytes, 8) as usize,
            opaque: u32_at(bytes, 12),
            cas: u64_at(bytes, 16),
        }
    }

    fn is_request(&self) -> bool {
        self.magic == REQUEST || self.magic == FLEX_REQUEST
    }
}

fn is_magic(byte: u8) -> bool {
    matches!(byte, REQUEST | FLEX_REQUEST | RESPONSE | FLEX_RESPONSE | SERVER_REQUEST | SERVER_RESPONSE)
}

impl FrameDecoder {
    pub fn new(max_body: usize) -> FrameDecoder {
        FrameDecoder { max_body, collections: None, streams: Vec::new() }
    }

    /// A stream is asked for, to go on after `seqno`.
    pub fn open(&mut self, vbucket: u16, opaque: u32, seqno: u64) {
        let at = vbucket as usize;
        if at >= self.streams.len() {
            self.streams.resize(at + 1, Stream::default());
        }
        self.streams[at] = Stream { opaque, state: State::Requested, seqno, ..Stream::default() };
    }

    /// What still comes of a stream is passed over.
    pub fn close(&mut self, vbucket: u16) {
        if let Some(stream) = self.streams.get_mut(vbucket as usize) {
            stream.closing = true;
        }
    }

    /// A stream is over.
    pub fn forget(&mut self, vbucket: u16) {
        if let Some(stream) = self.streams.get_mut(vbucket as usize) {
            stream.state = State::Over;
        }
    }

    /// Take whole frames from `start` on.
    ///
    /// It stops early at a message of a stream that has rows in the block already, since its place among them
    /// matters; after the end of a stream nothing of it follows, so that may come after the rows. It stops at an
    /// answer after such an end, too, which would be handled before that.
    pub fn decode(&mut self, buffer: &[u8], start: usize) -> Block {
        let mut block = Block::default();
        // Vbuckets that have rows here: a bit for each.
        let mut present = vec![0u64; self.streams.len().div_ceil(64)];
        let mut at = start;
        block.error = loop {
            let Some(bytes) = buffer.get(at..at + HEADER).and_then(|part| <&[u8; HEADER]>::try_from(part).ok()) else {
                break buffer.get(at).is_some_and(|magic| !is_magic(*magic)).then_some(Wrong::Magic);
            };
            let header = Header::read(bytes);
            if !is_magic(header.magic) {
                break Some(Wrong::Magic);
            }
            if header.body > self.max_body || header.framing + header.extras + header.key > header.body {
                break Some(Wrong::Header);
            }
            let end = at + HEADER + header.body;
            if end > buffer.len() {
                break None;
            }
            let (word, bit) = (header.vbucket as usize / 64, 1 << (header.vbucket % 64));
            if header.is_request() && matches!(header.opcode, MUTATION | DELETION | EXPIRATION) {
                match self.data(&buffer[..end], at, &header, &mut block) {
                    // The table has a stream that took it.
                    Ok(taken) if taken && present[word] & bit == 0 => {
                        present[word] |= bit;
                        block.vbuckets.push(header.vbucket);
                    }
                    Ok(_) => {}
                    Err(error) => break Some(error),
                }
                block.messages += 1;
                block.nbytes += end - at;
            } else {
                let asks = header.is_request();
                let has_rows = asks && present.get(word).is_some_and(|bits| bits & bit != 0);
                if !has_rows && (asks || block.after.is_empty()) {
                    block.before.push(at);
                } else if has_rows && header.opcode == STREAM_END && self.is_running(&header) {
                    block.after.push(at);
                } else {
                    block.more = true;
                    break None;
                }
                self.message(&buffer[at..end], &header);
            }
            at = end;
        };
        block.consumed = at;
        block.seqnos = block.vbuckets.iter().map(|vbucket| self.streams[*vbucket as usize].seqno).collect();
        block
    }

    /// Whether a message is one of the stream that its vbucket has, rather than of an earlier one.
    fn is_running(&self, header: &Header) -> bool {
        let stream = self.streams.get(header.vbucket as usize);
        stream.is_some_and(|stream| stream.state == State::Running && stream.opaque == header.opaque)
    }

    /// Take note of what a message says of the messages after it. What is wrong with it is found where it is
    /// handled.
    fn message(&mut self, frame: &[u8], header: &Header) {
        if matches!(header.magic, RESPONSE | FLEX_RESPONSE) && header.opcode == STREAM_REQUEST {
            let asked = |stream: &&mut Stream| stream.state == State::Requested && stream.opaque == header.opaque;
            if let Some(stream) = self.streams.iter_mut().find(asked) {
                stream.state = if header.vbucket == 0 { State::Running } else { State::Over };
            }
            return;
        }
        if !header.is_request() || !self.is_running(header) {
            return;
        }
        let stream = &mut self.streams[header.vbucket as usize];
        let extras = &frame[HEADER + header.framing..];
        match header.opcode {
            SNAPSHOT_MARKER => {
                let fields = if header.extras == 1 { &extras[header.extras + header.key..] } else { extras };
                stream.snapshot_end = u64_at(fields, 8);
                (stream.marked, stream.fresh) = (true, true);
            }
            OSO_SNAPSHOT if u32_at(extras, 0) == OSO_START => {
                (stream.unordered, stream.marked, stream.fresh, stream.seqno) = (true, true, true, 0);
            }
            OSO_SNAPSHOT if u32_at(extras, 0) == OSO_END => {
                (stream.unordered, stream.snapshot_end) = (false, stream.seqno);
            }
            SYSTEM_EVENT | SEQNO_ADVANCED => stream.seqno = stream.seqno.max(u64_at(extras, 0)),
            STREAM_END => stream.state = State::Over,
            _ => {}
        }
    }

    /// Take the data message from `at` to the end of `bytes`; whether its stream wants it.
    #[inline(always)]
    fn data(&mut self, bytes: &[u8], at: usize, header: &Header, block: &mut Block) -> Result<bool, Wrong> {
        let collections = self.collections.ok_or(Wrong::Early)?;
        let extras = at + HEADER + header.framing;
        let (mut key, value) = (extras + header.extras, extras + header.extras + header.key);
        let sound = match header.opcode {
            MUTATION => header.extras == 31,
            DELETION => header.extras == 18 || header.extras == 21,
            _ => header.extras == 20,
        };
        if !sound {
            return Err(Wrong::Extras);
        }
        let mut collection = 0;
        if collections {
            let length;
            (length, collection) = collection_id(&bytes[key..value]).ok_or(Wrong::CollectionId)?;
            key += length;
        }
        let seqno = u64_at(bytes, extras);
        if !self.admit(header, seqno, block)? {
            return Ok(false);
        }
        block.opcode.push(header.opcode);
        block.datatype.push(header.datatype);
        block.vbucket.push(header.vbucket);
        block.opaque.push(header.opaque);
        block.cas.push(header.cas);
        block.seqno.push(seqno);
        block.rev_seqno.push(u64_at(bytes, extras + 8));
        let (flags, expiry) = match (header.opcode, header.extras) {
            (MUTATION, _) => (u32_at(bytes, extras + 16), u32_at(bytes, extras + 20)),
            (_, 18) => (0, 0),
            _ => (0, u32_at(bytes, extras + 16)),
        };
        block.flags.push(flags);
        block.expiry.push(expiry);
        block.collection_id.push(collection);
        block.key_start.push(key as i64);
        block.value_start.push(value as i64);
        block.value_end.push(bytes.len() as i64);
        Ok(true)
    }

    /// Check a data message against its stream; whether that wants it.
    #[inline(always)]
    fn admit(&mut self, header: &Header, seqno: u64, block: &mut Block) -> Result<bool, Wrong> {
        let stream = match self.streams.get_mut(header.vbucket as usize) {
            Some(stream) if stream.state != State::Over && stream.opaque == header.opaque => stream,
            _ => return self.stray(header),
        };
        if stream.closing {
            return Ok(false);
        }
        if stream.state == State::Requested {
            return Err(Wrong::Stream);
        }
        if stream.unordered {
            stream.seqno = stream.seqno.max(seqno);
        } else if seqno <= stream.seqno || seqno > stream.snapshot_end || !stream.marked {
            return Err(Wrong::Stream);
        } else {
            stream.seqno = seqno;
        }
        if stream.fresh {
            stream.fresh = false;
            block.fresh.push(header.vbucket);
        }
        Ok(true)
    }

    /// A message of a stream that is over is passed over; the opaque of another vbucket is an error.
    #[cold]
    fn stray(&self, header: &Header) -> Result<bool, Wrong> {
        let wanted = |stream: &Stream| stream.state != State::Over && !stream.closing;
        if self.streams.iter().any(|stream| stream.opaque == header.opaque && wanted(stream)) {
            return Err(Wrong::Stream);
        }
        Ok(false)
    }
}

/// The number of the collection in front of a key (LEB128 in its shortest form), and how long it is.
#[inline(always)]
fn collection_id(key: &[u8]) -> Option<(usize, u32)> {
    let mut number = 0u64;
    for (place, byte) in key.iter().take(5).enumerate() {
        number |= ((byte & 0x7f) as u64) << (7 * place);
        if *byte < 0x80 {
            let shortest = *byte != 0 || place == 0;
            return if shortest { Some((place + 1, u32::try_from(number).ok()?)) } else { None };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(magic: u8, opcode: u8, opaque: u32, extras: &[u8]) -> Vec<u8> {
        let length = extras.len() as u32;
        let mut frame = vec![magic, opcode, 0, 0, length as u8, 0, 0, 0];
        frame.extend(length.to_be_bytes());
        frame.extend(opaque.to_be_bytes());
        frame.extend([0; 8]);
        frame.extend(extras);
        frame
    }

    fn mutation(seqno: u64) -> Vec<u8> {
        frame(REQUEST, MUTATION, 7, &[&seqno.to_be_bytes()[..], &[0; 23]].concat())
    }

    #[test]
    fn the_end_of_an_earlier_stream_comes_in_its_place() {
        let mut decoder = FrameDecoder::new(1000);
        decoder.collections = Some(false);
        decoder.open(0, 7, 0);
        let granted = frame(RESPONSE, STREAM_REQUEST, 7, &[]);
        let marker = frame(REQUEST, SNAPSHOT_MARKER, 7, &[&[0; 15][..], &[9, 0, 0, 0, 0]].concat());
        let began = [granted, marker, mutation(1)].concat();
        let stray = frame(REQUEST, STREAM_END, 6, &[0; 4]);
        let over = [stray, mutation(2), frame(REQUEST, STREAM_END, 7, &[0; 4])].concat();
        let all = [&began[..], &over].concat();
        let block = decoder.decode(&all, 0);
        assert_eq!((block.seqno, block.consumed, block.more), (vec![1], began.len(), true));
        let block = decoder.decode(&all, began.len());
        assert_eq!((block.seqno, block.before.len(), block.after.len()), (vec![2], 1, 1));
        assert_eq!((block.consumed, block.more, block.error), (all.len(), false, None));
    }
}
