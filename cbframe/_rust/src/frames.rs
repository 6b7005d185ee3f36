//! The frames of a receive buffer: data messages as columns, checked against their streams.

/// Bytes of a header.
const HEADER: usize = 24;
const REQUEST: u8 = 0x80;
const FLEX_REQUEST: u8 = 0x08;
const RESPONSE: u8 = 0x81;
const FLEX_RESPONSE: u8 = 0x18;
const SERVER_REQUEST: u8 = 0x82;
const SERVER_RESPONSE: u8 = 0x83;

const MUTATION: u8 = 0x57;
const DELETION: u8 = 0x58;
const EXPIRATION: u8 = 0x59;
const STREAM_END: u8 = 0x55;
const SNAPSHOT_MARKER: u8 = 0x56;
const SYSTEM_EVENT: u8 = 0x5f;
const SEQNO_ADVANCED: u8 = 0x64;
const OSO_SNAPSHOT: u8 = 0x65;
const OSO_START: u32 = 1;
const OSO_END: u32 = 2;

const SNAPPY: u8 = 2;
const XATTR: u8 = 4;
/// Three bytes of a Snappy block put out at most 64: who claims more is not to be believed.
const MOST_BYTES_A_BYTE: usize = 22;

/// A stream of a vbucket, as far as its data messages are checked.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stream {
    pub opaque: u32,
    pub open: bool,
    /// Its messages are passed over: it is being closed.
    pub closing: bool,
    /// In an out-of-order snapshot.
    pub unordered: bool,
    /// There was a snapshot marker.
    pub marked: bool,
    /// Nothing of the last snapshot came yet.
    pub fresh: bool,
    pub seqno: u64,
    pub snapshot_end: u64,
    /// Of an out-of-order snapshot.
    pub highest: u64,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    Magic,
    TooLong,
    /// The parts of the body do not fit into it, or the extras have no length that they may have.
    Parts,
    CollectionId,
    /// It has the opaque of another vbucket's stream.
    VBucket,
    /// Its sequence number is not in the snapshot, or does not ascend.
    Seqno,
    Snappy,
    Xattrs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    pub wrong: Wrong,
    /// Where the frame begins.
    pub offset: usize,
    pub opcode: u8,
    pub vbucket: u16,
    pub seqno: u64,
}

/// A column of bytes.
#[derive(Default)]
pub struct Binary {
    pub ends: Vec<i32>,
    pub bytes: Vec<u8>,
}

impl Binary {
    fn end(&mut self) -> bool {
        let end = i32::try_from(self.bytes.len());
        self.ends.push(end.unwrap_or(i32::MAX));
        end.is_ok()
    }
}

/// The data messages of a buffer, and where the others are.
#[derive(Default)]
pub struct Block {
    pub key: Binary,
    pub value: Binary,
    pub opcode: Vec<u8>,
    pub datatype: Vec<u8>,
    pub vbucket: Vec<u16>,
    pub collection_id: Vec<u32>,
    pub cas: Vec<u64>,
    pub seqno: Vec<u64>,
    pub rev_seqno: Vec<u64>,
    pub flags: Vec<u32>,
    pub expiry: Vec<u32>,
    /// Extended attributes: how many there are up to each row, their names and their texts.
    pub xattrs: Vec<i32>,
    pub xattr_names: Binary,
    pub xattr_texts: Binary,
    /// Frames that are to be handled before the rows, and after them: where they begin.
    pub before: Vec<u32>,
    pub after: Vec<u32>,
    /// Vbuckets whose snapshot has its first row here.
    pub fresh: Vec<u16>,
    /// Bytes of whole frames that were taken.
    pub consumed: usize,
    /// Data messages that were taken, and their bytes; those of streams that are over among them.
    pub messages: usize,
    pub nbytes: usize,
    pub dropped: usize,
    /// More whole frames may follow.
    pub more: bool,
}

impl Block {
    fn new(room: usize) -> Block {
        let mut block = Block::default();
        let rows = room / 128;
        for binary in [&mut block.key, &mut block.value, &mut block.xattr_names, &mut block.xattr_texts] {
            binary.ends.push(0);
        }
        block.key.bytes.reserve(rows * 24);
        block.value.bytes.reserve(room);
        block.xattrs.push(0);
        block
    }

    pub fn rows(&self) -> usize {
        self.opcode.len()
    }
}

/// What a connection was granted, and what is wanted of its messages.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Keys have the number of their collection in front.
    pub collections: bool,
    /// Extended attributes are wanted.
    pub xattrs: bool,
    /// Values that came compressed are inflated; the datatype does not say so any more.
    pub inflate: bool,
    pub max_body: usize,
    /// Most bytes of a block's frames.
    pub max_block: usize,
}

pub struct FrameDecoder {
    pub settings: Settings,
    /// By vbucket.
    streams: Vec<Stream>,
    snappy: snap::raw::Decoder,
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

    fn is_data(&self) -> bool {
        self.is_request() && matches!(self.opcode, MUTATION | DELETION | EXPIRATION)
    }
}

fn is_magic(byte: u8) -> bool {
    matches!(byte, REQUEST | FLEX_REQUEST | RESPONSE | FLEX_RESPONSE | SERVER_REQUEST | SERVER_RESPONSE)
}

impl FrameDecoder {
    pub fn new(settings: Settings) -> FrameDecoder {
        FrameDecoder { settings, streams: Vec::new(), snappy: snap::raw::Decoder::new() }
    }

    /// The stream of a vbucket, to be looked at and changed.
    pub fn stream(&mut self, vbucket: u16) -> &mut Stream {
        let at = vbucket as usize;
        if at >= self.streams.len() {
            self.streams.resize(at + 1, Stream::default());
        }
        &mut self.streams[at]
    }

    /// Take whole frames from the front of a buffer.
    ///
    /// It stops early at a message of a stream that has rows in the block already, since its place among them
    /// matters; after the end of a stream nothing of it follows, so that may come after the rows.
    pub fn decode(&mut self, buffer: &[u8]) -> Result<Block, Error> {
        let mut block = Block::new(buffer.len().min(self.settings.max_block));
        // Vbuckets that have rows here: a bit for each.
        let mut present = vec![0u64; self.streams.len().div_ceil(64)];
        let mut at = 0;
        loop {
            let Some(bytes) = buffer.get(at..at + HEADER).and_then(|part| <&[u8; HEADER]>::try_from(part).ok()) else {
                if buffer.get(at).is_some_and(|magic| !is_magic(*magic)) {
                    return Err(wrong(Wrong::Magic, at, 0, 0, 0));
                }
                break;
            };
            let header = Header::read(bytes);
            let error = |kind, seqno| wrong(kind, at, header.opcode, header.vbucket, seqno);
            if !is_magic(header.magic) {
                return Err(error(Wrong::Magic, 0));
            }
            if header.body > self.settings.max_body {
                return Err(error(Wrong::TooLong, 0));
            }
            if header.framing + header.extras + header.key > header.body {
                return Err(error(Wrong::Parts, 0));
            }
            let end = at + HEADER + header.body;
            let Some(frame) = buffer.get(at..end) else { break };
            let of_stream = header.is_request() && self.streams.get(header.vbucket as usize).is_some();
            if header.is_data() {
                if block.rows() > 0 && end > self.settings.max_block {
                    block.more = true;
                    break;
                }
                self.data(frame, &header, &mut block).map_err(|(kind, seqno)| error(kind, seqno))?;
                if of_stream {
                    present[header.vbucket as usize / 64] |= 1 << (header.vbucket % 64);
                }
                block.messages += 1;
                block.nbytes += frame.len();
            } else {
                let has_rows = of_stream && present[header.vbucket as usize / 64] >> (header.vbucket % 64) & 1 != 0;
                if has_rows && header.opcode != STREAM_END {
                    block.more = true;
                    break;
                }
                let place = u32::try_from(at).map_err(|_| error(Wrong::TooLong, 0))?;
                if has_rows {
                    block.after.push(place);
                } else {
                    block.before.push(place);
                }
                if of_stream {
                    self.message(frame, &header);
                }
            }
            at = end;
        }
        block.consumed = at;
        Ok(block)
    }

    /// Take note of what a message says of the messages after it. What is wrong with it is found where it is
    /// handled.
    fn message(&mut self, frame: &[u8], header: &Header) {
        let stream = &mut self.streams[header.vbucket as usize];
        if !stream.open || stream.opaque != header.opaque {
            return;
        }
        let extras = frame.get(HEADER + header.framing..).unwrap_or_default();
        let value = extras.get(header.extras + header.key..).unwrap_or_default();
        match header.opcode {
            SNAPSHOT_MARKER => {
                let fields = if header.extras == 1 { value } else { extras };
                stream.snapshot_end = u64_at(fields, 8);
                (stream.marked, stream.fresh) = (true, true);
            }
            OSO_SNAPSHOT if u32_at(extras, 0) == OSO_START => {
                (stream.unordered, stream.marked, stream.fresh) = (true, true, true);
            }
            OSO_SNAPSHOT if u32_at(extras, 0) == OSO_END => {
                stream.unordered = false;
                (stream.seqno, stream.snapshot_end) = (stream.highest, stream.highest);
            }
            SYSTEM_EVENT | SEQNO_ADVANCED if stream.unordered => {
                stream.highest = stream.highest.max(u64_at(extras, 0));
            }
            SYSTEM_EVENT | SEQNO_ADVANCED => stream.seqno = stream.seqno.max(u64_at(extras, 0)),
            STREAM_END => stream.open = false,
            _ => {}
        }
    }

    #[inline(always)]
    fn data(&mut self, frame: &[u8], header: &Header, block: &mut Block) -> Result<(), (Wrong, u64)> {
        let extras = HEADER + header.framing;
        let key = extras + header.extras;
        let value = key + header.key;
        let length = header.extras;
        let sound = match header.opcode {
            MUTATION => length == 31,
            DELETION => length == 18 || length == 21,
            _ => length == 20,
        };
        if !sound {
            return Err((Wrong::Parts, 0));
        }
        let seqno = u64_at(frame, extras);
        if !self.admit(header, seqno, block)? {
            block.dropped += frame.len();
            return Ok(());
        }
        let (mut key, mut collection) = (key, 0);
        if self.settings.collections {
            (key, collection) = collection_id(frame, key, value).ok_or((Wrong::CollectionId, seqno))?;
        }
        block.key.bytes.extend_from_slice(&frame[key..value]);
        let mut datatype = header.datatype;
        let body = &frame[value..];
        let packed = datatype & SNAPPY != 0 && !body.is_empty() && (datatype & XATTR == 0 || body[0] != 0);
        let from = block.value.bytes.len();
        if packed && self.settings.inflate {
            self.inflate(body, &mut block.value.bytes).ok_or((Wrong::Snappy, seqno))?;
        } else {
            block.value.bytes.extend_from_slice(body);
        }
        if self.settings.inflate {
            datatype &= !SNAPPY;
            if datatype & XATTR != 0 && block.value.bytes.len() > from {
                self.split(from, block).ok_or((Wrong::Xattrs, seqno))?;
            }
            if !self.settings.xattrs {
                datatype &= !XATTR;
            }
        }
        block.xattrs.push(block.xattr_names.ends.len() as i32 - 1);
        if !block.key.end() || !block.value.end() {
            return Err((Wrong::TooLong, seqno));
        }
        block.opcode.push(header.opcode);
        block.datatype.push(datatype);
        block.vbucket.push(header.vbucket);
        block.collection_id.push(collection);
        block.cas.push(header.cas);
        block.seqno.push(seqno);
        block.rev_seqno.push(u64_at(frame, extras + 8));
        let (flags, expiry) = match (header.opcode, length) {
            (MUTATION, _) => (u32_at(frame, extras + 16), u32_at(frame, extras + 20)),
            (_, 18) => (0, 0),
            _ => (0, u32_at(frame, extras + 16)),
        };
        block.flags.push(flags);
        block.expiry.push(expiry);
        Ok(())
    }

    /// Check a data message against its stream; whether that wants it.
    #[inline(always)]
    fn admit(&mut self, header: &Header, seqno: u64, block: &mut Block) -> Result<bool, (Wrong, u64)> {
        let stream = match self.streams.get_mut(header.vbucket as usize) {
            Some(stream) if stream.open && stream.opaque == header.opaque => stream,
            _ => return self.stray(header),
        };
        if stream.closing {
            return Ok(false);
        }
        if stream.unordered {
            stream.highest = stream.highest.max(seqno);
        } else if seqno <= stream.seqno || seqno > stream.snapshot_end || !stream.marked {
            return Err((Wrong::Seqno, seqno));
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
    fn stray(&self, header: &Header) -> Result<bool, (Wrong, u64)> {
        if self.streams.iter().any(|stream| stream.open && stream.opaque == header.opaque) {
            return Err((Wrong::VBucket, 0));
        }
        Ok(false)
    }

    fn inflate(&mut self, body: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let length = snap::raw::decompress_len(body).ok()?;
        if length > self.settings.max_body || length > body.len().saturating_mul(MOST_BYTES_A_BYTE) {
            return None;
        }
        let from = out.len();
        out.resize(from + length, 0);
        let written = self.snappy.decompress(body, &mut out[from..]).ok()?;
        (written == length).then_some(())
    }

    /// Take the extended attributes off a value, which begins at a place of the block's values.
    fn split(&self, from: usize, block: &mut Block) -> Option<()> {
        let value = block.value.bytes.get(from..)?;
        let end = 4 + word(value, 0)?;
        let section = value.get(..end)?;
        let mut at = 4;
        while at < end {
            let stop = at + 4 + word(section, at)?;
            let pair = section.get(at + 4..stop)?;
            let (last, pair) = pair.split_last()?;
            let nul = pair.iter().position(|byte| *byte == 0)?;
            let (name, text) = (&pair[..nul], &pair[nul + 1..]);
            if *last != 0
                || text.contains(&0)
                || std::str::from_utf8(name).is_err()
                || std::str::from_utf8(text).is_err()
            {
                return None;
            }
            if self.settings.xattrs {
                block.xattr_names.bytes.extend_from_slice(name);
                block.xattr_texts.bytes.extend_from_slice(text);
                if !block.xattr_names.end() || !block.xattr_texts.end() {
                    return None;
                }
            }
            at = stop;
        }
        block.value.bytes.drain(from..from + end);
        Some(())
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

fn wrong(wrong: Wrong, offset: usize, opcode: u8, vbucket: u16, seqno: u64) -> Error {
    Error { wrong, offset, opcode, vbucket, seqno }
}

/// The number of the collection in front of a key (LEB128 in its shortest form), and where the key begins.
#[inline(always)]
fn collection_id(frame: &[u8], key: usize, end: usize) -> Option<(usize, u32)> {
    let prefix = &frame[key..end];
    let first = *prefix.first()?;
    if first < 0x80 {
        return Some((key + 1, first as u32));
    }
    let mut number = 0u64;
    for (place, byte) in prefix.iter().take(5).enumerate() {
        number |= ((byte & 0x7f) as u64) << (7 * place);
        if *byte < 0x80 {
            return if *byte == 0 { None } else { Some((key + place + 1, u32::try_from(number).ok()?)) };
        }
    }
    None
}
