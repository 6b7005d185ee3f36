//! Tokens of JSON (RFC 8259, strictly).

/// Arrays and objects of a document that nest deeper make it invalid.
pub const MAX_DEPTH: u32 = 200;
/// Room for this many spare bytes makes [`Text::append`] fast.
pub const COPIED: usize = 32;
/// A number of this many characters may be beyond the range of a double.
const LONG: usize = 300;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is not JSON.
    Invalid,
    /// It nests deeper than [`MAX_DEPTH`].
    Deep,
    /// An object has more different names than a struct may have members.
    Wide,
}

pub type Result<T> = std::result::Result<T, Fault>;

/// What a value is, and what its cell holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    Null,
    /// 0 or 1.
    Bool,
    /// Up to 18 digits, but not `-0`: the number.
    Int,
    /// Another integer: its source.
    Long,
    /// With a point, and within the range of a double: its source.
    Double,
    /// With an exponent, or very long: its source.
    Exponent,
    /// What is between the quotes.
    Str,
    /// The same, with escapes.
    Escaped,
    /// The source.
    Array,
    /// The source.
    Object,
}

impl Kind {
    const ALL: [Kind; 10] = [
        Kind::Null,
        Kind::Bool,
        Kind::Int,
        Kind::Long,
        Kind::Double,
        Kind::Exponent,
        Kind::Str,
        Kind::Escaped,
        Kind::Array,
        Kind::Object,
    ];
}

/// Some kinds of values.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Kinds(u16);

impl Kinds {
    pub const fn of(kinds: &[Kind]) -> Kinds {
        let (mut bits, mut place) = (0, 0);
        while place < kinds.len() {
            bits |= 1 << kinds[place] as u16;
            place += 1;
        }
        Kinds(bits)
    }

    #[inline(always)]
    pub fn add(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u16;
    }

    /// Whether there are no others than these.
    pub fn are_only(self, kinds: &[Kind]) -> bool {
        self.0 & !Kinds::of(kinds).0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.0 >> *kind as u16 & 1 != 0)
    }
}

/// The documents of a batch, up to the end of one of them.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// Everything: chunks of bytes may be read beyond the end of the document.
    all: &'a [u8],
    /// Up to the end of the document.
    doc: &'a [u8],
}

impl<'a> Text<'a> {
    pub fn new(all: &'a [u8], end: usize) -> Text<'a> {
        Text { all, doc: &all[..end] }
    }

    pub fn end(&self) -> usize {
        self.doc.len()
    }

    /// The byte at a place; 0, which is no token of JSON, at the end.
    #[inline(always)]
    pub fn byte(&self, at: usize) -> u8 {
        self.doc.get(at).copied().unwrap_or(0)
    }

    #[inline(always)]
    pub fn slice(&self, from: usize, to: usize) -> &'a [u8] {
        &self.doc[from..to]
    }

    /// Some bytes at a place; None at the very end.
    #[inline(always)]
    fn chunk<const N: usize>(&self, at: usize) -> Option<&'a [u8; N]> {
        self.all.get(at..)?.first_chunk()
    }

    /// Append what is between two places.
    ///
    /// Most strings are short: a copy of as many bytes as the processor copies at once, cut off behind them, costs
    /// less than one of exactly this many.
    #[inline(always)]
    pub fn append(&self, from: usize, to: usize, out: &mut Vec<u8>) {
        match self.chunk::<COPIED>(from) {
            Some(bytes) if to - from <= COPIED => {
                let end = out.len() + (to - from);
                out.extend_from_slice(bytes);
                out.truncate(end);
            }
            _ => out.extend_from_slice(self.slice(from, to)),
        }
    }

    /// Eight bytes as a little-endian number; zeros at the very end.
    #[inline(always)]
    pub fn word(&self, at: usize) -> u64 {
        match self.chunk(at) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => self.last_word(at),
        }
    }

    #[cold]
    fn last_word(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        let rest = self.all.get(at..).unwrap_or_default();
        bytes[..rest.len()].copy_from_slice(rest);
        u64::from_le_bytes(bytes)
    }

    #[inline(always)]
    pub fn blanks(&self, at: usize) -> usize {
        if self.byte(at) > b' ' {
            at
        } else {
            self.more_blanks(at)
        }
    }

    #[inline(never)]
    fn more_blanks(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), b' ' | b'\n' | b'\r' | b'\t') {
            at += 1;
        }
        at
    }

    /// From behind an opening quote: where the closing one is, and whether there are escapes before it.
    #[inline(always)]
    pub fn string(&self, start: usize) -> Result<(usize, bool)> {
        let mut at = start;
        let mut wide = 0;
        let mut escapes = false;
        loop {
            let (found, high) = match self.chunk(at) {
                Some(bytes) => special(bytes),
                None => special(&self.last(at)),
            };
            if found == 0 {
                wide |= high;
                at += 16;
                continue;
            }
            let ahead = found.trailing_zeros();
            wide |= high & ((1 << ahead) - 1);
            at += ahead as usize;
            match self.byte(at) {
                b'"' => break,
                b'\\' => {
                    escapes = true;
                    at = self.escape(at)?.1;
                }
                _ => return Err(Fault::Invalid),
            }
        }
        if wide != 0 && std::str::from_utf8(self.slice(start, at)).is_err() {
            return Err(Fault::Invalid);
        }
        Ok((at, escapes))
    }

    /// The last bytes, and control characters after them.
    #[cold]
    fn last(&self, at: usize) -> [u8; 16] {
        let mut bytes = [0; 16];
        let rest = self.all.get(at..).unwrap_or_default();
        bytes[..rest.len()].copy_from_slice(rest);
        bytes
    }

    fn hex(&self, at: usize) -> Result<u32> {
        let digits = self.doc.get(at..at + 4).ok_or(Fault::Invalid)?;
        digits.iter().try_fold(0, |number, digit| match (*digit as char).to_digit(16) {
            Some(value) => Ok(number << 4 | value),
            None => Err(Fault::Invalid),
        })
    }

    /// The character of the escape at a place, and where it ends. Half of a surrogate pair is none.
    #[inline(never)]
    fn escape(&self, at: usize) -> Result<(char, usize)> {
        let plain = match self.byte(at + 1) {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex(at + 2)?;
                if !(0xd800..0xdc00).contains(&first) {
                    return Ok((char::from_u32(first).ok_or(Fault::Invalid)?, at + 6));
                }
                if self.byte(at + 6) != b'\\' || self.byte(at + 7) != b'u' {
                    return Err(Fault::Invalid);
                }
                let second = self.hex(at + 8)?;
                if !(0xdc00..0xe000).contains(&second) {
                    return Err(Fault::Invalid);
                }
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok((char::from_u32(code).ok_or(Fault::Invalid)?, at + 12));
            }
            _ => return Err(Fault::Invalid),
        };
        Ok((plain, at + 2))
    }

    /// Append the text of a sound string with escapes.
    #[inline(never)]
    pub fn unescape(&self, mut at: usize, to: usize, out: &mut Vec<u8>) {
        while at < to {
            let run = self.slice(at, to).iter().position(|byte| *byte == b'\\').unwrap_or(to - at);
            out.extend_from_slice(self.slice(at, at + run));
            at += run;
            if at < to {
                let Ok((character, next)) = self.escape(at) else { return };
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                at = next;
            }
        }
    }

    /// The number at a place: what it is, the number itself if it is short, and where it ends.
    #[inline(always)]
    pub fn number(&self, start: usize) -> Result<(Kind, i64, usize)> {
        let negative = self.byte(start) == b'-';
        let first = start + negative as usize;
        let (number, at) = match self.few_digits(first) {
            Some((digits, word)) => (eight_digits(word), first + digits),
            None => self.more_digits(first),
        };
        let digits = at - first;
        if digits == 0 || (digits > 1 && self.byte(first) == b'0') {
            return Err(Fault::Invalid);
        }
        if matches!(self.byte(at), b'.' | b'e' | b'E') {
            let (kind, end) = self.fraction(start, at)?;
            return Ok((kind, 0, end));
        }
        if digits > 18 || (negative && number == 0) {
            return Ok((Kind::Long, 0, at));
        }
        Ok((Kind::Int, if negative { -(number as i64) } else { number as i64 }, at))
    }

    /// Up to seven digits at a place: how many, and the eight digits of their number. None if there are more.
    #[inline(always)]
    fn few_digits(&self, at: usize) -> Option<(usize, u64)> {
        let word = self.word(at) ^ 0x3030_3030_3030_3030;
        let others = (((word & 0x7f7f_7f7f_7f7f_7f7f) + 0x7676_7676_7676_7676) | word) & 0x8080_8080_8080_8080;
        let bits = others.trailing_zeros() & !7;
        let digits = bits as usize / 8;
        // Shifted twice: by 64 at once is no shift.
        (digits < 8 && at + digits <= self.end()).then(|| (digits, word << (56 - bits) << 8))
    }

    /// The number of all digits at a place, which is right if there are up to nineteen, and where they end.
    #[inline(never)]
    fn more_digits(&self, mut at: usize) -> (u64, usize) {
        let mut number = 0u64;
        loop {
            let digit = self.byte(at).wrapping_sub(b'0');
            if digit > 9 {
                return (number, at);
            }
            number = number.wrapping_mul(10).wrapping_add(digit as u64);
            at += 1;
        }
    }

    #[inline(always)]
    fn digits(&self, start: usize) -> Result<usize> {
        let at = match self.few_digits(start) {
            Some((digits, _)) => start + digits,
            None => self.more_digits(start).1,
        };
        if at > start {
            Ok(at)
        } else {
            Err(Fault::Invalid)
        }
    }

    #[inline(always)]
    fn fraction(&self, start: usize, mut at: usize) -> Result<(Kind, usize)> {
        if self.byte(at) == b'.' {
            at = self.digits(at + 1)?;
        }
        let exponent = matches!(self.byte(at), b'e' | b'E');
        if exponent {
            at += 1;
            at = self.digits(at + matches!(self.byte(at), b'-' | b'+') as usize)?;
        }
        let kind = if exponent || at - start > LONG { Kind::Exponent } else { Kind::Double };
        Ok((kind, at))
    }

    /// Where the constant at a place ends.
    #[inline(always)]
    pub fn literal(&self, at: usize) -> Result<usize> {
        const TRUE: u32 = u32::from_le_bytes(*b"true");
        const NULL: u32 = u32::from_le_bytes(*b"null");
        const ALSE: u32 = u32::from_le_bytes(*b"alse");
        let word = self.word(at);
        let end = match word as u32 {
            TRUE | NULL => at + 4,
            _ if (word >> 8) as u32 == ALSE && word as u8 == b'f' => at + 5,
            _ => return Err(Fault::Invalid),
        };
        if end <= self.end() {
            Ok(end)
        } else {
            Err(Fault::Invalid)
        }
    }

    /// Check the value at a place, inside of `depth` arrays and objects; where it ends.
    pub fn skip(&self, mut at: usize, depth: u32) -> Result<usize> {
        // A bit for each array or object that is open, the innermost last: whether it is an object.
        let mut open = [0u64; MAX_DEPTH as usize / 64 + 1];
        let mut level = depth;
        loop {
            let mut closed = true;
            match self.byte(at) {
                b'"' => at = self.string(at + 1)?.0 + 1,
                b'-' | b'0'..=b'9' => at = self.number(at)?.2,
                b't' | b'f' | b'n' => at = self.literal(at)?,
                bracket @ (b'{' | b'[') => {
                    if level == MAX_DEPTH {
                        return Err(Fault::Deep);
                    }
                    let (word, bit) = (level as usize / 64, 1 << (level % 64));
                    level += 1;
                    at = self.blanks(at + 1);
                    if bracket == b'{' {
                        open[word] |= bit;
                        if self.byte(at) != b'}' {
                            at = self.name(at)?.2;
                            closed = false;
                        }
                    } else {
                        open[word] &= !bit;
                        closed = self.byte(at) == b']';
                    }
                    if closed {
                        level -= 1;
                        at += 1;
                    }
                }
                _ => return Err(Fault::Invalid),
            }
            while closed {
                if level == depth {
                    return Ok(at);
                }
                let innermost = level - 1;
                let object = open[innermost as usize / 64] >> (innermost % 64) & 1 != 0;
                at = self.blanks(at);
                match self.byte(at) {
                    b',' => {
                        at = self.blanks(at + 1);
                        if object {
                            at = self.name(at)?.2;
                        }
                        closed = false;
                    }
                    b'}' if object => (at, level) = (at + 1, innermost),
                    b']' if !object => (at, level) = (at + 1, innermost),
                    _ => return Err(Fault::Invalid),
                }
            }
        }
    }

    /// The name of a member at a place: where it ends, whether it has escapes, and where the value is.
    #[inline(always)]
    pub fn name(&self, at: usize) -> Result<(usize, bool, usize)> {
        if self.byte(at) != b'"' {
            return Err(Fault::Invalid);
        }
        let (end, escapes) = self.string(at + 1)?;
        Ok((end, escapes, self.colon(end + 1)?))
    }

    /// Where the value of a member is, from behind its name.
    #[inline(always)]
    pub fn colon(&self, at: usize) -> Result<usize> {
        let at = self.blanks(at);
        if self.byte(at) != b':' {
            return Err(Fault::Invalid);
        }
        Ok(self.blanks(at + 1))
    }
}

/// The number of eight digits, each the value of a byte, the first in the lowest.
#[inline(always)]
pub fn eight_digits(digits: u64) -> u64 {
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let first = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let second = (pairs >> 16 & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
    first.wrapping_add(second) >> 32
}

/// Of sixteen bytes those that end a run of a string's characters: quotes, backslashes and control characters;
/// and those that are not ASCII.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn special(bytes: &[u8; 16]) -> (u32, u32) {
    use std::arch::x86_64::*;
    // SAFETY: every processor of this architecture has SSE2, and sixteen bytes are there.
    unsafe {
        let chunk = _mm_loadu_si128(bytes.as_ptr().cast());
        let quote = _mm_cmpeq_epi8(chunk, _mm_set1_epi8(b'"' as i8));
        let backslash = _mm_cmpeq_epi8(chunk, _mm_set1_epi8(b'\\' as i8));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(chunk, _mm_set1_epi8(0x1f)), chunk);
        let any = _mm_or_si128(_mm_or_si128(quote, backslash), control);
        (_mm_movemask_epi8(any) as u32, _mm_movemask_epi8(chunk) as u32)
    }
}

#[cfg(not(target_arch = "x86_64"))]
use portable as special;

#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
#[inline(always)]
fn portable(bytes: &[u8; 16]) -> (u32, u32) {
    let (mut any, mut high) = (0, 0);
    for (place, byte) in bytes.iter().enumerate() {
        any |= ((*byte == b'"' || *byte == b'\\' || *byte < b' ') as u32) << place;
        high |= ((*byte >> 7) as u32) << place;
    }
    (any, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(document: &str) -> Text<'_> {
        Text::new(document.as_bytes(), document.len())
    }

    #[test]
    fn both_forms_find_the_same() {
        let mut state = 1u64;
        for _ in 0..10_000 {
            let mut bytes = [0; 16];
            for byte in &mut bytes {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (state >> 33) as u8;
                if state >> 60 == 0 {
                    *byte = b'"';
                }
            }
            assert_eq!(special(&bytes), portable(&bytes));
        }
    }

    #[test]
    fn nothing_is_read_past_the_end_of_a_document() {
        let all = br#""ab" true 123 "x"#;
        assert_eq!(Text::new(all, 3).string(1), Err(Fault::Invalid));
        assert_eq!(Text::new(all, 8).literal(5), Err(Fault::Invalid));
        assert_eq!(Text::new(all, 12).number(10), Ok((Kind::Int, 12, 12)));
        assert_eq!(Text::new(all, 16).string(15), Err(Fault::Invalid));
    }

    #[test]
    fn integers_of_every_length() {
        for digits in 1..25 {
            for (sign, end) in [("", 0), ("-", 0), ("", 9), ("-", 9)] {
                let number = format!("{sign}{}", &"1234567890123456789012345"[..digits]);
                let all = format!("{number}{}", &"123456789"[..end]);
                let found = Text::new(all.as_bytes(), number.len()).number(0);
                match number.parse() {
                    Ok(value) if digits <= 18 => assert_eq!(found, Ok((Kind::Int, value, number.len()))),
                    _ => assert_eq!(found, Ok((Kind::Long, 0, number.len()))),
                }
            }
        }
    }

    #[test]
    fn appended_text_ends_where_it_should() {
        let all = b"0123456789".repeat(10);
        for length in 0..=60 {
            for from in [0, 7, 40] {
                let mut out = b"before".to_vec();
                Text::new(&all, all.len()).append(from, from + length, &mut out);
                assert_eq!(out, [b"before", &all[from..from + length]].concat());
            }
        }
    }

    #[test]
    fn sound_values_are_skipped() {
        for document in
            ["1", "-0", "1.5e-3", r#""a\n\ud83d\ude00""#, "[]", "{}", r#"{"a" : [1, {"b":null}], "c":[[]]}"#]
        {
            assert_eq!(text(document).skip(0, 0), Ok(document.len()), "{document}");
        }
    }

    #[test]
    fn unsound_values_are_refused() {
        for document in [
            "",
            "01",
            "1.",
            ".5",
            "1e",
            "+1",
            "nul",
            "[1,]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{1:2}",
            "[1}",
            r#""\ud800""#,
            r#""\x""#,
            "\"\n\"",
            "\"a",
        ] {
            assert_eq!(text(document).skip(0, 0), Err(Fault::Invalid), "{document}");
        }
    }

    #[test]
    fn two_hundred_levels_are_allowed() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert_eq!(text(&nested(200)).skip(0, 0), Ok(400));
        assert_eq!(text(&nested(201)).skip(0, 0), Err(Fault::Deep));
        assert_eq!(text(&nested(100)).skip(0, 101), Err(Fault::Deep));
    }
}
